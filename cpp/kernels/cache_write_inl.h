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

// One token's key, [headDim], into a page of int8.
inline void writeInt8Key(KvPage& page, const KvLayout& layout, int64_t slot, const float* key) {
  auto* keys = reinterpret_cast<int8_t*>(page.keys());
  int8_t row[kMostQuantizedDim];
  page.keyScales<float>(layout)[slot] = quantizeInt8(key, layout.headDim, row);
  for (int64_t d = 0; d < layout.headDim; ++d) keys[d * kPageTokens + slot] = row[d];
}

inline void writeInt8Value(KvPage& page, const KvLayout& layout, int64_t slot, const float* value) {
  page.valueScales<float>(layout)[slot] = quantizeInt8(value, layout.headDim, reinterpret_cast<int8_t*>(page.values(layout)) + slot * layout.tokenBytes());
}

}  // namespace tl::TL_TARGET
