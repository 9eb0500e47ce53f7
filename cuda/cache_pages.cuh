// What kernels over cached tokens share: one layer's pages and lengths, rows of scores, writing a token into its page.
#pragma once
#include "attention_source.cuh"
#include "cache_layer.cuh"
#include "core/rows.cuh"

namespace tl::cuda {

constexpr int kCacheThreads = 128;

// A layer on the device. Lengths count the step's own tokens.
struct Pages {
  KvPage* const* pages;
  int64_t pagesHead;
  const int32_t* lengths;
  int64_t dim;
  int32_t layer, kvHeads;
  __device__ KvPage* page(int32_t head, int64_t token) const { return pages[head * pagesHead + token / kPageTokens]; }
  __device__ float key(int32_t head, int64_t token, int d) const { return pageElement<Part::keys>(page(head, token), dim, int(token % kPageTokens), d); }
  __device__ float value(int32_t head, int64_t token, int d) const { return pageElement<Part::values>(page(head, token), dim, int(token % kPageTokens), d); }
  __device__ int32_t position(int32_t head, int64_t token) const { return page(head, token)->positions[token % kPageTokens]; }
};

inline Status openPages(const char* op, const View& view, double number, DeviceContext& context, CacheLayer& layer, Pages& pages) {
  TL_TRY(openLayer(op, view, number, layer));
  TL_TRY(uploadLayer(op, layer, context));
  pages = {layer.pages, layer.pagesHead, layer.lengths, layer.cache->shape.headDim, layer.layer, layer.cache->shape.kvHeads};
  return {};
}

// f32 [kvHeads · group, longest or more]; what lies behind a head's tokens is −inf.
inline Status openScores(const char* op, const View& view, const CacheLayer& layer, int64_t rows, Rows& out) {
  TL_TRY(floatRows(op, "out", view, out));
  if (out.rows != rows) return shapeError(op, "out", "has another number of rows than expected", rows, out.rows);
  if (out.width < layer.mostKeys) return shapeError(op, "out", "is too short for the longest head", layer.mostKeys, out.width);
  return {};
}

// What an op works on that gives a score to each token of a layer: cache, layer and out of `args`.
struct Scoring {
  CacheLayer layer;
  Pages pages;
  Rows out;
};
template <typename Args> Status openScoring(const char* op, const Args& args, DeviceContext& context, Scoring& s) {
  TL_TRY(openPages(op, args.cache, args.layer, context, s.layer, s.pages));
  return openScores(op, args.out, s.layer, s.pages.kvHeads, s.out);
}

// The scores kept beside the tokens are the host's: they come and go with the op, as rows of `width`.
inline Status copyScores(const char* op, const CacheLayer& layer, DeviceContext& context, int64_t width, float** rows) {
  const int32_t heads = layer.cache->shape.kvHeads;
  std::vector<float> held(size_t(heads * width), 0.0f);
  for (int32_t head = 0; head < heads; ++head) {
    const float* from = layer.cache->scores[layer.layer * heads + head];
    if (!from) continue;
    const int64_t tokens = layer.length(head) + layer.cache->newTokens;
    TL_TRY(context.hostReads(from, size_t(tokens) * sizeof(float)));
    std::copy(from, from + tokens, held.begin() + head * width);
  }
  return context.upload(op, held.data(), held.size() * sizeof(float), reinterpret_cast<void**>(rows));
}

inline Status returnScores(const CacheLayer& layer, DeviceContext& context, int64_t width, const float* rows) {
  const int32_t heads = layer.cache->shape.kvHeads;
  for (int32_t head = 0; head < heads; ++head)
    TL_TRY(copyOut(context, layer.cache->scores[layer.layer * heads + head], rows + head * width, size_t(layer.length(head) + layer.cache->newTokens) * sizeof(float)));
  return {};
}

inline dim3 tokenGrid(int64_t width, int64_t rows) { return dim3(unsigned(ceilDiv(width, kCacheThreads)), unsigned(rows)); }

// Dimensions first … first + 31 of one token into an i4 page, a lane each: two groups, see quantizePageGroup of cpp/cache.
template <Part part, typename X> __device__ inline void writeInt4(const PageLayout& layout, std::byte* data, f16* scales, int slot, int first, X x) {
  const int64_t dim = layout.dim;
  const int lane = laneIndex(), d = first + lane, group = first + lane / int(kPageGroup) * int(kPageGroup);
  const int64_t from = d < dim ? d : group < dim ? group : first;
  const float value = part == Part::keys ? rotatedElement(dim, from, x) : x(from);
  float low = value, high = value, spoiled = value * 0;
  for (int distance = int(kPageGroup) / 2; distance > 0; distance /= 2) {
    low = min(low, shuffleXor(low, distance));
    high = max(high, shuffleXor(high, distance));
    spoiled += shuffleXor(spoiled, distance);
  }
  const f16 minimum = fromFloat<f16>(low + spoiled), scale = fromFloat<f16>((high - asFloat(minimum)) / 15);
  const float step = asFloat(scale), steps = step > 0 ? (value - asFloat(minimum)) / step : 0.0f;
  const int q = d < dim && steps > 0 ? int(min(steps, 15.0f) + 0.5f) : 0;
  const int half = part == Part::keys ? 1 : layout.splitHalf(first), partner = shuffleFrom(q, (lane + half) % kWarp);
  const bool writes = d < dim && !layout.inHighBits<part>(d);
  const int byte = layout.pairOf<part>(d < dim ? d : first);
  if (writes) reinterpret_cast<uint8_t*>(data)[part == Part::keys ? byte * kPageTokens + slot : slot * ((dim + 1) / 2) + byte] = uint8_t(q | (d + half < dim ? partner : 0) << 4);
  if (lane % kPageGroup == 0 && d < dim) {
    f16* to = scales + group / kPageGroup * kPageTokens + slot;
    to[0] = scale;
    to[layout.groups() * kPageTokens] = minimum;
  }
}

// Key or value x(d) of one token into its page, by a whole warp.
template <Part part, typename X> __device__ inline void writeToken(KvPage* page, int64_t dim, int slot, X x) {
  const PageLayout layout{page->element, dim};
  std::byte* base = const_cast<std::byte*>(pageData(page));
  std::byte* scales = base + 2 * layout.half() + (part == Part::values ? layout.scaleBytes() : 0);
  if (part == Part::values) base += layout.half();
  const int lane = laneIndex();
  const auto at = [&](int64_t d) { return part == Part::keys ? d * kPageTokens + slot : slot * dim + d; };
  if (layout.element == DType::i8) {
    float largest = 0;
    for (int64_t d = lane; d < dim; d += kWarp) largest = max(largest, fabsf(x(d)));
    const float scale = warpMax(largest) / 127;
    for (int64_t d = lane; d < dim; d += kWarp) reinterpret_cast<int8_t*>(base)[at(d)] = int8_t(scale > 0 ? __float2int_rn(x(d) / scale) : 0);
    if (lane == 0) reinterpret_cast<float*>(scales)[slot] = scale;
  } else if (layout.element == DType::i4) {
    for (int64_t first = 0; first < dim; first += kPageSplit) writeInt4<part>(layout, base, reinterpret_cast<f16*>(scales), slot, int(first), x);
  } else {
    for (int64_t d = lane; d < dim; d += kWarp) storeElement(base, layout.element, at(d), x(d));
  }
}

}  // namespace tl::cuda
