// The vector types of targets `avx512` (F BW DQ VL VNNI) and `avx512bf16` (adds BF16): sixteen f32 lanes, thirty-two
// registers. Meaning: see scalar.h.
#pragma once

namespace tl::TL_TARGET {

constexpr int kLanes = 16;
constexpr int kVectors = 32;
constexpr bool kFusedMulAdd = true;

struct F32 { __m512 v; };
struct I32 { __m512i v; };
struct Mask { __mmask16 v; };

TL_INLINE F32 zero() { return {_mm512_setzero_ps()}; }
TL_INLINE F32 broadcast(float x) { return {_mm512_set1_ps(x)}; }
TL_INLINE F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
TL_INLINE void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
TL_INLINE F32 load(const f16* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
TL_INLINE F32 load(const bf16* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16))};
}
TL_INLINE void store(f16* p, F32 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT)); }
TL_INLINE __m256i bf16Bits(F32 a) {  // not VCVTNEPS2BF16: that one flushes denormals
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(_mm512_set1_epi32(0x7fff), odd));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16));
}
TL_INLINE void store(bf16* p, F32 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bf16Bits(a)); }
TL_INLINE F32 add(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
TL_INLINE F32 sub(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
TL_INLINE F32 mul(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
TL_INLINE F32 div(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
TL_INLINE F32 mulAdd(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
TL_INLINE F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
TL_INLINE F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
TL_INLINE F32 abs(F32 a) { return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(0x7fffffff)))}; }
TL_INLINE F32 sqrt(F32 a) { return {_mm512_sqrt_ps(a.v)}; }
TL_INLINE F32 roundEven(F32 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
TL_INLINE F32 copySign(F32 magnitude, F32 sign) {
  const __m512i bit = _mm512_set1_epi32(int32_t(0x80000000u));
  return {_mm512_castsi512_ps(_mm512_or_si512(_mm512_andnot_si512(bit, _mm512_castps_si512(magnitude.v)), _mm512_and_si512(bit, _mm512_castps_si512(sign.v))))};
}
TL_INLINE F32 swapPairs(F32 a) { return {_mm512_permute_ps(a.v, 0xb1)}; }

TL_INLINE Mask lessThan(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
TL_INLINE Mask greaterThan(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
TL_INLINE Mask isNan(F32 a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
TL_INLINE Mask firstLanes(int n) { return {__mmask16((1u << n) - 1)}; }
TL_INLINE Mask lanesOfBits(uint32_t bits) { return {__mmask16(bits)}; }
TL_INLINE uint32_t bitsOfLanes(Mask m) { return m.v; }
TL_INLINE bool any(Mask m) { return m.v != 0; }
TL_INLINE F32 select(Mask m, F32 yes, F32 no) { return {_mm512_mask_blend_ps(m.v, no.v, yes.v)}; }

TL_INLINE F32 loadPart(const float* p, int n) { return {_mm512_maskz_loadu_ps(firstLanes(n).v, p)}; }
template <typename T> TL_INLINE F32 loadPart(const T* p, int n) {
  alignas(32) T whole[kLanes] = {};
  std::memcpy(whole, p, size_t(n) * sizeof(T));
  return load(whole);
}
TL_INLINE void storePart(float* p, F32 a, int n) { _mm512_mask_storeu_ps(p, firstLanes(n).v, a.v); }
template <typename T> TL_INLINE void storePart(T* p, F32 a, int n) {
  alignas(32) T whole[kLanes];
  store(whole, a);
  std::memcpy(p, whole, size_t(n) * sizeof(T));
}

TL_INLINE float sumLanes(F32 a) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
TL_INLINE float maxLanes(F32 a) {
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

TL_INLINE I32 zeroInt() { return {_mm512_setzero_si512()}; }
TL_INLINE I32 broadcast(int32_t x) { return {_mm512_set1_epi32(x)}; }
TL_INLINE I32 load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
TL_INLINE void store(int32_t* p, I32 a) { _mm512_storeu_si512(p, a.v); }
TL_INLINE I32 add(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
TL_INLINE I32 sub(I32 a, I32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
TL_INLINE I32 shiftLeft(I32 a, int n) { return {_mm512_slli_epi32(a.v, unsigned(n))}; }
TL_INLINE I32 shiftRight(I32 a, int n) { return {_mm512_srai_epi32(a.v, unsigned(n))}; }
TL_INLINE F32 toFloat(I32 a) { return {_mm512_cvtepi32_ps(a.v)}; }
TL_INLINE I32 toInt(F32 a) { return {_mm512_cvtps_epi32(a.v)}; }
TL_INLINE F32 asFloat(I32 a) { return {_mm512_castsi512_ps(a.v)}; }
TL_INLINE I32 asInt(F32 a) { return {_mm512_castps_si512(a.v)}; }
TL_INLINE void storeBytes(int8_t* p, I32 a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(a.v)); }
TL_INLINE F32 loadBytes(const int8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))}; }
TL_INLINE F32 loadBytes(const uint8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))}; }
TL_INLINE void loadNibbles(const uint8_t* p, F32& low, F32& high) {
  const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  low = {_mm512_cvtepi32_ps(_mm512_and_si512(bytes, _mm512_set1_epi32(15)))};
  high = {_mm512_cvtepi32_ps(_mm512_srli_epi32(bytes, 4))};
}
TL_INLINE void transpose(F32 (&rows)[kLanes]) {
  __m512 pairs[16], fours[16], eights[16];
  const auto quarters = [](__m512 a, __m512 b, auto odd) {  // 0 2 or 1 3 of a, then of b
    return _mm512_castsi512_ps(_mm512_shuffle_i32x4(_mm512_castps_si512(a), _mm512_castps_si512(b), decltype(odd)::value ? 0xdd : 0x88));
  };
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    pairs[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4)
    for (int k = 0; k < 2; ++k) {
      fours[i + 2 * k] = _mm512_shuffle_ps(pairs[i + k], pairs[i + k + 2], 0x44);
      fours[i + 2 * k + 1] = _mm512_shuffle_ps(pairs[i + k], pairs[i + k + 2], 0xee);
    }
  // fours[4a + c] holds, in its quarter q, column 4q + c of rows 4a … 4a + 3.
  for (int c = 0; c < 4; ++c)
    for (int half = 0; half < 2; ++half) {
      eights[8 * half + c] = quarters(fours[8 * half + c], fours[8 * half + 4 + c], std::false_type{});
      eights[8 * half + 4 + c] = quarters(fours[8 * half + c], fours[8 * half + 4 + c], std::true_type{});
    }
  for (int c = 0; c < 4; ++c) {
    rows[c].v = quarters(eights[c], eights[8 + c], std::false_type{});
    rows[8 + c].v = quarters(eights[c], eights[8 + c], std::true_type{});
    rows[4 + c].v = quarters(eights[4 + c], eights[12 + c], std::false_type{});
    rows[12 + c].v = quarters(eights[4 + c], eights[12 + c], std::true_type{});
  }
}
// Lane i: all lanes of rows[i] combined, halves first, in fewer shuffles than a transpose. See math.h.
template <typename Combine> TL_INLINE F32 lanesOfEach(F32 (&rows)[16], Combine combine) {
  for (int i = 0; i < 8; ++i)
    rows[i] = combine(F32{_mm512_shuffle_f32x4(rows[i].v, rows[i + 8].v, 0x44)}, F32{_mm512_shuffle_f32x4(rows[i].v, rows[i + 8].v, 0xee)});
  for (int i = 0; i < 4; ++i)
    rows[i] = combine(F32{_mm512_shuffle_f32x4(rows[i].v, rows[i + 4].v, 0x88)}, F32{_mm512_shuffle_f32x4(rows[i].v, rows[i + 4].v, 0xdd)});
  for (int i = 0; i < 2; ++i)
    rows[i] = combine(F32{_mm512_shuffle_ps(rows[i].v, rows[i + 2].v, 0x44)}, F32{_mm512_shuffle_ps(rows[i].v, rows[i + 2].v, 0xee)});
  const F32 all = combine(F32{_mm512_shuffle_ps(rows[0].v, rows[1].v, 0x88)}, F32{_mm512_shuffle_ps(rows[0].v, rows[1].v, 0xdd)});
  // Its quarters hold rows q + 0 2 1 3 for q = 0, 8, 4, 12.
  return {_mm512_permutexvar_ps(_mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15), all.v)};
}
// As in math.h, without bounds: below −149 the power is 0.
TL_INLINE F32 splitPower(F32& x) {
  const F32 rest = {_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}, whole = sub(x, rest);
  x = rest;
  return whole;
}
TL_INLINE F32 timesPower(F32 a, F32 whole) { return {_mm512_scalef_ps(a.v, whole.v)}; }
TL_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace tl::TL_TARGET
