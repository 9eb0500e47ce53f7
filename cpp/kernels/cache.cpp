// Writes a step's keys and values into the paged cache, converted to its element type: keys transposed [headDim][32],
// values [32][headDim], see cache/kv.h. key, value [n, kvHeads, headDim] f32, any stride along tokens and heads.
#include "../cache/kv.h"
#include "../simd/target.h"
#include "cache_write_inl.h"

namespace tl::TL_TARGET {
namespace {

// Tokens [slot, slot + count) of a page, from rows `stride` apart. Dimensions go through `lane` in pieces, so that rows of
// 32 tokens are gathered in f32 and converted together.
template <typename T> void writePage(KvPage* page, int64_t headDim, int slot, int count, const float* key, int64_t keyStride, const float* value,
                                     int64_t valueStride) {
  T* keys = reinterpret_cast<T*>(page->keys());
  T* values = keys + headDim * kPageTokens;
  alignas(64) float lane[kPageTokens];
  for (int64_t d = 0; d < headDim; ++d) {
    for (int i = 0; i < count; ++i) lane[i] = key[i * keyStride + d];
    convertLanes(keys + d * kPageTokens + slot, lane, count);
  }
  for (int i = 0; i < count; ++i) convertLanes(values + (slot + i) * headDim, value + i * valueStride, int(headDim));
}

Status checkRows(const char* name, const View& view, int64_t n, const KvShape& shape) {
  constexpr const char* op = "cacheAppend";
  if (view.dtype != DType::f32) return argumentError(op, name, "must be f32", int64_t(view.dtype));
  if (view.rank != 3) return shapeError(op, name, "must be [n, kvHeads, headDim]", 3, view.rank);
  if (view.dims[0] != n) return shapeError(op, name, "must have one row for each new token", n, view.dims[0]);
  if (view.dims[1] != shape.kvHeads) return shapeError(op, name, "has another number of heads than the cache", shape.kvHeads, view.dims[1]);
  if (view.dims[2] != shape.headDim) return shapeError(op, name, "has another head dimension than the cache", shape.headDim, view.dims[2]);
  if (view.strides[2] != 1 && shape.headDim > 1) return argumentError(op, name, "must be contiguous along headDim", view.strides[2]);
  return {};
}

}  // namespace

Status cacheAppend(const CacheAppendArgs& args, Context& context) {
  constexpr const char* op = "cacheAppend";
  if (args.cache.dtype != DType::cache || !args.cache.data) return argumentError(op, "cache", "must be a cache", int64_t(args.cache.dtype));
  const KvStep& step = *args.cache.as<KvStep>();
  const KvCache& cache = *step.cache;
  const KvShape& shape = cache.shape();
  TL_TRY(checkRows("key", args.key, step.newTokens, shape));
  TL_TRY(checkRows("value", args.value, step.newTokens, shape));
  if (!(args.layer >= 0 && args.layer < shape.layers)) return argumentError(op, "layer", "is not in the cache", int64_t(args.layer));
  if (step.newTokens == 0) return {};
  if ((isQuantized(shape.element) || cache.mixed()) && shape.headDim > kMostQuantizedDim) return shapeError(op, "cache", "a quantised cache has head dimensions of at most 1,024", kMostQuantizedDim, shape.headDim);
  const int32_t layer = int32_t(args.layer);
  for (int32_t head = 0; head < shape.kvHeads; ++head)
    if (cache.length(layer, head) + step.newTokens > cache.capacity(layer, head))
      return argumentError(op, "cache", "has no pages reserved for this step", cache.length(layer, head) + step.newTokens);
  const int64_t pieces = ceilDiv(step.newTokens, kPageTokens) + 1;  // pages that n tokens can touch
  context.pool.parallelFor(shape.kvHeads * pieces, step.newTokens <= 8 ? shape.kvHeads * pieces : 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int32_t head = int32_t(i / pieces);
      const int64_t length = cache.length(layer, head), page = length / kPageTokens + i % pieces;
      const int64_t from = std::max(page * kPageTokens, length), to = std::min((page + 1) * kPageTokens, length + step.newTokens);
      if (from >= to) continue;
      KvPage* target = cache.pages(layer, head)[page];
      const int slot = int(from % kPageTokens), count = int(to - from);
      const float* key = args.key.as<float>() + (from - length) * args.key.strides[0] + head * args.key.strides[1];
      const float* value = args.value.as<float>() + (from - length) * args.value.strides[0] + head * args.value.strides[1];
      const DType element = target->element;  // not the cache's, where older pages were requantised and then cut
      const KvLayout layout = cache.layout(element);
      if (element == DType::i8) {
        for (int j = 0; j < count; ++j) {
          writeInt8Key(*target, layout, slot + j, key + j * args.key.strides[0]);
          writeInt8Value(*target, layout, slot + j, value + j * args.value.strides[0]);
        }
      } else if (element == DType::i4) {
        for (int j = 0; j < count; ++j) writeToken(*target, layout, slot + j, key + j * args.key.strides[0], value + j * args.value.strides[0]);
      } else if (element == DType::f16) writePage<f16>(target, shape.headDim, slot, count, key, args.key.strides[0], value, args.value.strides[0]);
      else if (element == DType::bf16) writePage<bf16>(target, shape.headDim, slot, count, key, args.key.strides[0], value, args.value.strides[0]);
      else writePage<float>(target, shape.headDim, slot, count, key, args.key.strides[0], value, args.value.strides[0]);
    }
  });
  return {};
}

}  // namespace tl::TL_TARGET
