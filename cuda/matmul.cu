// out = x · weightᵀ + bias + residual, x quantised to 8 bits and the weight to 4 or 8: see cpp/kernels/matmul.cpp. A block of 32
// columns is an exact integer; its term, scaleW · scaleX · Σ q_w q_x + minimumW · scaleX · Σ q_x, is rounded alike in both
// kernels, and terms are added with blocks ascending: a token's result does not depend on how many come together.
//   few tokens   dp4a, a group of rows a block: threads share the blocks, then one adds a row's terms in order
//   many tokens  mma.sync of signed bytes, 64 tokens by 32 rows a block
#include "matmul.cuh"

namespace tl::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kFew = 8;             // tokens up to which weights are read by dp4a
constexpr int kFewTogether = 4;         // of them share one read of the weights
constexpr size_t kTermBytes = 80 << 10; // shared memory for terms

struct TokenBlock {
  const int8_t* q;
  float scale;
  const int16_t* sums;  // of both halves
};
__device__ __forceinline__ TokenBlock tokenBlock(const Matmul& m, int64_t token, int64_t block, int64_t blocks) {
  const auto* q = reinterpret_cast<const int8_t*>(m.x + token * m.xStride);
  const auto* scale = reinterpret_cast<const float*>(q + blocks * 32);
  return {q + block * 32, scale[block], reinterpret_cast<const int16_t*>(scale + 2 * blocks) + 2 * block};
}

// One part's share of a term: `dot` of its columns, `sum` of x over them.
__device__ __forceinline__ float addPart(float term, int32_t dot, int32_t sum, float scaleX, float scaleW, float minimumW) {
  term = fmaf(float(dot), __fmul_rn(scaleW, scaleX), term);
  return fmaf(minimumW, __fmul_rn(scaleX, float(sum)), term);
}

// Grid (groups, token pieces); `piece` columns blocks at a time fit in shared memory.
__global__ void __launch_bounds__(kThreads) multiplyFew(Matmul m, int64_t blocks, int piece) {
  Shared shared;
  const Packed& w = m.weight;
  const int groupRows = w.groupRows, lane = int(threadIdx.x) % groupRows, split = int(threadIdx.x) / groupRows, splits = kThreads / groupRows;
  float* terms = shared.take<float>(kFewTogether * int64_t(groupRows) * piece);  // [token][row][block]
  const int64_t firstToken = int64_t(blockIdx.y) * kFewTogether;
  const int tokens = int(min(int64_t(kFewTogether), m.n - firstToken));
  const std::byte* group = w.group(blockIdx.x);
  const int own = int(threadIdx.x);  // token own / groupRows, row own % groupRows
  float sum = 0;
  for (int64_t first = 0; first < blocks; first += piece) {
    const int count = int(min(int64_t(piece), blocks - first));
    for (int b = split; b < count; b += splits) {
      const std::byte* block = group + (first + b) * w.blockBytes;
      uint32_t words[8];
#pragma unroll
      for (int v = 0; v < 8; ++v) words[v] = w.columnsOf(block, v, lane);
      for (int t = 0; t < tokens; ++t) {
        const TokenBlock x = tokenBlock(m, firstToken + t, first + b, blocks);
        const auto* xs = reinterpret_cast<const uint32_t*>(x.q);
        int32_t dot[2] = {0, 0};
#pragma unroll
        for (int v = 0; v < 8; ++v) dot[v / 4] = dot4(words[v], xs[v], dot[v / 4]);
        float term;
        if (w.parts == 1) {
          term = addPart(0, dot[0] + dot[1], int32_t(x.sums[0]) + x.sums[1], x.scale, w.scale(block, 0, lane), w.minimum(block, 0, lane));
        } else {
          term = addPart(0, dot[0], x.sums[0], x.scale, w.scale(block, 0, lane), w.minimum(block, 0, lane));
          term = addPart(term, dot[1], x.sums[1], x.scale, w.scale(block, 1, lane), w.minimum(block, 1, lane));
        }
        terms[(int64_t(t) * groupRows + lane) * piece + b] = term;
      }
    }
    __syncthreads();
    if (own < tokens * groupRows)
      for (int b = 0; b < count; ++b) sum += terms[int64_t(own) * piece + b];
    __syncthreads();
  }
  const int64_t row = int64_t(blockIdx.x) * groupRows + own % groupRows;
  if (own < tokens * groupRows && row < w.rows) m.finish(firstToken + own / groupRows, row, sum);
}

// ---- Many tokens
constexpr int kTokens = 64, kRows = 32, kStep = 4;       // of a block; column blocks at a time
constexpr int kByteStride = kStep * 32 + 16;              // rows of a tile, in bytes: fragments meet no bank twice

template <int kParts> __global__ void __launch_bounds__(kThreads, 4) multiplyMany(Matmul m, int64_t blocks) {
  Shared shared;
  const Packed& w = m.weight;
  int8_t* xs = shared.take<int8_t>(kTokens * kByteStride);
  int8_t* ws = shared.take<int8_t>(kRows * kByteStride);
  float* xScale = shared.take<float>(kStep * kTokens);
  int32_t* xSum = shared.take<int32_t>(kStep * kParts * kTokens);
  float* wScale = shared.take<float>(kStep * kParts * kRows);
  float* wMinimum = shared.take<float>(kStep * kParts * kRows);
  const int64_t firstToken = int64_t(blockIdx.y) * kTokens, firstRow = int64_t(blockIdx.x) * kRows;
  const int lane = laneIndex(), warp = warpIndex(), quad = lane / 4, column = lane % 4;
  float sum[kRows / 8][4];
#pragma unroll
  for (int n = 0; n < kRows / 8; ++n) sum[n][0] = sum[n][1] = sum[n][2] = sum[n][3] = 0;
  for (int64_t first = 0; first < blocks; first += kStep) {
    const int count = int(min(int64_t(kStep), blocks - first));
    for (int i = int(threadIdx.x); i < kTokens * kStep * 8; i += kThreads) {
      const int t = i / (kStep * 8), b = i / 8 % kStep, v = i % 8;
      const bool there = b < count && firstToken + t < m.n;
      uint32_t word = 0;
      if (there) word = reinterpret_cast<const uint32_t*>(tokenBlock(m, firstToken + t, first + b, blocks).q)[v];
      *reinterpret_cast<uint32_t*>(xs + t * kByteStride + b * 32 + v * 4) = word;
    }
    for (int i = int(threadIdx.x); i < kTokens * kStep; i += kThreads) {
      const int t = i % kTokens, b = i / kTokens;
      const bool there = b < count && firstToken + t < m.n;
      const TokenBlock x = tokenBlock(m, there ? firstToken + t : 0, there ? first + b : 0, blocks);
      xScale[b * kTokens + t] = there ? x.scale : 0.0f;
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        xSum[(b * kParts + part) * kTokens + t] = !there ? 0 : kParts == 2 ? int32_t(x.sums[part]) : int32_t(x.sums[0]) + x.sums[1];
    }
    for (int i = int(threadIdx.x); i < kRows * kStep * 8; i += kThreads) {
      const int r = i % kRows, v = i / kRows % 8, b = i / (kRows * 8);
      const bool there = b < count && firstRow + r < w.rows;
      const std::byte* block = w.group(int(firstRow + (there ? r : 0)) / w.groupRows) + (first + (there ? b : 0)) * w.blockBytes;
      *reinterpret_cast<uint32_t*>(ws + r * kByteStride + b * 32 + v * 4) = there ? w.columnsOf(block, v, int(firstRow + r) % w.groupRows) : 0;
    }
    for (int i = int(threadIdx.x); i < kRows * kStep * kParts; i += kThreads) {
      const int r = i % kRows, part = i / kRows % kParts, b = i / (kRows * kParts);
      const bool there = b < count && firstRow + r < w.rows;
      const std::byte* block = w.group(int(firstRow + (there ? r : 0)) / w.groupRows) + (first + (there ? b : 0)) * w.blockBytes;
      const int at = int(firstRow + r) % w.groupRows;
      wScale[(b * kParts + part) * kRows + r] = there ? w.scale(block, part, at) : 0.0f;
      wMinimum[(b * kParts + part) * kRows + r] = there ? w.minimum(block, part, at) : 0.0f;
    }
    __syncthreads();
    for (int b = 0; b < count; ++b) {
      uint32_t a[4];
      const int8_t* x0 = xs + (warp * 16 + quad) * kByteStride + b * 32 + column * 4;
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = *reinterpret_cast<const uint32_t*>(x0 + i % 2 * 8 * kByteStride + i / 2 * 16);
#pragma unroll
      for (int n = 0; n < kRows / 8; ++n) {
        const int8_t* w0 = ws + (n * 8 + quad) * kByteStride + b * 32 + column * 4;
        const uint32_t low = *reinterpret_cast<const uint32_t*>(w0), high = *reinterpret_cast<const uint32_t*>(w0 + 16);
        int32_t dot[kParts][4];
#pragma unroll
        for (int part = 0; part < kParts; ++part) dot[part][0] = dot[part][1] = dot[part][2] = dot[part][3] = 0;
        if constexpr (kParts == 1) {
          multiplyBytes(dot[0], a, {low, high});
        } else {
          multiplyBytesShort(dot[0], {a[0], a[1]}, low);
          multiplyBytesShort(dot[1], {a[2], a[3]}, high);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int t = warp * 16 + quad + i / 2 * 8, r = n * 8 + column * 2 + i % 2;
          float term = 0;
#pragma unroll
          for (int part = 0; part < kParts; ++part)
            term = addPart(term, dot[part][i], xSum[(b * kParts + part) * kTokens + t], xScale[b * kTokens + t], wScale[(b * kParts + part) * kRows + r],
                           wMinimum[(b * kParts + part) * kRows + r]);
          sum[n][i] += term;
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int n = 0; n < kRows / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t token = firstToken + warp * 16 + quad + i / 2 * 8, row = firstRow + n * 8 + column * 2 + i % 2;
      if (token < m.n && row < w.rows) m.finish(token, row, sum[n][i]);
    }
}

constexpr size_t manyBytes(int parts) {
  return sharedBytes<int8_t>(kTokens * kByteStride) + sharedBytes<int8_t>(kRows * kByteStride) + sharedBytes<float>(kStep * kTokens) + sharedBytes<int32_t>(kStep * parts * kTokens) +
         2 * sharedBytes<float>(kStep * parts * kRows);
}

}  // namespace

Status matmulInteger(const Matmul& m, DeviceContext& context) {
  const Packed& w = m.weight;
  const int64_t blocks = w.columns / 32;
  if (m.n <= kFew) {
    const size_t each = size_t(kFewTogether) * size_t(w.groupRows) * sizeof(float);
    const int piece = int(std::min<int64_t>(blocks, int64_t(kTermBytes / each)));
    return launch("matmul", context, multiplyFew, dim3(unsigned(ceilDiv(w.rows, w.groupRows)), unsigned(ceilDiv(m.n, kFewTogether))), dim3(kThreads), sharedPiece(each * size_t(piece)), m, blocks, piece);
  }
  const dim3 grid(unsigned(ceilDiv(w.rows, kRows)), unsigned(ceilDiv(m.n, kTokens)));
  return w.parts == 1 ? launch("matmul", context, multiplyMany<1>, grid, dim3(kThreads), manyBytes(1), m, blocks)
                      : launch("matmul", context, multiplyMany<2>, grid, dim3(kThreads), manyBytes(2), m, blocks);
}

Status matmul(const MatmulArgs& args, DeviceContext& context) {
  Matmul m{};
  TL_TRY(openPacked("matmul", "weight", args.weight, m.weight));
  const bool integer = isInteger(m.weight.format);
  if (args.x.dtype != (integer ? DType::q8 : DType::f32))
    return argumentError("matmul", "x", integer ? "must be q8 for a quantised weight" : "must be f32 for a float weight", int64_t(args.x.dtype));
  if (args.x.lastDim() != m.weight.columns) return shapeError("matmul", "x", "must have as many columns as the weight", m.weight.columns, args.x.lastDim());
  if (!integer && !args.x.rowsAreUniform()) return argumentError("matmul", "x", "must have rows at one stride", args.x.rank);
  m.x = args.x.as<const std::byte>();
  m.n = args.x.rows();
  m.xStride = integer ? quantizedRowBytes(m.weight.columns) : args.x.rowStride() * int64_t(sizeof(float));
  TL_TRY(checkProduct("out", args.out, m.n, m.weight.rows));
  m.out = args.out.as<float>();
  m.outStride = args.out.rowStride();
  if (args.residual.present()) {
    TL_TRY(checkProduct("residual", args.residual, m.n, m.weight.rows));
    m.residual = args.residual.as<const float>();
    m.residualStride = args.residual.rowStride();
  }
  if (args.bias.present()) {
    TL_TRY(checkProduct("bias", args.bias, 1, m.weight.rows));
    m.bias = args.bias.as<const float>();
  }
  m.activation = int(args.activation);
  if (m.activation != 0) TL_TRY(checkActivation("matmul", args.activation - 1));
  if (m.n == 0) return {};
  return integer ? matmulInteger(m, context) : matmulFloat(m, context);
}

}  // namespace tl::cuda
