// Rows looked up by number: see cpp/kernels/embedding.cpp. A number outside the table gives row 0, and an error after the run.
#include "core/rows.cuh"
#include "packed.cuh"

namespace tl::cuda {
namespace {

constexpr int kThreads = 128;

struct Table {
  const void* data;
  DType dtype;
  int64_t rows, width, stride;
};

__global__ void embedPacked(Packed table, const int32_t* ids, Rows out, float scale, int* problems) {
  const int64_t row = checkedIndex(ids[blockIdx.x], table.rows, problems);
  for (int64_t c = threadIdx.x; c < out.width; c += blockDim.x) out.row(blockIdx.x)[c] = table.element(row, c) * scale;
}

__global__ void embedFloats(Table table, const int32_t* ids, Rows out, float scale, int* problems) {
  const int64_t row = checkedIndex(ids[blockIdx.x], table.rows, problems);
  for (int64_t c = threadIdx.x; c < out.width; c += blockDim.x) out.row(blockIdx.x)[c] = loadElement(table.data, table.dtype, row * table.stride + c) * scale;
}

__global__ void copyRows(Rows x, const int32_t* index, int64_t each, int64_t blockRows, Rows out, int* problems) {
  const int64_t i = blockIdx.x;
  const int32_t from = index[i % each];
  const int64_t row = from < 0 ? 0 : checkedIndex(from, blockRows, problems);
  for (int64_t c = threadIdx.x; c < out.width; c += blockDim.x) out.row(i)[c] = from < 0 ? 0.0f : x.row(i / each * blockRows + row)[c];
}

Status checkIndices(const char* op, const char* name, const View& indices) {
  if (indices.dtype != DType::i32) return argumentError(op, name, "must be i32", int64_t(indices.dtype));
  if (indices.rank != 1 || (indices.dims[0] > 1 && indices.strides[0] != 1)) return argumentError(op, name, "must be one contiguous row", indices.rank);
  return {};
}

}  // namespace

Status embedding(const EmbeddingArgs& args, DeviceContext& context) {
  Rows out;
  const View& table = args.table;
  TL_TRY(checkIndices("embedding", "ids", args.ids));
  TL_TRY(floatRows("embedding", "out", args.out, out));
  if (out.rows != args.ids.dims[0]) return shapeError("embedding", "out", "must have one row an id", args.ids.dims[0], out.rows);
  TL_TRY(checkGrid("embedding", out.rows));
  if (table.dtype == DType::packed) {
    Packed packed;
    TL_TRY(openPacked("embedding", "table", table, packed));
    if (out.width != packed.columns) return shapeError("embedding", "out", "must have the table's width", packed.columns, out.width);
    return launch("embedding", context, embedPacked, dim3(unsigned(out.rows)), dim3(kThreads), 0, packed, args.ids.as<const int32_t>(), out, float(args.scale), context.problems);
  }
  if (table.dtype != DType::f32 && table.dtype != DType::f16 && table.dtype != DType::bf16)
    return argumentError("embedding", "table", "must be packed, f32, f16 or bf16", int64_t(table.dtype));
  if (table.rank != 2 || !table.rowsAreUniform()) return argumentError("embedding", "table", "must be [vocabulary, width]", table.rank);
  if (out.width != table.dims[1]) return shapeError("embedding", "out", "must have the table's width", table.dims[1], out.width);
  return launch("embedding", context, embedFloats, dim3(unsigned(out.rows)), dim3(kThreads), 0, Table{table.data, table.dtype, table.dims[0], table.dims[1], table.rowStride()},
                args.ids.as<const int32_t>(), out, float(args.scale), context.problems);
}

Status gatherRows(const GatherRowsArgs& args, DeviceContext& context) {
  Rows x, out;
  TL_TRY(floatRows("gatherRows", "x", args.x, x));
  TL_TRY(floatRows("gatherRows", "out", args.out, out));
  TL_TRY(checkIndices("gatherRows", "index", args.index));
  const int64_t each = args.index.dims[0], blocks = each > 0 ? out.rows / each : 0, blockRows = blocks > 0 ? x.rows / blocks : 0;
  if (out.rows != blocks * each) return shapeError("gatherRows", "out", "must have one row an index", each, out.rows);
  if (blockRows * blocks != x.rows && blocks > 0) return shapeError("gatherRows", "x", "must have as many blocks as the output", blocks, x.rows);
  if (out.width != x.width) return shapeError("gatherRows", "out", "must have the width of x", x.width, out.width);
  TL_TRY(checkGrid("gatherRows", out.rows));
  return launch("gatherRows", context, copyRows, dim3(unsigned(out.rows)), dim3(kThreads), 0, x, args.index.as<const int32_t>(), each, blockRows, out, context.problems);
}

}  // namespace tl::cuda
