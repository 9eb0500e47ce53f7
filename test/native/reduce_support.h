// What tests of token reduction share: rows in exact and in random numbers, and what lies between two of them, in double.
#pragma once
#include <algorithm>
#include <numeric>

#include "support.h"

namespace tl::test {

inline double dotOf(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += double(a[i]) * b[i];
  return sum;
}

inline double cosineOf(const float* a, const float* b, int64_t n) {
  const double norms = std::sqrt(dotOf(a, a, n)) * std::sqrt(dotOf(b, b, n));
  return norms == 0 ? 0 : dotOf(a, b, n) / norms;
}

inline double squareOf(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += (double(a[i]) - b[i]) * (double(a[i]) - b[i]);
  return sum;
}

// Small whole numbers: their products, squares of differences and sums are exact in f32, in any order, and many are equal.
inline void fillWhole(Guarded<float>& values, uint32_t seed, int range = 2) {
  std::mt19937 random(seed);
  for (int64_t i = 0; i < values.size(); ++i) values[i] = float(int(random() % uint32_t(2 * range + 1)) - range);
}

// Sequences of these lengths, laid end to end.
inline Guarded<int32_t> boundsOf(const std::vector<int64_t>& lengths) {
  Guarded<int32_t> bounds(int64_t(lengths.size()) + 1);
  bounds[0] = 0;
  for (size_t s = 0; s < lengths.size(); ++s) bounds[int64_t(s) + 1] = bounds[int64_t(s)] + int32_t(lengths[s]);
  return bounds;
}

// Scratch of the sweeps: `rows` rows of each of `entries`, regrouped.
inline Guarded<float> panelsFor(int64_t rows, int64_t entries, int64_t width) { return Guarded<float>((rows + 16 * entries) * width); }

inline View bytes(Guarded<uint8_t>& values) {
  const int64_t dims[] = {values.size()};
  return contiguous(values.data(), DType::u8, 1, dims);
}

// Indices by falling value, equal ones by lowest index, NaN last.
inline std::vector<int64_t> falling(int64_t n, const float* values) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return std::isnan(values[b]) ? !std::isnan(values[a]) : values[a] > values[b]; });
  return order;
}

}  // namespace tl::test
