// The one loop of attention: tiles of query rows stream over blocks of keys, with online softmax (arXiv 2205.14135).
// Included after attention_mask_inl.h and attention_source_inl.h.
//
// A row is one query of one head; the query heads of a key/value head are rows of one tile, so keys and values are read
// once for all of them. Sums start afresh every kChunkKeys keys, counted from the first key, and are merged in ascending
// order: a long cache can be split between threads, and a result depends neither on the split nor on the tile.
#pragma once

namespace tl::TL_TARGET {

constexpr int64_t kChunkBlocks = 4, kChunkKeys = kChunkBlocks * kBlockKeys;

// One (sequence, key/value head).
struct Unit {
  const float* query = nullptr;
  float* out = nullptr;
  int64_t queryToken = 0, queryHead = 0, outToken = 0, outHead = 0;  // strides in elements
  int64_t queries = 0, keys = 0;
  Source source;
  KeyMask mask;
};

struct Problem {
  int64_t units = 0, group = 1;          // group: query heads of one key/value head
  int64_t headDim = 0, valueDim = 0;
  int64_t mostQueries = 0, mostKeys = 0;  // of any unit
  float scale = 1;                        // of q · k, log2(e) included
  float softcap = 0;                      // times log2(e); with it `scale` is that of 2/cap · q · k
  const void* context = nullptr;
  void (*unit)(const Problem& problem, int64_t index, Unit& unit) = nullptr;

  int64_t stride() const { return paddedDim(valueDim); }
};

// What a tile works in, carved out of the thread's scratch.
struct Workspace {
  float *query, *block, *scores, *out, *merged, *maximum, *sum, *mergedMaximum, *mergedSum;
};

constexpr int64_t kInPlaceRows = 2 * kRows;                // so few read pages as they are instead of converting them first
constexpr int64_t kTileBytes = int64_t(kScratchBytes) / 2;  // the other half of the first thread's holds partial results

inline int64_t tileFloats(const Problem& problem, int64_t rows) {
  const int64_t padded = roundUp(rows, kRows);
  return blockFloats(problem.headDim, problem.valueDim) + padded * (problem.headDim + 2 * problem.stride() + 4) + kGroupRows * kBlockKeys + 256;
}

inline Workspace carve(const Problem& problem, int64_t rows, std::byte* scratch) {
  const int64_t padded = roundUp(rows, kRows);
  float* next = reinterpret_cast<float*>(scratch);
  const auto take = [&](int64_t count) {
    float* taken = next;
    next += roundUp(count, 16);
    return taken;
  };
  Workspace w;
  w.block = take(blockFloats(problem.headDim, problem.valueDim));
  w.scores = take(kGroupRows * kBlockKeys);
  w.query = take(padded * problem.headDim);
  w.out = take(padded * problem.stride());
  w.merged = take(padded * problem.stride());
  w.maximum = take(padded);
  w.sum = take(padded);
  w.mergedMaximum = take(padded);
  w.mergedSum = take(padded);
  return w;
}

struct Tile {
  const Problem& problem;
  const Unit& unit;
  int64_t row, rows;  // rows are numbered query · group + head
  Workspace space;
  int64_t query(int64_t r) const { return (row + r) / problem.group; }
};

// Queries as [panel][headDim][kRows], scaled; rows that fill the last panel up are zero.
inline void packQueries(const Tile& tile) {
  const int64_t headDim = tile.problem.headDim, group = tile.problem.group;
  for (int64_t r = 0; r < roundUp(tile.rows, kRows); ++r) {
    float* to = tile.space.query + r / kRows * headDim * kRows + r % kRows;
    if (r >= tile.rows) {
      for (int64_t d = 0; d < headDim; ++d) to[d * kRows] = 0;
      continue;
    }
    const float* from = tile.unit.query + (tile.row + r) / group * tile.unit.queryToken + (tile.row + r) % group * tile.unit.queryHead;
    for (int64_t d = 0; d < headDim; ++d) to[d * kRows] = from[d] * tile.problem.scale;
  }
}

// s = 2x/cap · log2(e) on entry (packQueries scaled so); cap · tanh(x/cap) · log2(e) on return: tanh(y) = 1 − 2/(1 + e^2y).
inline void softcapRow(float* scores, float cap) {
  const F32 one = broadcast(1.0f), two = broadcast(2.0f), scale = broadcast(cap), most = broadcast(60.0f);
  for (int v = 0; v < kBlockKeys; v += kLanes) {
    const F32 s = load(scores + v), e = exp2Clamped(min(most, s));
    store(scores + v, mul(scale, sub(one, div(two, add(one, e)))));
  }
}

// Rows [first, first + rows) of the tile, at most kGroupRows, against one block.
template <typename T> void groupAgainstBlock(const Tile& tile, const Block<T>& block, int64_t key, int64_t first, int rows) {
  const Problem& problem = tile.problem;
  const Cover cover = tile.unit.mask.cover(tile.query(first), tile.query(first + rows - 1), key);
  if (cover == Cover::none) return;
  Visible visible[kGroupRows], any = {}, common[kGroupRows];
  if (cover == Cover::partial) {
    for (int r = 0; r < rows; ++r) {
      visible[r] = {};
      tile.unit.mask.visible(tile.query(first + r), key, visible[r]);
      Visible& together = common[r / kRows];
      for (int p = 0; p < kBlockPanels; ++p) {
        any.word[p] |= visible[r].word[p];
        together.word[p] = r % kRows ? together.word[p] & visible[r].word[p] : visible[r].word[p];
      }
    }
  }
  float* scores = tile.space.scores;
  const float* query = tile.space.query + first * problem.headDim;
  for (int p = 0; p < kBlockPanels; ++p) {
    if (cover == Cover::partial && !any.word[p]) continue;
    for (int r = 0; r < rows; r += kRows)
      anyScorePanel<kRows>(std::min(rows - r, kRows), query + r * problem.headDim, block, p, problem.headDim, scores + r * kBlockKeys);
  }
  const int64_t stride = problem.stride();
  if (problem.softcap != 0)
    for (int r = 0; r < rows; ++r) softcapRow(scores + r * kBlockKeys, problem.softcap);
  float scale[kGroupRows];
  softmaxRows(scores, cover == Cover::partial ? visible : nullptr, rows, tile.space.maximum + first, tile.space.sum + first, scale);
  for (int r = 0; r < rows; ++r) {
    if (scale[r] == 1.0f) continue;
    float* out = tile.space.out + (first + r) * stride;
    for (int64_t d = 0; d < stride; d += kLanes) store(out + d, mul(load(out + d), broadcast(scale[r])));
  }
  const int columns = int(stride / kTileWidth), columnStep = rows <= kRows ? columns : 1;
  for (int c = 0; c < columns; c += columnStep) {
    for (int r = 0; r < rows; r += kRows) {
      const int count = std::min(rows - r, kRows);
      const float* weights = scores + r * kBlockKeys;
      float* out = tile.space.out + (first + r) * stride;
      if (cover == Cover::full) {
        anyValueRows<kRows>(count, weights, block, 0, kBlockKeys, c, c + columnStep, out, stride);
        continue;
      }
      // All rows together where they see the same run of keys; what a row sees before and behind it, row by row.
      const int begin = nextKey(common[r / kRows], 0, true), end = begin < kBlockKeys ? nextKey(common[r / kRows], begin, false) : kBlockKeys;
      const auto ownRuns = [&](int i, int from, int to) {
        for (int a = nextKey(visible[r + i], from, true); a < to;) {
          const int b = std::min(nextKey(visible[r + i], a, false), to);
          anyValueRows<1>(1, weights + i * kBlockKeys, block, a, b, c, c + columnStep, out + i * stride, stride);
          a = b < kBlockKeys ? nextKey(visible[r + i], b, true) : kBlockKeys;
        }
      };
      for (int i = 0; i < count; ++i) ownRuns(i, 0, begin);
      if (begin < end) anyValueRows<kRows>(count, weights, block, begin, end, c, c + columnStep, out, stride);
      for (int i = 0; i < count && end < kBlockKeys; ++i) ownRuns(i, end, kBlockKeys);
    }
  }
}

template <typename T> void blockInPlaceAgainstTile(const Tile& tile, int64_t key, int count) {
  Block<T> block;
  blockInPlace(tile.unit.source, key / kPanelKeys, int(ceilDiv(count, kPanelKeys)), ceilDiv(tile.unit.keys, kPanelKeys), block);
  for (int64_t r = 0; r < tile.rows; r += kGroupRows) groupAgainstBlock(tile, block, key, r, int(std::min<int64_t>(tile.rows - r, kGroupRows)));
}

// One chunk of keys: tile.space.{maximum, sum, out} become the chunk's own. False where no row sees any of it.
inline bool tileAgainstChunk(const Tile& tile, int64_t chunk) {
  const int64_t stride = tile.problem.stride(), keys = tile.unit.keys;
  const bool inPlace = tile.rows <= kInPlaceRows && readableInPlace(tile.unit.source);
  bool started = false;
  for (int64_t key = chunk * kChunkKeys; key < std::min((chunk + 1) * kChunkKeys, keys); key += kBlockKeys) {
    if (tile.unit.mask.cover(tile.query(0), tile.query(tile.rows - 1), key) == Cover::none) continue;
    if (!started) {
      started = true;
      for (int64_t r = 0; r < tile.rows; ++r) {
        tile.space.maximum[r] = -kInfinity;
        tile.space.sum[r] = 0;
      }
      std::memset(tile.space.out, 0, size_t(tile.rows * stride) * sizeof(float));
    }
    const int count = int(std::min<int64_t>(keys - key, kBlockKeys));
    if (inPlace) {
      if (tile.unit.source.element == DType::f16) blockInPlaceAgainstTile<f16>(tile, key, count);
      else if (tile.unit.source.element == DType::bf16) blockInPlaceAgainstTile<bf16>(tile, key, count);
      else blockInPlaceAgainstTile<float>(tile, key, count);
      continue;
    }
    Block<float> block;
    loadBlock(tile.unit.source, key / kPanelKeys, count, ~uint32_t(0), tile.space.block, block);
    for (int64_t r = 0; r < tile.rows; r += kGroupRows) groupAgainstBlock(tile, block, key, r, int(std::min<int64_t>(tile.rows - r, kGroupRows)));
  }
  return started;
}

inline void writeRow(const Problem& problem, const Unit& unit, int64_t row, float sum, const float* merged) {
  float* out = unit.out + row / problem.group * unit.outToken + row % problem.group * unit.outHead;
  const F32 total = broadcast(sum > 0 || sum != sum ? sum : 1.0f);  // a row that saw no key: 0
  int64_t d = 0;
  for (; d + kLanes <= problem.valueDim; d += kLanes) store(out + d, div(load(merged + d), total));
  if (d < problem.valueDim) storePart(out + d, div(load(merged + d), total), int(problem.valueDim - d));
}

// A tile over all of its keys.
inline void wholeTile(const Problem& problem, int64_t index, int64_t row, int64_t mostRows, std::byte* scratch) {
  Unit unit;
  problem.unit(problem, index, unit);
  const int64_t rows = std::min(unit.queries * problem.group - row, mostRows), stride = problem.stride();
  if (rows <= 0) return;
  const Tile tile{problem, unit, row, rows, carve(problem, mostRows, scratch)};
  const Workspace& w = tile.space;
  packQueries(tile);
  for (int64_t r = 0; r < rows; ++r) {
    w.mergedMaximum[r] = -kInfinity;
    w.mergedSum[r] = 0;
  }
  std::memset(w.merged, 0, size_t(rows * stride) * sizeof(float));
  for (int64_t chunk = 0; chunk * kChunkKeys < unit.keys; ++chunk) {
    if (!tileAgainstChunk(tile, chunk)) continue;
    for (int64_t r = 0; r < rows; ++r) mergeRow(w.mergedMaximum[r], w.mergedSum[r], w.merged + r * stride, w.maximum[r], w.sum[r], w.out + r * stride, stride);
  }
  for (int64_t r = 0; r < rows; ++r) writeRow(problem, unit, row + r, w.mergedSum[r], w.merged + r * stride);
}

// Partial results of (unit, chunk): per row maximum, sum, then out.
inline int64_t partialFloats(const Problem& problem) { return roundUp(problem.stride() + 2, 16); }

inline void partialTile(const Problem& problem, int64_t index, int64_t chunk, int64_t mostRows, std::byte* scratch, float* partial) {
  Unit unit;
  problem.unit(problem, index, unit);
  const int64_t rows = unit.queries * problem.group, stride = problem.stride(), step = partialFloats(problem);
  if (rows <= 0) return;
  const Tile tile{problem, unit, 0, rows, carve(problem, mostRows, scratch)};
  packQueries(tile);
  const bool seen = tileAgainstChunk(tile, chunk);
  for (int64_t r = 0; r < rows; ++r) {
    float* to = partial + r * step;
    to[stride] = seen ? tile.space.maximum[r] : -kInfinity;
    to[stride + 1] = seen ? tile.space.sum[r] : 0;
    if (seen) std::memcpy(to, tile.space.out + r * stride, size_t(stride) * sizeof(float));
  }
}

inline void mergePartials(const Problem& problem, int64_t index, int64_t row, int64_t chunks, int64_t mostRows, const float* partials, std::byte* scratch) {
  Unit unit;
  problem.unit(problem, index, unit);
  if (row >= unit.queries * problem.group) return;
  const int64_t stride = problem.stride(), step = partialFloats(problem);
  float* merged = reinterpret_cast<float*>(scratch);
  float maximum = -kInfinity, sum = 0;
  std::memset(merged, 0, size_t(stride) * sizeof(float));
  for (int64_t chunk = 0; chunk * kChunkKeys < unit.keys && chunk < chunks; ++chunk) {
    const float* from = partials + (chunk * mostRows + row) * step;
    mergeRow(maximum, sum, merged, from[stride], from[stride + 1], from, stride);
  }
  writeRow(problem, unit, row, sum, merged);
}

// Few rows over many keys: chunks of keys are shared between the threads, as many units at a time as partial results fit.
inline void splitKeys(const Problem& problem, int64_t chunks, int64_t mostRows, int64_t unitsAtOnce, Context& context) {
  float* partials = reinterpret_cast<float*>(context.pool.scratch(0) + kTileBytes);
  const int64_t unitFloats = chunks * mostRows * partialFloats(problem);
  for (int64_t first = 0; first < problem.units; first += unitsAtOnce) {
    const int64_t units = std::min(unitsAtOnce, problem.units - first);
    context.pool.parallelFor(units * chunks, 1, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i)
        partialTile(problem, first + i / chunks, i % chunks, mostRows, context.pool.scratch(thread),
                    partials + i / chunks * unitFloats + i % chunks * mostRows * partialFloats(problem));
    });
    context.pool.parallelFor(units * mostRows, std::max<int64_t>(1, 64 / chunks), [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i)
        mergePartials(problem, first + i / mostRows, i % mostRows, chunks, mostRows, partials + i / mostRows * unitFloats, context.pool.scratch(thread));
    });
  }
}

// How the work is shared changes no result.
inline Status runAttention(const char* op, const Problem& problem, Context& context) {
  const int64_t rows = problem.mostQueries * problem.group, chunks = ceilDiv(problem.mostKeys, kChunkKeys);
  if (rows == 0 || problem.units == 0) return {};
  constexpr int64_t tileMost = kTileBytes / int64_t(sizeof(float));
  if (tileFloats(problem, kRows) > tileMost) return argumentError(op, "headDim", "is larger than the kernel's tiles", problem.headDim);
  const int threads = context.pool.threads();
  int64_t tileRows = roundUp(std::min<int64_t>(rows, 192), kRows);
  while (tileRows > kGroupRows && (tileFloats(problem, tileRows) > tileMost || (tileRows > 2 * kGroupRows && problem.units * ceilDiv(rows, tileRows) < 8 * threads)))
    tileRows = roundUp(tileRows / 2, kGroupRows);
  while (tileFloats(problem, tileRows) > tileMost) tileRows -= kRows;
  const int64_t tiles = ceilDiv(rows, tileRows);
  if (threads > 1 && tiles == 1 && chunks > 1 && problem.units < 8 * threads) {
    const int64_t fit = (kTileBytes / int64_t(sizeof(float))) / (chunks * rows * partialFloats(problem));
    if (fit > 0) {
      splitKeys(problem, chunks, rows, fit, context);
      return {};
    }
  }
  // Later queries see more keys under a causal mask: they go first, so that no thread is left with a long tile at the end.
  context.pool.parallelFor(problem.units * tiles, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t tile = tiles - 1 - i / problem.units;
      wholeTile(problem, i % problem.units, tile * tileRows, tileRows, context.pool.scratch(thread));
    }
  });
  return {};
}

}  // namespace tl::TL_TARGET
