// Shares attention between threads: tiles of rows, chunks of keys where rows are few, and the column sums behind them. How
// the work is shared changes no result. Included after attention_loop_inl.h.
#pragma once
#include <thread>

#include "attention_path_inl.h"
#include "attention_sums_inl.h"

namespace tl::TL_TARGET {

inline void hideScores(const Problem& problem, const Unit& unit, int64_t row, int64_t rows) {
  for (int64_t r = row; unit.scores.present() && r < row + rows; ++r)
    std::fill_n(reinterpret_cast<float*>(unit.scores.at(r / problem.group, r % problem.group)), size_t(unit.keys), -kInfinity);
}

// A tile over all of its keys.
inline void wholeTile(const Problem& problem, const Unit& unit, int64_t row, int64_t rows, int64_t mostRows, std::byte* scratch, const WeightStore& kept = {}) {
  const FlushedSubnormals flushed;
  if (rows <= 0) return;
  const int64_t stride = problem.stride();
  Tile tile{problem, unit, row, rows, carve(problem, mostRows, scratch), kept};
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
  const FlushedSubnormals flushed;
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
  const FlushedSubnormals flushed;
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
    // Chunks in a row go to one thread: each fetches the keys of the next.
    context.pool.parallelFor(units * chunks, ceilDiv(units * chunks, 16 * int64_t(context.pool.threads())), [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i)
        partialTile(problem, first + i / chunks, i % chunks, mostRows, context.pool.scratch(thread), partials + i / chunks * unitFloats + i % chunks * chunkFloats);
    });
    context.pool.parallelFor(units * mostRows, std::max<int64_t>(1, 64 / chunks), [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i)
        mergePartials(problem, first + i / mostRows, i % mostRows, mostRows, partials + i / mostRows * unitFloats, context.pool.scratch(thread));
    });
  }
}

// The tiles of a unit whose weights are kept: computed side by side, added up one after the other. `turns` [units] counts
// the tiles added; tiles are begun in ascending order, so the one that another waits for is always under way.
inline void keptTile(const Problem& problem, int64_t index, int64_t number, int64_t tileRows, std::byte* scratch, int32_t* turns) {
  const FlushedSubnormals flushed;
  Unit unit;
  problem.unit(problem, index, unit);
  const int64_t fit = keptRows(problem, unit), mostRows = std::min(fit, tileRows), begin = firstKeptRow(problem, unit) + number * mostRows;
  const int64_t rows = std::min(unit.queries * problem.group - begin, mostRows);
  if (fit == 0 || rows <= 0) return;
  float* memory = reinterpret_cast<float*>(scratch + kTileBytes);
  const int64_t stride = roundUp(unit.keys, kBlockKeys), blocks = stride / kBlockKeys;
  const WeightStore kept{memory, memory + mostRows * stride, stride, blocks};
  std::fill_n(kept.maxima, size_t(rows * blocks), -kInfinity);
  wholeTile(problem, unit, begin, rows, mostRows, scratch, kept);
  for (int spins = 0; __atomic_load_n(turns + index, __ATOMIC_ACQUIRE) != number; ++spins)
    if (spins > 64) std::this_thread::yield();
  if (number == 0) clearSums(problem, unit, 0, unit.keys);
  addKeptWeights(Tile{problem, unit, begin, rows, {}, kept});
  __atomic_store_n(turns + index, int32_t(number + 1), __ATOMIC_RELEASE);
}

// Rows whose weights are kept, and the sums of the units that keep none.
inline void runColumnSums(const Problem& problem, int64_t tileRows, int64_t chunks, Context& context) {
  const int64_t rows = std::min(problem.columnQueries, problem.mostQueries) * problem.group, tiles = ceilDiv(rows, std::min<int64_t>(tileRows, kGroupRows));
  int32_t* turns = reinterpret_cast<int32_t*>(context.pool.scratch(0) + kScratchBytes) - kKeptUnits;
  std::fill_n(turns, size_t(std::min(problem.units, kKeptUnits)), 0);
  context.pool.parallelFor(problem.units * tiles, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) keptTile(problem, i % problem.units, i / problem.units, tileRows, context.pool.scratch(thread), turns);
  });
  context.pool.parallelFor(problem.units * chunks, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) sumsOfChunk(problem, i % problem.units, i / problem.units, tileRows, context.pool.scratch(thread));
  });
}

inline Status runAttention(const char* op, const Problem& problem, Context& context) {
  const int64_t rows = problem.mostQueries * problem.group, chunks = ceilDiv(problem.mostKeys, kChunkKeys);
  if (problem.units == 0) return {};
  if (tileFloats(problem, kRows) > kTileFloats) return argumentError(op, "headDim", "is larger than the kernel's tiles", problem.headDim);
  const int threads = context.pool.threads();
  // So many that loading a block costs little beside using it.
  const int64_t mostRows = std::clamp<int64_t>(66048 / std::max(problem.headDim, problem.valueDim), 96, 1032);
  const int64_t evenRows = ceilDiv(rows, std::max<int64_t>(ceilDiv(rows, mostRows), 1));  // no small tile is left at the end
  int64_t tileRows = roundUp(std::max<int64_t>(evenRows, 1), evenRows > kGroupRows ? kGroupRows : kRows);  // of no queries too: nothing divides by 0
  // Small tiles wait for keys and values that others have loaded too: fewer a thread of them.
  const auto enough = [&] { return problem.units * ceilDiv(rows, tileRows) >= (tileRows > 256 ? 8 : 4) * threads; };
  while (tileRows > kGroupRows && (tileFloats(problem, tileRows) > kTileFloats || (tileRows > 2 * kGroupRows && !enough())))
    tileRows = roundUp(tileRows / 2, kGroupRows);
  while (tileFloats(problem, tileRows) > kTileFloats) tileRows -= kRows;
  const int64_t tiles = ceilDiv(rows, tileRows);
  int64_t fit = 0;  // units whose partial results fit
  if (!keepsWeights(problem, problem.mostQueries) && threads > 1 && tiles == 1 && chunks > 1 && problem.units < 8 * threads) fit = kTileFloats / (chunks * rows * partialFloats(problem));
  if (fit > 0) {
    splitKeys(problem, chunks, rows, fit, context);
  } else {
    // Later queries see more keys under a causal mask: they go first, so that no thread is left with a long tile at the end.
    context.pool.parallelFor(problem.units * tiles, 1, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i) {
        Unit unit;
        problem.unit(problem, i % problem.units, unit);
        const int64_t row = (tiles - 1 - i / problem.units) * tileRows;
        wholeTile(problem, unit, row, std::min(firstKeptRow(problem, unit) - row, tileRows), tileRows, context.pool.scratch(thread));
      }
    });
  }
  if (problem.columnSums) runColumnSums(problem, tileRows, chunks, context);
  return {};
}

}  // namespace tl::TL_TARGET
