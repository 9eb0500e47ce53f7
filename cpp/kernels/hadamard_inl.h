// The rotation of int4 keys, rotateKey() of cache/kv.h, for rows side by side. Included after simd/target.h and cache/kv.h.
#pragma once

namespace tl::TL_TARGET {

// a, b become a + b, a − b.
inline void addAndSubtract(float* a, float* b, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const F32 x = load(a + i), y = load(b + i);
    store(a + i, add(x, y));
    store(b + i, sub(x, y));
  }
  for (; i < n; ++i) {
    const float x = a[i], y = b[i];
    a[i] = x + y;
    b[i] = x - y;
  }
}

// Each column of x [headDim][rows], the same bits as rotateKey() gives.
inline void rotateColumns(float* x, int64_t headDim, int64_t rows) {
  const int64_t width = rotationWidth(headDim), all = headDim * rows;
  for (int64_t step = rows; step < width * rows; step *= 2)
    for (int64_t i = 0; i < all; i += 2 * step) addAndSubtract(x + i, x + i + step, step);
  const float unit = 1 / std::sqrt(float(width));
  for (int64_t i = 0; i < all; ++i) x[i] *= unit;
}

}  // namespace tl::TL_TARGET
