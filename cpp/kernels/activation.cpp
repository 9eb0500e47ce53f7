// Elementwise ops and the gated linear units (arXiv 2002.05202).
//   gatedActivation  out = activation(gate) · up, x [rows, 2·width] = gate | up, out [rows, width]
//   activation       out = activation(x)
//   add              out = a · scale + b
//   softcap          out = cap · tanh(x / cap)                                               arXiv 2408.00118
//   convert          f32, f16, bf16 to f32, f16, bf16 or q8
#include "../simd/target.h"
#include "activation_inl.h"
#include "rows_inl.h"

namespace tl::TL_TARGET {
namespace {

// body(row, column, count) over pieces of rows: one long row is shared like many short ones.
template <typename Body> void forPieces(Context& context, int64_t rows, int64_t width, Body&& body) {
  if (rows == 0 || width == 0) return;
  const int64_t pieces = ceilDiv(width, kChunkElements);
  forRows(context, rows * pieces, std::min(width, kChunkElements), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t column = i % pieces * kChunkElements;
      body(i / pieces, column, std::min(kChunkElements, width - column));
    }
  });
}

template <typename Source, typename Target> void convertRow(const Source* x, Target* out, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load(x + i));
  if (i < n) storePart(out + i, loadPart(x + i, int(n - i)), int(n - i));
}

// Calls f with a typed null pointer that names the element type.
template <typename Function> Status withFloatType(const char* name, DType type, Function&& f) {
  if (type == DType::f32) return f(static_cast<float*>(nullptr));
  if (type == DType::f16) return f(static_cast<f16*>(nullptr));
  if (type == DType::bf16) return f(static_cast<bf16*>(nullptr));
  return argumentError("convert", name, "must be f32, f16 or bf16", int64_t(type));
}

template <typename Source> Status quantizeRows(const View& x, const View& view, Context& context) {
  const int64_t rows = x.rows(), width = x.lastDim(), stride = x.rowStride();
  OutputRows out;
  TL_TRY(out.open("convert", "out", view, rows, width));
  if constexpr (std::is_same_v<Source, float>) {  // in place: nothing to convert
    forRows(context, rows, width, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) quantizeRow(x.as<float>() + i * stride, width, quantizedRow(view.data, width, i));
    });
    return {};
  }
  out.make(context, width, [&](int64_t i, float* values) { convertRow(x.as<Source>() + i * stride, values, width); });
  return {};
}

}  // namespace

Status gatedActivation(const GatedActivationArgs& args, Context& context) {
  FloatRows x;
  TL_TRY(floatRows("gatedActivation", "x", args.x, x));
  if (x.width % 2 != 0) return shapeError("gatedActivation", "x", "must have an even number of columns", x.width + 1, x.width);
  const int64_t width = x.width / 2;
  OutputRows out;
  TL_TRY(out.open("gatedActivation", "out", args.out, x.rows, width));
  return withActivation("gatedActivation", args.kind, [&](auto activate) -> Status {
    out.make(context, x.width, [&](int64_t i, float* values) {
      mapRow(x.row(i), x.row(i) + width, values, width, [=](F32 gate, F32 up) { return mul(activate(gate), up); });
    });
    return {};
  });
}

Status activation(const ActivationArgs& args, Context& context) {
  FloatRows x;
  OutputRows out;
  TL_TRY(floatRows("activation", "x", args.x, x));
  TL_TRY(out.open("activation", "out", args.out, x.rows, x.width));
  return withActivation("activation", args.kind, [&](auto activate) -> Status {
    out.make(context, x.width, [&](int64_t i, float* values) { mapRow(x.row(i), values, x.width, activate); });
    return {};
  });
}

Status add(const AddArgs& args, Context& context) {
  FloatRows a, b{}, out;
  TL_TRY(floatRows("add", "a", args.a, a));
  TL_TRY(floatRows("add", "out", args.out, out));
  TL_TRY(sameShape("add", "out", a, out));
  const F32 scale = broadcast(float(args.scale));
  if (!args.b.present()) {
    forPieces(context, a.rows, a.width, [&](int64_t row, int64_t column, int64_t count) {
      mapRow(a.row(row) + column, out.row(row) + column, count, [=](F32 x) { return mul(x, scale); });
    });
    return {};
  }
  TL_TRY(floatRows("add", "b", args.b, b));
  if (b.rows == 1) {  // one row for all
    b.stride = 0;
    b.rows = a.rows;
  }
  TL_TRY(sameShape("add", "b", a, b));
  forPieces(context, a.rows, a.width, [&](int64_t row, int64_t column, int64_t count) {
    mapRow(a.row(row) + column, b.row(row) + column, out.row(row) + column, count, [=](F32 x, F32 y) { return mulAdd(x, scale, y); });
  });
  return {};
}

Status softcap(const SoftcapArgs& args, Context& context) {
  FloatRows x, out;
  TL_TRY(floatRows("softcap", "x", args.x, x));
  TL_TRY(floatRows("softcap", "out", args.out, out));
  TL_TRY(sameShape("softcap", "out", x, out));
  if (!(args.cap > 0)) return argumentError("softcap", "cap", "must be positive");
  const F32 cap = broadcast(float(args.cap)), inverse = broadcast(float(1 / args.cap));
  forPieces(context, x.rows, x.width, [&](int64_t row, int64_t column, int64_t count) {
    mapRow(x.row(row) + column, out.row(row) + column, count, [=](F32 v) { return mul(tanh(mul(v, inverse)), cap); });
  });
  return {};
}

Status convert(const ConvertArgs& args, Context& context) {
  const View &x = args.x, &out = args.out;
  if (x.rank < 1 || !x.rowsAreUniform()) return argumentError("convert", "x", "must have rows at one stride", x.rank);
  return withFloatType("x", x.dtype, [&](auto* source) -> Status {
    using Source = std::remove_pointer_t<decltype(source)>;
    if (out.dtype == DType::q8) return quantizeRows<Source>(x, out, context);
    return withFloatType("out", out.dtype, [&](auto* target) -> Status {
      using Target = std::remove_pointer_t<decltype(target)>;
      const int64_t rows = x.rows(), width = x.lastDim();
      if (out.rank < 1 || !out.rowsAreUniform()) return argumentError("convert", "out", "must have rows at one stride", out.rank);
      if (out.rows() != rows) return shapeError("convert", "out", "must have as many rows as the input", rows, out.rows());
      if (out.lastDim() != width) return shapeError("convert", "out", "must have as many columns as the input", width, out.lastDim());
      forPieces(context, rows, width, [&](int64_t row, int64_t column, int64_t count) {
        convertRow(x.as<Source>() + row * x.rowStride() + column, out.as<Target>() + row * out.rowStride() + column, count);
      });
      return {};
    });
  });
}

}  // namespace tl::TL_TARGET
