// cacheAppend: the step's keys and values into the pages behind each head's tokens, in the pages' element type. A warp takes a
// token of a head: int8 needs the largest of a row, int4 that of each 32 dimensions (arXiv 2303.06865, 2402.02750).
#include "cache_pages.cuh"

namespace tl::cuda {
namespace {

struct Appended {
  const float *key, *value;
  int64_t keyToken, keyHead, valueToken, valueHead;
};

__global__ void __launch_bounds__(kCacheThreads) appendTokens(Appended x, KvPage* const* pages, int64_t pagesHead, const int32_t* lengths, int32_t newTokens, int32_t kvHeads, int64_t dim) {
  const int64_t i = int64_t(blockIdx.x) * (kCacheThreads / kWarp) + warpIndex();
  const int32_t head = int32_t(i % kvHeads), row = int32_t(i / kvHeads);
  if (row >= newTokens) return;  // the whole warp
  const int32_t token = lengths[head] - newTokens + row;
  KvPage* page = pages[head * pagesHead + token / kPageTokens];
  const float *key = x.key + row * x.keyToken + head * x.keyHead, *value = x.value + row * x.valueToken + head * x.valueHead;
  writeToken<Part::keys>(page, dim, token % kPageTokens, [&](int64_t d) { return key[d]; });
  writeToken<Part::values>(page, dim, token % kPageTokens, [&](int64_t d) { return value[d]; });
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
  return launch(op, context, appendTokens, dim3(unsigned(ceilDiv(n * kvHeads, kCacheThreads / kWarp))), dim3(kCacheThreads), 0, x, layer.pages, layer.pagesHead, layer.lengths, int32_t(n), int32_t(kvHeads), dim);
}

}  // namespace tl::cuda
