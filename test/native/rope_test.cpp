// ropeTable and rope on every target against double precision.
#include "support.h"

namespace tl::test {
namespace {

Guarded<int64_t> frequencyBits(int64_t half, double base) {
  Guarded<int64_t> bits(half);
  for (int64_t i = 0; i < half; ++i) {
    const double frequency = std::pow(base, -double(i) / double(half));
    std::memcpy(&bits[i], &frequency, 8);
  }
  return bits;
}

double angleOf(int32_t position, int64_t i, int64_t half, double base) { return double(position) * std::pow(base, -double(i) / double(half)); }

TEST(RopeTable, FarPositionsKeepTheirAngles) {
  for (const KernelTable* table : tables())
    for (const int64_t half : {1, 8, 33}) {
      SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", half " << half);
      Guarded<int32_t> positions = {0, 1, 5000, 131071, 16777217};
      Guarded<int64_t> frequencies = frequencyBits(half, 10000);
      Guarded<float> out(5 * 2 * half, 1);
      TL_EXPECT_OK(run(*table, Op::ropeTable, RopeTableArgs{row(positions), row(frequencies), view(out.data(), {5, 2 * half}), 1.25}));
      EXPECT_TRUE(out.intact());
      for (int64_t i = 0; i < 5; ++i)
        for (int64_t j = 0; j < half; ++j) {
          const double angle = angleOf(positions[i], j, half, 10000);
          EXPECT_NEAR(out[i * 2 * half + j], 1.25 * std::cos(angle), 1e-7);
          EXPECT_NEAR(out[i * 2 * half + half + j], 1.25 * std::sin(angle), 1e-7);
        }
    }
}

// Tables of `n` tokens for dim = 2·half, and the rotation of x [n, heads, headDim] at row stride `stride`.
void checkRope(const KernelTable& table, int64_t half, int64_t headDim, bool interleaved, int64_t n, int threads) {
  SCOPED_TRACE(testing::Message() << isaName(table.isa) << ", dim " << 2 * half << " of " << headDim << ", interleaved " << interleaved);
  const int64_t heads = 3, stride = (heads + 2) * headDim;
  Guarded<int32_t> positions(n);
  for (int64_t i = 0; i < n; ++i) positions[i] = int32_t(i * 7 + 3);
  Guarded<int64_t> frequencies = frequencyBits(half, 500);
  Guarded<float> cosines(n * 2 * half), x(n * stride, 1), copy(n * stride);
  fill(x, uint32_t(half));
  std::copy_n(x.data(), n * stride, copy.data());
  TL_EXPECT_OK(run(table, Op::ropeTable, RopeTableArgs{row(positions), row(frequencies), view(cosines.data(), {n, 2 * half}), 1}, threads));
  View heads3 = view(x.data(), {n, heads, headDim});
  heads3.strides[0] = stride;
  const View angles = view(cosines.data(), {n, 2 * half});
  Guarded<float> apart(n * heads * headDim, 1);
  TL_EXPECT_OK(run(table, Op::rope, RopeArgs{heads3, angles, view(apart.data(), {n, heads, headDim}), interleaved ? 1.0 : 0.0}, threads));
  TL_EXPECT_OK(run(table, Op::rope, RopeArgs{heads3, angles, heads3, interleaved ? 1.0 : 0.0}, threads));
  EXPECT_TRUE(x.intact() && apart.intact());
  for (int64_t i = 0; i < n; ++i) EXPECT_EQ(std::memcmp(apart.data() + i * heads * headDim, x.data() + i * stride, size_t(heads * headDim) * 4), 0);
  std::vector<double> wanted(copy.data(), copy.data() + n * stride);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t j = 0; j < half; ++j) {
        const int64_t first = i * stride + h * headDim + (interleaved ? 2 * j : j), second = first + (interleaved ? 1 : half);
        const double angle = angleOf(positions[i], j, half, 500), a = double(copy[first]), b = double(copy[second]);
        wanted[size_t(first)] = a * std::cos(angle) - b * std::sin(angle);
        wanted[size_t(second)] = b * std::cos(angle) + a * std::sin(angle);
      }
  for (int64_t i = 0; i < n * stride; ++i) ASSERT_NEAR(x[i], wanted[size_t(i)], 2e-6) << "element " << i;
}

TEST(Rope, BothPairingsOfEverySize) {
  for (const KernelTable* table : tables())
    for (const bool interleaved : {false, true})
      for (const int64_t half : {1, 2, 3, 4, 5, 8, 12, 16, 31, 32, 33, 64})
        for (const int64_t extra : {0, 5}) checkRope(*table, half, 2 * half + extra, interleaved, 3, 1);
}

TEST(RopeThreads, ManyTokens) {
  for (const KernelTable* table : tables())
    for (int threads = 1; threads <= 4; ++threads) checkRope(*table, 32, 64, threads % 2 == 0, 120, threads);
}

TEST(Rope, RefusesWhatDoesNotFit) {
  const KernelTable& table = *kernelTable(Isa::scalar);
  Guarded<float> x(2 * 2 * 4), cosines(2 * 8);
  const View heads = view(x.data(), {2, 2, 4});
  EXPECT_EQ(run(table, Op::rope, RopeArgs{heads, view(cosines.data(), {2, 8}), heads, 0}).code, Code::shape);
  EXPECT_EQ(run(table, Op::rope, RopeArgs{heads, view(cosines.data(), {2, 3}), heads, 0}).code, Code::shape);
  EXPECT_EQ(run(table, Op::rope, RopeArgs{heads, view(cosines.data(), {1, 4}), heads, 0}).code, Code::shape);
  EXPECT_EQ(run(table, Op::rope, RopeArgs{view(x.data(), {4, 4}), view(cosines.data(), {4, 4}), view(x.data(), {4, 4}), 0}).code, Code::shape);
  Guarded<int32_t> positions = {1, 2};
  Guarded<int64_t> frequencies = frequencyBits(2, 10);
  EXPECT_EQ(run(table, Op::ropeTable, RopeTableArgs{row(positions), row(frequencies), view(cosines.data(), {2, 6}), 1}).code, Code::shape);
}

}  // namespace
}  // namespace tl::test
