// Integer dot products of targets `neondot`, by SDOT, and `neon`, by widening multiplies. Meaning: see dot.h.
#pragma once

namespace tl::TL_TARGET {

struct Bytes { int8x16_t v; };
constexpr uint8_t kByteBias = 0;

TL_INLINE Bytes loadVector(const void* p) { return {vld1q_s8(static_cast<const int8_t*>(p))}; }
TL_INLINE void storeVector(void* p, Bytes b) { vst1q_s8(static_cast<int8_t*>(p), b.v); }
TL_INLINE Bytes broadcastQuad(const int8_t* p) {
  int32_t quad;
  std::memcpy(&quad, p, 4);
  return {vreinterpretq_s8_s32(vdupq_n_s32(quad))};
}
TL_INLINE void splitNibbles(Bytes b, Bytes& low, Bytes& high) {
  const uint8x16_t bytes = vreinterpretq_u8_s8(b.v);
  low.v = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
  high.v = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
}

TL_INLINE int32x4_t dotFour(int32x4_t sum, int8x16_t a, int8x16_t b) {
#if defined(TL_TARGET_NEONDOT)
  return vdotq_s32(sum, a, b);
#else  // a pair reaches 2 · 128 · 127 = 32512, which fits int16
  const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_s8(vget_high_s8(a), vget_high_s8(b));
  return vpadalq_s16(sum, vpaddq_s16(low, high));
#endif
}

struct NibbleSum { int32x4_t v; };
TL_INLINE NibbleSum nibbleZero() { return {vdupq_n_s32(0)}; }
TL_INLINE NibbleSum dot(NibbleSum sum, Bytes weight, Bytes x) { return {dotFour(sum.v, weight.v, x.v)}; }
TL_INLINE I32 total(NibbleSum sum) { return {sum.v}; }

struct ByteWeight { int8x16_t v; };
struct ByteSum { int32x4_t v; };
TL_INLINE ByteWeight prepareByte(Bytes b) { return {b.v}; }
TL_INLINE ByteSum byteStart(int32_t) { return {vdupq_n_s32(0)}; }
TL_INLINE ByteSum dot(ByteSum sum, ByteWeight weight, Bytes x) { return {dotFour(sum.v, weight.v, x.v)}; }
TL_INLINE I32 total(ByteSum sum) { return {sum.v}; }

}  // namespace tl::TL_TARGET
