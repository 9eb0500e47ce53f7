// Rows looked up by number.
//   embedding   out[i] = table[ids[i]] · scale, table packed or f32, f16, bf16 [vocabulary, width]; ids i32 [n]
//   gatherRows  out[i] = x[index[i]], f32 copied exactly; in blocks, and 0 for −1: see args.h
// All numbers are checked before anything is written.
#include "../simd/target.h"
#include "packed_layout_inl.h"
#include "rows_inl.h"

namespace tl::TL_TARGET {

extern const PackingKernels packingKernels;  // packing.cpp

namespace {

Status checkIndices(const char* op, const char* name, const View& indices, int64_t limit, int32_t least = 0) {
  if (indices.dtype != DType::i32) return argumentError(op, name, "must be i32", int64_t(indices.dtype));
  if (indices.rank != 1 || (indices.dims[0] > 1 && indices.strides[0] != 1)) return argumentError(op, name, "must be one contiguous row", indices.rank);
  const int32_t* index = indices.as<int32_t>();
  for (int64_t i = 0; i < indices.dims[0]; ++i)
    if (index[i] < least || index[i] >= limit) return argumentError(op, name, "has a number outside the table", index[i]);
  return {};
}

template <typename T> void convertRow(const View& table, int64_t row, float* out, int64_t width) {
  const T* x = table.as<T>() + row * table.rowStride();
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) store(out + i, load(x + i));
  if (i < width) storePart(out + i, loadPart(x + i, int(width - i)), int(width - i));
}

Status tableShape(const View& table, int64_t& rows, int64_t& width) {
  if (table.dtype == DType::packed) {
    const PackedWeight& weight = *table.as<PackedWeight>();
    if (weight.isa != kIsa) return argumentError("embedding", "table", "was packed for another instruction set", int64_t(weight.isa));
    rows = weight.rows;
    width = weight.columns;
    return {};
  }
  if (table.dtype != DType::f32 && table.dtype != DType::f16 && table.dtype != DType::bf16)
    return argumentError("embedding", "table", "must be packed, f32, f16 or bf16", int64_t(table.dtype));
  if (table.rank != 2 || !table.rowsAreUniform()) return argumentError("embedding", "table", "must be [vocabulary, width]", table.rank);
  rows = table.dims[0];
  width = table.dims[1];
  return {};
}

}  // namespace

Status embedding(const EmbeddingArgs& args, Context& context) {
  int64_t vocabulary, width;
  FloatRows out;
  TL_TRY(tableShape(args.table, vocabulary, width));
  TL_TRY(checkIndices("embedding", "ids", args.ids, vocabulary));
  TL_TRY(floatRows("embedding", "out", args.out, out));
  if (out.rows != args.ids.dims[0]) return shapeError("embedding", "out", "must have one row an id", args.ids.dims[0], out.rows);
  if (out.width != width) return shapeError("embedding", "out", "must have the table's width", width, out.width);
  const int32_t* ids = args.ids.as<int32_t>();
  const F32 scale = broadcast(float(args.scale));
  forRows(context, out.rows, width, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      float* row = out.row(i);
      if (args.table.dtype == DType::packed) packingKernels.unpackRow(*args.table.as<PackedWeight>(), ids[i], row);
      else if (args.table.dtype == DType::f32) convertRow<float>(args.table, ids[i], row, width);
      else if (args.table.dtype == DType::f16) convertRow<f16>(args.table, ids[i], row, width);
      else convertRow<bf16>(args.table, ids[i], row, width);
      if (args.scale != 1) mapRow(row, row, width, [=](F32 v) { return mul(v, scale); });
    }
  });
  return {};
}

Status gatherRows(const GatherRowsArgs& args, Context& context) {
  FloatRows x, out;
  TL_TRY(floatRows("gatherRows", "x", args.x, x));
  TL_TRY(floatRows("gatherRows", "out", args.out, out));
  const int64_t each = args.index.rank == 1 ? args.index.dims[0] : 0, blocks = each > 0 ? out.rows / each : 0;
  const int64_t blockRows = blocks > 0 ? x.rows / blocks : 0;
  TL_TRY(checkIndices("gatherRows", "index", args.index, blockRows, -1));
  if (out.rows != blocks * each) return shapeError("gatherRows", "out", "must have one row an index", each, out.rows);
  if (blockRows * blocks != x.rows && blocks > 0) return shapeError("gatherRows", "x", "must have as many blocks as the output", blocks, x.rows);
  if (out.width != x.width) return shapeError("gatherRows", "out", "must have the width of x", x.width, out.width);
  const int32_t* index = args.index.as<int32_t>();
  forRows(context, out.rows, x.width, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int32_t from = index[i % each];
      if (from < 0) std::memset(out.row(i), 0, size_t(x.width) * sizeof(float));
      else std::memcpy(out.row(i), x.row(i / each * blockRows + from), size_t(x.width) * sizeof(float));
    }
  });
  return {};
}

}  // namespace tl::TL_TARGET
