// Integer dot products of target `avx2`. Meaning: see dot.h.
#pragma once

namespace tl::TL_TARGET {

struct Bytes { __m256i v; };
constexpr uint8_t kByteBias = 0;

TL_INLINE Bytes loadVector(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
TL_INLINE void storeVector(void* p, Bytes b) { _mm256_storeu_si256(static_cast<__m256i*>(p), b.v); }
TL_INLINE Bytes broadcastQuad(const int8_t* p) {
  int32_t quad;
  std::memcpy(&quad, p, 4);
  return {_mm256_set1_epi32(quad)};
}
TL_INLINE void splitNibbles(Bytes b, Bytes& low, Bytes& high) {
  const __m256i mask = _mm256_set1_epi8(15);
  low.v = _mm256_and_si256(b.v, mask);
  high.v = _mm256_and_si256(_mm256_srli_epi16(b.v, 4), mask);
}

// Compilers turn a chain of integer additions into a tree, whose many live products then spill: this hides the chain.
TL_INLINE void keepOrder([[maybe_unused]] __m256i& sum) {
#if defined(__GNUC__) && !defined(TL_EMULATE_X86)
  __asm__("" : "+x"(sum));
#endif
}

struct NibbleSum { __m256i v; };  // sixteen int16, two a row: eight steps reach 8 · 2 · 15 · 127 = 30480, which fits
TL_INLINE NibbleSum nibbleZero() { return {_mm256_setzero_si256()}; }
TL_INLINE NibbleSum dot(NibbleSum sum, Bytes weight, Bytes x) {
  sum.v = _mm256_add_epi16(sum.v, _mm256_maddubs_epi16(weight.v, x.v));
  keepOrder(sum.v);
  return sum;
}
TL_INLINE I32 total(NibbleSum sum) { return {_mm256_madd_epi16(sum.v, _mm256_set1_epi16(1))}; }

// |w| · (x with the sign of w): a pair reaches 2 · 128 · 127 = 32512, which fits int16, but no sum of pairs does.
struct ByteWeight { __m256i signedBytes, magnitude; };
struct ByteSum { __m256i v; };
TL_INLINE ByteWeight prepareByte(Bytes b) { return {b.v, _mm256_abs_epi8(b.v)}; }
TL_INLINE ByteSum byteStart(int32_t) { return {_mm256_setzero_si256()}; }
TL_INLINE ByteSum dot(ByteSum sum, ByteWeight weight, Bytes x) {
  const __m256i pairs = _mm256_maddubs_epi16(weight.magnitude, _mm256_sign_epi8(x.v, weight.signedBytes));
  sum.v = _mm256_add_epi32(sum.v, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  keepOrder(sum.v);
  return sum;
}
TL_INLINE I32 total(ByteSum sum) { return {sum.v}; }

}  // namespace tl::TL_TARGET
