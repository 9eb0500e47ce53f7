// Writes a step's keys and values into the paged cache, converted to its element type: keys transposed [headDim][32],
// values [32][headDim], see cache/kv.h. key, value [n, kvHeads, headDim] f32, any stride along tokens and heads.
#include "../cache/kv.h"
#include "../simd/target.h"
#include "quantize_inl.h"

namespace tl::TL_TARGET {
namespace {

void convert(float* to, const float* from, int n) { std::memcpy(to, from, size_t(n) * sizeof(float)); }
template <typename T> void convert(T* to, const float* from, int n) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  if (i < n) storePart(to + i, loadPart(from + i, n - i), n - i);
}

// Tokens [slot, slot + count) of a page, from rows `stride` apart. Dimensions go through `lane` in pieces, so that rows of
// 32 tokens are gathered in f32 and converted together.
template <typename T> void writePage(KvPage* page, int64_t headDim, int slot, int count, const float* key, int64_t keyStride, const float* value,
                                     int64_t valueStride) {
  T* keys = reinterpret_cast<T*>(page->keys());
  T* values = keys + headDim * kPageTokens;
  alignas(64) float lane[kPageTokens];
  for (int64_t d = 0; d < headDim; ++d) {
    for (int i = 0; i < count; ++i) lane[i] = key[i * keyStride + d];
    convert(keys + d * kPageTokens + slot, lane, count);
  }
  for (int i = 0; i < count; ++i) convert(values + (slot + i) * headDim, value + i * valueStride, int(headDim));
}

void writeInt8(KvPage* page, const KvLayout& layout, int slot, const float* key, const float* value) {
  constexpr int most = 1024;
  int8_t row[most];
  const int64_t headDim = layout.headDim;
  auto* keys = reinterpret_cast<int8_t*>(page->keys());
  page->keyScales(layout)[slot] = quantizeInt8(key, headDim, row);
  for (int64_t d = 0; d < headDim; ++d) keys[d * kPageTokens + slot] = row[d];
  page->valueScales(layout)[slot] = quantizeInt8(value, headDim, reinterpret_cast<int8_t*>(page->values(layout)) + slot * headDim);
}

void writeInt4(KvPage* page, const KvLayout& layout, int slot, const float* key, const float* value) {
  const int64_t groups = layout.groups(), bytes = layout.tokenBytes();
  auto* keys = reinterpret_cast<uint8_t*>(page->keys());
  auto* values = reinterpret_cast<uint8_t*>(page->values(layout)) + slot * bytes;
  float *keyScales = page->keyScales(layout), *valueScales = page->valueScales(layout);
  for (int64_t g = 0; g < groups; ++g) {
    int8_t q[kPageGroup] = {};
    const int n = int(std::min(layout.headDim - g * kPageGroup, kPageGroup));
    const int64_t ofKey = g * kPageTokens + slot, ofValue = slot * groups + g, minima = groups * kPageTokens;
    quantizeInt4(key + g * kPageGroup, n, q, keyScales[ofKey], keyScales[minima + ofKey]);
    for (int i = 0; i < n; i += 2) keys[(g * kPageGroup + i) / 2 * kPageTokens + slot] = uint8_t(q[i] | (i + 1 < n ? q[i + 1] << 4 : 0));
    quantizeInt4(value + g * kPageGroup, n, q, valueScales[ofValue], valueScales[minima + ofValue]);
    for (int i = 0; i < n; i += 2) values[(g * kPageGroup + i) / 2] = uint8_t(q[i] | (i + 1 < n ? q[i + 1] << 4 : 0));
  }
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
  if (shape.element == DType::i8 && shape.headDim > 1024) return shapeError(op, "cache", "an int8 cache has head dimensions of at most 1,024", 1024, shape.headDim);
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
      const KvLayout layout = cache.layout(shape.element);
      if (shape.element == DType::i8 || shape.element == DType::i4) {
        for (int j = 0; j < count; ++j)
          (shape.element == DType::i8 ? writeInt8 : writeInt4)(target, layout, slot + j, key + j * args.key.strides[0], value + j * args.value.strides[0]);
      } else if (shape.element == DType::f16) writePage<f16>(target, shape.headDim, slot, count, key, args.key.strides[0], value, args.value.strides[0]);
      else if (shape.element == DType::bf16) writePage<bf16>(target, shape.headDim, slot, count, key, args.key.strides[0], value, args.value.strides[0]);
      else writePage<float>(target, shape.headDim, slot, count, key, args.key.strides[0], value, args.value.strides[0]);
    }
  });
  return {};
}

}  // namespace tl::TL_TARGET
