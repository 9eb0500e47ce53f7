// Operands that are rows of f32 at one stride, and output rows that are f32 or q8 (cpp/kernels/quantized_rows.h).
#pragma once
#include "../../cpp/kernels/operands.h"
#include "../../cpp/kernels/quantized_rows.h"
#include "device.cuh"

namespace tl::cuda {

constexpr int kRowThreads = 128;  // of a block that has one row

using Rows = FloatRows;

// Rows past the grid's largest x would not be computed: no tensor has that many.
inline Status checkGrid(const char* op, int64_t blocks) {
  return blocks > 0x7fffffff ? argumentError(op, "", "has more rows than a grid has blocks", blocks) : Status{};
}

// A row of `values` (shared memory, visible to all threads) to q8: a warp takes 32 columns at a time. Reached by all threads.
__device__ inline void quantizeRow(const float* values, int64_t width, const QuantizedRow& row) {
  const int lane = laneIndex(), warps = int(blockDim.x) / kWarp;
  const int64_t blocks = quantBlocks(width);
  for (int64_t first = 0; first < blocks; first += warps) {  // every warp goes round as often
    const int64_t block = first + warpIndex(), column = block * 32 + lane;
    const float value = column < width ? values[column] : 0.0f;
    const float peak = warpMax(fabsf(value));
    const bool finite = ballot(!(fabsf(value) < TL_INFINITY)) == 0;
    const bool empty = !finite || peak < 7.888609052210118e-31f;  // 2^-100
    const int q = empty ? 0 : __float2int_rn(__fmul_rn(value, 127.0f / peak));
    int half = q;
    for (int distance = 8; distance > 0; distance /= 2) half += shuffleXor(half, distance);
    const int other = shuffleXor(half, 16);
    if (block >= blocks) continue;  // no warp operation follows
    row.q[column] = int8_t(q);
    if (lane == 0) {
      const float scale = finite ? (empty ? 0.0f : peak / 127.0f) : __int_as_float(0x7fc00000);
      row.scale[block] = scale;
      row.scaledSum[block] = scale * float(half + other);
      row.sum[2 * block] = int16_t(half);
      row.sum[2 * block + 1] = int16_t(other);
    }
  }
}

// Where an op's rows go. A kernel with one block a row makes its values in shared memory, or writes f32 at once.
struct Output {
  void* data;
  int64_t rows, width, stride;
  bool quantized;
  __device__ float* row(int64_t i) const { return static_cast<float*>(data) + i * stride; }
  size_t shared() const { return sharedBytes<float>(quantized ? width : 0); }
};

constexpr int64_t kMostQuantizedWidth = 20000;  // a row in shared memory

inline Status outputRows(const char* op, const char* name, const View& view, int64_t rows, int64_t width, Output& out) {
  if (view.rows() != rows) return shapeError(op, name, "must have one row for each input row", rows, view.rows());
  if (view.lastDim() != width) return shapeError(op, name, "has another row length than expected", width, view.lastDim());
  if (view.dtype == DType::q8) {
    out = {view.data, rows, width, 0, true};
    return width > kMostQuantizedWidth ? argumentError(op, name, "has too long rows to quantise", width) : Status{};
  }
  Rows plain;
  TL_TRY(floatRows(op, name, view, plain));
  out = {plain.data, rows, width, plain.stride, false};
  return {};
}

// Writes value(column) for all columns of row i. Reached by all threads; `values`: shared memory of Output::shared() bytes.
template <typename Value> __device__ __forceinline__ void writeRow(const Output& out, int64_t i, float* values, Value value) {
  float* to = out.quantized ? values : out.row(i);
  for (int64_t column = threadIdx.x; column < out.width; column += blockDim.x) to[column] = value(column);
  if (!out.quantized) return;
  __syncthreads();
  quantizeRow(values, out.width, quantizedRow(out.data, out.width, i));
}

}  // namespace tl::cuda
