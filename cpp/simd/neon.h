// The vector types of targets `neon` and `neondot`: AArch64 Advanced SIMD, four f32 lanes, thirty-two registers. One register a vector, so
// that the integer dot products of dot_neon.h fill a vector of the same width. Meaning: see scalar.h.
#pragma once

namespace tl::TL_TARGET {

constexpr int kLanes = 4;
constexpr int kVectors = 32;
constexpr bool kFusedMulAdd = true;

struct F32 { float32x4_t v; };
struct I32 { int32x4_t v; };
struct Mask { uint32x4_t v; };

TL_INLINE F32 zero() { return {vdupq_n_f32(0)}; }
TL_INLINE F32 broadcast(float x) { return {vdupq_n_f32(x)}; }
TL_INLINE F32 load(const float* p) { return {vld1q_f32(p)}; }
TL_INLINE void store(float* p, F32 a) { vst1q_f32(p, a.v); }
TL_INLINE F32 load(const f16* p) { return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))))}; }
TL_INLINE F32 load(const bf16* p) { return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16))}; }
TL_INLINE void store(f16* p, F32 a) { vst1_u16(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(a.v))); }
TL_INLINE void store(bf16* p, F32 a) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a.v), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(vdupq_n_u32(0x7fff), odd));
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  vst1_u16(reinterpret_cast<uint16_t*>(p), vshrn_n_u32(vbslq_u32(vceqq_f32(a.v, a.v), rounded, quiet), 16));
}
TL_INLINE F32 add(F32 a, F32 b) { return {vaddq_f32(a.v, b.v)}; }
TL_INLINE F32 sub(F32 a, F32 b) { return {vsubq_f32(a.v, b.v)}; }
TL_INLINE F32 mul(F32 a, F32 b) { return {vmulq_f32(a.v, b.v)}; }
TL_INLINE F32 div(F32 a, F32 b) { return {vdivq_f32(a.v, b.v)}; }
TL_INLINE F32 mulAdd(F32 a, F32 b, F32 c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
TL_INLINE F32 max(F32 a, F32 b) { return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)}; }  // not FMAX: that one spreads NaN
TL_INLINE F32 min(F32 a, F32 b) { return {vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v)}; }
TL_INLINE F32 abs(F32 a) { return {vabsq_f32(a.v)}; }
TL_INLINE F32 sqrt(F32 a) { return {vsqrtq_f32(a.v)}; }
TL_INLINE F32 roundEven(F32 a) { return {vrndnq_f32(a.v)}; }
TL_INLINE F32 copySign(F32 magnitude, F32 sign) { return {vbslq_f32(vdupq_n_u32(0x80000000u), sign.v, magnitude.v)}; }
TL_INLINE F32 swapPairs(F32 a) { return {vrev64q_f32(a.v)}; }

TL_INLINE Mask lessThan(F32 a, F32 b) { return {vcltq_f32(a.v, b.v)}; }
TL_INLINE Mask greaterThan(F32 a, F32 b) { return {vcgtq_f32(a.v, b.v)}; }
TL_INLINE Mask isNan(F32 a) { return {vmvnq_u32(vceqq_f32(a.v, a.v))}; }
TL_INLINE uint32x4_t laneBits() { return uint32x4_t{1, 2, 4, 8}; }
TL_INLINE Mask firstLanes(int n) { return {vcgtq_s32(vdupq_n_s32(n), int32x4_t{0, 1, 2, 3})}; }
TL_INLINE Mask lanesOfBits(uint32_t bits) { return {vtstq_u32(vdupq_n_u32(bits), laneBits())}; }
TL_INLINE uint32_t bitsOfLanes(Mask m) { return vaddvq_u32(vandq_u32(m.v, laneBits())); }
TL_INLINE bool any(Mask m) { return vmaxvq_u32(m.v) != 0; }
TL_INLINE F32 select(Mask m, F32 yes, F32 no) { return {vbslq_f32(m.v, yes.v, no.v)}; }

template <typename T> TL_INLINE F32 loadPart(const T* p, int n) {
  alignas(16) T whole[kLanes] = {};
  std::memcpy(whole, p, size_t(n) * sizeof(T));
  return load(whole);
}
template <typename T> TL_INLINE void storePart(T* p, F32 a, int n) {
  alignas(16) T whole[kLanes];
  store(whole, a);
  std::memcpy(p, whole, size_t(n) * sizeof(T));
}

TL_INLINE float sumLanes(F32 a) {
  const float32x2_t s = vadd_f32(vget_low_f32(a.v), vget_high_f32(a.v));
  return vget_lane_f32(s, 0) + vget_lane_f32(s, 1);
}
TL_INLINE float maxLanes(F32 a) {
  const float32x2_t low = vget_low_f32(a.v), high = vget_high_f32(a.v), s = vbsl_f32(vcgt_f32(low, high), low, high);
  return vget_lane_f32(s, 0) > vget_lane_f32(s, 1) ? vget_lane_f32(s, 0) : vget_lane_f32(s, 1);
}

TL_INLINE I32 zeroInt() { return {vdupq_n_s32(0)}; }
TL_INLINE I32 broadcast(int32_t x) { return {vdupq_n_s32(x)}; }
TL_INLINE I32 load(const int32_t* p) { return {vld1q_s32(p)}; }
TL_INLINE void store(int32_t* p, I32 a) { vst1q_s32(p, a.v); }
TL_INLINE I32 add(I32 a, I32 b) { return {vaddq_s32(a.v, b.v)}; }
TL_INLINE I32 sub(I32 a, I32 b) { return {vsubq_s32(a.v, b.v)}; }
TL_INLINE I32 shiftLeft(I32 a, int n) { return {vshlq_s32(a.v, vdupq_n_s32(n))}; }
TL_INLINE I32 shiftRight(I32 a, int n) { return {vshlq_s32(a.v, vdupq_n_s32(-n))}; }
TL_INLINE F32 toFloat(I32 a) { return {vcvtq_f32_s32(a.v)}; }
TL_INLINE I32 toInt(F32 a) { return {vcvtnq_s32_f32(a.v)}; }
TL_INLINE F32 asFloat(I32 a) { return {vreinterpretq_f32_s32(a.v)}; }
TL_INLINE I32 asInt(F32 a) { return {vreinterpretq_s32_f32(a.v)}; }
TL_INLINE void storeBytes(int8_t* p, I32 a) {
  const int16x4_t words = vqmovn_s32(a.v);
  const uint32_t bytes = vget_lane_u32(vreinterpret_u32_s8(vqmovn_s16(vcombine_s16(words, words))), 0);
  std::memcpy(p, &bytes, 4);
}
TL_INLINE F32 loadBytes(const int8_t* p) {
  uint32_t bytes;
  std::memcpy(&bytes, p, 4);
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(bytes))))))};
}
TL_INLINE F32 loadBytes(const uint8_t* p) {
  uint32_t bytes;
  std::memcpy(&bytes, p, 4);
  return {vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(bytes))))))};
}
TL_INLINE void loadNibbles(const uint8_t* p, F32& low, F32& high) {
  uint32_t bytes;
  std::memcpy(&bytes, p, 4);
  const uint16x4_t words = vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(bytes))));
  low = {vcvtq_f32_u32(vmovl_u16(vand_u16(words, vdup_n_u16(15))))};
  high = {vcvtq_f32_u32(vmovl_u16(vshr_n_u16(words, 4)))};
}
TL_INLINE void transpose(F32 (&rows)[kLanes]) {
  const float32x4x2_t a = vtrnq_f32(rows[0].v, rows[1].v), b = vtrnq_f32(rows[2].v, rows[3].v);
  rows[0].v = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
  rows[1].v = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
  rows[2].v = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
  rows[3].v = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
}
TL_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }

}  // namespace tl::TL_TARGET
