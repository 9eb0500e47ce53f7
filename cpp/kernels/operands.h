// Operands as kernels and their CUDA twins take them, and the checks that need no look at their memory: one of each, for both. Plain
// C++ of the baseline, included before an instruction region opens.
#pragma once
#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "../core/checked.h"
#include "../core/dtype.h"
#include "../core/status.h"
#include "../core/view.h"
#include "args.h"

namespace tl {

constexpr int kMostCandidates = 1024;  // of top-k choices

// A view as rows of f32: rows [rows, width] at one stride.
struct FloatRows {
  float* data;
  int64_t rows, width, stride;
  constexpr float* row(int64_t i) const { return data + i * stride; }
};

inline Status floatRows(const char* op, const char* name, const View& view, FloatRows& rows) {
  if (view.dtype != DType::f32) return argumentError(op, name, "must be f32", int64_t(view.dtype));
  if (view.rank < 1 || !view.rowsAreUniform()) return argumentError(op, name, "must have rows at one stride", view.rank);
  rows = {view.as<float>(), view.rows(), view.lastDim(), view.rowStride()};
  return {};
}

inline Status sameShape(const char* op, const char* name, const FloatRows& x, const FloatRows& other) {
  if (x.rows != other.rows) return shapeError(op, name, "must have as many rows as the input", x.rows, other.rows);
  if (x.width != other.width) return shapeError(op, name, "must have as many columns as the input", x.width, other.width);
  return {};
}

// An operand of one row of `width` f32, contiguous.
inline Status vectorOperand(const char* op, const char* name, const View& view, int64_t width) {
  if (view.dtype != DType::f32) return argumentError(op, name, "must be f32", int64_t(view.dtype));
  if (view.count() != width || view.lastDim() != width) return shapeError(op, name, "must have one element a column", width, view.count());
  if (width > 1 && view.strides[view.rank - 1] != 1) return argumentError(op, name, "must be contiguous", view.strides[view.rank - 1]);
  return {};
}

// An output or index operand of `count` contiguous elements of `type`.
inline Status columnOperand(const char* op, const char* name, const View& view, DType type, int64_t count) {
  if (view.dtype != type) return argumentError(op, name, "has another element type than expected", int64_t(view.dtype));
  if (view.count() != count) return shapeError(op, name, "must have one element a row", count, view.count());
  if (view.lastDim() != count || (count > 1 && view.strides[view.rank - 1] != 1)) return argumentError(op, name, "must be contiguous", view.rank);
  return {};
}

inline Status contiguousRows(const char* op, const char* name, const View& view, DType type, int64_t rows, int64_t width) {
  if (view.dtype != type) return argumentError(op, name, "has another element type than expected", int64_t(view.dtype));
  if (view.rank < 1 || !view.rowsAreUniform() || (view.rows() > 1 && view.rowStride() != width)) return argumentError(op, name, "must be contiguous", view.rank);
  if (view.rows() != rows || view.lastDim() != width) return shapeError(op, name, "has another shape than expected", rows * width, view.count());
  return {};
}

// One contiguous operand of `count` elements or more, whatever its shape.
template <typename T> Status flat(const char* op, const char* name, const View& view, DType type, int64_t count, T*& data) {
  if (view.dtype != type) return argumentError(op, name, "has another element type than expected", int64_t(view.dtype));
  if (!view.rowsAreUniform() || (view.rows() > 1 && view.rowStride() != view.lastDim())) return argumentError(op, name, "must be contiguous", view.rank);
  if (view.count() < count) return shapeError(op, name, "is too short", count, view.count());
  data = view.as<T>();
  return {};
}

inline bool isFloat(DType type) { return type == DType::f32 || type == DType::f16 || type == DType::bf16; }

// dims −1 = any size.
inline Status checkDims(const char* op, const char* name, const View& view, int rank, const int64_t* dims) {
  if (view.rank != rank) return shapeError(op, name, "has another rank than expected", rank, view.rank);
  for (int i = 0; i < rank; ++i)
    if (dims[i] >= 0 && view.dims[i] != dims[i]) return shapeError(op, name, "has another dimension than expected", dims[i], view.dims[i]);
  if (rank > 0 && view.dims[rank - 1] > 1 && view.strides[rank - 1] != 1) return argumentError(op, name, "must be contiguous along its last axis", view.strides[rank - 1]);
  return {};
}
template <typename... Dims> Status checkType(const char* op, const char* name, const View& view, DType type, Dims... dims) {
  const int64_t list[] = {int64_t(dims)...};
  if (view.dtype != type) return argumentError(op, name, "has another element type than expected", int64_t(view.dtype));
  return checkDims(op, name, view, int(sizeof...(dims)), list);
}

// x and out f32 [n, heads, headDim] alike, heads contiguous.
inline Status checkHeads(const char* op, const View& x, const View& out) {
  for (const View* view : {&x, &out}) {
    const char* name = view == &x ? "x" : "out";
    if (view->dtype != DType::f32) return argumentError(op, name, "must be f32", int64_t(view->dtype));
    if (view->rank != 3) return shapeError(op, name, "must be [n, heads, headDim]", 3, view->rank);
    if (view->dims[2] > 1 && view->strides[2] != 1) return argumentError(op, name, "must have contiguous heads", view->strides[2]);
    for (int axis = 0; axis < 3; ++axis)
      if (view->dims[axis] != x.dims[axis]) return shapeError(op, name, "must have the shape of x", x.dims[axis], view->dims[axis]);
  }
  return {};
}

// ---- Operands of single ops

// f32 [rows, columns] beside a product: out, residual, bias.
inline Status checkProduct(const char* name, const View& view, int64_t rows, int64_t columns) {
  if (view.dtype != DType::f32) return argumentError("matmul", name, "must be f32", int64_t(view.dtype));
  if (view.rank < 1 || !view.rowsAreUniform()) return argumentError("matmul", name, "must have rows at one stride", view.rank);
  if (view.lastDim() != columns) return shapeError("matmul", name, "must have one element a weight row", columns, view.lastDim());
  if (view.rows() != rows) return shapeError("matmul", name, "must have one row a token", rows, view.rows());
  return {};
}

inline Status openRopeTable(const RopeTableArgs& args, FloatRows& out) {
  const View &positions = args.positions, &frequencies = args.frequencies;
  TL_TRY(floatRows("ropeTable", "out", args.out, out));
  if (positions.dtype != DType::i32) return argumentError("ropeTable", "positions", "must be i32", int64_t(positions.dtype));
  if (frequencies.dtype != DType::i64) return argumentError("ropeTable", "frequencies", "must be i64 (bits of doubles)", int64_t(frequencies.dtype));
  for (const View* view : {&positions, &frequencies})
    if (view->rank != 1 || (view->dims[0] > 1 && view->strides[0] != 1))
      return argumentError("ropeTable", view == &positions ? "positions" : "frequencies", "must be one contiguous row", view->rank);
  const int64_t half = frequencies.dims[0];
  if (out.rows != positions.dims[0]) return shapeError("ropeTable", "out", "must have one row a position", positions.dims[0], out.rows);
  if (out.width != 2 * half) return shapeError("ropeTable", "out", "must have two columns a frequency", 2 * half, out.width);
  return {};
}

inline Status openRope(const RopeArgs& args, FloatRows& table) {
  const View& x = args.x;
  TL_TRY(checkHeads("rope", x, args.out));
  if (args.table.dtype != DType::f32) return argumentError("rope", "table", "must be f32", int64_t(args.table.dtype));
  if (args.table.rank != 2 || !args.table.rowsAreUniform()) return argumentError("rope", "table", "must be [n, dim]", args.table.rank);
  TL_TRY(floatRows("rope", "table", args.table, table));
  if (table.rows != x.dims[0]) return shapeError("rope", "table", "must have one row a token", x.dims[0], table.rows);
  if (table.width > x.dims[2] || table.width % 2 != 0) return shapeError("rope", "table", "must have an even dim of at most headDim", x.dims[2], table.width);
  return {};
}

inline Status openLogits(const char* op, const View& view, FloatRows& rows) {
  TL_TRY(floatRows(op, "logits", view, rows));
  return rows.width < 1 && rows.rows > 0 ? shapeError(op, "logits", "must have columns", 1, rows.width) : Status{};
}

inline Status openTopK(const TopKArgs& args, FloatRows& logits, FloatRows& values) {
  TL_TRY(openLogits("topK", args.logits, logits));
  TL_TRY(floatRows("topK", "values", args.values, values));
  const View& indices = args.indices;
  const int64_t k = values.width;
  if (values.rows != logits.rows) return shapeError("topK", "values", "must have as many rows as the logits", logits.rows, values.rows);
  if (k < 1 || k > kMostCandidates) return argumentError("topK", "values", "must have 1 … 1024 columns", k);
  if (k > logits.width) return shapeError("topK", "values", "has more columns than the logits", logits.width, k);
  if (indices.dtype != DType::i32) return argumentError("topK", "indices", "must be i32", int64_t(indices.dtype));
  if (indices.rank < 1 || !indices.rowsAreUniform()) return argumentError("topK", "indices", "must have rows at one stride", indices.rank);
  if (indices.rows() != logits.rows) return shapeError("topK", "indices", "must have as many rows as the logits", logits.rows, indices.rows());
  if (indices.lastDim() != k) return shapeError("topK", "indices", "must have the columns of `values`", k, indices.lastDim());
  return args.logSumExp.present() ? columnOperand("topK", "logSumExp", args.logSumExp, DType::f32, logits.rows) : Status{};
}

// The numbers of a sampler chain, and a history's form; its ids are the kernel's to look at. `args`: any op's that draws.
template <typename Args> Status checkChain(const char* op, int64_t vocabulary, const Args& args) {
  const auto finite = [](double x) { return x - x == 0; };
  if (vocabulary < 1) return shapeError(op, "logits", "must have elements", 1, 0);
  if (!(args.temperature >= 0 && finite(args.temperature))) return argumentError(op, "temperature", "must be finite and at least 0");
  if (!(args.topK >= 0)) return argumentError(op, "topK", "must be at least 0");
  if (!(args.topP >= 0)) return argumentError(op, "topP", "must be at least 0");
  if (!(args.minP >= 0 && args.minP <= 1)) return argumentError(op, "minP", "must lie in 0 … 1");
  if (!(args.repeatPenalty > 0 && finite(args.repeatPenalty))) return argumentError(op, "repeatPenalty", "must be finite and positive");
  for (const double number : {args.seed, args.stream, args.position})
    if (!(number >= 0 && number <= 0x1p53)) return argumentError(op, "seed, stream, position", "must be integers in 0 … 2^53");
  const View& history = args.history;
  if (history.present() && (history.dtype != DType::i32 || history.rank != 1 || (history.dims[0] > 1 && history.strides[0] != 1)))
    return argumentError(op, "history", "must be one contiguous row of i32", history.rank);
  return {};
}

struct Patches {
  int64_t patch, prefix, across, each, line;  // side; rows before an image's patches; patches a row, rows an image, numbers a line
};
inline Status openPatches(const ImagePatchesArgs& args, FloatRows& out, Patches& patches) {
  constexpr const char* op = "imagePatches";
  const View& pixels = args.pixels;
  TL_TRY(floatRows(op, "out", args.out, out));
  if (pixels.dtype != DType::u8 || pixels.rank != 4) return argumentError(op, "pixels", "must be u8 [images, height, width, channels]", int64_t(pixels.dtype));
  const int64_t images = pixels.dims[0], channels = pixels.dims[3], patch = int64_t(args.patch), prefix = int64_t(args.prefix);
  if (patch < 1 || prefix < 0 || pixels.dims[1] % patch != 0 || pixels.dims[2] % patch != 0) return shapeError(op, "pixels", "must be whole patches", patch, pixels.dims[1]);
  if (pixels.strides[3] != 1 || pixels.strides[2] != channels) return argumentError(op, "pixels", "must have contiguous rows", pixels.strides[2]);
  const int64_t across = pixels.dims[2] / patch, each = prefix + pixels.dims[1] / patch * across, line = patch * channels;
  if (out.rows != images * each) return shapeError(op, "out", "must have one row a patch", images * each, out.rows);
  if (out.width != patch * line) return shapeError(op, "out", "must have one column a number of a patch", patch * line, out.width);
  patches = {patch, prefix, across, each, line};
  return {};
}

// bytes, groups: of a row of codes and of its scales.
inline Status openQuantizeRows(const QuantizeRowsArgs& args, int64_t groupElements, FloatRows& x, int64_t& bytes, int64_t& groups) {
  constexpr const char* op = "quantizeRows";
  TL_TRY(floatRows(op, "x", args.x, x));
  const bool four = args.bits == 4;
  if (!four && args.bits != 8) return argumentError(op, "bits", "must be 4 or 8", int64_t(args.bits));
  if (x.width < 1) return shapeError(op, "x", "must have columns", 1, x.width);
  groups = four ? ceilDiv(x.width, groupElements) : 1;
  bytes = four ? (x.width + 1) / 2 : x.width;
  TL_TRY(contiguousRows(op, "q", args.q, DType::u8, x.rows, bytes));
  TL_TRY(contiguousRows(op, "scale", args.scale, DType::f32, x.rows, groups));
  TL_TRY(contiguousRows(op, "dequantized", args.dequantized, DType::f32, x.rows, x.width));
  return four ? contiguousRows(op, "minimum", args.minimum, DType::f32, x.rows, groups) : Status{};
}

inline Status checkMergeEvicted(const MergeEvictedArgs& args) {
  constexpr const char* op = "mergeEvicted";
  const View& key = args.key;
  if (key.rank != 3) return shapeError(op, "key", "must be [heads, tokens, headDim]", 3, key.rank);
  const int64_t heads = key.dims[0], tokens = key.dims[1];
  for (const View* view : {&args.key, &args.value, &args.out})
    TL_TRY(contiguousRows(op, view == &args.key ? "key" : view == &args.value ? "value" : "out", *view, DType::f32, heads * tokens, key.dims[2]));
  return contiguousRows(op, "kept", args.kept, DType::u8, heads, tokens);
}

inline Status openPoolScores(const PoolScoresArgs& args, FloatRows& x, FloatRows& out) {
  constexpr const char* op = "poolScores";
  TL_TRY(floatRows(op, "x", args.x, x));
  TL_TRY(floatRows(op, "out", args.out, out));
  if (out.rows != x.rows || out.width != x.width) return shapeError(op, "out", "must have the shape of x", x.rows, out.rows);
  if (!(args.kernel >= 1) || std::fmod(args.kernel, 2) != 1) return argumentError(op, "kernel", "must be odd", int64_t(args.kernel));
  if (!(args.last >= 0)) return argumentError(op, "last", "must be 0 or more");
  if (x.data == out.data && x.rows > 0) return argumentError(op, "out", "must not be x");
  return {};
}

}  // namespace tl
