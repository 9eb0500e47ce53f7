// out = x · weightᵀ + bias + residual with x f32 and the weight f32, f16 or bf16: see cpp/kernels/matmul_float.cpp.
//   f16, bf16  tensor cores. x is split into two numbers of the weight's type, x ≈ high + low, and multiplied twice, so that
//              the activations lose nothing that the f32 sum would keep (relative error below 2^-16 for bf16, 2^-21 for f16
//              in its range). One tile shape serves any number of tokens: a token's result does not depend on it.
//   f32        one thread a row and four tokens, columns ascending, one fused multiply-add each
#include "matmul.cuh"

namespace tl::cuda {
namespace {

constexpr int kThreads = 128, kRows = 64, kColumns = 32;
constexpr int kXStride = kColumns + 8, kWStride = kRows + 8;

// A block: 16 · kTiles tokens by 64 rows, a warp 16 of them.
template <typename T, int kTiles> __global__ void __launch_bounds__(kThreads) multiplyHalves(Matmul m) {
  constexpr int kTokens = 16 * kTiles;
  Shared shared;
  const Packed& w = m.weight;
  T* high = shared.take<T>(kTokens * kXStride);
  T* low = shared.take<T>(kTokens * kXStride);
  T* ws = shared.take<T>(kColumns * kWStride);
  const int64_t firstToken = int64_t(blockIdx.y) * kTokens, firstRow = int64_t(blockIdx.x) * kRows;
  const int lane = laneIndex(), warp = warpIndex();
  float sum[kTiles][2][4];
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[t][0][i] = sum[t][1][i] = 0;
  for (int64_t first = 0; first < w.columns; first += kColumns) {
    for (int i = int(threadIdx.x); i < kTokens * kColumns; i += kThreads) {
      const int t = i / kColumns, c = i % kColumns;
      const bool there = firstToken + t < m.n && first + c < w.columns;
      const float x = there ? reinterpret_cast<const float*>(m.x + (firstToken + t) * m.xStride)[first + c] : 0.0f;
      const T top = fromFloat<T>(x);
      const float rest = x - asFloat(top);
      high[t * kXStride + c] = top;
      low[t * kXStride + c] = fabsf(rest) < TL_INFINITY ? fromFloat<T>(rest) : T{0};  // an infinite x is all in `high`
    }
    for (int i = int(threadIdx.x); i < kColumns * kRows; i += kThreads) {
      const int c = i / kRows, r = i % kRows;
      const bool there = firstRow + r < w.rows && first + c < w.columns;
      const auto* group = reinterpret_cast<const T*>(w.group(int(firstRow + (there ? r : 0)) / w.groupRows));
      ws[c * kWStride + r] = there ? group[(first + c) * w.groupRows + int(firstRow + r) % w.groupRows] : T{0};
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kColumns; k += 16) {
      uint32_t b[4];
      loadMatrix<true>(b, ws + (k + lane % 16) * kWStride + warp * 16 + lane / 16 * 8);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        uint32_t a[4];
        const int at = (t * 16 + lane % 16) * kXStride + k + lane / 16 * 8;
        loadMatrix<false>(a, low + at);
        multiply<T>(sum[t][0], a, {b[0], b[1]});
        multiply<T>(sum[t][1], a, {b[2], b[3]});
        loadMatrix<false>(a, high + at);
        multiply<T>(sum[t][0], a, {b[0], b[1]});
        multiply<T>(sum[t][1], a, {b[2], b[3]});
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t token = firstToken + t * 16 + lane / 4 + i / 2 * 8, row = firstRow + warp * 16 + n * 8 + lane % 4 * 2 + i % 2;
        if (token < m.n && row < w.rows) m.finish(token, row, sum[t][n][i]);
      }
}

constexpr int kTogether = 4;

__global__ void __launch_bounds__(kThreads) multiplyFloats(Matmul m) {
  const Packed& w = m.weight;
  const int64_t row = int64_t(blockIdx.x) * kThreads + threadIdx.x, firstToken = int64_t(blockIdx.y) * kTogether;
  if (row >= w.rows) return;
  const int tokens = int(min(int64_t(kTogether), m.n - firstToken));
  const auto* weight = reinterpret_cast<const float*>(w.group(row / w.groupRows)) + row % w.groupRows;
  float sum[kTogether] = {};
  for (int64_t c = 0; c < w.columns; ++c) {
    const float value = weight[c * w.groupRows];
#pragma unroll
    for (int t = 0; t < kTogether; ++t)
      if (t < tokens) sum[t] = fmaf(reinterpret_cast<const float*>(m.x + (firstToken + t) * m.xStride)[c], value, sum[t]);
  }
#pragma unroll
  for (int t = 0; t < kTogether; ++t)
    if (t < tokens) m.finish(firstToken + t, row, sum[t]);
}

template <typename T> Status launchHalves(const Matmul& m, DeviceContext& context) {
  const auto run = [&](auto tiles) {
    constexpr int kTiles = decltype(tiles)::value;
    const size_t bytes = 2 * sharedBytes<T>(16 * kTiles * kXStride) + sharedBytes<T>(kColumns * kWStride);
    return launch("matmul", context, multiplyHalves<T, kTiles>, dim3(unsigned(ceilDiv(m.weight.rows, kRows)), unsigned(ceilDiv(m.n, 16 * kTiles))), dim3(kThreads), bytes, m);
  };
  return m.n <= 16 ? run(std::integral_constant<int, 1>{}) : run(std::integral_constant<int, 4>{});
}

}  // namespace

Status matmulFloat(const Matmul& m, DeviceContext& context) {
  switch (m.weight.format) {
    case PackFormat::float16: return launchHalves<f16>(m, context);
    case PackFormat::bfloat16: return launchHalves<bf16>(m, context);
    default: return launch("matmul", context, multiplyFloats, dim3(unsigned(ceilDiv(m.weight.rows, kThreads)), unsigned(ceilDiv(m.n, kTogether))), dim3(kThreads), 0, m);
  }
}

}  // namespace tl::cuda
