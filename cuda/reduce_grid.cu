// Tokens of images as grids, and how much is in them: see cpp/kernels/reduce_grid.cpp. A thread a number of the output.
#include "sequences.cuh"

namespace tl::cuda {
namespace {

struct Grid {
  float* data;
  int64_t batch, height, width, columns, strides[3];
  __device__ float* at(int64_t b, int64_t y, int64_t x) const { return data + b * strides[0] + y * strides[1] + x * strides[2]; }
};

Status openGrid(const char* op, const char* name, const View& view, Grid& grid) {
  if (view.dtype != DType::f32 || view.rank != 4) return shapeError(op, name, "must be f32 of rank 4", 4, view.rank);
  if (view.dims[3] > 1 && view.strides[3] != 1) return argumentError(op, name, "must be contiguous along its last dimension", view.strides[3]);
  grid = {view.as<float>(), view.dims[0], view.dims[1], view.dims[2], view.dims[3], {view.strides[0], view.strides[1], view.strides[2]}};
  return {};
}

// What one output index of an axis reads: windows of inputs, or two inputs and the weight of the second.
struct Axis {
  int64_t first, last;
  float weight;
};
__device__ Axis axisOf(int64_t out, int64_t size, int64_t outSize, bool bilinear) {
  if (!bilinear) return {out * size / outSize, ((out + 1) * size + outSize - 1) / outSize - 1, 0};
  const double raw = (double(out) + 0.5) * double(size) / double(outSize) - 0.5, at = raw > 0 ? raw : 0.0;
  const int64_t first = min(int64_t(at), size - 1);
  return {first, min(first + 1, size - 1), float(at - double(first))};
}

__global__ void resize(Grid x, Grid out, bool bilinear) {
  const int64_t i = threadNumber(), c = i % out.columns, ox = i / out.columns % out.width, oy = i / out.columns / out.width % out.height, b = i / out.columns / out.width / out.height;
  if (b >= out.batch) return;
  const Axis rows = axisOf(oy, x.height, out.height, bilinear), cols = axisOf(ox, x.width, out.width, bilinear);
  float value = 0;
  if (bilinear) {
    float between[2];
    for (int r = 0; r < 2; ++r) {
      const int64_t row = r == 0 ? rows.first : rows.last;
      const float left = x.at(b, row, cols.first)[c];
      between[r] = fmaf(x.at(b, row, cols.last)[c] - left, cols.weight, left);
    }
    value = fmaf(between[1] - between[0], rows.weight, between[0]);
  } else {
    for (int64_t row = rows.first; row <= rows.last; ++row)
      for (int64_t col = cols.first; col <= cols.last; ++col) value += x.at(b, row, col)[c];
    value /= float((rows.last - rows.first + 1) * (cols.last - cols.first + 1));
  }
  out.at(b, oy, ox)[c] = value;
}

__global__ void correlate(const float* x, const float* weight, const float* bias, int64_t inputs, int64_t k, bool relu, Grid out) {  // out [batch, outputs, h, w]
  const int64_t height = out.width, width = out.columns, i = threadNumber(), col = i % width, y = i / width % height, o = i / width / height % out.height, b = i / width / height / out.height, reach = k / 2;
  if (b >= out.batch) return;
  float sum = 0;
  for (int64_t c = 0; c < inputs; ++c)
    for (int64_t dy = -reach; dy <= reach; ++dy)
      for (int64_t dx = -reach; dx <= reach; ++dx) {
        if (y + dy < 0 || y + dy >= height || col + dx < 0 || col + dx >= width) continue;
        sum = __fadd_rn(sum, __fmul_rn(x[((b * inputs + c) * height + y + dy) * width + col + dx], weight[((o * inputs + c) * k + dy + reach) * k + dx + reach]));
      }
  sum += bias[o];
  out.at(b, o, y)[col] = relu ? max(sum, 0.0f) : sum;
}

__global__ void __launch_bounds__(kThreads) entropyOfRows(Rows x, bool logits, double scale, float* out) {
  Shared shared;
  auto* maxima = shared.take<float>(kWarp + 1);
  auto* sums = shared.take<double>(kWarp + 1);
  const float* row = x.row(blockIdx.x);
  double total = 0;
  if (logits) {
    const float maximum = rowMaximum(row, x.width, maxima);
    double mass = 0;
    for (int64_t j = threadIdx.x; j < x.width; j += blockDim.x) mass += exp(double(row[j]) - double(maximum));
    total = double(maximum) + log(blockReduce(mass, sums, [](double a, double b) { return a + b; }));
  }
  double sum = 0;
  for (int64_t j = threadIdx.x; j < x.width; j += blockDim.x) {
    const double value = double(row[j]), p = logits ? exp(value - total) : value;
    if (p != 0) sum += p * (logits ? value - total : log(p));
  }
  sum = blockReduce(sum, sums, [](double a, double b) { return a + b; });
  if (threadIdx.x == 0) out[blockIdx.x] = float(-sum * scale) + 0.0f;
}

__global__ void __launch_bounds__(kThreads) entropyOfPatches(const uint8_t* pixels, int64_t height, int64_t width, int64_t channels, int64_t p, int64_t down, int64_t across, double scale, float* out) {
  Shared shared;
  int* bins = shared.take<int>(256);
  auto* sums = shared.take<double>(kWarp + 1);
  const int64_t b = blockIdx.x / (down * across), top = blockIdx.x / across % down * p, left = blockIdx.x % across * p;
  for (int i = int(threadIdx.x); i < 256; i += int(blockDim.x)) bins[i] = 0;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < p * p; i += blockDim.x) {
    const uint8_t* pixel = pixels + ((b * height + top + i / p) * width + left + i % p) * channels;
    int64_t sum = 0;
    for (int64_t c = 0; c < channels; ++c) sum += pixel[c];
    atomicAdd(&bins[(2 * sum + channels) / (2 * channels)], 1);
  }
  __syncthreads();
  double sum = 0;
  for (int i = int(threadIdx.x); i < 256; i += int(blockDim.x))
    if (bins[i] > 0) sum += double(bins[i]) / double(p * p) * log(double(bins[i]) / double(p * p));
  sum = blockReduce(sum, sums, [](double a, double c) { return a + c; });
  if (threadIdx.x == 0) out[blockIdx.x] = float(-sum * scale) + 0.0f;
}

constexpr size_t kReduceBytes = sharedBytes<float>(kWarp + 1) + sharedBytes<double>(kWarp + 1);

}  // namespace

Status resizeGrid(const ResizeGridArgs& args, DeviceContext& context) {
  constexpr const char* op = "resizeGrid";
  Grid x, out;
  TL_TRY(openGrid(op, "x", args.x, x));
  TL_TRY(openGrid(op, "out", args.out, out));
  if (out.batch != x.batch || out.columns != x.columns) return shapeError(op, "out", "must have the batch and width of x", x.columns, out.columns);
  if ((x.height < 1 || x.width < 1) && args.out.count() > 0) return shapeError(op, "x", "must have tokens", 1, 0);
  return launch(op, context, resize, gridOf(args.out.count()), dim3(kThreads), 0, x, out, args.bilinear != 0);
}

Status convolve(const ConvolveArgs& args, DeviceContext& context) {
  constexpr const char* op = "convolve";
  Grid x, out, weight;
  TL_TRY(openGrid(op, "x", args.x, x));
  TL_TRY(openGrid(op, "out", args.out, out));
  TL_TRY(openGrid(op, "weight", args.weight, weight));
  const int64_t inputs = x.height, k = weight.width, outputs = out.height;
  if (weight.batch != outputs || weight.height != inputs) return shapeError(op, "weight", "must be [outputs, inputs, k, k]", outputs * inputs, weight.batch * weight.height);
  if (k != weight.columns || k % 2 == 0) return shapeError(op, "weight", "must have odd square kernels", k, weight.columns);
  if (out.batch != x.batch || out.width != x.width || out.columns != x.columns) return shapeError(op, "out", "must have the grid of x", x.width, out.width);
  TL_TRY(vectorOperand(op, "bias", args.bias, outputs));
  float *data, *kernel;
  TL_TRY(flat(op, "x", args.x, DType::f32, args.x.count(), data));
  TL_TRY(flat(op, "weight", args.weight, DType::f32, args.weight.count(), kernel));
  return launch(op, context, correlate, gridOf(args.out.count()), dim3(kThreads), 0, data, kernel, args.bias.as<const float>(), inputs, k, args.relu != 0, out);
}

Status entropy(const EntropyArgs& args, DeviceContext& context) {
  Rows x;
  float* out;
  TL_TRY(floatRows("entropy", "x", args.x, x));
  TL_TRY(flat("entropy", "out", args.out, DType::f32, x.rows, out));
  return launch("entropy", context, entropyOfRows, dim3(unsigned(x.rows)), dim3(kThreads), kReduceBytes, x, args.logits != 0, args.scale, out);
}

Status patchEntropy(const PatchEntropyArgs& args, DeviceContext& context) {
  constexpr const char* op = "patchEntropy";
  const View& pixels = args.pixels;
  uint8_t* data;
  TL_TRY(flat(op, "pixels", pixels, DType::u8, pixels.count(), data));
  if (pixels.rank != 4 || !(args.patch >= 1 && args.patch <= 4096)) return shapeError(op, "pixels", "must be u8 [batch, h, w, channels], patches 1 … 4096", 4, pixels.rank);
  const int64_t p = int64_t(args.patch), down = pixels.dims[1] / p, across = pixels.dims[2] / p, channels = pixels.dims[3];
  float* out;
  TL_TRY(flat(op, "out", args.out, DType::f32, pixels.dims[0] * down * across, out));
  if (channels < 1) return shapeError(op, "pixels", "must have channels", 1, channels);
  return launch(op, context, entropyOfPatches, dim3(unsigned(pixels.dims[0] * down * across)), dim3(kThreads), sharedBytes<int>(256) + sharedBytes<double>(kWarp + 1), data, pixels.dims[1], pixels.dims[2],
                channels, p, down, across, args.scale, out);
}

}  // namespace tl::cuda
