// Integer dot products of targets `avx512` and `avx512bf16`, by VNNI. Meaning: see dot.h.
#pragma once

namespace tl::TL_TARGET {

struct Bytes { __m512i v; };
constexpr uint8_t kByteBias = 0x80;  // VPDPBUSD takes unsigned weights: w + 128, and the sum starts at −128 · Σ x

TL_INLINE Bytes loadVector(const void* p) { return {_mm512_loadu_si512(p)}; }
TL_INLINE void storeVector(void* p, Bytes b) { _mm512_storeu_si512(p, b.v); }
TL_INLINE Bytes broadcastQuad(const int8_t* p) {
  int32_t quad;
  std::memcpy(&quad, p, 4);
  return {_mm512_set1_epi32(quad)};
}
TL_INLINE void splitNibbles(Bytes b, Bytes& low, Bytes& high) {
  const __m512i mask = _mm512_set1_epi8(15);
  low.v = _mm512_and_si512(b.v, mask);
  high.v = _mm512_and_si512(_mm512_srli_epi16(b.v, 4), mask);
}

struct NibbleSum { __m512i v; };
TL_INLINE NibbleSum nibbleZero() { return {_mm512_setzero_si512()}; }
TL_INLINE NibbleSum dot(NibbleSum sum, Bytes weight, Bytes x) { return {_mm512_dpbusd_epi32(sum.v, weight.v, x.v)}; }
TL_INLINE I32 total(NibbleSum sum) { return {sum.v}; }

struct ByteWeight { __m512i v; };
struct ByteSum { __m512i v; };
TL_INLINE ByteWeight prepareByte(Bytes b) { return {b.v}; }
TL_INLINE ByteSum byteStart(int32_t sumX) { return {_mm512_set1_epi32(-128 * sumX)}; }
TL_INLINE ByteSum dot(ByteSum sum, ByteWeight weight, Bytes x) { return {_mm512_dpbusd_epi32(sum.v, weight.v, x.v)}; }
TL_INLINE I32 total(ByteSum sum) { return {sum.v}; }

}  // namespace tl::TL_TARGET
