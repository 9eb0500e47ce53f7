// Weight packing against the decoder of the `gguf` package, and the matmul kernels of every target against double sums.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <vector>

#include "../../cpp/kernels/quantized_rows.h"
#include "../../cpp/kernels/table.h"

namespace {

using tl::Storage;

constexpr const char* kStorageNames[] = {"f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl"};
static_assert(std::size(kStorageNames) == size_t(Storage::count));

std::vector<const tl::KernelTable*> tables() {
  std::vector<const tl::KernelTable*> found;
  for (int i = 0; i < int(tl::Isa::count); ++i)
    if (const tl::KernelTable* table = tl::kernelTable(tl::Isa(i))) found.push_back(table);
  return found;
}

struct Fixture {
  int32_t rows = 0, columns = 0;
  std::vector<uint8_t> stored;
  std::vector<float> expected;
};

Fixture readFixture(Storage storage) {
  const auto path = std::filesystem::path(__FILE__).parent_path() / "../fixtures/dequantize" / (std::string(kStorageNames[size_t(storage)]) + ".bin");
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  Fixture fixture;
  file.read(reinterpret_cast<char*>(&fixture.rows), 4);
  file.read(reinterpret_cast<char*>(&fixture.columns), 4);
  fixture.stored.resize(size_t(fixture.rows * fixture.columns / tl::storageBlockElements(storage) * tl::storageBlockBytes(storage)));
  fixture.expected.resize(size_t(fixture.rows * fixture.columns));
  file.read(reinterpret_cast<char*>(fixture.stored.data()), std::streamsize(fixture.stored.size()));
  file.read(reinterpret_cast<char*>(fixture.expected.data()), std::streamsize(fixture.expected.size() * 4));
  EXPECT_TRUE(file) << path;
  return fixture;
}

// Random stored rows: blocks drawn from the fixture, which holds valid ones of every kind.
std::vector<uint8_t> randomRows(Storage storage, int64_t rows, int64_t columns, std::mt19937& random) {
  const Fixture fixture = readFixture(storage);
  const size_t size = size_t(tl::storageBlockBytes(storage)), blocks = fixture.stored.size() / size;
  std::vector<uint8_t> stored(size_t(rows * columns / tl::storageBlockElements(storage)) * size);
  for (size_t at = 0; at < stored.size(); at += size) std::memcpy(&stored[at], &fixture.stored[random() % blocks * size], size);
  return stored;
}

tl::PackedWeight packRows(const tl::KernelTable& table, Storage storage, int64_t rows, int64_t columns, const std::vector<uint8_t>& stored) {
  tl::PackedWeight weight;
  EXPECT_FALSE(table.packing.plan(storage, rows, columns, weight));
  weight.buffer = tl::Buffer(size_t(weight.groupBytes * tl::ceilDiv(rows, weight.groupRows)), tl::Owner::weight);
  std::memset(weight.buffer.as(), 0xff, weight.buffer.bytes());
  // In two parts that meet inside a group.
  const int64_t first = rows / 2, rowBytes = int64_t(stored.size()) / rows;
  table.packing.pack(storage, stored.data(), 0, first, weight);
  table.packing.pack(storage, stored.data() + first * rowBytes, first, rows - first, weight);
  return weight;
}

tl::View rowsView(const void* data, tl::DType type, int64_t rows, int64_t columns) {
  const int64_t dims[] = {rows, columns};
  return tl::contiguous(const_cast<void*>(data), type, 2, dims);
}

// Activations, f32 and quantised by the plain definition of quantized_rows.h.
struct Activations {
  int64_t n, columns;
  std::vector<float> values;
  tl::Buffer quantized;

  Activations(int64_t n, int64_t columns, std::mt19937& random) : n(n), columns(columns), values(size_t(n * columns)) {
    std::normal_distribution<float> normal;
    for (float& value : values) value = normal(random);
    quantized = tl::Buffer(size_t(n * tl::quantizedRowBytes(columns)), tl::Owner::tensor);
    for (int64_t t = 0; t < n; ++t) quantize(t);
  }
  tl::QuantizedRow row(int64_t t) const { return tl::quantizedRow(quantized.as(), columns, t); }
  void quantize(int64_t t) {
    const tl::QuantizedRow q = row(t);
    for (int64_t block = 0; block < tl::quantBlocks(columns); ++block) {
      const int64_t end = std::min(columns, block * 32 + 32);
      float peak = 0;
      for (int64_t i = block * 32; i < end; ++i) peak = std::max(peak, std::fabs(values[size_t(t * columns + i)]));
      int sums[2] = {};
      for (int64_t i = block * 32; i < block * 32 + 32; ++i) {
        q.q[i] = i < end && peak > 0 ? int8_t(std::nearbyint(values[size_t(t * columns + i)] * (127.0f / peak))) : int8_t(0);
        sums[i % 32 / 16] += q.q[i];
      }
      q.scale[block] = peak / 127.0f;
      q.scaledSum[block] = q.scale[block] * float(sums[0] + sums[1]);
      q.sum[2 * block] = int16_t(sums[0]);
      q.sum[2 * block + 1] = int16_t(sums[1]);
    }
  }
  double at(bool integer, int64_t t, int64_t i) const {
    return integer ? double(row(t).q[i]) * double(row(t).scale[i / 32]) : double(values[size_t(t * columns + i)]);
  }
  tl::View view(bool integer, int64_t first, int64_t count) const {
    if (integer) return rowsView(quantized.as() + first * tl::quantizedRowBytes(columns), tl::DType::q8, count, columns);
    return rowsView(values.data() + first * columns, tl::DType::f32, count, columns);
  }
};

struct Epilogue {
  std::vector<float> bias, residual;
};

std::vector<float> multiply(const tl::KernelTable& table, const tl::PackedWeight& weight, const Activations& x, int64_t first, int64_t count, int threads, const Epilogue& extra = {}) {
  std::vector<float> out(size_t(count * weight.rows), -77.0f);
  tl::MatmulArgs args{};
  args.x = x.view(weight.blockSize != 0, first, count);
  args.weight = rowsView(&weight, tl::DType::packed, weight.rows, weight.columns);
  args.out = rowsView(out.data(), tl::DType::f32, count, weight.rows);
  if (!extra.bias.empty()) args.bias = rowsView(extra.bias.data(), tl::DType::f32, 1, weight.rows);
  if (!extra.residual.empty()) {  // in place, as the models use it
    std::memcpy(out.data(), extra.residual.data() + first * weight.rows, out.size() * 4);
    args.residual = args.out;
  }
  tl::ThreadPool& pool = tl::ThreadPool::shared();
  tl::ThreadPool::Turn turn(pool, threads);
  tl::Context context{pool};
  const tl::Status status = table.kernels[size_t(tl::Op::matmul)](&args, context);
  EXPECT_FALSE(status) << status.argument << " " << status.message;
  return out;
}

class MatmulTest : public testing::TestWithParam<int> {
 protected:
  Storage storage() const { return Storage(GetParam()); }
};

TEST_P(MatmulTest, UnpackedRowsEqualTheOracle) {
  const Fixture fixture = readFixture(storage());
  for (const tl::KernelTable* table : tables()) {
    const tl::PackedWeight weight = packRows(*table, storage(), fixture.rows, fixture.columns, fixture.stored);
    std::vector<float> row(size_t(fixture.columns));
    for (int64_t r = 0; r < fixture.rows; ++r) {
      table->packing.unpackRow(weight, r, row.data());
      for (int64_t c = 0; c < fixture.columns; ++c)
        ASSERT_EQ(row[size_t(c)], fixture.expected[size_t(r * fixture.columns + c)]) << tl::isaName(table->isa) << " row " << r << " column " << c;
    }
  }
}

TEST_P(MatmulTest, AgreesWithDoubleSums) {
  std::mt19937 random(7);
  const bool plain = storage() <= Storage::bf16;
  const int64_t n = 7, rows = 53, columns = plain ? 301 : 1024;
  const std::vector<uint8_t> stored = randomRows(storage(), rows, columns, random);
  const Activations x(n, columns, random);
  Epilogue extra;
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < rows; ++i) extra.bias.push_back(normal(random));
  for (int64_t i = 0; i < n * rows; ++i) extra.residual.push_back(normal(random));
  for (const tl::KernelTable* table : tables()) {
    const tl::PackedWeight weight = packRows(*table, storage(), rows, columns, stored);
    const std::vector<float> got = multiply(*table, weight, x, 0, n, 2, extra);
    std::vector<float> row(static_cast<size_t>(columns));
    for (int64_t r = 0; r < rows; ++r) {
      table->packing.unpackRow(weight, r, row.data());
      for (int64_t t = 0; t < n; ++t) {
        double sum = 0, size = 1;
        for (int64_t i = 0; i < columns; ++i) {
          const double product = double(row[size_t(i)]) * x.at(!plain, t, i);
          sum += product, size += std::fabs(product);
        }
        sum += double(extra.bias[size_t(r)]) + double(extra.residual[size_t(t * rows + r)]);
        ASSERT_NEAR(got[size_t(t * rows + r)], sum, 4e-7 * size) << tl::isaName(table->isa) << " token " << t << " row " << r;
      }
    }
  }
}

TEST_P(MatmulTest, ResultsDependNeitherOnTokensNorThreads) {
  std::mt19937 random(11);
  const bool plain = storage() <= Storage::bf16;
  const int64_t most = 150, rows = 67, columns = plain ? 333 : 1280;
  const std::vector<uint8_t> stored = randomRows(storage(), rows, columns, random);
  const Activations x(most, columns, random);
  for (const tl::KernelTable* table : tables()) {
    const tl::PackedWeight weight = packRows(*table, storage(), rows, columns, stored);
    std::vector<float> single;
    for (int64_t t = 0; t < most; ++t) {
      const std::vector<float> one = multiply(*table, weight, x, t, 1, 1 + int(t % 3));
      single.insert(single.end(), one.begin(), one.end());
    }
    for (int64_t n : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17, 31, 47, 70, 129, 150})
      for (int threads : {1, 2, 3}) {
        const std::vector<float> got = multiply(*table, weight, x, 0, n, threads);
        ASSERT_EQ(std::memcmp(got.data(), single.data(), got.size() * 4), 0) << tl::isaName(table->isa) << " n " << n << " threads " << threads;
      }
  }
}

TEST_P(MatmulTest, NanSpoilsItsOwnRowOnly) {
  std::mt19937 random(13);
  const bool plain = storage() <= Storage::bf16;
  const int64_t n = 9, rows = 20, columns = 256;
  const std::vector<uint8_t> stored = randomRows(storage(), rows, columns, random);
  Activations x(n, columns, random);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const tl::KernelTable* table : tables()) {
    const tl::PackedWeight weight = packRows(*table, storage(), rows, columns, stored);
    const std::vector<float> clean = multiply(*table, weight, x, 0, n, 1);
    Activations spoiled(n, columns, random);
    spoiled.values = x.values;
    std::memcpy(spoiled.quantized.as(), x.quantized.as(), x.quantized.bytes());
    if (plain) spoiled.values[size_t(4 * columns + 100)] = nan;
    else spoiled.row(4).scale[3] = spoiled.row(4).scaledSum[3] = nan;
    const std::vector<float> got = multiply(*table, weight, spoiled, 0, n, 1);
    for (int64_t t = 0; t < n; ++t)
      for (int64_t r = 0; r < rows; ++r) {
        const size_t i = size_t(t * rows + r);
        if (t == 4) ASSERT_TRUE(std::isnan(got[i])) << tl::isaName(table->isa);
        else ASSERT_EQ(got[i], clean[i]) << tl::isaName(table->isa);
      }
  }
}

INSTANTIATE_TEST_SUITE_P(Storages, MatmulTest, testing::Range(0, int(Storage::count)),
                         [](const testing::TestParamInfo<int>& info) { return std::string(kStorageNames[info.param]); });

// |q| = 127 against the largest weights: the narrowest sums inside the kernels must hold.
TEST(Matmul, LargestValuesDoNotOverflow) {
  std::mt19937 random(17);
  for (Storage storage : {Storage::q4_1, Storage::q8_0, Storage::q5_1})
    for (const int sign : {1, -1}) {
      const int64_t rows = 33, columns = 64, n = 6;
      std::vector<uint8_t> stored = randomRows(storage, rows, columns, random);
      const size_t size = size_t(tl::storageBlockBytes(storage)), header = storage == Storage::q8_0 ? 2 : 4;
      for (size_t at = 0; at < stored.size(); at += size) {
        const tl::f16 one = tl::toF16(1.0f);
        std::memcpy(&stored[at], &one, 2);
        if (header == 4) std::memset(&stored[at + 2], 0, 2);
        std::memset(&stored[at + header], storage == Storage::q8_0 ? 0x80 : 0xff, size - header);  // −128, 15 or 31
      }
      Activations x(n, columns, random);
      for (float& value : x.values) value = float(sign * 127);
      for (int64_t t = 0; t < n; ++t) x.quantize(t);
      const float weightValue = storage == Storage::q8_0 ? -128.0f : storage == Storage::q4_1 ? 15.0f : 31.0f;
      for (const tl::KernelTable* table : tables()) {
        const tl::PackedWeight weight = packRows(*table, storage, rows, columns, stored);
        for (float value : multiply(*table, weight, x, 0, n, 1)) ASSERT_EQ(value, float(sign) * 127.0f * 64.0f * weightValue) << tl::isaName(table->isa);
        for (float value : multiply(*table, weight, x, 0, 1, 1)) ASSERT_EQ(value, float(sign) * 127.0f * 64.0f * weightValue) << tl::isaName(table->isa);
      }
    }
}

TEST(Matmul, RefusesWrongOperands) {
  std::mt19937 random(19);
  for (const tl::KernelTable* table : tables()) {
    const tl::PackedWeight weight = packRows(*table, Storage::q4_0, 20, 64, randomRows(Storage::q4_0, 20, 64, random));
    const Activations x(2, 64, random);
    std::vector<float> out(64);
    const auto run = [&](auto change) {
      tl::MatmulArgs args{};
      args.x = x.view(true, 0, 2);
      args.weight = rowsView(&weight, tl::DType::packed, 20, 64);
      args.out = rowsView(out.data(), tl::DType::f32, 2, 20);
      change(args);
      tl::ThreadPool& pool = tl::ThreadPool::shared();
      tl::ThreadPool::Turn turn(pool, 1);
      tl::Context context{pool};
      return table->kernels[size_t(tl::Op::matmul)](&args, context);
    };
    EXPECT_EQ(run([](tl::MatmulArgs&) {}).code, tl::Code::ok);
    EXPECT_EQ(run([&](tl::MatmulArgs& a) { a.x = x.view(false, 0, 2); }).code, tl::Code::argument);
    EXPECT_EQ(run([&](tl::MatmulArgs& a) { a.x.dims[1] = 32; }).code, tl::Code::shape);
    EXPECT_EQ(run([&](tl::MatmulArgs& a) { a.out.dims[0] = 1; }).code, tl::Code::shape);
    EXPECT_EQ(run([&](tl::MatmulArgs& a) { a.out.dims[1] = 19; }).code, tl::Code::shape);
    EXPECT_EQ(run([&](tl::MatmulArgs& a) { a.bias = rowsView(out.data(), tl::DType::f32, 1, 19); }).code, tl::Code::shape);
    EXPECT_EQ(run([&](tl::MatmulArgs& a) { a.residual = rowsView(out.data(), tl::DType::f32, 1, 20); }).code, tl::Code::shape);
    EXPECT_EQ(run([&](tl::MatmulArgs& a) { a.weight.dtype = tl::DType::f32; }).code, tl::Code::argument);
    tl::PackedWeight other;
    EXPECT_EQ(table->packing.plan(Storage::q4_k, 4, 100, other).code, tl::Code::shape);
    EXPECT_EQ(table->packing.plan(Storage(99), 4, 256, other).code, tl::Code::argument);
    EXPECT_EQ(table->packing.plan(Storage::f32, int64_t(1) << 40, int64_t(1) << 40, other).code, tl::Code::argument);
  }
}

// Quantisation itself, through the op that converts to q8.
TEST(Quantize, MatchesItsDefinition) {
  std::mt19937 random(23);
  for (const tl::KernelTable* table : tables()) {
    const auto convert = table->kernels[size_t(tl::Op::convert)];
    if (!convert) GTEST_SKIP() << "this build has no convert op";
    for (int64_t columns : {1, 31, 32, 33, 100, 576}) {
      const int64_t n = 5;
      Activations x(n, columns, random);
      x.values[0] = 0;
      for (int64_t i = 0; i < columns; ++i) x.values[size_t(columns + i)] = 0;  // row 1: zeros
      for (int64_t i = 0; i < columns; ++i) x.values[size_t(2 * columns + i)] *= 1e-36f;
      for (int64_t t = 0; t < n; ++t) x.quantize(t);
      tl::Buffer got(x.quantized.bytes(), tl::Owner::tensor);
      tl::ConvertArgs args{rowsView(x.values.data(), tl::DType::f32, n, columns), rowsView(got.as(), tl::DType::q8, n, columns)};
      tl::ThreadPool& pool = tl::ThreadPool::shared();
      tl::ThreadPool::Turn turn(pool, 1);
      tl::Context context{pool};
      ASSERT_FALSE(convert(&args, context));
      for (int64_t t = 0; t < n; ++t) {
        if (t == 2) continue;  // around the smallest scale either answer is right
        const tl::QuantizedRow a = tl::quantizedRow(got.as(), columns, t), b = x.row(t);
        for (int64_t block = 0; block < tl::quantBlocks(columns); ++block) {
          ASSERT_EQ(a.scale[block], b.scale[block]);
          ASSERT_EQ(a.scaledSum[block], b.scaledSum[block]);
          ASSERT_EQ(a.sum[2 * block], b.sum[2 * block]);
          ASSERT_EQ(a.sum[2 * block + 1], b.sum[2 * block + 1]);
          for (int64_t i = 32 * block; i < 32 * block + 32; ++i) ASSERT_EQ(a.q[i], b.q[i]) << columns << " " << t << " " << i;
        }
      }
    }
  }
}

TEST(Quantize, NonFiniteBlocksSpoilTheirRowOnly) {
  for (const tl::KernelTable* table : tables()) {
    const auto convert = table->kernels[size_t(tl::Op::convert)];
    if (!convert) GTEST_SKIP() << "this build has no convert op";
    for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
      std::vector<float> x(3 * 96, 1.0f);
      x[96 + 40] = bad;
      tl::Buffer got(size_t(3 * tl::quantizedRowBytes(96)), tl::Owner::tensor);
      tl::ConvertArgs args{rowsView(x.data(), tl::DType::f32, 3, 96), rowsView(got.as(), tl::DType::q8, 3, 96)};
      tl::ThreadPool& pool = tl::ThreadPool::shared();
      tl::ThreadPool::Turn turn(pool, 1);
      tl::Context context{pool};
      ASSERT_FALSE(convert(&args, context));
      for (int64_t t = 0; t < 3; ++t)
        for (int64_t block = 0; block < 3; ++block) {
          const tl::QuantizedRow row = tl::quantizedRow(got.as(), 96, t);
          EXPECT_EQ(std::isnan(row.scale[block]), t == 1 && block == 1);
          EXPECT_EQ(row.q[block * 32], t == 1 && block == 1 ? 0 : 127);
        }
    }
  }
}

}  // namespace
