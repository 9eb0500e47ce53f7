// Normalisation of rows, see cpp/kernels/norm.cpp: a block a row, the variance in a second pass about the mean.
#include "core/rows.cuh"

namespace tl::cuda {
namespace {

__device__ float reciprocalRoot(float sumOfSquares, int64_t width, double epsilon) {
  return float(1.0 / sqrt(double(sumOfSquares) / double(width) + epsilon));
}

template <typename Value> __device__ __forceinline__ float sumRow(int64_t width, float* scratch, Value value) {
  float sum = 0;
  for (int64_t column = threadIdx.x; column < width; column += blockDim.x) sum += value(column);
  return blockSum(sum, scratch);
}

__global__ void rmsNormRows(Rows x, const float* weight, Output out, double epsilon, float weightOffset) {
  Shared shared;
  float* scratch = shared.take<float>(kWarp + 1);
  float* values = shared.take<float>(out.quantized ? out.width : 0);
  const float* from = x.row(blockIdx.x);
  const float scale = reciprocalRoot(sumRow(x.width, scratch, [&](int64_t c) { return from[c] * from[c]; }), x.width, epsilon);
  writeRow(out, blockIdx.x, values, [&](int64_t c) { return from[c] * scale * (weight[c] + weightOffset); });
}

__global__ void layerNormRows(Rows x, const float* weight, const float* bias, Output out, double epsilon) {
  Shared shared;
  float* scratch = shared.take<float>(kWarp + 1);
  float* values = shared.take<float>(out.quantized ? out.width : 0);
  const float* from = x.row(blockIdx.x);
  const float mean = sumRow(x.width, scratch, [&](int64_t c) { return from[c]; }) / float(x.width);
  const float squares = sumRow(x.width, scratch, [&](int64_t c) { return (from[c] - mean) * (from[c] - mean); });
  const float scale = reciprocalRoot(squares, x.width, epsilon);
  writeRow(out, blockIdx.x, values, [&](int64_t c) { return (from[c] - mean) * scale * weight[c] + (bias ? bias[c] : 0.0f); });
}

struct Heads {
  float* data;
  int64_t heads, headDim, tokenStride, headStride;
  __device__ float* head(int64_t i) const { return data + i / heads * tokenStride + i % heads * headStride; }
};

__global__ void headNormRows(Heads x, const float* weight, Heads out, double epsilon, float weightOffset) {
  Shared shared;
  float* scratch = shared.take<float>(kWarp + 1);
  const float* from = x.head(blockIdx.x);
  float* to = out.head(blockIdx.x);
  const float scale = reciprocalRoot(sumRow(x.headDim, scratch, [&](int64_t c) { return from[c] * from[c]; }), x.headDim, epsilon);
  for (int64_t c = threadIdx.x; c < x.headDim; c += blockDim.x) to[c] = from[c] * scale * (weight[c] + weightOffset);
}

constexpr size_t kScratch = sharedBytes<float>(kWarp + 1);

}  // namespace

Status rmsNorm(const RmsNormArgs& args, DeviceContext& context) {
  Rows x;
  Output out;
  TL_TRY(floatRows("rmsNorm", "x", args.x, x));
  TL_TRY(vectorOperand("rmsNorm", "weight", args.weight, x.width));
  TL_TRY(outputRows("rmsNorm", "out", args.out, x.rows, x.width, out));
  TL_TRY(checkGrid("rmsNorm", x.rows));
  return launch("rmsNorm", context, rmsNormRows, dim3(unsigned(x.rows)), dim3(kRowThreads), kScratch + out.shared(), x, args.weight.as<const float>(), out, args.epsilon,
                float(args.weightOffset));
}

Status layerNorm(const LayerNormArgs& args, DeviceContext& context) {
  Rows x;
  Output out;
  TL_TRY(floatRows("layerNorm", "x", args.x, x));
  TL_TRY(vectorOperand("layerNorm", "weight", args.weight, x.width));
  if (args.bias.present()) TL_TRY(vectorOperand("layerNorm", "bias", args.bias, x.width));
  TL_TRY(outputRows("layerNorm", "out", args.out, x.rows, x.width, out));
  TL_TRY(checkGrid("layerNorm", x.rows));
  const float* bias = args.bias.present() ? args.bias.as<float>() : nullptr;
  return launch("layerNorm", context, layerNormRows, dim3(unsigned(x.rows)), dim3(kRowThreads), kScratch + out.shared(), x, args.weight.as<const float>(), bias, out, args.epsilon);
}

Status headNorm(const HeadNormArgs& args, DeviceContext& context) {
  TL_TRY(checkHeads("headNorm", args.x, args.out));
  const View &x = args.x, &out = args.out;
  TL_TRY(vectorOperand("headNorm", "weight", args.weight, x.dims[2]));
  TL_TRY(checkGrid("headNorm", x.dims[0] * x.dims[1]));
  return launch("headNorm", context, headNormRows, dim3(unsigned(x.dims[0] * x.dims[1])), dim3(kRowThreads), kScratch,
                Heads{x.as<float>(), x.dims[1], x.dims[2], x.strides[0], x.strides[1]}, args.weight.as<const float>(),
                Heads{out.as<float>(), x.dims[1], x.dims[2], out.strides[0], out.strides[1]}, args.epsilon, float(args.weightOffset));
}

}  // namespace tl::cuda
