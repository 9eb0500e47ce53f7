// Elementwise ops, gated units, conversions and row look-ups on every target against double precision.
#include "../../cpp/kernels/packed_weight.h"
#include "../../cpp/kernels/quantized_rows.h"
#include "support.h"

namespace tl::test {
namespace {

enum Kind { silu, geluTanh, gelu, relu, sigmoid, hyperbolicTangent, quickGelu, kinds };

double activationOf(int kind, double x) {
  switch (kind) {
    case silu: return x / (1 + std::exp(-x));
    case geluTanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case gelu: return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case relu: return x > 0 ? x : 0;
    case sigmoid: return 1 / (1 + std::exp(-x));
    case quickGelu: return x / (1 + std::exp(-1.702 * x));
    default: return std::tanh(x);
  }
}

TEST(Activation, EveryKindAndSize) {
  for (const KernelTable* table : tables())
    for (int kind = 0; kind < kinds; ++kind)
      for (const int64_t width : oddSizes()) {
        SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", kind " << kind << ", width " << width);
        Guarded<float> x(2 * width, 1), out(2 * width, 3), gated(width, 1), copy(2 * width);
        fill(x, uint32_t(width), -12, 12);
        std::copy_n(x.data(), 2 * width, copy.data());
        TL_EXPECT_OK(run(*table, Op::activation, ActivationArgs{view(x.data(), {2, width}), view(out.data(), {2, width}), double(kind)}));
        TL_EXPECT_OK(run(*table, Op::gatedActivation, GatedActivationArgs{row(x), row(gated), double(kind)}));
        EXPECT_TRUE(out.intact() && gated.intact());
        for (int64_t i = 0; i < 2 * width; ++i) ASSERT_TRUE(close(double(out[i]), activationOf(kind, double(x[i])), 1e-6)) << x[i] << " gave " << out[i];
        for (int64_t i = 0; i < width; ++i) ASSERT_TRUE(close(double(gated[i]), activationOf(kind, double(x[i])) * double(x[width + i]), 1e-5)) << i;
        TL_EXPECT_OK(run(*table, Op::activation, ActivationArgs{row(x), row(x), double(kind)}));  // in place
        EXPECT_EQ(std::memcmp(x.data(), out.data(), size_t(width) * 8), 0);
      }
}

TEST(Activation, FarValuesAndNaN) {
  for (const KernelTable* table : tables())
    for (int kind = 0; kind < kinds; ++kind) {
      SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", kind " << kind);
      Guarded<float> x = {100, -100, 1000, -1000, kNaN, 1e-40f, -0.0f, 88, -88}, out(9);
      TL_EXPECT_OK(run(*table, Op::activation, ActivationArgs{row(x), row(out), double(kind)}));
      for (int i = 0; i < 9; ++i) EXPECT_TRUE(close(double(out[i]), std::isnan(x[i]) ? double(kNaN) : activationOf(kind, double(x[i])), 1e-6)) << x[i] << " gave " << out[i];
    }
}

// xΦ(x) as a difference: its error is bounded by what f32 holds beside 1, far out it is x and 0.
TEST(Activation, GeluIsCloseEverywhere) {
  for (const KernelTable* table : tables()) {
    SCOPED_TRACE(isaName(table->isa));
    const int64_t n = 1 << 16;
    Guarded<float> x(n), out(n), far = {kInfinity, -kInfinity, 1e30f, -1e30f, -14.0f}, result(5);
    for (int64_t i = 0; i < n; ++i) x[i] = float(i - n / 2) * 4e-4f;  // −13.1 … 13.1
    TL_EXPECT_OK(run(*table, Op::activation, ActivationArgs{row(x), row(out), gelu}));
    for (int64_t i = 0; i < n; ++i) ASSERT_TRUE(close(double(out[i]), activationOf(gelu, double(x[i])), 2.5e-7)) << x[i] << " gave " << out[i];
    TL_EXPECT_OK(run(*table, Op::activation, ActivationArgs{row(far), row(result), gelu}));
    EXPECT_EQ(result.values(), (std::vector<float>{kInfinity, 0, 1e30f, 0, 0}));
  }
}

TEST(Activation, QuantisedGatedRows) {
  for (const KernelTable* table : tables()) {
    const int64_t rows = 3, width = 70;
    Guarded<float> x(rows * 2 * width), exact(rows * width);
    Guarded<int8_t> out(rows * quantizedRowBytes(width));
    fill(x, 21);
    TL_EXPECT_OK(run(*table, Op::gatedActivation, GatedActivationArgs{view(x.data(), {rows, 2 * width}), view(exact.data(), {rows, width}), silu}));
    TL_EXPECT_OK(run(*table, Op::gatedActivation, GatedActivationArgs{view(x.data(), {rows, 2 * width}), quantized(out.data(), rows, width), silu}));
    EXPECT_TRUE(out.intact());
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < width; ++j) {
        const QuantizedRow q = quantizedRow(out.data(), width, i);
        const double scale = double(q.scale[j / kQuantBlock]);
        EXPECT_LE(std::fabs(scale * q.q[j] - double(exact[i * width + j])), scale * 0.501);
      }
  }
}

TEST(Add, ShapesStridesAndScale) {
  for (const KernelTable* table : tables())
    for (const int64_t width : oddSizes()) {
      SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", width " << width);
      Guarded<float> a(3 * width, 1), b(3 * width, 2), out(3 * (width + 2), 3);
      fill(a, 1);
      fill(b, 2);
      const View target = strided(out.data(), 3, width, width + 2);
      for (const int operand : {0, 1, 2}) {  // none, one row, all rows
        const View second = operand == 0 ? View{} : operand == 1 ? view(b.data(), {width}) : view(b.data(), {3, width});
        TL_EXPECT_OK(run(*table, Op::add, AddArgs{view(a.data(), {3, width}), second, target, 0.75}));
        EXPECT_TRUE(out.intact());
        for (int64_t i = 0; i < 3 * width; ++i) {
          const double addend = operand == 0 ? 0 : double(b[operand == 1 ? i % width : i]);
          ASSERT_TRUE(close(double(out[i / width * (width + 2) + i % width]), double(a[i]) * 0.75 + addend, 3e-7));
        }
      }
    }
}

TEST(AddThreads, OneLongRowIsSharedToo) {
  for (const KernelTable* table : tables()) {
    const int64_t n = 100003;
    Guarded<float> a(n), b(n), out(n), single(n);
    fill(a, 1);
    fill(b, 2);
    TL_EXPECT_OK(run(*table, Op::add, AddArgs{row(a), row(b), row(single), 1}, 1));
    for (int64_t i = 0; i < n; i += 997) EXPECT_EQ(single[i], a[i] + b[i]);
    for (int threads = 2; threads <= 4; ++threads) {
      TL_EXPECT_OK(run(*table, Op::add, AddArgs{row(a), row(b), row(out), 1}, threads));
      EXPECT_EQ(std::memcmp(out.data(), single.data(), size_t(n) * 4), 0);
    }
  }
}

TEST(Softcap, IsTheFormula) {
  for (const KernelTable* table : tables())
    for (const int64_t width : oddSizes()) {
      Guarded<float> x(width), out(width);
      fill(x, 3, -200, 200);
      TL_EXPECT_OK(run(*table, Op::softcap, SoftcapArgs{row(x), row(out), 30}));
      EXPECT_TRUE(out.intact());
      for (int64_t i = 0; i < width; ++i) EXPECT_TRUE(close(double(out[i]), 30 * std::tanh(double(x[i]) / 30), 1e-6)) << x[i];
      EXPECT_EQ(run(*table, Op::softcap, SoftcapArgs{row(x), row(out), 0}).code, Code::argument);
    }
}

template <typename Source, typename Target> void checkConvert(const KernelTable& table) {
  for (const int64_t width : oddSizes()) {
    Guarded<float> values(2 * width);
    Guarded<Source> x(2 * width, 1);
    Guarded<Target> out(2 * width, 1);
    fill(values, uint32_t(width), -100, 100);
    for (int64_t i = 0; i < 2 * width; ++i) {
      if constexpr (std::is_same_v<Source, f16>) x[i] = toF16(values[i]);
      else if constexpr (std::is_same_v<Source, bf16>) x[i] = toBf16(values[i]);
      else x[i] = values[i];
    }
    TL_EXPECT_OK(run(table, Op::convert, ConvertArgs{view(x.data(), {2, width}), view(out.data(), {2, width})}));
    EXPECT_TRUE(out.intact());
    for (int64_t i = 0; i < 2 * width; ++i) {
      const float from = toFloat(x[i]);
      if constexpr (std::is_same_v<Target, f16>) ASSERT_EQ(out[i].bits, toF16(from).bits);
      else if constexpr (std::is_same_v<Target, bf16>) ASSERT_EQ(out[i].bits, toBf16(from).bits);
      else ASSERT_EQ(out[i], from);
    }
  }
}

TEST(Convert, EveryPairOfFloats) {
  for (const KernelTable* table : tables()) {
    SCOPED_TRACE(isaName(table->isa));
    checkConvert<float, float>(*table);
    checkConvert<float, f16>(*table);
    checkConvert<float, bf16>(*table);
    checkConvert<f16, float>(*table);
    checkConvert<f16, bf16>(*table);
    checkConvert<bf16, float>(*table);
    checkConvert<bf16, f16>(*table);
  }
}

TEST(Convert, ToQuantisedRows) {
  for (const KernelTable* table : tables()) {
    const int64_t width = 45;
    Guarded<bf16> x(2 * width);
    Guarded<int8_t> out(2 * quantizedRowBytes(width));
    for (int64_t i = 0; i < 2 * width; ++i) x[i] = toBf16(float(i % 13) - 6);
    TL_EXPECT_OK(run(*table, Op::convert, ConvertArgs{view(x.data(), {2, width}), quantized(out.data(), 2, width)}));
    EXPECT_TRUE(out.intact());
    for (int64_t i = 0; i < 2 * width; ++i) {
      const QuantizedRow q = quantizedRow(out.data(), width, i / width);
      EXPECT_NEAR(q.scale[i % width / kQuantBlock] * float(q.q[i % width]), float(i % 13) - 6, 0.03);
    }
  }
}

template <typename T> void checkEmbedding(const KernelTable& table, T (*from)(float), double scale) {
  for (const int64_t width : {1, 7, 16, 33, 64}) {
    Guarded<T> rows(10 * width, 1);
    for (int64_t i = 0; i < 10 * width; ++i) rows[i] = from(float(i % 31) / 4 - 3);
    Guarded<int32_t> ids = {9, 0, 3, 3};
    Guarded<float> out(4 * width, 1);
    TL_EXPECT_OK(run(table, Op::embedding, EmbeddingArgs{view(rows.data(), {10, width}), row(ids), view(out.data(), {4, width}), scale}));
    EXPECT_TRUE(out.intact());
    for (int64_t i = 0; i < 4 * width; ++i) ASSERT_EQ(out[i], toFloat(rows[ids[i / width] * width + i % width]) * float(scale));
  }
}

TEST(Embedding, PlainTables) {
  for (const KernelTable* table : tables())
    for (const double scale : {1.0, 8.0}) {
      checkEmbedding<float>(*table, [](float x) { return x; }, scale);
      checkEmbedding<f16>(*table, toF16, scale);
      checkEmbedding<bf16>(*table, toBf16, scale);
    }
}

TEST(Embedding, PackedTables) {
  for (const KernelTable* table : tables()) {
    const int64_t vocabulary = 21, width = 33;
    Guarded<float> rows(vocabulary * width), out(2 * width);
    fill(rows, 5);
    PackedWeight weight;
    TL_EXPECT_OK(table->packing.plan(Storage::f32, vocabulary, width, weight));
    weight.buffer = Buffer(size_t(weight.groupBytes * ceilDiv(vocabulary, weight.groupRows)), Owner::weight);
    table->packing.pack(Storage::f32, rows.data(), 0, vocabulary, weight);
    View packed;
    packed.data = &weight;
    packed.dtype = DType::packed;
    Guarded<int32_t> ids = {20, 7};
    TL_EXPECT_OK(run(*table, Op::embedding, EmbeddingArgs{packed, row(ids), view(out.data(), {2, width}), 1}));
    EXPECT_TRUE(out.intact());
    for (int64_t i = 0; i < 2 * width; ++i) EXPECT_EQ(out[i], rows[ids[i / width] * width + i % width]);
    weight.isa = weight.isa == Isa::scalar ? Isa::avx2 : Isa::scalar;
    EXPECT_EQ(run(*table, Op::embedding, EmbeddingArgs{packed, row(ids), view(out.data(), {2, width}), 1}).code, Code::argument);
  }
}

TEST(GatherRows, CopiesExactlyAndChecksFirst) {
  for (const KernelTable* table : tables()) {
    const int64_t width = 19;
    Guarded<float> x(5 * width), out(3 * width);
    fill(x, 6);
    x[2 * width] = kNaN;
    Guarded<int32_t> index = {4, 2, 2}, wrong = {1, 5, 0}, negative = {1, -2, 0};
    TL_EXPECT_OK(run(*table, Op::gatherRows, GatherRowsArgs{view(x.data(), {5, width}), row(index), view(out.data(), {3, width})}));
    EXPECT_TRUE(out.intact());
    for (int64_t i = 0; i < 3; ++i) EXPECT_EQ(std::memcmp(out.data() + i * width, x.data() + index[i] * width, size_t(width) * 4), 0);
    const std::vector<float> before = out.values();
    for (Guarded<int32_t>* bad : {&wrong, &negative})
      EXPECT_EQ(run(*table, Op::gatherRows, GatherRowsArgs{view(x.data(), {5, width}), row(*bad), view(out.data(), {3, width})}).code, Code::argument);
    EXPECT_EQ(std::memcmp(out.data(), before.data(), before.size() * 4), 0);
  }
}

TEST(Activation, RefusesWhatDoesNotFit) {
  const KernelTable& table = *kernelTable(Isa::scalar);
  Guarded<float> x(12), out(12);
  const View rows = view(x.data(), {3, 4});
  EXPECT_EQ(run(table, Op::activation, ActivationArgs{rows, rows, 7}).code, Code::argument);
  EXPECT_EQ(run(table, Op::activation, ActivationArgs{rows, rows, double(kNaN)}).code, Code::argument);
  EXPECT_EQ(run(table, Op::gatedActivation, GatedActivationArgs{view(x.data(), {4, 3}), view(out.data(), {4, 1}), 0}).code, Code::shape);
  EXPECT_EQ(run(table, Op::gatedActivation, GatedActivationArgs{rows, rows, 0}).code, Code::shape);
  EXPECT_EQ(run(table, Op::add, AddArgs{rows, view(x.data(), {2, 4}), rows, 1}).code, Code::shape);
  EXPECT_EQ(run(table, Op::add, AddArgs{rows, view(x.data(), {3}), rows, 1}).code, Code::shape);
  EXPECT_EQ(run(table, Op::convert, ConvertArgs{rows, view(out.data(), {4, 3})}).code, Code::shape);
}

}  // namespace
}  // namespace tl::test
