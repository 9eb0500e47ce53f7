// Which keys a query sees. Included after attention_tile_inl.h.
//
// Query i stands at position p = offset + i, offset = keys − queries: the last query is on the last key. What KeyMask lets
// through is cut further by one of the shapes below (MaskShape); a dense mask is a bias of −inf.
#pragma once

namespace tl::TL_TARGET {

enum class Cover { none, partial, full };

// The numbers are AttentionArgs::maskShape.
enum class MaskShape : int32_t {
  plain = 0,
  blocks,         // words u8 [heads or 1, ⌈queries / blockQuery⌉, ⌈keys / blockKey⌉]: 1 = seen      arXiv 1904.10509
  tree,           // all keys before `prefix`; node j behind it where bit j of the query's row is set  arXiv 2305.09781
  neighbourhood,  // an image's tokens see all text before it and the tokens within `radius`           arXiv 2410.06169
  region,         // query (y, x) of a grid sees the factor × factor keys under it                     arXiv 2407.02392
  path,           // as tree, with positions along the paths: attention_path_inl.h. Nodes in order of depth
};

struct ShapeOperands {
  const uint8_t* blocks = nullptr;
  int64_t blocksHead = 0, blockQuery = 1, blockKey = 1;  // blocksHead: elements from head to head (0 = shared)
  const int32_t* tree = nullptr;
  int64_t treeWords = 0, prefix = 0;
  int64_t start = 0, gridHeight = 0, gridWidth = 0, radius = 0, factor = 1;
  bool causalGrid = false;
};

// Causal: key j is seen where j ≤ p. A window leaves p − j < window (not causal: |p − j| < window); sinks are the first keys,
// seen in spite of the window (arXiv 2004.05150, 2309.17453).
struct KeyMask {
  int64_t keys = 0, offset = 0;
  bool causal = true;
  int64_t window = 0, sinks = 0;  // window 0 = unlimited
  MaskShape shape = MaskShape::plain;
  ShapeOperands operands;

  int64_t position(int64_t query) const {
    if (shape != MaskShape::path) return offset + query;
    int64_t nodes = 0;  // ancestors, the node itself included
    for (int64_t w = 0; w < operands.treeWords; ++w) nodes += __builtin_popcount(uint32_t(operands.tree[query * operands.treeWords + w]));
    return operands.prefix + nodes - 1;
  }
  int64_t begin(int64_t p) const { return window > 0 ? std::max<int64_t>(p - window + 1, 0) : 0; }
  int64_t end(int64_t p) const {
    const int64_t end = causal ? p + 1 : window > 0 ? p + window : keys;
    return std::clamp<int64_t>(end, 0, keys);
  }
  int64_t sinksEnd(int64_t p) const { return window > 0 ? std::min(sinks, causal ? end(p) : keys) : 0; }

  // Of queries first … last, heads firstHead … lastHead, and the block that starts at `key`.
  Cover cover(int64_t first, int64_t last, int64_t firstHead, int64_t lastHead, int64_t key) const {
    const int64_t p = position(first), q = position(last), blockEnd = key + kBlockKeys;
    const bool inSinks = key < sinksEnd(q);
    if (!inSinks && (key >= end(q) || blockEnd <= begin(p))) return Cover::none;
    const bool allOfSinks = blockEnd <= sinksEnd(p);
    const Cover plain = allOfSinks || (blockEnd <= end(p) && key >= begin(q)) ? Cover::full : Cover::partial;
    Cover shaped = Cover::full;
    switch (shape) {
      case MaskShape::plain: case MaskShape::path: break;
      case MaskShape::blocks: shaped = coverOfBlocks(first, last, firstHead, lastHead, key); break;
      case MaskShape::tree: shaped = blockEnd <= operands.prefix ? Cover::full : Cover::partial; break;
      case MaskShape::neighbourhood: shaped = coverOfNeighbourhood(first, last, key); break;
      case MaskShape::region: {
        const int64_t row = operands.gridWidth * operands.factor * operands.factor;  // keys under one row of queries
        shaped = key >= (last / operands.gridWidth + 1) * row || blockEnd <= first / operands.gridWidth * row ? Cover::none : Cover::partial;
        break;
      }
    }
    return shaped == Cover::none ? shaped : shaped == Cover::full ? plain : Cover::partial;
  }

  // `seen` comes empty.
  void visible(int64_t query, int64_t head, int64_t key, Visible& seen) const {
    const int64_t p = position(query);
    addRange(seen, begin(p) - key, end(p) - key);
    if (const int64_t last = sinksEnd(p); last > key) addRange(seen, -key, last - key);
    if (shape == MaskShape::plain || shape == MaskShape::path) return;
    Visible shaped = {};
    switch (shape) {
      case MaskShape::plain: case MaskShape::path: break;
      case MaskShape::blocks: addBlocks(shaped, query, head, key); break;
      case MaskShape::tree: addTree(shaped, query, key); break;
      case MaskShape::neighbourhood: addNeighbourhood(shaped, query, key); break;
      case MaskShape::region: addRegion(shaped, query, key); break;
    }
    for (int i = 0; i < kBlockPanels; ++i) seen.word[i] &= shaped.word[i];
  }

 private:
  const uint8_t* blockRow(int64_t row, int64_t head) const {
    return operands.blocks + head * operands.blocksHead + row * ceilDiv(keys, operands.blockKey);
  }

  Cover coverOfBlocks(int64_t first, int64_t last, int64_t firstHead, int64_t lastHead, int64_t key) const {
    const int64_t from = key / operands.blockKey, to = (std::min(key + kBlockKeys, keys) - 1) / operands.blockKey;
    if (operands.blocksHead == 0) lastHead = firstHead;
    bool some = false, all = true;
    for (int64_t head = firstHead; head <= lastHead; ++head)
      for (int64_t row = first / operands.blockQuery; row <= last / operands.blockQuery; ++row)
        for (int64_t k = from; k <= to; ++k) {
          some |= blockRow(row, head)[k] != 0;
          all &= blockRow(row, head)[k] != 0;
        }
    return !some ? Cover::none : all ? Cover::full : Cover::partial;
  }

  void addBlocks(Visible& seen, int64_t query, int64_t head, int64_t key) const {
    const uint8_t* row = blockRow(query / operands.blockQuery, head);
    const int64_t last = (std::min(key + kBlockKeys, keys) - 1) / operands.blockKey;
    for (int64_t k = key / operands.blockKey; k <= last; ++k)
      if (row[k]) addRange(seen, k * operands.blockKey - key, (k + 1) * operands.blockKey - key);
  }

  void addTree(Visible& seen, int64_t query, int64_t key) const {
    addRange(seen, 0, operands.prefix - key);
    const int32_t* row = operands.tree + query * operands.treeWords;
    for (int64_t node = std::max<int64_t>(key - operands.prefix, 0); node < std::min(key + kBlockKeys, keys) - operands.prefix; ++node)
      if (uint32_t(row[node / 32]) >> (node % 32) & 1) addRange(seen, operands.prefix + node - key, operands.prefix + node + 1 - key);
  }

  int64_t gridEnd() const { return operands.start + operands.gridHeight * operands.gridWidth; }

  Cover coverOfNeighbourhood(int64_t first, int64_t last, int64_t key) const {
    const int64_t blockEnd = key + kBlockKeys;
    if (first < operands.start || last >= gridEnd())  // text, causal; between first and last there may be an image
      return key > last && (last < operands.start || first >= gridEnd()) ? Cover::none : Cover::partial;
    if (blockEnd <= operands.start) return Cover::full;
    if (key < operands.start) return Cover::partial;
    const int64_t top = (first - operands.start) / operands.gridWidth - operands.radius, bottom = (last - operands.start) / operands.gridWidth + operands.radius + 1;
    return blockEnd <= operands.start + top * operands.gridWidth || key >= operands.start + bottom * operands.gridWidth ? Cover::none : Cover::partial;
  }

  void addNeighbourhood(Visible& seen, int64_t query, int64_t key) const {
    if (query < operands.start || query >= gridEnd()) return addRange(seen, -key, query + 1 - key);
    addRange(seen, -key, operands.start - key);
    const int64_t y = (query - operands.start) / operands.gridWidth, x = (query - operands.start) % operands.gridWidth;
    const int64_t left = std::max<int64_t>(x - operands.radius, 0), right = std::min(x + operands.radius + 1, operands.gridWidth);
    const int64_t top = std::max<int64_t>(y - operands.radius, 0), bottom = std::min(y + operands.radius + 1, operands.gridHeight);
    for (int64_t row = top; row < bottom; ++row) {
      const int64_t start = operands.start + row * operands.gridWidth, end = start + right;
      if (start >= key + kBlockKeys) break;
      addRange(seen, start + left - key, (operands.causalGrid ? std::min(end, query + 1) : end) - key);
    }
  }

  void addRegion(Visible& seen, int64_t query, int64_t key) const {
    const int64_t f = operands.factor, width = operands.gridWidth * f, y = query / operands.gridWidth, x = query % operands.gridWidth;
    for (int64_t a = 0; a < f; ++a) addRange(seen, (y * f + a) * width + x * f - key, (y * f + a) * width + x * f + f - key);
  }
};

}  // namespace tl::TL_TARGET
