// Column sums: for each key, the weights that the last queries give it, Σ exp(s − logSumExp) (arXiv 2306.14048, 2404.14469).
// A tile keeps the weights that softmax makes, with the maximum of their time, and scales them once the rows' sums are
// known. Where few rows are asked for or their weights do not fit, scores are formed once more instead. Either way queries
// are added in ascending order, and which way it is depends on the unit alone. Included after attention_loop_inl.h.
#pragma once

namespace tl::TL_TARGET {

constexpr int64_t kKeptFloats = (int64_t(kScratchBytes) - kTileBytes) / int64_t(sizeof(float)), kKeptUnits = 4096;
constexpr int64_t kCloseFloats = int64_t(1) << 18;  // of weights: what is added up soon comes from the second-level cache
constexpr int64_t kLeastKeptQueries = 16;  // fewer may be split by keys, where no thread has all of a row's weights

inline bool keepsWeights(const Problem& problem, int64_t queries) { return problem.columnSums && std::min(problem.columnQueries, queries) >= kLeastKeptQueries; }

// How many rows' weights fit beside a tile; 0 where they are not kept.
inline int64_t keptRows(const Problem& problem, const Unit& unit) {
  const int64_t padded = roundUp(std::max<int64_t>(unit.keys, 1), kBlockKeys);
  if (!keepsWeights(problem, unit.queries) || problem.units > kKeptUnits || unit.mask.shape == MaskShape::path) return 0;
  const auto fit = [&](int64_t floats) { return floats / (padded + padded / kBlockKeys) / kGroupRows * kGroupRows; };
  return std::min(fit(kKeptFloats - kKeptUnits), std::max<int64_t>(fit(kCloseFloats), kGroupRows));
}

// The first row of a unit whose weights are kept; all rows where none are.
inline int64_t firstKeptRow(const Problem& problem, const Unit& unit) {
  return (keptRows(problem, unit) > 0 ? std::max<int64_t>(unit.queries - problem.columnQueries, 0) : unit.queries) * problem.group;
}

inline float* sumsOfHead(const Unit& unit, int64_t head) { return reinterpret_cast<float*>(unit.columnSums.at(0, head)); }
inline float logSumExpOf(const Tile& tile, int64_t r) { return *reinterpret_cast<const float*>(tile.unit.logSumExp.at(tile.query(r), tile.head(r))); }

inline void clearSums(const Problem& problem, const Unit& unit, int64_t begin, int64_t end) {
  for (int64_t h = 0; h < problem.group; ++h) std::fill(sumsOfHead(unit, h) + begin, sumsOfHead(unit, h) + end, 0.0f);
}

// What each kept block's weights have to be multiplied by, in the place of its maximum; 0: nothing of it was seen.
inline void factorsOfRow(const Tile& tile, int64_t r) {
  float* factors = tile.kept.maxima + r * tile.kept.blocks;
  const float logSumExp = logSumExpOf(tile, r) * kLog2E;
  for (int64_t b = 0; b < tile.kept.blocks; ++b) {
    if (factors[b] == -kInfinity || logSumExp == -kInfinity) factors[b] = 0;
    else if (factors[b] != factors[b]) factors[b] = 1;  // its weights are NaN where it sees a key, and 0 elsewhere
    else factors[b] = exp2Clamped(factors[b] - logSumExp);
  }
}

// sums[j] += Σ over rows r ≡ head (mod group) of factor · weight[r][j], for the keys of one block.
inline void addBlock(const Tile& tile, int64_t head, int64_t block) {
  constexpr int together = 4;
  const WeightStore& kept = tile.kept;
  const int64_t key = block * kBlockKeys, count = std::min<int64_t>(tile.unit.keys - key, kBlockKeys), group = tile.problem.group;
  const int64_t first = (head - tile.row % group + group) % group;
  float* sums = sumsOfHead(tile.unit, head) + key;
  alignas(64) float added[kBlockKeys] = {};
  std::memcpy(added, sums, size_t(count) * sizeof(float));
  for (int64_t j = 0; j < count; j += together * kLanes) {
    F32 sum[together];
#pragma GCC unroll 4
    for (int v = 0; v < together; ++v) sum[v] = load(added + j + v * kLanes);
    for (int64_t r = first; r < tile.rows; r += group) {
      const float factor = kept.maxima[r * kept.blocks + block];
      if (factor == 0) continue;
      const float* weights = kept.weights + r * kept.stride + key + j;
#pragma GCC unroll 4
      for (int v = 0; v < together; ++v) sum[v] = mulAdd(broadcast(factor), load(weights + v * kLanes), sum[v]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < together; ++v) store(added + j + v * kLanes, sum[v]);
  }
  std::memcpy(sums, added, size_t(count) * sizeof(float));
}

inline void addKeptWeights(const Tile& tile) {
  for (int64_t r = 0; r < tile.rows; ++r) factorsOfRow(tile, r);
  for (int64_t block = 0; block < tile.kept.blocks; ++block)
    for (int64_t h = 0; h < tile.problem.group; ++h) addBlock(tile, h, block);
}

// The weights of one (unit, chunk of keys), from scores formed once more.
inline void sumsOfChunk(const Problem& problem, int64_t index, int64_t chunk, int64_t mostRows, std::byte* scratch) {
  const FlushedSubnormals flushed;
  Unit unit;
  problem.unit(problem, index, unit);
  const int64_t firstKey = chunk * kChunkKeys, lastKey = std::min(firstKey + kChunkKeys, unit.keys);
  if (firstKey >= lastKey || keptRows(problem, unit) > 0) return;
  unit.scores = {};
  clearSums(problem, unit, firstKey, lastKey);
  const int64_t end = unit.queries * problem.group;
  for (int64_t row = std::max<int64_t>(unit.queries - problem.columnQueries, 0) * problem.group; row < end; row += mostRows) {
    const Tile tile{problem, unit, row, std::min(end - row, mostRows), carve(problem, mostRows, scratch)};
    packQueries(tile);
    for (int64_t key = firstKey; key < lastKey; key += kBlockKeys) {
      if (tile.cover(0, tile.rows, key) == Cover::none) continue;
      const int count = int(std::min<int64_t>(lastKey - key, kBlockKeys));
      LoadedBlock block(unit.source, key, count, tile.space.block, true, false);
      for (int64_t first = 0; first < tile.rows; first += kGroupRows) {
        const int rows = int(std::min<int64_t>(tile.rows - first, kGroupRows));
        Visible visible[kGroupRows];
        const Cover cover = scoreGroup(tile, block, key, first, rows, visible);
        if (cover == Cover::none) continue;
        for (int r = 0; r < rows; ++r) {
          const float logSumExp = logSumExpOf(tile, first + r);
          if (logSumExp == -kInfinity) continue;  // saw no key
          float* weights = tile.space.scores + r * kBlockKeys;
          float* sums = sumsOfHead(unit, tile.head(first + r)) + key;
          weightsOfRow(weights, cover == Cover::partial ? visible + r : nullptr, logSumExp * kLog2E);
          for (int j = 0; j < count; j += kLanes) {
            if (cover == Cover::partial && !visible[r].word[j / kPanelKeys]) continue;
            if (count - j >= kLanes) store(sums + j, add(load(sums + j), load(weights + j)));
            else storePart(sums + j, add(loadPart(sums + j, count - j), load(weights + j)), count - j);
          }
        }
      }
    }
  }
}

}  // namespace tl::TL_TARGET
