// Grids of tokens on every target against plain loops in double: adaptive means, bilinear resizing, convolutions on attention maps, and
// entropies, at tails of every vector length, by one thread and two.
#include "reduce_support.h"

namespace tl::test {
namespace {

struct Grid {
  int64_t height, width, outHeight, outWidth;
};

double resized(const float* x, const Grid& grid, int64_t columns, int64_t oy, int64_t ox, int64_t column, bool bilinear) {
  const auto at = [&](int64_t y, int64_t col) { return double(x[(y * grid.width + col) * columns + column]); };
  if (!bilinear) {
    double sum = 0, count = 0;
    for (int64_t y = oy * grid.height / grid.outHeight; y < int64_t(std::ceil(double((oy + 1) * grid.height) / double(grid.outHeight))); ++y)
      for (int64_t col = ox * grid.width / grid.outWidth; col < int64_t(std::ceil(double((ox + 1) * grid.width) / double(grid.outWidth))); ++col) sum += at(y, col), ++count;
    return sum / count;
  }
  const double y = std::clamp((double(oy) + 0.5) * double(grid.height) / double(grid.outHeight) - 0.5, 0.0, double(grid.height - 1));
  const double col = std::clamp((double(ox) + 0.5) * double(grid.width) / double(grid.outWidth) - 0.5, 0.0, double(grid.width - 1));
  const int64_t top = int64_t(y), left = int64_t(col), bottom = std::min(top + 1, grid.height - 1), right = std::min(left + 1, grid.width - 1);
  const double down = y - double(top), across = col - double(left);
  return (at(top, left) * (1 - across) + at(top, right) * across) * (1 - down) + (at(bottom, left) * (1 - across) + at(bottom, right) * across) * down;
}

TEST(ReduceGridThreads, ResizeGrid) {
  for (const KernelTable* table : tables())
    for (const int64_t columns : oddSizes())
      for (const Grid& grid : {Grid{7, 5, 3, 2}, Grid{4, 4, 4, 4}, Grid{2, 3, 5, 7}, Grid{1, 1, 2, 2}, Grid{9, 8, 1, 1}})
        for (const bool bilinear : {false, true}) {
          SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", columns " << columns << ", " << grid.height << " to " << grid.outHeight << ", bilinear " << bilinear);
          const int64_t batch = 2, each = grid.height * grid.width * columns, cells = grid.outHeight * grid.outWidth;
          Guarded<float> x(batch * each, 1), out(batch * cells * columns, 1), again(batch * cells * columns);
          fill(x, uint32_t(columns));
          ResizeGridArgs args{view(x.data(), {batch, grid.height, grid.width, columns}), view(out.data(), {batch, grid.outHeight, grid.outWidth, columns}), double(bilinear)};
          TL_EXPECT_OK(run(*table, Op::resizeGrid, args));
          EXPECT_TRUE(out.intact());
          for (int64_t i = 0; i < batch * cells; ++i)
            for (int64_t j = 0; j < columns; ++j)
              ASSERT_TRUE(close(double(out[i * columns + j]), resized(x.data() + i / cells * each, grid, columns, i % cells / grid.outWidth, i % grid.outWidth, j, bilinear), 2e-6)) << i << ", " << j;
          args.out = view(again.data(), {batch, grid.outHeight, grid.outWidth, columns});
          TL_EXPECT_OK(run(*table, Op::resizeGrid, args, 2));
          EXPECT_EQ(std::memcmp(again.data(), out.data(), size_t(out.size()) * 4), 0);
        }
}

TEST(ReduceGridThreads, Convolve) {
  for (const KernelTable* table : tables())
    for (const int64_t k : {1, 3, 5})
      for (const int64_t width : {1, 2, 7, 16, 19})
        for (const bool relu : {false, true}) {
          SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", kernel " << k << ", width " << width << ", relu " << relu);
          const int64_t batch = 2, inputs = 3, outputs = 4, height = 6, reach = k / 2;
          Guarded<float> x(batch * inputs * height * width, 1), weight(outputs * inputs * k * k, 1), bias(outputs), out(batch * outputs * height * width, 1), again(out.size());
          fill(x, 1), fill(weight, 2, -1, 1), fill(bias, 3);
          ConvolveArgs args{view(x.data(), {batch, inputs, height, width}), view(weight.data(), {outputs, inputs, k, k}), row(bias), view(out.data(), {batch, outputs, height, width}), double(relu)};
          TL_EXPECT_OK(run(*table, Op::convolve, args));
          EXPECT_TRUE(out.intact());
          for (int64_t i = 0; i < out.size(); ++i) {
            const int64_t col = i % width, y = i / width % height, o = i / (width * height) % outputs, b = i / (width * height * outputs);
            double sum = double(bias[o]);
            for (int64_t c = 0; c < inputs; ++c)
              for (int64_t dy = -reach; dy <= reach; ++dy)
                for (int64_t dx = -reach; dx <= reach; ++dx)
                  if (y + dy >= 0 && y + dy < height && col + dx >= 0 && col + dx < width)
                    sum += double(x[((b * inputs + c) * height + y + dy) * width + col + dx]) * double(weight[((o * inputs + c) * k + dy + reach) * k + dx + reach]);
            ASSERT_TRUE(close(double(out[i]), relu ? std::max(sum, 0.0) : sum, 2e-6, 30)) << i;
          }
          args.out = view(again.data(), {batch, outputs, height, width});
          TL_EXPECT_OK(run(*table, Op::convolve, args, 2));
          EXPECT_EQ(std::memcmp(again.data(), out.data(), size_t(out.size()) * 4), 0);
        }
}

TEST(ReduceGridThreads, Entropy) {
  for (const KernelTable* table : tables())
    for (const int64_t width : oddSizes())
      for (const bool logits : {false, true}) {
        SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", width " << width << ", logits " << logits);
        const int64_t rows = 40;
        Guarded<float> x(rows * width, 1), out(rows, 1), again(rows);
        fill(x, uint32_t(width), logits ? -20 : 0, logits ? 20 : 1);
        if (logits) std::fill_n(x.data() + 5 * width, width, 3.0f);  // all alike
        for (int64_t i = 0; !logits && i < rows; ++i) {
          if (width > 2) x[i * width + i % width] = 0;  // 0 · ln 0 = 0
          float total = std::accumulate(x.data() + i * width, x.data() + (i + 1) * width, 0.0f);
          for (int64_t j = 0; j < width; ++j) x[i * width + j] /= total;
        }
        if (width > 1 && logits) x[7 * width] = -kInfinity;
        x[9 * width] = kNaN;
        const double scale = 1 / std::log(2.0);
        TL_EXPECT_OK(run(*table, Op::entropy, EntropyArgs{view(x.data(), {rows, width}), row(out), double(logits), scale}));
        EXPECT_TRUE(out.intact());
        for (int64_t i = 0; i < rows; ++i) {
          double most = -double(kInfinity), all = 0, sum = 0;
          for (int64_t j = 0; j < width; ++j) most = std::max(most, double(x[i * width + j]));
          for (int64_t j = 0; j < width; ++j) all += std::exp(double(x[i * width + j]) - most);
          for (int64_t j = 0; j < width; ++j) {
            const double value = double(x[i * width + j]), p = logits ? std::exp(value - most) / all : value;
            if (p != 0) sum += p * std::log(p);
          }
          ASSERT_TRUE(close(double(out[i]), i == 9 ? double(kNaN) : -sum * scale, 2e-6)) << i << ": " << out[i] << " for " << -sum * scale;
        }
        TL_EXPECT_OK(run(*table, Op::entropy, EntropyArgs{view(x.data(), {rows, width}), row(again), double(logits), scale}, 2));
        EXPECT_EQ(std::memcmp(again.data(), out.data(), size_t(rows) * 4), 0);
      }
}

TEST(ReduceGridThreads, PatchEntropy) {
  for (const KernelTable* table : tables())
    for (const int64_t patch : {1, 3, 8})
      for (const int64_t channels : {1, 3, 4}) {
        const int64_t batch = 2, height = 19, width = 26, down = height / patch, across = width / patch;  // what is left over takes no part
        std::vector<uint8_t> pixels(size_t(batch * height * width * channels));
        std::mt19937 random(uint32_t(patch * channels));
        for (uint8_t& value : pixels) value = random() % 3 == 0 ? uint8_t(random()) : 7;
        const int64_t dims[] = {batch, height, width, channels};
        Guarded<float> out(batch * down * across, 1), again(out.size());
        PatchEntropyArgs args{contiguous(pixels.data(), DType::u8, 4, dims), row(out), double(patch), 1};
        TL_EXPECT_OK(run(*table, Op::patchEntropy, args));
        EXPECT_TRUE(out.intact());
        for (int64_t i = 0; i < out.size(); ++i) {
          double histogram[256] = {}, sum = 0;
          for (int64_t y = 0; y < patch; ++y)
            for (int64_t x = 0; x < patch; ++x) {
              const int64_t at = (i / (down * across) * height + i / across % down * patch + y) * width + i % across * patch + x;
              double grey = 0;
              for (int64_t c = 0; c < channels; ++c) grey += double(pixels[size_t(at * channels + c)]);
              ++histogram[int(std::floor(grey / double(channels) + 0.5))];
            }
          for (const double n : histogram)
            if (n > 0) sum += n / double(patch * patch) * std::log(n / double(patch * patch));
          ASSERT_TRUE(close(double(out[i]), -sum, 1e-6)) << isaName(table->isa) << ", patch " << patch << ": " << i;
        }
        args.out = row(again);
        TL_EXPECT_OK(run(*table, Op::patchEntropy, args, 2));
        EXPECT_EQ(std::memcmp(again.data(), out.data(), size_t(out.size()) * 4), 0);
      }
}

TEST(ReduceGrid, RefusesWhatDoesNotFit) {
  const KernelTable& table = *kernelTable(Isa::scalar);
  Guarded<float> x(36), out(36), bias(2);
  const View image = view(x.data(), {1, 1, 6, 6}), to = view(out.data(), {1, 1, 6, 6});
  EXPECT_EQ(run(table, Op::convolve, ConvolveArgs{image, view(x.data(), {1, 1, 2, 2}), view(bias.data(), {1}), to, 0}).code, Code::shape);
  EXPECT_EQ(run(table, Op::convolve, ConvolveArgs{image, view(x.data(), {1, 2, 3, 3}), view(bias.data(), {1}), to, 0}).code, Code::shape);
  EXPECT_EQ(run(table, Op::convolve, ConvolveArgs{image, view(x.data(), {1, 1, 3, 3}), row(bias), to, 0}).code, Code::shape);
  EXPECT_EQ(run(table, Op::resizeGrid, ResizeGridArgs{view(x.data(), {1, 0, 6, 6}), to, 0}).code, Code::shape);
  EXPECT_EQ(run(table, Op::resizeGrid, ResizeGridArgs{image, view(out.data(), {1, 3, 3, 4}), 0}).code, Code::shape);
  EXPECT_EQ(run(table, Op::entropy, EntropyArgs{view(x.data(), {6, 6}), view(out.data(), {5}), 0, 1}).code, Code::shape);
}

}  // namespace
}  // namespace tl::test
