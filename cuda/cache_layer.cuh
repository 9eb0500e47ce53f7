// One layer of the engine's cache as kernels see it: block tables and lengths of its heads, on the device for one op.
#pragma once
#include <vector>

#include "attention_open.cuh"

namespace tl::cuda {

struct CacheLayer {
  const DeviceCache* cache = nullptr;
  int32_t layer = 0;
  int64_t mostKeys = 0, pagesHead = 0;  // the step's own tokens included
  // On the device, see uploadLayer.
  KvPage* const* pages = nullptr;   // [kvHeads, pagesHead]
  const int32_t* lengths = nullptr;  // [kvHeads], new tokens included
  int64_t length(int32_t head) const { return cache->lengths[layer * cache->shape.kvHeads + head]; }
};

inline Status openLayer(const char* op, const View& view, double number, CacheLayer& layer) {
  if (view.dtype != DType::cache || !view.data) return argumentError(op, "cache", "must be a cache", int64_t(view.dtype));
  layer.cache = view.as<const DeviceCache>();
  const DeviceCache& cache = *layer.cache;
  if (!(number >= 0 && number < cache.shape.layers)) return argumentError(op, "layer", "is not in the cache", int64_t(number));
  layer.layer = int32_t(number);
  for (int32_t head = 0; head < cache.shape.kvHeads; ++head) {
    const int64_t keys = layer.length(head) + cache.newTokens;
    if (keys > cache.capacities[layer.layer * cache.shape.kvHeads + head]) return argumentError(op, "cache", "has no pages reserved for this step", keys);
    layer.mostKeys = std::max(layer.mostKeys, keys);
  }
  layer.pagesHead = std::max<int64_t>(ceilDiv(layer.mostKeys, kPageTokens), 1);
  return {};
}

inline Status uploadLayer(const char* op, CacheLayer& layer, DeviceContext& context) {
  const int32_t kvHeads = layer.cache->shape.kvHeads;
  std::vector<KvPage*> pages(size_t(kvHeads * layer.pagesHead), nullptr);
  std::vector<int32_t> lengths;
  for (int32_t head = 0; head < kvHeads; ++head) {
    const int64_t keys = layer.length(head) + layer.cache->newTokens;
    KvPage* const* from = layer.cache->pages[layer.layer * kvHeads + head];
    std::copy(from, from + ceilDiv(keys, kPageTokens), pages.begin() + head * layer.pagesHead);
    lengths.push_back(int32_t(keys));
  }
  KvPage* const* device = nullptr;
  TL_TRY(context.upload(op, pages.data(), pages.size() * sizeof(KvPage*), const_cast<void**>(reinterpret_cast<const void* const*>(&device))));
  layer.pages = device;
  return context.upload(op, lengths, &layer.lengths);
}

}  // namespace tl::cuda
