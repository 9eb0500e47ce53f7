// Shares attention between threads: tiles of rows, chunks of keys where rows are few, and the column sums behind them. How
// the work is shared changes no result. Included after attention_loop_inl.h.
#pragma once
#include "attention_path_inl.h"

namespace tl::TL_TARGET {

inline void hideScores(const Problem& problem, const Unit& unit, int64_t row, int64_t rows) {
  for (int64_t r = row; unit.scores.present() && r < row + rows; ++r)
    std::fill_n(reinterpret_cast<float*>(unit.scores.at(r / problem.group, r % problem.group)), size_t(unit.keys), -kInfinity);
}

// A tile over all of its keys.
inline void wholeTile(const Problem& problem, int64_t index, int64_t row, int64_t mostRows, std::byte* scratch) {
  Unit unit;
  problem.unit(problem, index, unit);
  const int64_t rows = std::min(unit.queries * problem.group - row, mostRows), stride = problem.stride();
  if (rows <= 0) return;
  Tile tile{problem, unit, row, rows, carve(problem, mostRows, scratch)};
  Workspace& w = tile.space;
  packQueries(tile);
  hideScores(problem, unit, row, rows);
  bool merged = false;
  for (int64_t chunk = 0; chunk * kChunkKeys < unit.keys; ++chunk) {
    if (!tileAgainstChunk(tile, chunk)) continue;
    if (!merged) {  // merging into nothing is a copy: see mergeRow
      std::swap(w.out, w.merged);
      std::swap(w.maximum, w.mergedMaximum);
      std::swap(w.sum, w.mergedSum);
    } else {
      mergeRows(rows, w.mergedMaximum, w.mergedSum, w.merged, w.maximum, w.sum, w.out, stride);
    }
    merged = true;
  }
  if (!merged) {
    std::fill_n(w.mergedMaximum, size_t(rows), -kInfinity);
    std::fill_n(w.mergedSum, size_t(rows), 0.0f);
    std::memset(w.merged, 0, size_t(rows * stride) * sizeof(float));
  }
  for (int64_t r = 0; r < rows; ++r) writeRow(problem, unit, row + r, w.mergedMaximum[r], w.mergedSum[r], w.merged + r * stride);
}

// Partial results of (unit, chunk), row by row: weighted values, maximum, sum.
inline int64_t partialFloats(const Problem& problem) { return roundUp(problem.stride() + 2, 16); }

inline void partialTile(const Problem& problem, int64_t index, int64_t chunk, int64_t mostRows, std::byte* scratch, float* partial) {
  Unit unit;
  problem.unit(problem, index, unit);
  const int64_t rows = unit.queries * problem.group, stride = problem.stride(), step = partialFloats(problem);
  if (rows <= 0 || chunk * kChunkKeys >= unit.keys) return;
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

inline void mergePartials(const Problem& problem, int64_t index, int64_t row, int64_t mostRows, const float* partials, std::byte* scratch) {
  Unit unit;
  problem.unit(problem, index, unit);
  if (row >= unit.queries * problem.group) return;
  const int64_t stride = problem.stride(), step = partialFloats(problem);
  float* merged = reinterpret_cast<float*>(scratch);
  float maximum = -kInfinity, sum = 0;
  std::memset(merged, 0, size_t(stride) * sizeof(float));
  for (int64_t chunk = 0; chunk * kChunkKeys < unit.keys; ++chunk) {
    const float* from = partials + (chunk * mostRows + row) * step;
    mergeRow(maximum, sum, merged, from[stride], from[stride + 1], from, stride);
  }
  writeRow(problem, unit, row, maximum, sum, merged);
}

// Few rows over many keys: chunks of keys are shared between the threads, as many units at a time as partial results fit.
inline void splitKeys(const Problem& problem, int64_t chunks, int64_t mostRows, int64_t unitsAtOnce, Context& context) {
  float* partials = reinterpret_cast<float*>(context.pool.scratch(0) + kTileBytes);
  const int64_t chunkFloats = mostRows * partialFloats(problem), unitFloats = chunks * chunkFloats;
  for (int64_t index = 0; index < problem.units; ++index) {
    Unit unit;
    problem.unit(problem, index, unit);
    hideScores(problem, unit, 0, unit.queries * problem.group);
  }
  for (int64_t first = 0; first < problem.units; first += unitsAtOnce) {
    const int64_t units = std::min(unitsAtOnce, problem.units - first);
    context.pool.parallelFor(units * chunks, 1, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i)
        partialTile(problem, first + i / chunks, i % chunks, mostRows, context.pool.scratch(thread), partials + i / chunks * unitFloats + i % chunks * chunkFloats);
    });
    context.pool.parallelFor(units * mostRows, std::max<int64_t>(1, 64 / chunks), [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i)
        mergePartials(problem, first + i / mostRows, i % mostRows, mostRows, partials + i / mostRows * unitFloats, context.pool.scratch(thread));
    });
  }
}

// Column sums of one (unit, chunk of keys): Σ over the last queries of exp(s − logSumExp), scores formed once more
// (arXiv 2306.14048, 2404.14469). Queries in ascending order, so threads do not matter.
inline void columnSums(const Problem& problem, int64_t index, int64_t chunk, int64_t mostRows, std::byte* scratch) {
  Unit unit;
  problem.unit(problem, index, unit);
  const int64_t firstKey = chunk * kChunkKeys, lastKey = std::min(firstKey + kChunkKeys, unit.keys);
  if (firstKey >= lastKey) return;
  unit.scores = {};
  for (int64_t h = 0; h < problem.group; ++h) std::fill(reinterpret_cast<float*>(unit.columnSums.at(0, h)) + firstKey, reinterpret_cast<float*>(unit.columnSums.at(0, h)) + lastKey, 0.0f);
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
          const float logSumExp = *reinterpret_cast<const float*>(unit.logSumExp.at(tile.query(first + r), tile.head(first + r)));
          if (logSumExp == -kInfinity) continue;  // saw no key
          float* weights = tile.space.scores + r * kBlockKeys;
          float* sums = reinterpret_cast<float*>(unit.columnSums.at(0, tile.head(first + r))) + key;
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

inline Status runAttention(const char* op, const Problem& problem, Context& context) {
  const int64_t rows = problem.mostQueries * problem.group, chunks = ceilDiv(problem.mostKeys, kChunkKeys);
  if (problem.units == 0) return {};
  if (tileFloats(problem, kRows) > kTileFloats) return argumentError(op, "headDim", "is larger than the kernel's tiles", problem.headDim);
  const int threads = context.pool.threads();
  // So many that loading a block costs little beside using it.
  const int64_t mostRows = std::clamp<int64_t>(65536 / std::max(problem.headDim, problem.valueDim), 96, 1008);
  int64_t tileRows = roundUp(std::clamp<int64_t>(rows, 1, mostRows), kRows);  // of no queries too: nothing divides by 0
  while (tileRows > kGroupRows && (tileFloats(problem, tileRows) > kTileFloats || (tileRows > 2 * kGroupRows && problem.units * ceilDiv(rows, tileRows) < 8 * threads)))
    tileRows = roundUp(tileRows / 2, kGroupRows);
  while (tileFloats(problem, tileRows) > kTileFloats) tileRows -= kRows;
  const int64_t tiles = ceilDiv(rows, tileRows);
  int64_t fit = 0;  // units whose partial results fit
  if (threads > 1 && tiles == 1 && chunks > 1 && problem.units < 8 * threads) fit = kTileFloats / (chunks * rows * partialFloats(problem));
  if (fit > 0) {
    splitKeys(problem, chunks, rows, fit, context);
  } else {
    // Later queries see more keys under a causal mask: they go first, so that no thread is left with a long tile at the end.
    context.pool.parallelFor(problem.units * tiles, 1, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i)
        wholeTile(problem, i % problem.units, (tiles - 1 - i / problem.units) * tileRows, tileRows, context.pool.scratch(thread));
    });
  }
  if (problem.columnSums)
    context.pool.parallelFor(problem.units * chunks, 1, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i) columnSums(problem, i % problem.units, i / problem.units, tileRows, context.pool.scratch(thread));
    });
  return {};
}

}  // namespace tl::TL_TARGET
