// Draft trees over the cache: each node attends as if its ancestors stood right behind the prefix, in order, and nothing else
// did (arXiv 2305.09781). Blocks and chunks are counted in those virtual positions, so a node's numbers are bit for bit those
// of decoding its path token by token, wherever its rows lie. Included by attention_run_inl.h.
#pragma once

namespace tl::TL_TARGET {

// Scores of a group's rows against one block of what lies in memory, no mask: stride kBlockKeys.
inline void storedScores(const Tile& tile, const Block<float>& block, int count, int64_t first, int rows, float* scores) {
  const Problem& problem = tile.problem;
  for (int p = 0; p * kPanelKeys < count; ++p) scorePanelRows(rows, tile.space.query + first * problem.headDim, block, p, problem.headDim, scores);
  if (problem.softcap != 0)
    for (int r = 0; r < rows; ++r) softcapRow(scores + r * kBlockKeys, count, problem.softcap);
}

// Calls body(virtual position, stored position) for the row's path, both relative to `key` and `stored`, where they fall into
// the virtual block at `key` and the stored block at `stored`.
template <typename Body> void forPath(const Tile& tile, int64_t r, int64_t key, int64_t stored, Body body) {
  const ShapeOperands& shape = tile.unit.mask.operands;
  const int32_t* words = shape.tree + tile.query(r) * shape.treeWords;
  int64_t position = shape.prefix;
  for (int64_t w = 0; w < shape.treeWords; ++w)
    for (uint32_t word = uint32_t(words[w]); word; word &= word - 1, ++position) {
      const int64_t at = shape.prefix + w * 32 + __builtin_ctz(word) - stored, to = position - key;
      if (to >= 0 && to < kBlockKeys && at >= 0 && at < kBlockKeys) body(int(to), int(at));
    }
}

// Weights of a run of keys times their values' scales; each is used once.
inline void scaleWeights(const Block<float>& block, int from, int to, float* weights) {
  for (int j = from; j < to; ++j)
    if (block.valueScales[j / kPanelKeys]) weights[j] *= block.valueScales[j / kPanelKeys][j % kPanelKeys];
}

// The group's rows against the virtual block at `key`, which holds the end of the prefix, nodes of paths, or both.
inline void groupAgainstPaths(const Tile& tile, int64_t key, int64_t first, int rows) {
  const Unit& unit = tile.unit;
  const int64_t stride = tile.problem.stride(), prefix = unit.mask.operands.prefix, tail = prefix / kBlockKeys * kBlockKeys;
  const int shared = int(std::clamp<int64_t>(prefix - key, 0, kBlockKeys)), columns = int(stride / kTileWidth);
  Visible visible[kGroupRows];
  bool any = false;
  for (int r = 0; r < rows; ++r) {
    visible[r] = {};
    unit.mask.visible(tile.query(first + r), tile.head(first + r), key, visible[r]);
    any |= nextKey(visible[r], 0, true) < kBlockKeys;
  }
  if (!any) return;
  alignas(64) float stored[kGroupRows * kBlockKeys];
  float* scores = tile.space.scores;
  std::memset(scores, 0, size_t(rows) * kBlockKeys * sizeof(float));
  for (int64_t at = tail; at < unit.keys; at += kBlockKeys) {
    const int count = int(std::min<int64_t>(unit.keys - at, kBlockKeys));
    const LoadedBlock block(unit.source, at, count, tile.space.block, true, false);
    storedScores(tile, block, count, first, rows, stored);
    for (int r = 0; r < rows; ++r) {
      const float* from = stored + r * kBlockKeys;
      float* to = scores + r * kBlockKeys;
      if (at == key) std::memcpy(to, from, size_t(shared) * sizeof(float));
      forPath(tile, first + r, key, at, [&](int virtualKey, int storedKey) { to[virtualKey] = from[storedKey]; });
    }
  }
  alignas(64) float scale[kGroupRows + kLanes];
  softmaxRows(scores, visible, rows, tile.space.maximum + first, tile.space.sum + first, scale);
  for (int r = 0; r < rows; ++r)
    if (scale[r] != 1.0f) scaleSums(tile, first + r, scale[r]);
  for (int64_t at = tail; at < unit.keys; at += kBlockKeys) {
    const LoadedBlock block(unit.source, at, int(std::min<int64_t>(unit.keys - at, kBlockKeys)), tile.space.block, false, true);
    for (int r = 0; r < rows; r += kRows) {
      const int count = std::min(rows - r, kRows);
      float* out = tile.space.out + (first + r) * stride;
      float* weights = scores + r * kBlockKeys;
      if (at == key && unit.mask.window == 0 && shared > 0) {
        for (int i = 0; i < count; ++i) scaleWeights(block, 0, shared, weights + i * kBlockKeys);
        addValueRows(count, weights, block, 0, shared, 0, columns, out, stride);
      }
      for (int i = 0; i < count; ++i) {
        const auto addRun = [&](int from, int to, ptrdiff_t shift) {
          scaleWeights(block, from, to, weights + i * kBlockKeys + shift);
          addValueRows(1, weights + i * kBlockKeys + shift, block, from, to, 0, columns, out + i * stride, stride);
        };
        if (at == key && unit.mask.window > 0)
          for (int a = nextKey(visible[r + i], 0, true); a < shared;) {
            const int b = std::min(nextKey(visible[r + i], a, false), shared);
            addRun(a, b, 0);
            a = nextKey(visible[r + i], b, true);
          }
        forPath(tile, first + r + i, key, at, [&](int virtualKey, int storedKey) {
          if (visible[r + i].has(virtualKey)) addRun(storedKey, storedKey + 1, virtualKey - storedKey);
        });
      }
    }
  }
}

}  // namespace tl::TL_TARGET
