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

}  // namespace

Status ropeTable(const RopeTableArgs& args, Context& context) {
  const View &positions = args.positions, &frequencies = args.frequencies;
  FloatRows out;
  TL_TRY(openRopeTable(args, out));
  const int64_t half = frequencies.dims[0];
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
  FloatRows table;
  TL_TRY(openRope(args, table));
  if (2 * table.width > kScratchFloats) return argumentError("rope", "table", "is too wide", table.width);
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
