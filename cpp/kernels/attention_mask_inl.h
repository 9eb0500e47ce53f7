// Which keys a query sees. Included after attention_tile_inl.h.
#pragma once

namespace tl::TL_TARGET {

enum class Cover { none, partial, full };

// Query i stands at position p = offset + i, offset = keys − queries: the last query is on the last key. Causal: key j is
// seen where j ≤ p. A window leaves p − j < window (not causal: |p − j| < window); sinks are the first keys, seen in spite
// of the window.
struct KeyMask {
  int64_t keys = 0, offset = 0;
  bool causal = true;
  int64_t window = 0, sinks = 0;  // window 0 = unlimited

  int64_t begin(int64_t p) const { return window > 0 ? std::max<int64_t>(p - window + 1, 0) : 0; }
  int64_t end(int64_t p) const {
    const int64_t end = causal ? p + 1 : window > 0 ? p + window : keys;
    return std::clamp<int64_t>(end, 0, keys);
  }
  int64_t sinksEnd(int64_t p) const { return window > 0 ? std::min(sinks, causal ? end(p) : keys) : 0; }

  // Of queries first … last and the block that starts at `key`.
  Cover cover(int64_t first, int64_t last, int64_t key) const {
    const int64_t p = offset + first, q = offset + last, blockEnd = key + kBlockKeys;
    const bool inSinks = key < sinksEnd(q);
    if (!inSinks && (key >= end(q) || blockEnd <= begin(p))) return Cover::none;
    const bool allOfSinks = blockEnd <= sinksEnd(p);
    return allOfSinks || (blockEnd <= end(p) && key >= begin(q)) ? Cover::full : Cover::partial;
  }

  void visible(int64_t query, int64_t key, Visible& seen) const {
    const int64_t p = offset + query;
    addRange(seen, begin(p) - key, end(p) - key);
    if (const int64_t last = sinksEnd(p); last > key) addRange(seen, -key, last - key);
  }
};

}  // namespace tl::TL_TARGET
