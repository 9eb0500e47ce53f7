// Where keys and values come from: brings a block of one key/value head to the layout of the inner loops, in f32. Included
// after attention_tile_inl.h and cache/kv.h.
#pragma once

namespace tl::TL_TARGET {

struct Source {
  KvPage* const* pages = nullptr;
  DType element = DType::f16;
  int64_t headDim = 0, valueDim = 0;

  template <typename T> const T* pageKeys(int64_t panel) const { return reinterpret_cast<const T*>(pages[panel]->keys()); }
  template <typename T> const T* pageValues(int64_t panel) const { return pageKeys<T>(panel) + headDim * kPageTokens; }
};

inline int64_t paddedDim(int64_t dim) { return roundUp(dim, kTileWidth); }

// Floats that a block of f32 keys and values needs.
inline int64_t blockFloats(int64_t headDim, int64_t valueDim) { return kBlockKeys * (headDim + paddedDim(valueDim)); }

// Whether the inner loops may read the pages as they are.
inline bool readableInPlace(const Source& source) { return source.valueDim % kTileWidth == 0; }

// Panels [0, panels) of the block that starts at panel `first`, in place; the head has `all` panels.
template <typename T> void blockInPlace(const Source& source, int64_t first, int panels, int64_t all, Block<T>& block) {
  for (int p = 0; p < kBlockPanels; ++p) {
    block.nextKeys[p] = first + kBlockPanels + p < all ? source.pageKeys<T>(first + kBlockPanels + p) : nullptr;
    if (p >= panels) continue;
    block.keys[p] = source.pageKeys<T>(first + p);
    block.values[p] = source.pageValues<T>(first + p);
  }
  block.valueRow = source.valueDim;
  block.valueColumn = kTileWidth;
  block.fetchAhead = true;
}

template <typename T> void convertPanel(const Source& source, int64_t panel, int count, float* keys, float* values) {
  const T* k = source.pageKeys<T>(panel);
  for (int64_t i = 0; i < source.headDim * kPanelKeys; i += kLanes) store(keys + i, load(k + i));
  const T* v = source.pageValues<T>(panel);
  const int64_t whole = source.valueDim / kLanes * kLanes;
  for (int j = 0; j < count; ++j, v += source.valueDim) {
    for (int64_t d = 0; d < whole; d += kLanes) store(values + d / kTileWidth * (kPanelKeys * kTileWidth) + j * kTileWidth + d % kTileWidth, load(v + d));
    for (int64_t d = whole; d < paddedDim(source.valueDim); d += kLanes) {
      const int part = int(std::max<int64_t>(std::min<int64_t>(source.valueDim - d, kLanes), 0));
      store(values + d / kTileWidth * (kPanelKeys * kTileWidth) + j * kTileWidth + d % kTileWidth, part ? loadPart(v + d, part) : zero());
    }
  }
}

// Keys [0, count) of the block that starts at panel `first`, converted into `space` (blockFloats). Panels that no row needs
// (bit of `needed` clear) are left out.
inline void loadBlock(const Source& source, int64_t first, int count, uint32_t needed, float* space, Block<float>& block) {
  float* values = space + kBlockKeys * source.headDim;
  const int64_t keyPanel = kPanelKeys * source.headDim, valuePanel = kPanelKeys * paddedDim(source.valueDim);
  for (int p = 0; p * kPanelKeys < count; ++p) {
    block.keys[p] = space + p * keyPanel;
    block.values[p] = values + p * valuePanel;
    if (!(needed >> p & 1)) continue;
    const int keys = std::min(count - p * kPanelKeys, kPanelKeys);
    float* k = space + p * keyPanel;
    float* v = values + p * valuePanel;
    if (source.element == DType::f16) convertPanel<f16>(source, first + p, keys, k, v);
    else if (source.element == DType::bf16) convertPanel<bf16>(source, first + p, keys, k, v);
    else convertPanel<float>(source, first + p, keys, k, v);
  }
  block.fetchAhead = false;
  block.valueRow = kTileWidth;
  block.valueColumn = kPanelKeys * kTileWidth;
}

}  // namespace tl::TL_TARGET
