// Writes tokens into cache pages, see cache/kv.h. Included after simd/target.h and cache/kv.h.
#pragma once

#include "quantize_inl.h"

namespace tl::TL_TARGET {

inline void convertLanes(float* to, const float* from, int n) { std::memcpy(to, from, size_t(n) * sizeof(float)); }
template <typename T> void convertLanes(T* to, const float* from, int n) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  if (i < n) storePart(to + i, loadPart(from + i, n - i), n - i);
}

// One 4-bit group of n values: pair i of them goes to to[i · step].
inline void writeInt4Group(const float* x, int n, uint8_t* to, int64_t step, float& scale, float& minimum) {
  int8_t q[kPageGroup] = {};
  quantizeInt4(x, n, q, scale, minimum);
  for (int i = 0; i < n; i += 2) to[i / 2 * step] = uint8_t(q[i] | (i + 1 < n ? q[i + 1] << 4 : 0));
}

// One token's key, [headDim], into a page of int8 or int4.
inline void writeQuantizedKey(KvPage& page, const KvLayout& layout, int64_t slot, const float* key) {
  auto* keys = reinterpret_cast<uint8_t*>(page.keys());
  float* scales = page.keyScales(layout);
  if (layout.element == DType::i8) {
    int8_t row[kMostQuantizedDim];
    scales[slot] = quantizeInt8(key, layout.headDim, row);
    for (int64_t d = 0; d < layout.headDim; ++d) keys[d * kPageTokens + slot] = uint8_t(row[d]);
    return;
  }
  float* minima = scales + layout.groups() * kPageTokens;
  for (int64_t g = 0; g < layout.groups(); ++g)
    writeInt4Group(key + g * kPageGroup, int(std::min(layout.headDim - g * kPageGroup, kPageGroup)), keys + g * kPageGroup / 2 * kPageTokens + slot, kPageTokens,
                   scales[g * kPageTokens + slot], minima[g * kPageTokens + slot]);
}

inline void writeQuantizedValue(KvPage& page, const KvLayout& layout, int64_t slot, const float* value) {
  auto* values = reinterpret_cast<uint8_t*>(page.values(layout)) + slot * layout.tokenBytes();
  float* scales = page.valueScales(layout);
  if (layout.element == DType::i8) {
    scales[slot] = quantizeInt8(value, layout.headDim, reinterpret_cast<int8_t*>(values));
    return;
  }
  float* minima = scales + layout.groups() * kPageTokens;
  for (int64_t g = 0; g < layout.groups(); ++g)
    writeInt4Group(value + g * kPageGroup, int(std::min(layout.headDim - g * kPageGroup, kPageGroup)), values + g * kPageGroup / 2, 1,
                   scales[slot * layout.groups() + g], minima[slot * layout.groups() + g]);
}

}  // namespace tl::TL_TARGET
