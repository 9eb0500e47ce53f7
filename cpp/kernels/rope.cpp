// Rotary positions (arXiv 2104.09864).
//   ropeTable  out[i] = cos(p_i f_0) … cos(p_i f_{dim/2−1}) | sin(…), times `magnitude`; angles in f64
//   rope       pairs (a, b) of x [n, heads, headDim] become (a cos − b sin, b cos + a sin); out may be x itself;
//              pairs are (2i, 2i+1) where interleaved, else (i, i + dim/2); elements past dim are copied
#include "../simd/target.h"
#include "rows_inl.h"

namespace tl::TL_TARGET {
namespace {

constexpr int64_t kSineWork = 16;  // a sine costs about as much as this many simple elements

void rotateHalves(const float* x, float* out, const float* cosine, const float* sine, int64_t half) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const F32 a = load(x + i), b = load(x + half + i), c = load(cosine + i), s = load(sine + i);
    store(out + i, sub(mul(a, c), mul(b, s)));
    store(out + half + i, add(mul(b, c), mul(a, s)));
  }
  if (i >= half) return;
  const int part = int(half - i);
  const F32 a = loadPart(x + i, part), b = loadPart(x + half + i, part), c = loadPart(cosine + i, part), s = loadPart(sine + i, part);
  storePart(out + i, sub(mul(a, c), mul(b, s)), part);
  storePart(out + half + i, add(mul(b, c), mul(a, s)), part);
}

// cosine [dim] = c0 c0 c1 c1 …, sine [dim] = −s0 s0 −s1 s1 …: one token's table spread over pairs, for all its heads.
void spreadTable(const float* table, int64_t half, float* cosine, float* sine) {
  for (int64_t i = 0; i < half; ++i) {
    cosine[2 * i] = cosine[2 * i + 1] = table[i];
    sine[2 * i] = -table[half + i];
    sine[2 * i + 1] = table[half + i];
  }
}

void rotatePairs(const float* x, float* out, const float* cosine, const float* sine, int64_t dim) {
  const auto rotate = [](F32 v, F32 c, F32 s) { return add(mul(v, c), mul(swapPairs(v), s)); };
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) store(out + i, rotate(load(x + i), load(cosine + i), load(sine + i)));
  if (i >= dim) return;
  const int part = int(dim - i);
  storePart(out + i, rotate(loadPart(x + i, part), loadPart(cosine + i, part), loadPart(sine + i, part)), part);
}

Status checkRope(const RopeArgs& args) {
  const View &x = args.x, &table = args.table;
  for (const View* view : {&x, &args.out}) {
    const char* name = view == &x ? "x" : "out";
    if (view->dtype != DType::f32) return argumentError("rope", name, "must be f32", int64_t(view->dtype));
    if (view->rank != 3) return shapeError("rope", name, "must be [n, heads, headDim]", 3, view->rank);
    if (view->dims[2] > 1 && view->strides[2] != 1) return argumentError("rope", name, "must have contiguous heads", view->strides[2]);
    for (int axis = 0; axis < 3; ++axis)
      if (view->dims[axis] != x.dims[axis]) return shapeError("rope", name, "must have the shape of x", x.dims[axis], view->dims[axis]);
  }
  if (table.dtype != DType::f32) return argumentError("rope", "table", "must be f32", int64_t(table.dtype));
  if (table.rank != 2 || !table.rowsAreUniform()) return argumentError("rope", "table", "must be [n, dim]", table.rank);
  if (table.dims[0] != x.dims[0]) return shapeError("rope", "table", "must have one row a token", x.dims[0], table.dims[0]);
  if (table.dims[1] > x.dims[2] || table.dims[1] % 2 != 0) return shapeError("rope", "table", "must have an even dim of at most headDim", x.dims[2], table.dims[1]);
  if (2 * table.dims[1] > kScratchFloats) return argumentError("rope", "table", "is too wide", table.dims[1]);
  return {};
}

}  // namespace

Status ropeTable(const RopeTableArgs& args, Context& context) {
  const View &positions = args.positions, &frequencies = args.frequencies;
  FloatRows out;
  TL_TRY(floatRows("ropeTable", "out", args.out, out));
  if (positions.dtype != DType::i32) return argumentError("ropeTable", "positions", "must be i32", int64_t(positions.dtype));
  if (frequencies.dtype != DType::i64) return argumentError("ropeTable", "frequencies", "must be i64 (bits of doubles)", int64_t(frequencies.dtype));
  for (const View* view : {&positions, &frequencies})
    if (view->rank != 1 || (view->dims[0] > 1 && view->strides[0] != 1))
      return argumentError("ropeTable", view == &positions ? "positions" : "frequencies", "must be one contiguous row", view->rank);
  const int64_t half = frequencies.dims[0];
  if (out.rows != positions.dims[0]) return shapeError("ropeTable", "out", "must have one row a position", positions.dims[0], out.rows);
  if (out.width != 2 * half) return shapeError("ropeTable", "out", "must have two columns a frequency", 2 * half, out.width);
  forRows(context, out.rows, half * kSineWork, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      float* row = out.row(i);
      for (int64_t j = 0; j < half; ++j) {
        double frequency;
        std::memcpy(&frequency, frequencies.as<int64_t>() + j, sizeof frequency);
        const double angle = double(positions.as<int32_t>()[i]) * frequency;
        row[j] = float(std::cos(angle) * args.magnitude);
        row[half + j] = float(std::sin(angle) * args.magnitude);
      }
    }
  });
  return {};
}

Status rope(const RopeArgs& args, Context& context) {
  TL_TRY(checkRope(args));
  const View &x = args.x, &out = args.out;
  const int64_t heads = x.dims[1], dim = args.table.dims[1], half = dim / 2;
  const size_t restBytes = size_t(x.dims[2] - dim) * sizeof(float);
  const bool interleaved = args.interleaved != 0;
  forRows(context, x.dims[0], heads * dim, [&](int64_t begin, int64_t end, int thread) {
    float* cosine = reinterpret_cast<float*>(context.pool.scratch(thread));
    float* sine = cosine + dim;
    for (int64_t token = begin; token < end; ++token) {
      const float* table = args.table.as<float>() + token * args.table.rowStride();
      if (interleaved) spreadTable(table, half, cosine, sine);
      for (int64_t h = 0; h < heads; ++h) {
        const float* from = x.as<float>() + token * x.strides[0] + h * x.strides[1];
        float* to = out.as<float>() + token * out.strides[0] + h * out.strides[1];
        if (interleaved) rotatePairs(from, to, cosine, sine, dim);
        else rotateHalves(from, to, table, table + half, half);
        if (to != from && restBytes > 0) std::memcpy(to + dim, from + dim, restBytes);
      }
    }
  });
  return {};
}

}  // namespace tl::TL_TARGET
