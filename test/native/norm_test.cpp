// rmsNorm, layerNorm and headNorm on every target against double precision.
#include "../../cpp/kernels/quantized_rows.h"
#include "support.h"

namespace tl::test {
namespace {

std::vector<double> rmsNormOf(const float* x, const float* weight, int64_t width, double epsilon, double offset) {
  double squares = 0;
  for (int64_t i = 0; i < width; ++i) squares += double(x[i]) * double(x[i]);
  std::vector<double> out;
  for (int64_t i = 0; i < width; ++i) out.push_back(double(x[i]) / std::sqrt(squares / double(width) + epsilon) * (double(weight[i]) + offset));
  return out;
}

std::vector<double> layerNormOf(const float* x, const float* weight, const float* bias, int64_t width, double epsilon) {
  double mean = 0, variance = 0;
  for (int64_t i = 0; i < width; ++i) mean += double(x[i]) / double(width);
  for (int64_t i = 0; i < width; ++i) variance += (double(x[i]) - mean) * (double(x[i]) - mean) / double(width);
  std::vector<double> out;
  for (int64_t i = 0; i < width; ++i) out.push_back((double(x[i]) - mean) / std::sqrt(variance + epsilon) * double(weight[i]) + (bias ? double(bias[i]) : 0));
  return out;
}

void expectRow(const float* got, const std::vector<double>& wanted, double tolerance = 4e-6) {
  for (size_t i = 0; i < wanted.size(); ++i) ASSERT_TRUE(close(double(got[i]), wanted[i], tolerance)) << "element " << i << ": " << got[i] << " instead of " << wanted[i];
}

TEST(Norm, RmsNormOfEveryWidthAndStride) {
  for (const KernelTable* table : tables())
    for (const int64_t width : oddSizes())
      for (const int64_t offset : {0, 1, 3}) {
        SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", width " << width << ", offset " << offset);
        const int64_t rows = 3, stride = width + offset;
        Guarded<float> x(rows * stride, offset), weight(width, offset), out(rows * stride, offset);
        fill(x, uint32_t(width));
        fill(weight, 1, 0.5f, 2);
        fill(out, 2);
        const std::vector<float> before = out.values();
        TL_EXPECT_OK(run(*table, Op::rmsNorm, RmsNormArgs{strided(x.data(), rows, width, stride), row(weight), strided(out.data(), rows, width, stride), 1e-5, 0.25}));
        EXPECT_TRUE(out.intact());
        for (int64_t i = 0; i < rows; ++i) {
          expectRow(out.data() + i * stride, rmsNormOf(x.data() + i * stride, weight.data(), width, 1e-5, 0.25));
          for (int64_t j = width; j < stride; ++j) EXPECT_EQ(out[i * stride + j], before[size_t(i * stride + j)]);
        }
      }
}

TEST(Norm, RmsNormInPlaceAndOfNoRows) {
  for (const KernelTable* table : tables()) {
    Guarded<float> x(2 * 40), weight(40), copy(2 * 40);
    fill(x, 4);
    fill(weight, 5);
    std::copy_n(x.data(), 80, copy.data());
    const View rows = view(x.data(), {2, 40});
    TL_EXPECT_OK(run(*table, Op::rmsNorm, RmsNormArgs{rows, row(weight), rows, 1e-6, 0}));
    expectRow(x.data() + 40, rmsNormOf(copy.data() + 40, weight.data(), 40, 1e-6, 0));
    TL_EXPECT_OK(run(*table, Op::rmsNorm, RmsNormArgs{view(x.data(), {0, 40}), row(weight), view(copy.data(), {0, 40}), 1e-6, 0}));
  }
}

TEST(Norm, LayerNormWithAndWithoutBias) {
  for (const KernelTable* table : tables())
    for (const int64_t width : oddSizes())
      for (const bool biased : {false, true}) {
        SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", width " << width << ", bias " << biased);
        Guarded<float> x(2 * width, 1), weight(width, 1), bias(width, 1), out(2 * width, 1);
        fill(x, uint32_t(width), 90, 110);  // far from 0: E[x²] − E[x]² would cancel
        fill(weight, 1);
        fill(bias, 2);
        TL_EXPECT_OK(run(*table, Op::layerNorm, LayerNormArgs{view(x.data(), {2, width}), row(weight), biased ? row(bias) : View{}, view(out.data(), {2, width}), 1e-5}));
        EXPECT_TRUE(out.intact());
        // The mean is known to about an f32 step of 100, which the division by a deviation of about 6 leaves at 1e-6.
        const double tolerance = width < 4 ? 2e-3 : 2e-5;
        for (int64_t i = 0; i < 2; ++i) expectRow(out.data() + i * width, layerNormOf(x.data() + i * width, weight.data(), biased ? bias.data() : nullptr, width, 1e-5), tolerance);
      }
}

TEST(Norm, HeadNormOfASliceOfAFusedRow) {
  for (const KernelTable* table : tables())
    for (const int64_t headDim : {1, 7, 16, 64, 80}) {
      SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", headDim " << headDim);
      const int64_t n = 3, heads = 2, fused = 5 * headDim;  // two heads out of five
      Guarded<float> x(n * fused), weight(headDim), copy(n * fused);
      fill(x, uint32_t(headDim));
      fill(weight, 6);
      std::copy_n(x.data(), n * fused, copy.data());
      View slice = view(x.data() + headDim, {n, heads, headDim});
      slice.strides[0] = fused;
      TL_EXPECT_OK(run(*table, Op::headNorm, HeadNormArgs{slice, row(weight), slice, 1e-6, 1}));
      EXPECT_TRUE(x.intact());
      for (int64_t i = 0; i < n; ++i)
        for (int64_t part = 0; part < 5; ++part) {
          const float *got = x.data() + i * fused + part * headDim, *original = copy.data() + i * fused + part * headDim;
          if (part == 1 || part == 2) expectRow(got, rmsNormOf(original, weight.data(), headDim, 1e-6, 1));
          else EXPECT_EQ(std::memcmp(got, original, size_t(headDim) * 4), 0);
        }
    }
}

TEST(Norm, SpoiltRowsSpoilNoOther) {
  for (const KernelTable* table : tables())
    for (const float bad : {kNaN, kInfinity}) {
      Guarded<float> x(3 * 33), weight(33), out(3 * 33);
      fill(x, 8);
      fill(weight, 9);
      x[33 + 7] = bad;
      TL_EXPECT_OK(run(*table, Op::rmsNorm, RmsNormArgs{view(x.data(), {3, 33}), row(weight), view(out.data(), {3, 33}), 1e-6, 0}));
      expectRow(out.data(), rmsNormOf(x.data(), weight.data(), 33, 1e-6, 0));
      expectRow(out.data() + 66, rmsNormOf(x.data() + 66, weight.data(), 33, 1e-6, 0));
      EXPECT_TRUE(std::isnan(out[33 + 7]));
    }
}

TEST(Norm, DenormalsAndZeros) {
  for (const KernelTable* table : tables()) {
    Guarded<float> x(2 * 20), weight(20), out(2 * 20);
    std::fill_n(x.data(), 20, 0.0f);
    std::fill_n(x.data() + 20, 20, 1e-40f);
    std::fill_n(weight.data(), 20, 1.0f);
    TL_EXPECT_OK(run(*table, Op::rmsNorm, RmsNormArgs{view(x.data(), {2, 20}), row(weight), view(out.data(), {2, 20}), 1e-6, 0}));
    for (int i = 0; i < 20; ++i) {
      EXPECT_EQ(out[i], 0);
      EXPECT_TRUE(close(double(out[20 + i]), 1e-37, 1e-3, 0)) << out[20 + i];
    }
  }
}

// The quantised output is what the f32 output quantises to.
TEST(Norm, QuantisedRows) {
  for (const KernelTable* table : tables())
    for (const int64_t width : {31, 32, 64, 100}) {
      SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", width " << width);
      const int64_t rows = 2, bytes = rows * quantizedRowBytes(width);
      Guarded<float> x(rows * width), weight(width), exact(rows * width);
      Guarded<int8_t> out(bytes);
      fill(x, 3);
      fill(weight, 4, 0.5f, 2);
      const View in = view(x.data(), {rows, width});
      TL_EXPECT_OK(run(*table, Op::rmsNorm, RmsNormArgs{in, row(weight), view(exact.data(), {rows, width}), 1e-6, 0}));
      TL_EXPECT_OK(run(*table, Op::rmsNorm, RmsNormArgs{in, row(weight), quantized(out.data(), rows, width), 1e-6, 0}));
      EXPECT_TRUE(out.intact());
      for (int64_t i = 0; i < rows; ++i) {
        const QuantizedRow q = quantizedRow(out.data(), width, i);
        for (int64_t j = 0; j < width; ++j) {
          const double scale = double(q.scale[j / kQuantBlock]);
          EXPECT_LE(std::fabs(scale * q.q[j] - double(exact[i * width + j])), scale * 0.501);
        }
      }
    }
}

TEST(NormThreads, RowsDoNotDependOnNumberOrThreads) {
  for (const KernelTable* table : tables()) {
    const int64_t rows = 300, width = 129;
    Guarded<float> x(rows * width), weight(width), out(rows * width), single(width);
    fill(x, 11);
    fill(weight, 12);
    for (int threads = 1; threads <= 4; ++threads) {
      std::fill_n(out.data(), rows * width, 0.0f);
      TL_EXPECT_OK(run(*table, Op::rmsNorm, RmsNormArgs{view(x.data(), {rows, width}), row(weight), view(out.data(), {rows, width}), 1e-6, 0}, threads));
      for (int64_t i = 0; i < rows; i += 37) {
        TL_EXPECT_OK(run(*table, Op::rmsNorm, RmsNormArgs{view(x.data() + i * width, {1, width}), row(weight), row(single), 1e-6, 0}));
        EXPECT_EQ(std::memcmp(single.data(), out.data() + i * width, size_t(width) * 4), 0) << "row " << i;
      }
    }
  }
}

TEST(Norm, RefusesWhatDoesNotFit) {
  const KernelTable& table = *kernelTable(Isa::scalar);
  Guarded<float> x(12), weight(4), out(12);
  const View good = view(x.data(), {3, 4}), target = view(out.data(), {3, 4});
  View wrongType = good, apart = good;
  wrongType.dtype = DType::i32;
  apart.strides[1] = 2;
  EXPECT_EQ(run(table, Op::rmsNorm, RmsNormArgs{wrongType, row(weight), target, 1e-6, 0}).code, Code::argument);
  EXPECT_EQ(run(table, Op::rmsNorm, RmsNormArgs{apart, row(weight), target, 1e-6, 0}).code, Code::argument);
  EXPECT_EQ(run(table, Op::rmsNorm, RmsNormArgs{good, view(weight.data(), {3}), target, 1e-6, 0}).code, Code::shape);
  EXPECT_EQ(run(table, Op::rmsNorm, RmsNormArgs{good, row(weight), view(out.data(), {2, 4}), 1e-6, 0}).code, Code::shape);
  EXPECT_EQ(run(table, Op::rmsNorm, RmsNormArgs{good, row(weight), view(out.data(), {3, 3}), 1e-6, 0}).code, Code::shape);
  EXPECT_EQ(run(table, Op::layerNorm, LayerNormArgs{good, row(weight), view(weight.data(), {2}), target, 1e-6}).code, Code::shape);
  EXPECT_EQ(run(table, Op::headNorm, HeadNormArgs{good, row(weight), target, 1e-6, 0}).code, Code::shape);
}

}  // namespace
}  // namespace tl::test
