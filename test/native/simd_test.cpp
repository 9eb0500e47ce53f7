// The vector functions of every target against plain C++ and double precision.
#include "simd_probe.h"

#include <functional>

#include "support.h"

namespace tl {

#define TL_PROBE(target) namespace target { const test::SimdProbe& simdProbe(); }
TL_PROBE(scalar)
TL_PROBE(avx2)
TL_PROBE(avx512)
TL_PROBE(avx512bf16)
TL_PROBE(neon)
TL_PROBE(neondot)
#undef TL_PROBE

namespace test {
namespace {

const SimdProbe* probeOf(Isa isa) {
  switch (isa) {
    case Isa::scalar: return &scalar::simdProbe();
#if defined(TL_HAVE_AVX2)
    case Isa::avx2: return &avx2::simdProbe();
#endif
#if defined(TL_HAVE_AVX512)
    case Isa::avx512: return &avx512::simdProbe();
#endif
#if defined(TL_HAVE_AVX512BF16)
    case Isa::avx512bf16: return &avx512bf16::simdProbe();
#endif
#if defined(TL_HAVE_NEON)
    case Isa::neon: return &neon::simdProbe();
#endif
#if defined(TL_HAVE_NEONDOT)
    case Isa::neondot: return &neondot::simdProbe();
#endif
    default: return nullptr;
  }
}

void eachProbe(const std::function<void(const SimdProbe&)>& body) {
  for (const KernelTable* table : tables()) {
    SCOPED_TRACE(isaName(table->isa));
    body(*probeOf(table->isa));
  }
}

constexpr int kMost = 16;
using Lanes = float[kMost];
using IntLanes = int32_t[kMost];

uint32_t bitsOf(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
float floatOf(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// All values of interest: zeros, ones, ends, denormals, infinities, NaN, and what lies between.
std::vector<float> specials() {
  std::vector<float> values = {0.0f, -0.0f, 1, -1, 0.5f, -0.5f, 1.5f, 2.5f, -2.5f, 3.4028235e38f, -3.4028235e38f, 1.17549435e-38f, 1e-45f, -1e-45f,
                               8388607.5f, 8388608, 16777216, 1e30f, kInfinity, -kInfinity, kNaN};
  std::mt19937 random(7);
  std::uniform_real_distribution<float> exponent(-30, 30);
  for (int i = 0; i < 200; ++i) values.push_back((i % 2 ? -1.0f : 1.0f) * std::exp2(exponent(random)));
  return values;
}

bool same(float a, float b) { return (std::isnan(a) && std::isnan(b)) || bitsOf(a) == bitsOf(b); }

// out[i] of `got` and `wanted` on rolling windows over the specials.
void checkUnary(const SimdProbe& probe, Unary got, float (*wanted)(float)) {
  const std::vector<float> values = specials();
  for (size_t at = 0; at + size_t(probe.lanes) <= values.size(); ++at) {
    Guarded<float> out(probe.lanes, 1);
    got(values.data() + at, out.data());
    ASSERT_TRUE(out.intact());
    for (int i = 0; i < probe.lanes; ++i) ASSERT_TRUE(same(out[i], wanted(values[at + size_t(i)]))) << values[at + size_t(i)] << " gave " << out[i];
  }
}

void checkBinary(const SimdProbe& probe, Binary got, float (*wanted)(float, float)) {
  const std::vector<float> values = specials();
  for (size_t shift = 0; shift < 40; ++shift)
    for (size_t at = 0; at + size_t(probe.lanes) + shift <= values.size(); at += 3) {
      Lanes out;
      got(values.data() + at, values.data() + at + shift, out);
      for (int i = 0; i < probe.lanes; ++i) {
        const float a = values[at + size_t(i)], b = values[at + shift + size_t(i)];
        ASSERT_TRUE(same(out[i], wanted(a, b))) << a << ", " << b << " gave " << out[i];
      }
    }
}

TEST(Simd, Arithmetic) {
  eachProbe([](const SimdProbe& probe) {
    checkUnary(probe, probe.zero, [](float) { return 0.0f; });
    checkUnary(probe, probe.abs, [](float x) { return std::fabs(x); });
    checkUnary(probe, probe.sqrt, [](float x) { return std::sqrt(x); });
    checkUnary(probe, probe.roundEven, [](float x) { return std::nearbyint(x); });
    checkBinary(probe, probe.add, [](float a, float b) { return a + b; });
    checkBinary(probe, probe.sub, [](float a, float b) { return a - b; });
    checkBinary(probe, probe.mul, [](float a, float b) { return a * b; });
    checkBinary(probe, probe.div, [](float a, float b) { return a / b; });
    checkBinary(probe, probe.max, [](float a, float b) { return a > b ? a : b; });  // the second operand where either is NaN
    checkBinary(probe, probe.min, [](float a, float b) { return a < b ? a : b; });
    checkBinary(probe, probe.copySign, [](float a, float b) { return std::copysign(a, b); });
    Lanes out;
    probe.broadcast(2.5f, out);
    for (int i = 0; i < probe.lanes; ++i) EXPECT_EQ(out[i], 2.5f);
  });
}

TEST(Simd, MulAddRoundsOnceWhereFused) {
  eachProbe([](const SimdProbe& probe) {
    const float a = 1 + 0x1p-12f;  // a² = 1 + 2^-11 + 2^-24: the last bit is lost unless fused
    Lanes as, minus, out;
    for (int i = 0; i < kMost; ++i) as[i] = a, minus[i] = -(1 + 0x1p-11f);
    probe.mulAdd(as, as, minus, out);
#if defined(TL_EMULATE_X86)
    const bool fused = false;
#else
    const bool fused = probe.fused;
#endif
    for (int i = 0; i < probe.lanes; ++i) EXPECT_EQ(out[i], fused ? 0x1p-24f : 0.0f);
  });
}

TEST(Simd, Masks) {
  eachProbe([](const SimdProbe& probe) {
    const uint32_t all = (uint32_t(1) << probe.lanes) - 1;
    for (int n = 0; n <= probe.lanes; ++n) EXPECT_EQ(probe.firstLanes(n), (uint32_t(1) << n) - 1);
    std::mt19937 random(3);
    for (int round = 0; round < 300; ++round) {
      const uint32_t bits = round < 2 ? (round ? all : 0) : random() & all;
      EXPECT_EQ(probe.lanesOfBits(bits), bits);
      EXPECT_EQ(probe.any(bits), bits != 0);
      Lanes yes, no, out;
      for (int i = 0; i < kMost; ++i) yes[i] = float(i), no[i] = i % 3 ? kNaN : -kInfinity;
      probe.select(bits, yes, no, out);
      for (int i = 0; i < probe.lanes; ++i) EXPECT_TRUE(same(out[i], (bits >> i) & 1 ? yes[i] : no[i]));
    }
    const std::vector<float> values = specials();
    for (size_t shift = 0; shift < 30; ++shift)
      for (size_t at = 0; at + size_t(probe.lanes) + shift <= values.size(); ++at) {
        uint32_t less = 0, greater = 0, nan = 0;
        for (int i = 0; i < probe.lanes; ++i) {
          const float a = values[at + size_t(i)], b = values[at + shift + size_t(i)];
          less |= uint32_t(a < b) << i;
          greater |= uint32_t(a > b) << i;
          nan |= uint32_t(std::isnan(a)) << i;
        }
        ASSERT_EQ(probe.lessThan(values.data() + at, values.data() + at + shift), less);
        ASSERT_EQ(probe.greaterThan(values.data() + at, values.data() + at + shift), greater);
        ASSERT_EQ(probe.isNan(values.data() + at), nan);
      }
  });
}

TEST(Simd, LanesChangePlacesAndAddUp) {
  eachProbe([](const SimdProbe& probe) {
    Lanes values, out;
    float sum = 0;
    for (int i = 0; i < probe.lanes; ++i) sum += values[i] = float((i * 7 + 3) % 16 - 5);
    probe.swapPairs(values, out);
    for (int i = 0; i < probe.lanes; ++i) EXPECT_EQ(out[i], values[i ^ 1]);
    EXPECT_EQ(probe.sumLanes(values), sum);
    for (int i = 0; i < probe.lanes; ++i) {
      for (int j = 0; j < kMost; ++j) values[j] = float(-20 - j);
      values[i] = -3;
      EXPECT_EQ(probe.maxLanes(values), -3);
    }
  });
}

TEST(Simd, PartsTouchOnlyTheirLanes) {
  eachProbe([](const SimdProbe& probe) {
    for (int n = 0; n <= probe.lanes; ++n)
      for (int offset = 0; offset < 5; ++offset) {
        Guarded<float> source(n, offset), target(n, offset);
        Guarded<f16> halves(n, offset), halvesOut(n, offset);
        Guarded<bf16> brains(n, offset), brainsOut(n, offset);
        for (int i = 0; i < n; ++i) source[i] = float(i) + 0.5f, halves[i] = toF16(source[i]), brains[i] = toBf16(source[i]);
        Lanes lanes;
        const auto check = [&] { for (int i = 0; i < probe.lanes; ++i) ASSERT_EQ(lanes[i], i < n ? float(i) + 0.5f : 0.0f); };
        probe.loadPartF16(halves.data(), n, lanes);
        check();
        probe.loadPartBf16(brains.data(), n, lanes);
        check();
        probe.loadPart(source.data(), n, lanes);
        check();
        probe.storePart(target.data(), lanes, n);
        probe.storePartF16(halvesOut.data(), lanes, n);
        probe.storePartBf16(brainsOut.data(), lanes, n);
        EXPECT_TRUE(target.intact() && halvesOut.intact() && brainsOut.intact());
        for (int i = 0; i < n; ++i) {
          EXPECT_EQ(target[i], source[i]);
          EXPECT_EQ(halvesOut[i].bits, halves[i].bits);
          EXPECT_EQ(brainsOut[i].bits, brains[i].bits);
        }
      }
  });
}

// Every stored half, and every float near the places where rounding to one of them changes.
TEST(Simd, ConvertsAllHalves) {
  eachProbe([](const SimdProbe& probe) {
    for (uint32_t base = 0; base < 65536; base += uint32_t(probe.lanes)) {
      f16 halves[kMost];
      bf16 brains[kMost];
      for (int i = 0; i < probe.lanes; ++i) halves[i].bits = brains[i].bits = uint16_t(base + uint32_t(i));
      Lanes fromHalf, fromBrain;
      probe.loadF16(halves, fromHalf);
      probe.loadBf16(brains, fromBrain);
      for (int i = 0; i < probe.lanes; ++i) {
        ASSERT_TRUE(same(fromHalf[i], toFloat(halves[i]))) << base + uint32_t(i);
        ASSERT_TRUE(same(fromBrain[i], toFloat(brains[i]))) << base + uint32_t(i);
      }
    }
    Lanes values;
    f16 halves[kMost];
    bf16 brains[kMost];
    int filled = 0;
    for (uint32_t base = 0; base < 65536; ++base)
      for (const uint32_t low : {0x0000u, 0x0fffu, 0x1000u, 0x1001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
        values[filled++] = floatOf(base << 16 | low);
        if (filled < probe.lanes) continue;
        filled = 0;
        probe.storeF16(halves, values);
        probe.storeBf16(brains, values);
        for (int i = 0; i < probe.lanes; ++i) {
          if (std::isnan(values[i])) {
            ASSERT_TRUE(std::isnan(toFloat(halves[i])) && std::isnan(toFloat(brains[i])));
            continue;
          }
          ASSERT_EQ(halves[i].bits, toF16(values[i]).bits) << values[i];
          ASSERT_EQ(brains[i].bits, toBf16(values[i]).bits) << values[i];
        }
      }
  });
}

TEST(Simd, Integers) {
  eachProbe([](const SimdProbe& probe) {
    std::mt19937 random(5);
    for (int round = 0; round < 200; ++round) {
      IntLanes a, b, out;
      Lanes floats;
      for (int i = 0; i < kMost; ++i) a[i] = int32_t(random()) >> (round % 20 + 1), b[i] = int32_t(random()) >> 2;
      probe.addInt(a, b, out);
      for (int i = 0; i < probe.lanes; ++i) ASSERT_EQ(out[i], a[i] + b[i]);
      probe.subInt(a, b, out);
      for (int i = 0; i < probe.lanes; ++i) ASSERT_EQ(out[i], a[i] - b[i]);
      probe.shiftLeft(a, round % 32, out);
      for (int i = 0; i < probe.lanes; ++i) ASSERT_EQ(uint32_t(out[i]), uint32_t(a[i]) << (round % 32));
      probe.shiftRight(a, round % 32, out);
      for (int i = 0; i < probe.lanes; ++i) ASSERT_EQ(out[i], a[i] >> (round % 32));
      probe.toFloat(a, floats);
      for (int i = 0; i < probe.lanes; ++i) ASSERT_EQ(floats[i], float(a[i]));
      for (int i = 0; i < kMost; ++i) floats[i] = float(a[i]) / 4096;
      probe.toInt(floats, out);
      for (int i = 0; i < probe.lanes; ++i) ASSERT_EQ(out[i], int32_t(std::nearbyint(floats[i])));
    }
    for (int base = -128; base < 128; base += probe.lanes) {
      IntLanes values;
      Lanes back;
      Guarded<int8_t> bytes(probe.lanes, 3);
      for (int i = 0; i < probe.lanes; ++i) values[i] = base + i;
      probe.storeBytes(bytes.data(), values);
      EXPECT_TRUE(bytes.intact());
      probe.loadSigned(bytes.data(), back);
      for (int i = 0; i < probe.lanes; ++i) EXPECT_EQ(back[i], float(base + i));
      probe.loadUnsigned(reinterpret_cast<uint8_t*>(bytes.data()), back);
      for (int i = 0; i < probe.lanes; ++i) EXPECT_EQ(back[i], float((base + i) & 255));
    }
  });
}

// The largest distance from the exact value, in units of the last place of the nearest float (denormals: of 2^-149).
struct Accuracy { double ulp = 0; float at = 0; };

Accuracy accuracy(const SimdProbe& probe, Unary got, double (*wanted)(double), float low, float high, int steps) {
  Accuracy worst;
  Lanes values, out;
  for (int i = 0; i < steps; i += probe.lanes) {
    for (int lane = 0; lane < probe.lanes; ++lane) values[lane] = float(low + (double(high) - low) * std::min(i + lane, steps - 1) / (steps - 1));
    got(values, out);
    for (int lane = 0; lane < probe.lanes; ++lane) {
      const double exact = wanted(double(values[lane]));
      const int exponent = std::max(std::ilogb(exact == 0 ? 1e-300 : exact), -126);
      const double ulp = std::fabs(double(out[lane]) - exact) / std::ldexp(1.0, exponent - 23);
      if (!(ulp <= worst.ulp)) worst = {ulp, values[lane]};
    }
  }
  return worst;
}

#if defined(TL_EMULATE_X86)
constexpr int kSteps = 20000;
#else
constexpr int kSteps = 400000;
#endif

void expectAccurate(const char* name, const SimdProbe& probe, Unary got, double (*wanted)(double), float low, float high, double most) {
  const Accuracy worst = accuracy(probe, got, wanted, low, high, kSteps);
  EXPECT_LE(worst.ulp, most) << name << " at " << worst.at;
}

TEST(SimdMath, Exp) {
  eachProbe([](const SimdProbe& probe) {
    const auto exact = [](double x) { return std::exp(x); };
    for (const float reach : {1e-3f, 1.0f, 10.0f, 87.0f}) expectAccurate("exp", probe, probe.exp, exact, -reach, reach, 2);
    expectAccurate("exp", probe, probe.exp, exact, -103.9f, -87.0f, 1.5);  // denormals
    expectAccurate("exp", probe, probe.exp, exact, 87.0f, 88.72f, 2);
    Lanes values = {0.0f, -0.0f, -kInfinity, kInfinity, kNaN, 88.73f, -104.0f, 1e30f, -1e30f, 1e-45f}, out;
    const float wanted[] = {1, 1, 0, kInfinity, kNaN, kInfinity, 0, kInfinity, 0, 1};
    for (int i = 0; i + probe.lanes <= kMost; i += probe.lanes) probe.exp(values + i, out + i);
    for (int i = 0; i < 10; ++i) EXPECT_TRUE(same(out[i], wanted[i])) << values[i] << " gave " << out[i];
  });
}

TEST(SimdMath, TanhErfSigmoid) {
  eachProbe([](const SimdProbe& probe) {
    const auto tanhOf = [](double x) { return std::tanh(x); };
    const auto erfOf = [](double x) { return std::erf(x); };
    const auto sigmoidOf = [](double x) { return 1 / (1 + std::exp(-x)); };
    for (const float reach : {1e-20f, 1e-3f, 0.7f, 5.0f, 30.0f}) {
      expectAccurate("tanh", probe, probe.tanh, tanhOf, -reach, reach, 3);
      expectAccurate("erf", probe, probe.erf, erfOf, -reach, reach, 3);
      expectAccurate("sigmoid", probe, probe.sigmoid, sigmoidOf, -reach, reach, 3);
    }
    expectAccurate("sigmoid", probe, probe.sigmoid, sigmoidOf, -87, 87, 3);
    Lanes values = {0.0f, -0.0f, -kInfinity, kInfinity, kNaN, 100, -100, 1e-45f}, tanhs, erfs, sigmoids;
    for (int i = 0; i + probe.lanes <= kMost; i += probe.lanes) {
      probe.tanh(values + i, tanhs + i);
      probe.erf(values + i, erfs + i);
      probe.sigmoid(values + i, sigmoids + i);
    }
    const float wanted[] = {0.0f, -0.0f, -1, 1, kNaN, 1, -1, 1e-45f}, sigmoidWanted[] = {0.5f, 0.5f, 0, 1, kNaN, 1, 0, 0.5f};
    for (int i = 0; i < 8; ++i) {
      EXPECT_TRUE(same(tanhs[i], wanted[i])) << "tanh " << values[i] << " gave " << tanhs[i];
      EXPECT_TRUE(same(erfs[i], wanted[i])) << "erf " << values[i] << " gave " << erfs[i];
      EXPECT_TRUE(same(sigmoids[i], sigmoidWanted[i])) << "sigmoid " << values[i] << " gave " << sigmoids[i];
    }
  });
}

}  // namespace
}  // namespace test
}  // namespace tl
