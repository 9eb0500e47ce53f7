// Integer dot products of target `scalar`: the reference of all others. Meaning: see dot.h.
#pragma once

namespace tl::TL_TARGET {

struct Bytes { uint8_t v[kLanes * 4]; };
constexpr uint8_t kByteBias = 0;

TL_INLINE Bytes loadVector(const void* p) { Bytes b; std::memcpy(b.v, p, sizeof b.v); return b; }
TL_INLINE void storeVector(void* p, Bytes b) { std::memcpy(p, b.v, sizeof b.v); }
TL_INLINE Bytes broadcastQuad(const int8_t* p) {
  Bytes b;
  for (int i = 0; i < kLanes * 4; ++i) b.v[i] = uint8_t(p[i & 3]);
  return b;
}
TL_INLINE void splitNibbles(Bytes b, Bytes& low, Bytes& high) {
  for (int i = 0; i < kLanes * 4; ++i) low.v[i] = b.v[i] & 15, high.v[i] = uint8_t(b.v[i] >> 4);
}

struct NibbleSum { I32 v; };
TL_INLINE NibbleSum nibbleZero() { return {zeroInt()}; }
TL_INLINE NibbleSum dot(NibbleSum sum, Bytes weight, Bytes x) {
  for (int i = 0; i < kLanes; ++i)
    for (int j = 4 * i; j < 4 * i + 4; ++j) sum.v.v[i] += int(weight.v[j]) * int(int8_t(x.v[j]));
  return sum;
}
TL_INLINE I32 total(NibbleSum sum) { return sum.v; }

struct ByteWeight { Bytes b; };
struct ByteSum { I32 v; };
TL_INLINE ByteWeight prepareByte(Bytes b) { return {b}; }
TL_INLINE ByteSum byteStart(int32_t) { return {zeroInt()}; }
TL_INLINE ByteSum dot(ByteSum sum, ByteWeight weight, Bytes x) {
  for (int i = 0; i < kLanes; ++i)
    for (int j = 4 * i; j < 4 * i + 4; ++j) sum.v.v[i] += int(int8_t(weight.b.v[j])) * int(int8_t(x.v[j]));
  return sum;
}
TL_INLINE I32 total(ByteSum sum) { return sum.v; }

}  // namespace tl::TL_TARGET
