// Elementwise ops and the gated linear units: see cpp/kernels/activation.cpp.
#include "activation.cuh"
#include "core/rows.cuh"

namespace tl::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void gateRows(Rows x, Output out, int kind) {
  Shared shared;
  float* values = shared.take<float>(out.quantized ? out.width : 0);
  const float *gate = x.row(blockIdx.x), *up = gate + out.width;
  writeRow(out, blockIdx.x, values, [&](int64_t c) { return activate(kind, gate[c]) * up[c]; });
}

__global__ void activateRows(Rows x, Output out, int kind) {
  Shared shared;
  float* values = shared.take<float>(out.quantized ? out.width : 0);
  const float* from = x.row(blockIdx.x);
  writeRow(out, blockIdx.x, values, [&](int64_t c) { return activate(kind, from[c]); });
}

__global__ void addRows(Rows a, Rows b, Rows out, float scale) {  // b.rows 0: none
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, row = i / out.width, c = i % out.width;
  if (row >= out.rows) return;
  out.row(row)[c] = b.rows == 0 ? a.row(row)[c] * scale : fmaf(a.row(row)[c], scale, b.row(row)[c]);
}

__global__ void capRows(Rows x, Rows out, float cap, float inverse) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, row = i / out.width, c = i % out.width;
  if (row < out.rows) out.row(row)[c] = tanhf(x.row(row)[c] * inverse) * cap;
}

struct AnyRows {
  void* data;
  DType dtype;
  int64_t stride;
};

__global__ void convertRows(AnyRows x, AnyRows out, int64_t rows, int64_t width) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, row = i / width, c = i % width;
  if (row < rows) storeElement(out.data, out.dtype, row * out.stride + c, loadElement(x.data, x.dtype, row * x.stride + c));
}

__global__ void quantizeFloats(AnyRows x, Output out) {
  Shared shared;
  float* values = shared.take<float>(out.width);
  writeRow(out, blockIdx.x, values, [&](int64_t c) { return loadElement(x.data, x.dtype, blockIdx.x * x.stride + c); });
}

dim3 elementGrid(int64_t count) { return dim3(unsigned(ceilDiv(count, kThreads))); }

}  // namespace

Status gatedActivation(const GatedActivationArgs& args, DeviceContext& context) {
  Rows x;
  Output out;
  TL_TRY(floatRows("gatedActivation", "x", args.x, x));
  if (x.width % 2 != 0) return shapeError("gatedActivation", "x", "must have an even number of columns", x.width + 1, x.width);
  TL_TRY(outputRows("gatedActivation", "out", args.out, x.rows, x.width / 2, out));
  TL_TRY(checkActivation("gatedActivation", args.kind));
  TL_TRY(checkGrid("gatedActivation", x.rows));
  return launch("gatedActivation", context, gateRows, dim3(unsigned(x.rows)), dim3(kThreads), out.shared(), x, out, int(args.kind));
}

Status activation(const ActivationArgs& args, DeviceContext& context) {
  Rows x;
  Output out;
  TL_TRY(floatRows("activation", "x", args.x, x));
  TL_TRY(outputRows("activation", "out", args.out, x.rows, x.width, out));
  TL_TRY(checkActivation("activation", args.kind));
  TL_TRY(checkGrid("activation", x.rows));
  return launch("activation", context, activateRows, dim3(unsigned(x.rows)), dim3(kThreads), out.shared(), x, out, int(args.kind));
}

Status add(const AddArgs& args, DeviceContext& context) {
  Rows a, b{}, out;
  TL_TRY(floatRows("add", "a", args.a, a));
  TL_TRY(floatRows("add", "out", args.out, out));
  TL_TRY(sameShape("add", "out", a, out));
  if (args.b.present()) {
    TL_TRY(floatRows("add", "b", args.b, b));
    if (b.rows == 1) {  // one row for all
      b.stride = 0;
      b.rows = a.rows;
    }
    TL_TRY(sameShape("add", "b", a, b));
  }
  return launch("add", context, addRows, elementGrid(out.rows * out.width), dim3(kThreads), 0, a, b, out, float(args.scale));
}

Status softcap(const SoftcapArgs& args, DeviceContext& context) {
  Rows x, out;
  TL_TRY(floatRows("softcap", "x", args.x, x));
  TL_TRY(floatRows("softcap", "out", args.out, out));
  TL_TRY(sameShape("softcap", "out", x, out));
  if (!(args.cap > 0)) return argumentError("softcap", "cap", "must be positive");
  return launch("softcap", context, capRows, elementGrid(out.rows * out.width), dim3(kThreads), 0, x, out, float(args.cap), float(1 / args.cap));
}

Status convert(const ConvertArgs& args, DeviceContext& context) {
  const View &x = args.x, &out = args.out;
  const auto isFloat = [](const View& view) { return view.dtype == DType::f32 || view.dtype == DType::f16 || view.dtype == DType::bf16; };
  if (!isFloat(x)) return argumentError("convert", "x", "must be f32, f16 or bf16", int64_t(x.dtype));
  if (x.rank < 1 || !x.rowsAreUniform()) return argumentError("convert", "x", "must have rows at one stride", x.rank);
  const AnyRows from{x.data, x.dtype, x.rowStride()};
  if (out.dtype == DType::q8) {
    Output rows;
    TL_TRY(outputRows("convert", "out", out, x.rows(), x.lastDim(), rows));
    TL_TRY(checkGrid("convert", x.rows()));
    return launch("convert", context, quantizeFloats, dim3(unsigned(x.rows())), dim3(kThreads), rows.shared(), from, rows);
  }
  if (!isFloat(out)) return argumentError("convert", "out", "must be f32, f16 or bf16", int64_t(out.dtype));
  if (out.rank < 1 || !out.rowsAreUniform()) return argumentError("convert", "out", "must have rows at one stride", out.rank);
  if (out.rows() != x.rows()) return shapeError("convert", "out", "must have as many rows as the input", x.rows(), out.rows());
  if (out.lastDim() != x.lastDim()) return shapeError("convert", "out", "must have as many columns as the input", x.lastDim(), out.lastDim());
  return launch("convert", context, convertRows, elementGrid(x.count()), dim3(kThreads), 0, from, AnyRows{out.data, out.dtype, out.rowStride()}, x.rows(), x.lastDim());
}

}  // namespace tl::cuda
