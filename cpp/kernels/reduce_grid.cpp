// Tokens of images as grids, and how much is in them.
//   resizeGrid    adaptive means (TokenFLEX, arXiv 2504.03154; Matryoshka, 2405.17430) or bilinear (TokenPacker, 2407.02392)
//   convolve      small convolutions on attention maps (after arXiv 2506.01097)
//   entropy       −Σ p ln p of rows
//   patchEntropy  the same of the grey levels of patches (VFlowOpt, arXiv 2508.05211)
#include "../simd/target.h"
#include "reduce_inl.h"
#include "select_inl.h"

namespace tl::TL_TARGET {
namespace {

Status grid(const char* op, const char* name, const View& view) {
  if (view.dtype != DType::f32 || view.rank != 4) return shapeError(op, name, "must be f32 of rank 4", 4, view.rank);
  if (view.dims[3] > 1 && view.strides[3] != 1) return argumentError(op, name, "must be contiguous along its last dimension", view.strides[3]);
  return {};
}

// What one output index of an axis reads: windows of inputs, or two inputs and the weight of the second.
struct Axis {
  int64_t first, last;
  float weight;
  Axis(int64_t out, int64_t size, int64_t outSize, bool bilinear) {
    if (!bilinear) {
      first = out * size / outSize;
      last = ceilDiv((out + 1) * size, outSize) - 1;
      weight = 0;
      return;
    }
    const double at = std::max(0.0, (double(out) + 0.5) * double(size) / double(outSize) - 0.5);
    first = std::min(int64_t(at), size - 1);
    last = std::min(first + 1, size - 1);
    weight = float(at - double(first));
  }
};

}  // namespace

Status resizeGrid(const ResizeGridArgs& args, Context& context) {
  constexpr const char* op = "resizeGrid";
  const View &x = args.x, &out = args.out;
  TL_TRY(grid(op, "x", x));
  TL_TRY(grid(op, "out", out));
  if (out.dims[0] != x.dims[0] || out.dims[3] != x.dims[3]) return shapeError(op, "out", "must have the batch and width of x", x.dims[3], out.dims[3]);
  const int64_t height = x.dims[1], width = x.dims[2], outHeight = out.dims[1], outWidth = out.dims[2], columns = x.dims[3];
  if ((height < 1 || width < 1) && out.count() > 0) return shapeError(op, "x", "must have tokens", 1, 0);
  const bool bilinear = args.bilinear != 0;
  forRows(context, out.dims[0] * outHeight * outWidth, columns * 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / (outHeight * outWidth), oy = i / outWidth % outHeight, ox = i % outWidth;
      const Axis rows(oy, height, outHeight, bilinear), cols(ox, width, outWidth, bilinear);
      const auto at = [&](int64_t row, int64_t col, int64_t column) { return loadUpTo(x.as<float>() + b * x.strides[0] + row * x.strides[1] + col * x.strides[2] + column, columns - column); };
      float* to = out.as<float>() + b * out.strides[0] + oy * out.strides[1] + ox * out.strides[2];
      const F32 count = broadcast(float((rows.last - rows.first + 1) * (cols.last - cols.first + 1))), down = broadcast(rows.weight), right = broadcast(cols.weight);
      for (int64_t column = 0; column < columns; column += kLanes) {
        F32 value = zero();
        if (bilinear) {
          const auto between = [&](int64_t row) {
            const F32 left = at(row, cols.first, column);
            return mulAdd(sub(at(row, cols.last, column), left), right, left);
          };
          const F32 above = between(rows.first);
          value = mulAdd(sub(between(rows.last), above), down, above);
        } else {
          for (int64_t row = rows.first; row <= rows.last; ++row) for (int64_t col = cols.first; col <= cols.last; ++col) value = add(value, at(row, col, column));
          value = div(value, count);
        }
        storeUpTo(to + column, value, columns - column);
      }
    }
  });
  return {};
}

Status convolve(const ConvolveArgs& args, Context& context) {
  constexpr const char* op = "convolve";
  const View &x = args.x, &out = args.out, &weight = args.weight;
  for (const View* view : {&x, &out, &weight}) TL_TRY(grid(op, view == &x ? "x" : view == &out ? "out" : "weight", *view));
  const int64_t inputs = x.dims[1], height = x.dims[2], width = x.dims[3], outputs = out.dims[1], k = weight.dims[2], reach = k / 2;
  if (weight.dims[0] != outputs || weight.dims[1] != inputs) return shapeError(op, "weight", "must be [outputs, inputs, k, k]", outputs * inputs, weight.dims[0] * weight.dims[1]);
  if (k != weight.dims[3] || k % 2 == 0) return shapeError(op, "weight", "must have odd square kernels", k, weight.dims[3]);
  if (out.dims[0] != x.dims[0] || out.dims[2] != height || out.dims[3] != width) return shapeError(op, "out", "must have the grid of x", height, out.dims[2]);
  TL_TRY(vectorOperand(op, "bias", args.bias, outputs));
  float *data, *kernel;
  TL_TRY(flat(op, "x", x, DType::f32, x.count(), data));
  TL_TRY(flat(op, "weight", weight, DType::f32, weight.count(), kernel));
  forRows(context, out.dims[0] * outputs * height, width * inputs * k * k, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / (outputs * height), o = i / height % outputs, y = i % height;
      float* row = out.as<float>() + b * out.strides[0] + o * out.strides[1] + y * out.strides[2];
      for (int64_t col = 0; col < width; ++col) {
        float sum = 0;
        for (int64_t c = 0; c < inputs; ++c) for (int64_t dy = -reach; dy <= reach; ++dy) for (int64_t dx = -reach; dx <= reach; ++dx) {
          if (y + dy < 0 || y + dy >= height || col + dx < 0 || col + dx >= width) continue;
          sum += data[((b * inputs + c) * height + y + dy) * width + col + dx] * kernel[((o * inputs + c) * k + dy + reach) * k + dx + reach];
        }
        sum += args.bias.as<float>()[o];
        row[col] = args.relu != 0 ? std::max(sum, 0.0f) : sum;
      }
    }
  });
  return {};
}

Status entropy(const EntropyArgs& args, Context& context) {
  constexpr const char* op = "entropy";
  FloatRows x;
  float* out;
  TL_TRY(floatRows(op, "x", args.x, x));
  TL_TRY(flat(op, "out", args.out, DType::f32, x.rows, out));
  forRows(context, x.rows, 8 * x.width, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const double total = args.logits != 0 ? logSumExp(x.row(i), x.width) : 0;
      double sum = 0;
      for (int64_t j = 0; j < x.width; ++j) {
        const double value = double(x.row(i)[j]), p = args.logits != 0 ? std::exp(value - total) : value;
        if (p != 0) sum += p * (args.logits != 0 ? value - total : std::log(p));
      }
      out[i] = float(-sum * args.scale) + 0.0f;
    }
  });
  return {};
}

Status patchEntropy(const PatchEntropyArgs& args, Context& context) {
  constexpr const char* op = "patchEntropy";
  const View& pixels = args.pixels;
  uint8_t* data;
  TL_TRY(flat(op, "pixels", pixels, DType::u8, pixels.count(), data));
  if (pixels.rank != 4 || !(args.patch >= 1 && args.patch <= 4096)) return shapeError(op, "pixels", "must be u8 [batch, h, w, channels], patches 1 … 4096", 4, pixels.rank);
  const int64_t p = int64_t(args.patch), height = pixels.dims[1], width = pixels.dims[2], channels = pixels.dims[3], down = height / p, across = width / p;
  float* out;
  TL_TRY(flat(op, "out", args.out, DType::f32, pixels.dims[0] * down * across, out));
  if (channels < 1) return shapeError(op, "pixels", "must have channels", 1, channels);
  forRows(context, pixels.dims[0] * down * across, p * p * (channels + 2), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / (down * across), top = i / across % down * p, left = i % across * p;
      int32_t histogram[256] = {};
      for (int64_t y = 0; y < p; ++y)
        for (int64_t col = 0; col < p; ++col) {
          const uint8_t* pixel = data + ((b * height + top + y) * width + left + col) * channels;
          int64_t sum = 0;
          for (int64_t c = 0; c < channels; ++c) sum += pixel[c];
          ++histogram[(2 * sum + channels) / (2 * channels)];
        }
      double sum = 0;
      for (const int32_t n : histogram)
        if (n > 0) sum += double(n) / double(p * p) * std::log(double(n) / double(p * p));
      out[i] = float(-sum * args.scale) + 0.0f;
    }
  });
  return {};
}

}  // namespace tl::TL_TARGET
