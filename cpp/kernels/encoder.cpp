// What encoders need around their blocks: images in, one vector a sequence and pictures out.
//   imagePatches     pixels u8 [images, height, width, channels] → rows of patches (arXiv 2010.11929)
//   poolSequences    first row, mean or maximum of each sequence, and its direction
//   interpolateRows  out[i] = Σ_k weights[i, k] · x[index[i, k]]: resizing of grids
// One thread makes one output row, sums in a fixed order.
#include "../simd/target.h"
#include "reduce_inl.h"

namespace tl::TL_TARGET {
namespace {

// out = f(out, x) over a row.
template <typename Function> void combineRow(const float* x, float* out, int64_t n, Function f) { mapRow(out, x, out, n, f); }

void poolSequence(const FloatRows& x, int64_t begin, int64_t end, const float* sizes, int kind, float* out) {
  std::memset(out, 0, size_t(x.width) * sizeof(float));
  if (begin == end) return;
  if (kind != 1) {
    std::memcpy(out, x.row(begin), size_t(x.width) * sizeof(float));
    for (int64_t i = begin + 1; kind == 2 && i < end; ++i) combineRow(x.row(i), out, x.width, [](F32 most, F32 v) { return largerOf(v, most); });
    return;
  }
  float total = 0;
  for (int64_t i = begin; i < end; ++i) {
    const float size = sizes ? sizes[i] : 1;
    total += size;
    combineRow(x.row(i), out, x.width, [=](F32 sum, F32 v) { return mulAdd(v, broadcast(size), sum); });
  }
  mapRow(out, out, x.width, [=](F32 sum) { return div(sum, broadcast(total)); });
}

}  // namespace

Status imagePatches(const ImagePatchesArgs& args, Context& context) {
  const View& pixels = args.pixels;
  FloatRows out;
  Patches at;
  TL_TRY(openPatches(args, out, at));
  const auto [patch, prefix, across, each, line] = at;
  forRows(context, out.rows, out.width, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = i % each - prefix;
      if (at < 0) {
        std::memset(out.row(i), 0, size_t(out.width) * sizeof(float));
        continue;
      }
      const uint8_t* from = pixels.as<uint8_t>() + i / each * pixels.strides[0] + at / across * patch * pixels.strides[1] + at % across * line;
      for (int64_t y = 0; y < patch; ++y)
        for (int64_t x = 0; x < line; ++x) out.row(i)[y * line + x] = float(from[y * pixels.strides[1] + x]);
    }
  });
  return {};
}

Status poolSequences(const PoolSequencesArgs& args, Context& context) {
  constexpr const char* op = "poolSequences";
  FloatRows x, out;
  Sequences sequences;
  TL_TRY(tokenRows(op, "x", args.x, args.bounds, x, sequences));
  TL_TRY(floatRows(op, "out", args.out, out));
  if (sequences.count != out.rows) return shapeError(op, "bounds", "must be one more than the sequences", out.rows + 1, sequences.count + 1);
  if (args.sizes.present()) TL_TRY(vectorOperand(op, "sizes", args.sizes, x.rows));
  if (out.width != x.width) return shapeError(op, "out", "must have the width of x", x.width, out.width);
  const float* sizes = args.sizes.present() ? args.sizes.as<float>() : nullptr;
  forRows(context, out.rows, x.width * (x.rows / std::max<int64_t>(out.rows, 1)), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      poolSequence(x, sequences.begin(i), sequences.begin(i + 1), sizes, int(args.kind), out.row(i));
      if (args.normalize != 0) writeUnit(out.row(i), out.row(i), x.width);
    }
  });
  return {};
}

Status interpolateRows(const InterpolateRowsArgs& args, Context& context) {
  constexpr const char* op = "interpolateRows";
  FloatRows x, out, weights;
  TL_TRY(floatRows(op, "x", args.x, x));
  TL_TRY(floatRows(op, "out", args.out, out));
  TL_TRY(floatRows(op, "weights", args.weights, weights));
  const View& indices = args.index;
  const int64_t each = weights.rows, taps = weights.width, blocks = each > 0 ? out.rows / each : 0, blockRows = blocks > 0 ? x.rows / blocks : 0;
  if (indices.dtype != DType::i32 || indices.count() != each * taps || indices.rank != 2 || indices.strides[0] != taps)
    return shapeError(op, "index", "must be i32 of the weights' shape", each * taps, indices.count());
  if (out.rows != blocks * each || x.rows != blocks * blockRows) return shapeError(op, "out", "must have one row of weights a row", each, out.rows);
  if (out.width != x.width) return shapeError(op, "out", "must have the width of x", x.width, out.width);
  const int32_t* index = indices.as<int32_t>();
  for (int64_t i = 0; i < each * taps; ++i)
    if (index[i] < 0 || index[i] >= blockRows) return argumentError(op, "index", "has a number outside the rows", index[i]);
  forRows(context, out.rows, x.width * taps, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      std::memset(out.row(i), 0, size_t(x.width) * sizeof(float));
      for (int64_t k = 0; k < taps; ++k) {
        const float weight = weights.row(i % each)[k];
        const float* from = x.row(i / each * blockRows + index[i % each * taps + k]);
        if (x.width == 1) *out.row(i) += weight * *from;
        else combineRow(from, out.row(i), x.width, [=](F32 sum, F32 v) { return mulAdd(v, broadcast(weight), sum); });
      }
    }
  });
  return {};
}

}  // namespace tl::TL_TARGET
