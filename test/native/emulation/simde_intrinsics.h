// Test builds only: the x86 intrinsics of cpp/simd over SIMDe, in plain C with vector extensions, so that any machine runs
// the AVX-512 targets. What SIMDe 0.7 lacks follows below, written from the definitions of the instructions. Fused
// multiply-adds round twice here: comparisons with other targets need a tolerance.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../../../cpp/core/dtype.h"

#if !defined(_MM_FROUND_NO_EXC)
#define _MM_FROUND_NO_EXC SIMDE_MM_FROUND_NO_EXC
#endif
using __mmask16 = simde__mmask16;
using __mmask32 = simde__mmask32;
using __mmask64 = simde__mmask64;

namespace tl::emulation {

// A register as an array of lanes, and back.
template <typename Lane, typename Register> struct Lanes {
  Lane lane[sizeof(Register) / sizeof(Lane)];
  Lanes() = default;
  explicit Lanes(const Register& r) { std::memcpy(lane, &r, sizeof r); }
  Register pack() const {
    Register r;
    std::memcpy(&r, lane, sizeof r);
    return r;
  }
};

template <typename To, typename From, typename Target, typename Source, typename Convert>
inline Target convert(const Source& source, Convert&& f) {
  const Lanes<From, Source> in(source);
  Lanes<To, Target> out;
  for (size_t i = 0; i < std::min(std::size(in.lane), std::size(out.lane)); ++i) out.lane[i] = f(in.lane[i]);
  return out.pack();
}

// The value the processor gives for NaN and what no int32 holds.
inline int32_t nearestInt(float x) { return std::fabs(x) < 0x1p31f ? int32_t(std::nearbyint(x)) : INT32_MIN; }

}  // namespace tl::emulation

inline __m256i _mm512_cvtepi32_epi16(__m512i a) {
  return tl::emulation::convert<int16_t, int32_t, __m256i>(a, [](int32_t x) { return int16_t(x); });
}
inline __m512 _mm512_cvtepi32_ps(__m512i a) {
  return tl::emulation::convert<float, int32_t, __m512>(a, [](int32_t x) { return float(x); });
}
inline __m512i _mm512_cvtps_epi32(__m512 a) { return tl::emulation::convert<int32_t, float, __m512i>(a, tl::emulation::nearestInt); }
inline __m512i _mm512_cvtepi8_epi32(__m128i a) {
  return tl::emulation::convert<int32_t, int8_t, __m512i>(a, [](int8_t x) { return int32_t(x); });
}
inline __m512i _mm512_cvtepu8_epi32(__m128i a) {
  return tl::emulation::convert<int32_t, uint8_t, __m512i>(a, [](uint8_t x) { return int32_t(x); });
}
inline __m512i _mm512_cvtepu16_epi32(__m256i a) {
  return tl::emulation::convert<int32_t, uint16_t, __m512i>(a, [](uint16_t x) { return int32_t(x); });
}
inline __m512 _mm512_cvtph_ps(__m256i a) {
  return tl::emulation::convert<float, uint16_t, __m512>(a, [](uint16_t x) { return tl::toFloat(tl::f16{x}); });
}
inline __m256i _mm512_cvtps_ph(__m512 a, int) {
  return tl::emulation::convert<uint16_t, float, __m256i>(a, [](float x) { return tl::toF16(x).bits; });
}
inline __m512i _mm512_srai_epi32(__m512i a, unsigned n) {
  return tl::emulation::convert<int32_t, int32_t, __m512i>(a, [=](int32_t x) { return x >> n; });
}
inline __m256 _mm512_extractf32x8_ps(__m512 a, int half) {
  const tl::emulation::Lanes<float, __m512> in(a);
  tl::emulation::Lanes<float, __m256> out;
  std::memcpy(out.lane, in.lane + 8 * half, sizeof out.lane);
  return out.pack();
}
inline __m512 _mm512_permute_ps(__m512 a, int control) {
  const tl::emulation::Lanes<float, __m512> in(a);
  tl::emulation::Lanes<float, __m512> out;
  for (int i = 0; i < 16; ++i) out.lane[i] = in.lane[(i & ~3) + ((control >> 2 * (i & 3)) & 3)];
  return out.pack();
}
inline __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int control) {
  const tl::emulation::Lanes<float, __m512> first(a), second(b);
  tl::emulation::Lanes<float, __m512> out;
  for (int i = 0; i < 4; ++i) std::memcpy(out.lane + 4 * i, (i < 2 ? first : second).lane + 4 * ((control >> 2 * i) & 3), 16);
  return out.pack();
}
inline __m512 _mm512_reduce_ps(__m512 a, int) {  // to the nearest integer
  return tl::emulation::convert<float, float, __m512>(a, [](float x) { return std::isinf(x) ? 0.0f : x - std::nearbyint(x); });
}
inline __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* p) {
  tl::emulation::Lanes<float, __m512> out{};
  for (int i = 0; i < 16; ++i)
    if ((mask >> i) & 1) std::memcpy(out.lane + i, static_cast<const char*>(p) + 4 * i, 4);
  return out.pack();
}
inline void _mm512_mask_storeu_ps(void* p, __mmask16 mask, __m512 a) {
  const tl::emulation::Lanes<float, __m512> in(a);
  for (int i = 0; i < 16; ++i)
    if ((mask >> i) & 1) std::memcpy(static_cast<char*>(p) + 4 * i, in.lane + i, 4);
}
