// Rotary positions, see cpp/kernels/rope.cpp: angles in f64, pairs (2i, 2i + 1) where interleaved, else (i, i + dim / 2).
#include "core/rows.cuh"

namespace tl::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void tabulate(const int32_t* positions, const double* frequencies, int64_t half, double magnitude, Rows out) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, row = i / half, j = i % half;
  if (row >= out.rows) return;
  const double angle = double(positions[row]) * frequencies[j];
  out.row(row)[j] = float(cos(angle) * magnitude);
  out.row(row)[half + j] = float(sin(angle) * magnitude);
}

struct Heads {
  float* data;
  int64_t token, head;
};

// A thread a pair, or an element past the table's dim: each reads both of its numbers before it writes, so out may be x.
__global__ void rotate(Heads x, Heads out, int64_t tokens, int64_t heads, int64_t headDim, Rows table, bool interleaved) {
  const int64_t half = table.width / 2, each = half + headDim - table.width, i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t token = i / (heads * each), head = i / each % heads, j = i % each;
  if (token >= tokens) return;
  const float* from = x.data + token * x.token + head * x.head;
  float* to = out.data + token * out.token + head * out.head;
  if (j >= half) {
    const int64_t d = table.width + j - half;
    if (to != from) to[d] = from[d];
    return;
  }
  const int64_t first = interleaved ? 2 * j : j, second = interleaved ? 2 * j + 1 : j + half;
  const float a = from[first], b = from[second], c = table.row(token)[j], s = table.row(token)[half + j];
  to[first] = a * c - b * s;
  to[second] = b * c + a * s;
}

}  // namespace

Status ropeTable(const RopeTableArgs& args, DeviceContext& context) {
  const View &positions = args.positions, &frequencies = args.frequencies;
  Rows out;
  TL_TRY(openRopeTable(args, out));
  const int64_t half = frequencies.dims[0];
  return launch("ropeTable", context, tabulate, dim3(unsigned(ceilDiv(out.rows * half, kThreads))), dim3(kThreads), 0, positions.as<const int32_t>(), frequencies.as<const double>(), half,
                args.magnitude, out);
}

Status rope(const RopeArgs& args, DeviceContext& context) {
  const View &x = args.x, &out = args.out;
  Rows table;
  TL_TRY(openRope(args, table));
  const int64_t pairs = x.dims[0] * x.dims[1] * (x.dims[2] - table.width / 2);
  return launch("rope", context, rotate, dim3(unsigned(ceilDiv(pairs, kThreads))), dim3(kThreads), 0, Heads{x.as<float>(), x.strides[0], x.strides[1]},
                Heads{out.as<float>(), out.strides[0], out.strides[1]}, x.dims[0], x.dims[1], x.dims[2], table, args.interleaved != 0);
}

}  // namespace tl::cuda
