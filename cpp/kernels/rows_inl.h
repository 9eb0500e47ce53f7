// How the small kernels share rows between threads and write them. Included after simd/target.h.
//
// A row is computed by one thread, always by the same instructions: results depend neither on the number of rows nor on
// the number of threads. Small work stays on the calling thread: waking a helper costs more than the work.
#pragma once

#include "quantize_inl.h"

namespace tl::TL_TARGET {

constexpr int64_t kParallelElements = 16384;  // from here on helpers are worth waking
constexpr int64_t kChunkElements = 4096;
constexpr int64_t kScratchFloats = int64_t(kScratchBytes / sizeof(float));

// body(begin, end, thread) over rows, each of about `rowElements` elements of light work.
template <typename Body> void forRows(Context& context, int64_t rows, int64_t rowElements, Body&& body) {
  const int64_t width = std::max<int64_t>(rowElements, 1);
  const bool small = rows <= kParallelElements / width;
  context.pool.parallelFor(rows, small ? rows : std::max<int64_t>(kChunkElements / width, 1), body);
}

// A kernel's output rows: f32 in place, or through the thread's scratch into quantised rows.
class OutputRows {
 public:
  Status open(const char* op, const char* name, const View& view, int64_t rows, int64_t width) {
    if (view.rows() != rows) return shapeError(op, name, "must have one row for each input row", rows, view.rows());
    if (view.lastDim() != width) return shapeError(op, name, "has another row length than expected", width, view.lastDim());
    quantized_ = view.dtype == DType::q8;
    rows_ = rows;
    width_ = width;
    if (quantized_) {
      data_ = view.data;
      return width > kScratchFloats ? argumentError(op, name, "has too long rows to quantise", width) : Status{};
    }
    FloatRows out;
    TL_TRY(floatRows(op, name, view, out));
    data_ = out.data;
    stride_ = out.stride;
    return {};
  }
  // make(i, values) writes row `i` to `values`, for all rows; `rowElements` as in forRows.
  template <typename Make> void make(Context& context, int64_t rowElements, Make&& make) const {
    forRows(context, rows_, rowElements, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i) {
        float* values = quantized_ ? reinterpret_cast<float*>(context.pool.scratch(thread)) : static_cast<float*>(data_) + i * stride_;
        make(i, values);
        if (quantized_) quantizeRow(values, width_, quantizedRow(data_, width_, i));
      }
    });
  }

 private:
  void* data_ = nullptr;
  int64_t rows_ = 0, width_ = 0, stride_ = 0;
  bool quantized_ = false;
};

// A vector of row elements of which n are left, n ≥ 1; what is past the end is zero.
TL_INLINE F32 loadUpTo(const float* p, int64_t n) { return n >= kLanes ? load(p) : loadPart(p, int(n)); }
TL_INLINE void storeUpTo(float* p, F32 a, int64_t n) { n >= kLanes ? store(p, a) : storePart(p, a, int(n)); }
// Bits of the lanes that hold elements.
TL_INLINE uint32_t lanesUpTo(int64_t n) { return (uint32_t(1) << std::min<int64_t>(n, kLanes)) - 1; }

// out[i] = f(x[i]) on vectors; the last, partial one too.
template <typename Function> TL_INLINE void mapRow(const float* x, float* out, int64_t n, Function f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, f(load(x + i)));
  if (i < n) storePart(out + i, f(loadPart(x + i, int(n - i))), int(n - i));
}
template <typename Function> TL_INLINE void mapRow(const float* x, const float* y, float* out, int64_t n, Function f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, f(load(x + i), load(y + i)));
  if (i < n) {
    const int part = int(n - i);
    storePart(out + i, f(loadPart(x + i, part), loadPart(y + i, part)), part);
  }
}

// Σ f(x[i]) in four chains of vectors: the same tree for every row of one length.
template <typename Function> TL_INLINE float sumRow(const float* x, int64_t n, Function f) {
  F32 sums[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int j = 0; j < 4; ++j) sums[j] = add(sums[j], f(load(x + i + j * kLanes)));
  for (; i < n; i += kLanes) {
    const int part = int(std::min<int64_t>(kLanes, n - i));
    sums[0] = add(sums[0], select(firstLanes(part), f(loadPart(x + i, part)), zero()));
  }
  return sumLanes(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

}  // namespace tl::TL_TARGET
