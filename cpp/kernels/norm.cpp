// Normalisation of rows. x [rows, width] f32; sums and means in f32, the reciprocal root in f64.
//   rmsNorm    out = x / sqrt(mean(x²) + epsilon) · (weight + weightOffset)                 arXiv 1910.07467
//   layerNorm  out = (x − mean) / sqrt(mean((x − mean)²) + epsilon) · weight + bias          arXiv 1607.06450
//   headNorm   rmsNorm of each head of x [n, heads, headDim]                                 arXiv 2505.09388 (Qwen3)
// The variance is taken in a second pass about the mean: E[x²] − E[x]² would cancel.
#include "../simd/target.h"
#include "rows_inl.h"

namespace tl::TL_TARGET {
namespace {

float reciprocalRoot(float sumOfSquares, int64_t width, double epsilon) {
  return float(1.0 / std::sqrt(double(sumOfSquares) / double(width) + epsilon));
}

void rmsNormRow(const float* x, const float* weight, float* out, int64_t width, double epsilon, float weightOffset) {
  const F32 scale = broadcast(reciprocalRoot(sumRow(x, width, [](F32 v) { return mul(v, v); }), width, epsilon));
  const F32 offset = broadcast(weightOffset);
  mapRow(x, weight, out, width, [=](F32 v, F32 w) { return mul(mul(v, scale), add(w, offset)); });
}

void layerNormRow(const float* x, const float* weight, const float* bias, float* out, int64_t width, double epsilon) {
  const F32 mean = broadcast(sumRow(x, width, [](F32 v) { return v; }) / float(width));
  const float squares = sumRow(x, width, [=](F32 v) { return mul(sub(v, mean), sub(v, mean)); });
  const F32 scale = broadcast(reciprocalRoot(squares, width, epsilon));
  mapRow(x, weight, out, width, [=](F32 v, F32 w) { return mul(mul(sub(v, mean), scale), w); });
  if (bias) mapRow(out, bias, out, width, [](F32 v, F32 b) { return add(v, b); });
}

}  // namespace

Status rmsNorm(const RmsNormArgs& args, Context& context) {
  FloatRows x;
  OutputRows out;
  TL_TRY(floatRows("rmsNorm", "x", args.x, x));
  TL_TRY(vectorOperand("rmsNorm", "weight", args.weight, x.width));
  TL_TRY(out.open("rmsNorm", "out", args.out, x.rows, x.width));
  out.make(context, x.width, [&](int64_t i, float* values) {
    rmsNormRow(x.row(i), args.weight.as<float>(), values, x.width, args.epsilon, float(args.weightOffset));
  });
  return {};
}

Status layerNorm(const LayerNormArgs& args, Context& context) {
  FloatRows x;
  OutputRows out;
  TL_TRY(floatRows("layerNorm", "x", args.x, x));
  TL_TRY(vectorOperand("layerNorm", "weight", args.weight, x.width));
  if (args.bias.present()) TL_TRY(vectorOperand("layerNorm", "bias", args.bias, x.width));
  TL_TRY(out.open("layerNorm", "out", args.out, x.rows, x.width));
  const float* bias = args.bias.present() ? args.bias.as<float>() : nullptr;
  out.make(context, x.width, [&](int64_t i, float* values) { layerNormRow(x.row(i), args.weight.as<float>(), bias, values, x.width, args.epsilon); });
  return {};
}

Status headNorm(const HeadNormArgs& args, Context& context) {
  const View &x = args.x, &out = args.out;
  TL_TRY(checkHeads("headNorm", x, out));
  const int64_t heads = x.dims[1], headDim = x.dims[2];
  TL_TRY(vectorOperand("headNorm", "weight", args.weight, headDim));
  forRows(context, x.dims[0] * heads, headDim, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t token = i / heads, head = i % heads;
      rmsNormRow(x.as<float>() + token * x.strides[0] + head * x.strides[1], args.weight.as<float>(),
                 out.as<float>() + token * out.strides[0] + head * out.strides[1], headDim, args.epsilon, float(args.weightOffset));
    }
  });
  return {};
}

}  // namespace tl::TL_TARGET
