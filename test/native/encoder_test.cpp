// What encoders need around their blocks, on every target against plain loops in double.
#include "../../cpp/kernels/packed_weight.h"
#include "support.h"

namespace tl::test {
namespace {

TEST(Encoder, PatchesOfImages) {
  constexpr int64_t images = 2, height = 6, width = 9, channels = 3, patch = 3, prefix = 2, each = prefix + 6, columns = patch * patch * channels;
  std::vector<uint8_t> pixels(images * height * width * channels);
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = uint8_t(i * 37 + i / 7);
  const int64_t dims[] = {images, height, width, channels};
  for (const KernelTable* table : tables()) {
    Guarded<float> out(images * each * columns, 1);
    ImagePatchesArgs args{contiguous(pixels.data(), DType::u8, 4, dims), view(out.data(), {images * each, columns}), double(patch), double(prefix)};
    TL_EXPECT_OK(run(*table, Op::imagePatches, args));
    EXPECT_TRUE(out.intact());
    for (int64_t i = 0; i < images * each; ++i)
      for (int64_t j = 0; j < columns; ++j) {
        const int64_t at = i % each - prefix, y = at / 3 * patch + j / (patch * channels), x = at % 3 * patch + j / channels % patch;
        const float wanted = at < 0 ? 0 : pixels[size_t(((i / each * height + y) * width + x) * channels + j % channels)];
        ASSERT_EQ(out[i * columns + j], wanted) << i << ", " << j;
      }
    args.patch = 4;
    EXPECT_EQ(run(*table, Op::imagePatches, args).code, Code::shape);
  }
}

TEST(Encoder, PoolsSequences) {
  for (const KernelTable* table : tables())
    for (const int64_t width : oddSizes())
      for (int kind = 0; kind < 3; ++kind)
        for (const bool normalize : {false, true}) {
          const int64_t rows = 9, sequences = 4;
          Guarded<float> x(rows * width, 1), sizes(rows), out(sequences * width);
          fill(x, uint32_t(width)), fill(sizes, 3, 1, 5);
          Guarded<int32_t> bounds = {0, 1, 1, 6, 9};
          TL_EXPECT_OK(run(*table, Op::poolSequences, PoolSequencesArgs{view(x.data(), {rows, width}), row(bounds), row(sizes), view(out.data(), {sequences, width}), double(kind), double(normalize)}, 2));
          EXPECT_TRUE(out.intact());
          for (int64_t s = 0; s < sequences; ++s) {
            std::vector<double> wanted(size_t(width), 0);
            double norm = 0;
            for (int64_t j = 0; j < width && bounds[s] < bounds[s + 1]; ++j) {
              double sum = 0, weight = 0, most = -1e9;
              for (int64_t i = bounds[s]; i < bounds[s + 1]; ++i) sum += double(sizes[i]) * x[i * width + j], weight += sizes[i], most = std::max(most, double(x[i * width + j]));
              wanted[size_t(j)] = kind == 0 ? x[bounds[s] * width + j] : kind == 1 ? sum / weight : most;
              norm += wanted[size_t(j)] * wanted[size_t(j)];
            }
            for (int64_t j = 0; j < width; ++j) ASSERT_TRUE(close(out[s * width + j], wanted[size_t(j)] / (normalize && norm > 0 ? std::sqrt(norm) : 1), 2e-6)) << kind << ", " << s << ", " << j;
          }
          Guarded<int32_t> wrong = {0, 3, 2, 6, 9};
          EXPECT_EQ(run(*table, Op::poolSequences, PoolSequencesArgs{view(x.data(), {rows, width}), row(wrong), {}, view(out.data(), {sequences, width}), 1, 0}).code, Code::argument);
        }
}

TEST(Encoder, InterpolatesAndGathersInBlocks) {
  for (const KernelTable* table : tables())
    for (const int64_t width : {int64_t(1), int64_t(5), int64_t(33)}) {
      const int64_t blocks = 3, from = 4, each = 2, taps = 3;
      Guarded<float> x(blocks * from * width), weights(each * taps), out(blocks * each * width), gathered(blocks * each * width);
      Guarded<int32_t> index = {0, 3, 1, 2, 2, 0}, rows = {2, -1};
      fill(x, 5), fill(weights, 6);
      const int64_t dims[] = {each, taps};
      TL_EXPECT_OK(run(*table, Op::interpolateRows, InterpolateRowsArgs{view(x.data(), {blocks * from, width}), contiguous(index.data(), DType::i32, 2, dims), view(weights.data(), {each, taps}), view(out.data(), {blocks * each, width})}));
      TL_EXPECT_OK(run(*table, Op::gatherRows, GatherRowsArgs{view(x.data(), {blocks * from, width}), row(rows), view(gathered.data(), {blocks * each, width})}));
      EXPECT_TRUE(out.intact() && gathered.intact());
      for (int64_t b = 0; b < blocks; ++b)
        for (int64_t i = 0; i < each; ++i)
          for (int64_t j = 0; j < width; ++j) {
            double sum = 0;
            for (int64_t k = 0; k < taps; ++k) sum += double(weights[i * taps + k]) * x[(b * from + index[i * taps + k]) * width + j];
            ASSERT_TRUE(close(out[(b * each + i) * width + j], sum, 1e-5)) << b << ", " << i;
            ASSERT_EQ(gathered[(b * each + i) * width + j], i == 0 ? x[(b * from + 2) * width + j] : 0);
          }
      index[1] = 4;
      EXPECT_EQ(run(*table, Op::interpolateRows, InterpolateRowsArgs{view(x.data(), {blocks * from, width}), contiguous(index.data(), DType::i32, 2, dims), view(weights.data(), {each, taps}), view(out.data(), {blocks * each, width})}).code, Code::argument);
    }
}

TEST(Encoder, ActivationWithinAMatmulIsThatBehindIt) {
  for (const KernelTable* table : tables())
    for (const int64_t n : {1, 3, 7, 50}) {
      const int64_t rows = 37, columns = 40;
      Guarded<float> stored(rows * columns), x(n * columns), bias(rows), fused(n * rows), apart(n * rows);
      fill(stored, 1), fill(x, 2), fill(bias, 3);
      PackedWeight weight;
      ASSERT_FALSE(table->packing.plan(Storage::f32, rows, columns, weight));
      weight.buffer = Buffer(size_t(weight.groupBytes * ((rows + weight.groupRows - 1) / weight.groupRows)), Owner::weight);
      table->packing.pack(Storage::f32, stored.data(), 0, rows, weight);
      const int64_t dims[] = {rows, columns};
      MatmulArgs args{view(x.data(), {n, columns}), contiguous(&weight, DType::packed, 2, dims), row(bias), {}, view(apart.data(), {n, rows}), 0};
      TL_EXPECT_OK(run(*table, Op::matmul, args));
      TL_EXPECT_OK(run(*table, Op::activation, ActivationArgs{view(apart.data(), {n, rows}), view(apart.data(), {n, rows}), 2}));
      args.out = view(fused.data(), {n, rows});
      args.activation = 3;
      TL_EXPECT_OK(run(*table, Op::matmul, args, 2));
      EXPECT_TRUE(fused.intact());
      EXPECT_EQ(std::memcmp(fused.data(), apart.data(), size_t(n * rows) * 4), 0);
      args.activation = 8;
      EXPECT_EQ(run(*table, Op::matmul, args).code, Code::argument);
    }
}

}  // namespace
}  // namespace tl::test
