// What encoders need around their blocks: see cpp/kernels/encoder.cpp. A block an output row, sums in a fixed order.
#include "sequences.cuh"

namespace tl::cuda {
namespace {

struct Pixels {
  const uint8_t* data;
  int64_t imageStride, rowStride, patch, prefix, across, each, line;
};

__global__ void __launch_bounds__(kThreads) cutPatches(Pixels p, Rows out) {
  const int64_t row = blockIdx.x, at = row % p.each - p.prefix;
  const uint8_t* from = at < 0 ? nullptr : p.data + row / p.each * p.imageStride + at / p.across * p.patch * p.rowStride + at % p.across * p.line;
  for (int64_t c = threadIdx.x; c < out.width; c += blockDim.x) out.row(row)[c] = at < 0 ? 0.0f : float(from[c / p.line * p.rowStride + c % p.line]);
}

__global__ void __launch_bounds__(kThreads) poolRows(Rows x, Sequences sequences, const float* sizes, int kind, bool normalize, Rows out) {
  Shared shared;
  float* scratch = shared.take<float>(kWarp + 1);
  const int64_t s = blockIdx.x, begin = sequences.begin(s), end = begin + sequences.length(s);
  float* to = out.row(s);
  float total = 0;
  for (int64_t i = begin; i < end && kind == 1; ++i) total += sizes ? sizes[i] : 1.0f;
  float square = 0;
  for (int64_t c = threadIdx.x; c < out.width; c += blockDim.x) {
    float value = begin == end || kind == 1 ? 0.0f : x.row(begin)[c];
    for (int64_t i = begin; i < end && kind == 1; ++i) value = fmaf(x.row(i)[c], sizes ? sizes[i] : 1.0f, value);
    for (int64_t i = begin + 1; i < end && kind == 2; ++i) value = largerOf(value, x.row(i)[c]);
    if (kind == 1 && begin < end) value /= total;
    to[c] = value;
    square = fmaf(value, value, square);
  }
  if (!normalize) return;
  square = blockSum(square, scratch);
  const float norm = square > 0 ? sqrtf(square) : 1.0f;
  for (int64_t c = threadIdx.x; c < out.width; c += blockDim.x) to[c] /= norm;
}

__global__ void __launch_bounds__(kThreads) mixRows(Rows x, const int32_t* index, Rows weights, int64_t blockRows, Rows out, int* problems) {
  const int64_t row = blockIdx.x, i = row % weights.rows;
  for (int64_t c = threadIdx.x; c < out.width; c += blockDim.x) {
    float sum = 0;
    for (int64_t k = 0; k < weights.width; ++k)
      sum = fmaf(weights.row(i)[k], x.row(row / weights.rows * blockRows + checkedIndex(index[i * weights.width + k], blockRows, problems))[c], sum);
    out.row(row)[c] = sum;
  }
}

}  // namespace

Status imagePatches(const ImagePatchesArgs& args, DeviceContext& context) {
  constexpr const char* op = "imagePatches";
  const View& pixels = args.pixels;
  Rows out;
  Patches at;
  TL_TRY(openPatches(args, out, at));
  TL_TRY(checkGrid(op, out.rows));
  return launch(op, context, cutPatches, dim3(unsigned(out.rows)), dim3(kThreads), 0, Pixels{pixels.as<const uint8_t>(), pixels.strides[0], pixels.strides[1], at.patch, at.prefix, at.across, at.each, at.line}, out);
}

Status poolSequences(const PoolSequencesArgs& args, DeviceContext& context) {
  constexpr const char* op = "poolSequences";
  Rows x, out;
  Sequences sequences;
  TL_TRY(tokenRows(op, "x", args.x, args.bounds, x, sequences));
  TL_TRY(floatRows(op, "out", args.out, out));
  if (sequences.count != out.rows) return shapeError(op, "bounds", "must be one more than the sequences", out.rows + 1, sequences.count + 1);
  if (args.sizes.present()) TL_TRY(vectorOperand(op, "sizes", args.sizes, x.rows));
  if (out.width != x.width) return shapeError(op, "out", "must have the width of x", x.width, out.width);
  return launch(op, context, poolRows, dim3(unsigned(out.rows)), dim3(kThreads), sharedBytes<float>(kWarp + 1), x, sequences, args.sizes.present() ? args.sizes.as<const float>() : nullptr, int(args.kind),
                args.normalize != 0, out);
}

Status interpolateRows(const InterpolateRowsArgs& args, DeviceContext& context) {
  constexpr const char* op = "interpolateRows";
  Rows x, out, weights;
  TL_TRY(floatRows(op, "x", args.x, x));
  TL_TRY(floatRows(op, "out", args.out, out));
  TL_TRY(floatRows(op, "weights", args.weights, weights));
  const View& indices = args.index;
  const int64_t each = weights.rows, taps = weights.width, blocks = each > 0 ? out.rows / each : 0, blockRows = blocks > 0 ? x.rows / blocks : 0;
  if (indices.dtype != DType::i32 || indices.count() != each * taps || indices.rank != 2 || indices.strides[0] != taps)
    return shapeError(op, "index", "must be i32 of the weights' shape", each * taps, indices.count());
  if (out.rows != blocks * each || x.rows != blocks * blockRows) return shapeError(op, "out", "must have one row of weights a row", each, out.rows);
  if (out.width != x.width) return shapeError(op, "out", "must have the width of x", x.width, out.width);
  return launch(op, context, mixRows, dim3(unsigned(out.rows)), dim3(kThreads), 0, x, indices.as<const int32_t>(), weights, blockRows, out, context.problems);
}

}  // namespace tl::cuda
