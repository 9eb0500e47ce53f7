// cacheAppend: the step's keys and values into the pages behind each head's tokens, in the pages' element type. A warp takes a
// token of a head: int8 needs the largest of a row, int4 that of each 32 dimensions (arXiv 2303.06865, 2402.02750).
#include "attention_source.cuh"
#include "cache_layer.cuh"

namespace tl::cuda {
namespace {

constexpr int kThreads = 128;

struct Appended {
  const float *key, *value;
  int64_t keyToken, keyHead, valueToken, valueHead;
};

template <Part part> __device__ void writeToken(KvPage* page, int64_t dim, int slot, const float* x) {
  const PageLayout layout{page->element, dim};
  std::byte* base = const_cast<std::byte*>(pageData(page));
  auto* scales = reinterpret_cast<float*>(base + 2 * layout.half()) + (part == Part::values ? layout.halfScales() : 0);
  if (part == Part::values) base += layout.half();
  const int lane = laneIndex();
  const auto at = [&](int64_t d) { return part == Part::keys ? d * kPageTokens + slot : slot * dim + d; };
  if (layout.element == DType::i8) {
    float largest = 0;
    for (int64_t d = lane; d < dim; d += kWarp) largest = max(largest, fabsf(x[d]));
    const float scale = warpMax(largest) / 127;
    for (int64_t d = lane; d < dim; d += kWarp) reinterpret_cast<int8_t*>(base)[at(d)] = int8_t(scale > 0 ? __float2int_rn(x[d] / scale) : 0);
    if (lane == 0) scales[slot] = scale;
  } else if (layout.element == DType::i4) {
    const int64_t groups = layout.groups(), bytes = (dim + 1) / 2;
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t d = group * kPageGroup + lane;
      const float value = d < dim ? x[d] : x[group * kPageGroup], largest = warpMax(value), minimum = -warpMax(-value), scale = (largest - minimum) / 15;
      const int q = d < dim && scale > 0 ? __float2int_rn((value - minimum) / scale) : 0, next = shuffleXor(q, 1);
      if (lane % 2 == 0 && d < dim) reinterpret_cast<uint8_t*>(base)[part == Part::keys ? d / 2 * kPageTokens + slot : slot * bytes + d / 2] = uint8_t(q | next << 4);
      const int64_t where = part == Part::keys ? group * kPageTokens + slot : slot * groups + group;
      if (lane == 0) scales[where] = scale, scales[kPageTokens * groups + where] = minimum;
    }
  } else {
    for (int64_t d = lane; d < dim; d += kWarp) storeElement(base, layout.element, at(d), x[d]);
  }
}

__global__ void __launch_bounds__(kThreads) appendTokens(Appended x, KvPage* const* pages, int64_t pagesHead, const int32_t* lengths, int32_t newTokens, int32_t kvHeads, int64_t dim) {
  const int64_t i = int64_t(blockIdx.x) * (kThreads / kWarp) + warpIndex();
  const int32_t head = int32_t(i % kvHeads), row = int32_t(i / kvHeads);
  if (row >= newTokens) return;  // the whole warp
  const int32_t token = lengths[head] - newTokens + row;
  KvPage* page = pages[head * pagesHead + token / kPageTokens];
  writeToken<Part::keys>(page, dim, token % kPageTokens, x.key + row * x.keyToken + head * x.keyHead);
  writeToken<Part::values>(page, dim, token % kPageTokens, x.value + row * x.valueToken + head * x.valueHead);
}

}  // namespace

Status cacheAppend(const CacheAppendArgs& args, DeviceContext& context) {
  constexpr const char* op = "cacheAppend";
  CacheLayer layer;
  TL_TRY(openLayer(op, args.cache, args.layer, layer));
  const DeviceCache& cache = *layer.cache;
  const int64_t n = cache.newTokens, kvHeads = cache.shape.kvHeads, dim = cache.shape.headDim;
  TL_TRY(checkType(op, "key", args.key, DType::f32, n, kvHeads, dim));
  TL_TRY(checkType(op, "value", args.value, DType::f32, n, kvHeads, dim));
  if (n == 0) return {};
  TL_TRY(uploadLayer(op, layer, context));
  const Appended x{args.key.as<const float>(), args.value.as<const float>(), args.key.strides[0], args.key.strides[1], args.value.strides[0], args.value.strides[1]};
  return launch(op, context, appendTokens, dim3(unsigned(ceilDiv(n * kvHeads, kThreads / kWarp))), dim3(kThreads), 0, x, layer.pages, layer.pagesHead, layer.lengths, int32_t(n), int32_t(kvHeads), dim);
}

}  // namespace tl::cuda
