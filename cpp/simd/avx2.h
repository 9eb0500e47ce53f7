// The vector types of target `avx2`: AVX2 with FMA and F16C, eight f32 lanes, sixteen registers. Meaning: see scalar.h.
#pragma once

namespace tl::TL_TARGET {

constexpr int kLanes = 8;
constexpr int kVectors = 16;
constexpr bool kFusedMulAdd = true;

struct F32 { __m256 v; };
struct I32 { __m256i v; };
struct Mask { __m256 v; };

TL_INLINE F32 zero() { return {_mm256_setzero_ps()}; }
TL_INLINE F32 broadcast(float x) { return {_mm256_set1_ps(x)}; }
TL_INLINE F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
TL_INLINE void store(float* p, F32 a) { _mm256_storeu_ps(p, a.v); }
TL_INLINE F32 load(const f16* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
TL_INLINE F32 load(const bf16* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16))};
}
TL_INLINE void store(f16* p, F32 a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT)); }
TL_INLINE __m128i bf16Bits(F32 a) {
  const __m256i bits = _mm256_castps_si256(a.v), one = _mm256_set1_epi32(1), bias = _mm256_set1_epi32(0x7fff);
  __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(bias, _mm256_and_si256(_mm256_srli_epi32(bits, 16), one)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  rounded = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)));
  rounded = _mm256_srli_epi32(rounded, 16);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08));
}
TL_INLINE void store(bf16* p, F32 a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bf16Bits(a)); }
TL_INLINE F32 add(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
TL_INLINE F32 sub(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
TL_INLINE F32 mul(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
TL_INLINE F32 div(F32 a, F32 b) { return {_mm256_div_ps(a.v, b.v)}; }
TL_INLINE F32 mulAdd(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
TL_INLINE F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
TL_INLINE F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }
TL_INLINE F32 abs(F32 a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
TL_INLINE F32 sqrt(F32 a) { return {_mm256_sqrt_ps(a.v)}; }
TL_INLINE F32 roundEven(F32 a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
TL_INLINE F32 copySign(F32 magnitude, F32 sign) {
  const __m256 bit = _mm256_set1_ps(-0.0f);
  return {_mm256_or_ps(_mm256_andnot_ps(bit, magnitude.v), _mm256_and_ps(bit, sign.v))};
}
TL_INLINE F32 swapPairs(F32 a) { return {_mm256_permute_ps(a.v, 0xb1)}; }

TL_INLINE Mask lessThan(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
TL_INLINE Mask greaterThan(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)}; }
TL_INLINE Mask isNan(F32 a) { return {_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)}; }
TL_INLINE __m256i laneNumbers() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
TL_INLINE Mask firstLanes(int n) { return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), laneNumbers()))}; }
TL_INLINE Mask lanesOfBits(uint32_t bits) {
  const __m256i lane = _mm256_sllv_epi32(_mm256_set1_epi32(1), laneNumbers());
  return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int32_t(bits)), lane), lane))};
}
TL_INLINE uint32_t bitsOfLanes(Mask m) { return uint32_t(_mm256_movemask_ps(m.v)); }
TL_INLINE bool any(Mask m) { return bitsOfLanes(m) != 0; }
TL_INLINE F32 select(Mask m, F32 yes, F32 no) { return {_mm256_blendv_ps(no.v, yes.v, m.v)}; }

TL_INLINE F32 loadPart(const float* p, int n) { return {_mm256_maskload_ps(p, _mm256_castps_si256(firstLanes(n).v))}; }
template <typename T> TL_INLINE F32 loadPart(const T* p, int n) {
  alignas(16) T whole[kLanes] = {};
  std::memcpy(whole, p, size_t(n) * sizeof(T));
  return load(whole);
}
TL_INLINE void storePart(float* p, F32 a, int n) { _mm256_maskstore_ps(p, _mm256_castps_si256(firstLanes(n).v), a.v); }
template <typename T> TL_INLINE void storePart(T* p, F32 a, int n) {
  alignas(16) T whole[kLanes];
  store(whole, a);
  std::memcpy(p, whole, size_t(n) * sizeof(T));
}

TL_INLINE float sumLanes(F32 a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
TL_INLINE float maxLanes(F32 a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

TL_INLINE I32 zeroInt() { return {_mm256_setzero_si256()}; }
TL_INLINE I32 broadcast(int32_t x) { return {_mm256_set1_epi32(x)}; }
TL_INLINE I32 load(const int32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
TL_INLINE void store(int32_t* p, I32 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v); }
TL_INLINE I32 add(I32 a, I32 b) { return {_mm256_add_epi32(a.v, b.v)}; }
TL_INLINE I32 sub(I32 a, I32 b) { return {_mm256_sub_epi32(a.v, b.v)}; }
TL_INLINE I32 shiftLeft(I32 a, int n) { return {_mm256_slli_epi32(a.v, n)}; }
TL_INLINE I32 shiftRight(I32 a, int n) { return {_mm256_srai_epi32(a.v, n)}; }
TL_INLINE F32 toFloat(I32 a) { return {_mm256_cvtepi32_ps(a.v)}; }
TL_INLINE I32 toInt(F32 a) { return {_mm256_cvtps_epi32(a.v)}; }
TL_INLINE F32 asFloat(I32 a) { return {_mm256_castsi256_ps(a.v)}; }
TL_INLINE I32 asInt(F32 a) { return {_mm256_castps_si256(a.v)}; }
TL_INLINE void storeBytes(int8_t* p, I32 a) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
TL_INLINE F32 loadBytes(const int8_t* p) { return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))}; }
TL_INLINE F32 loadBytes(const uint8_t* p) { return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))}; }
TL_INLINE void loadNibbles(const uint8_t* p, F32& low, F32& high) {
  const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  low = {_mm256_cvtepi32_ps(_mm256_and_si256(bytes, _mm256_set1_epi32(15)))};
  high = {_mm256_cvtepi32_ps(_mm256_srli_epi32(bytes, 4))};
}
TL_INLINE void transpose(F32 (&rows)[kLanes]) {
  __m256 pairs[8], fours[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4)
    for (int k = 0; k < 2; ++k) {
      fours[i + 2 * k] = _mm256_shuffle_ps(pairs[i + k], pairs[i + k + 2], 0x44);
      fours[i + 2 * k + 1] = _mm256_shuffle_ps(pairs[i + k], pairs[i + k + 2], 0xee);
    }
  for (int i = 0; i < 4; ++i) {
    rows[i].v = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
    rows[i + 4].v = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
  }
}
TL_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace tl::TL_TARGET
