// The vector types of target `scalar`: eight lanes in plain C++, the reference of all others. The compiler may vectorise
// the loops with what every machine has. mulAdd is a*b+c here: std::fma is a library call without FMA hardware.
#pragma once

namespace tl::TL_TARGET {

constexpr int kLanes = 8;        // f32 lanes of a vector
constexpr int kVectors = 16;     // vector registers: how large a kernel's tile may be
constexpr bool kFusedMulAdd = false;

struct F32 { float v[kLanes]; };
struct I32 { int32_t v[kLanes]; };
struct Mask { bool v[kLanes]; };

#define TL_EACH for (int i = 0; i < kLanes; ++i)
TL_INLINE F32 zero() { return F32{}; }
TL_INLINE F32 broadcast(float x) { F32 r; TL_EACH r.v[i] = x; return r; }
TL_INLINE F32 load(const float* p) { F32 r; std::memcpy(r.v, p, sizeof r.v); return r; }
TL_INLINE void store(float* p, F32 a) { std::memcpy(p, a.v, sizeof a.v); }
TL_INLINE F32 load(const f16* p) { F32 r; TL_EACH r.v[i] = toFloat(p[i]); return r; }
TL_INLINE F32 load(const bf16* p) { F32 r; TL_EACH r.v[i] = toFloat(p[i]); return r; }
TL_INLINE void store(f16* p, F32 a) { TL_EACH p[i] = toF16(a.v[i]); }
TL_INLINE void store(bf16* p, F32 a) { TL_EACH p[i] = toBf16(a.v[i]); }
TL_INLINE F32 add(F32 a, F32 b) { TL_EACH a.v[i] += b.v[i]; return a; }
TL_INLINE F32 sub(F32 a, F32 b) { TL_EACH a.v[i] -= b.v[i]; return a; }
TL_INLINE F32 mul(F32 a, F32 b) { TL_EACH a.v[i] *= b.v[i]; return a; }
TL_INLINE F32 div(F32 a, F32 b) { TL_EACH a.v[i] /= b.v[i]; return a; }
TL_INLINE F32 mulAdd(F32 a, F32 b, F32 c) { TL_EACH c.v[i] = a.v[i] * b.v[i] + c.v[i]; return c; }
TL_INLINE F32 max(F32 a, F32 b) { TL_EACH a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }  // b where either is NaN
TL_INLINE F32 min(F32 a, F32 b) { TL_EACH a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return a; }
TL_INLINE F32 abs(F32 a) { TL_EACH a.v[i] = std::fabs(a.v[i]); return a; }
TL_INLINE F32 sqrt(F32 a) { TL_EACH a.v[i] = std::sqrt(a.v[i]); return a; }
TL_INLINE float roundEven(float x) {  // adding 2^23 leaves no bit for fractions; std::nearbyint is a library call
  const float magnitude = std::fabs(x), rounded = (magnitude + 0x1p23f) - 0x1p23f;
  return magnitude < 0x1p23f ? std::copysign(rounded, x) : x;
}
TL_INLINE F32 roundEven(F32 a) { TL_EACH a.v[i] = roundEven(a.v[i]); return a; }
TL_INLINE F32 copySign(F32 magnitude, F32 sign) { TL_EACH magnitude.v[i] = std::copysign(magnitude.v[i], sign.v[i]); return magnitude; }

// Neighbours (2i, 2i + 1) change places.
TL_INLINE F32 swapPairs(F32 a) { F32 r; TL_EACH r.v[i] = a.v[i ^ 1]; return r; }

TL_INLINE Mask lessThan(F32 a, F32 b) { Mask m; TL_EACH m.v[i] = a.v[i] < b.v[i]; return m; }
TL_INLINE Mask greaterThan(F32 a, F32 b) { Mask m; TL_EACH m.v[i] = a.v[i] > b.v[i]; return m; }
TL_INLINE Mask isNan(F32 a) { Mask m; TL_EACH m.v[i] = a.v[i] != a.v[i]; return m; }
TL_INLINE Mask firstLanes(int n) { Mask m; TL_EACH m.v[i] = i < n; return m; }
TL_INLINE Mask lanesOfBits(uint32_t bits) { Mask m; TL_EACH m.v[i] = (bits >> i) & 1; return m; }  // lane i set when bit i is
TL_INLINE uint32_t bitsOfLanes(Mask m) { uint32_t bits = 0; TL_EACH bits |= uint32_t(m.v[i]) << i; return bits; }
TL_INLINE bool any(Mask m) { return bitsOfLanes(m) != 0; }
TL_INLINE F32 select(Mask m, F32 yes, F32 no) { TL_EACH no.v[i] = m.v[i] ? yes.v[i] : no.v[i]; return no; }

// The first n lanes, 0 ≤ n ≤ kLanes; the rest of a loaded vector is zero, the rest of memory is not touched.
template <typename T> TL_INLINE F32 loadPart(const T* p, int n) { F32 r{}; for (int i = 0; i < n; ++i) r.v[i] = toFloat(p[i]); return r; }
TL_INLINE void storePart(float* p, F32 a, int n) { std::memcpy(p, a.v, size_t(n) * sizeof(float)); }
TL_INLINE void storePart(f16* p, F32 a, int n) { for (int i = 0; i < n; ++i) p[i] = toF16(a.v[i]); }
TL_INLINE void storePart(bf16* p, F32 a, int n) { for (int i = 0; i < n; ++i) p[i] = toBf16(a.v[i]); }

// Reductions take lanes pairwise, halves first: the same tree in every target of equal width.
TL_INLINE float sumLanes(F32 a) {
  for (int half = kLanes / 2; half > 0; half /= 2) for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
  return a.v[0];
}
TL_INLINE float maxLanes(F32 a) {
  for (int half = kLanes / 2; half > 0; half /= 2) for (int i = 0; i < half; ++i) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
  return a.v[0];
}

TL_INLINE I32 zeroInt() { return I32{}; }
TL_INLINE I32 broadcast(int32_t x) { I32 r; TL_EACH r.v[i] = x; return r; }
TL_INLINE I32 load(const int32_t* p) { I32 r; std::memcpy(r.v, p, sizeof r.v); return r; }
TL_INLINE void store(int32_t* p, I32 a) { std::memcpy(p, a.v, sizeof a.v); }
TL_INLINE I32 add(I32 a, I32 b) { TL_EACH a.v[i] = int32_t(uint32_t(a.v[i]) + uint32_t(b.v[i])); return a; }  // wraps, as vectors do
TL_INLINE I32 sub(I32 a, I32 b) { TL_EACH a.v[i] = int32_t(uint32_t(a.v[i]) - uint32_t(b.v[i])); return a; }
TL_INLINE I32 shiftLeft(I32 a, int n) { TL_EACH a.v[i] = int32_t(uint32_t(a.v[i]) << n); return a; }
TL_INLINE I32 shiftRight(I32 a, int n) { TL_EACH a.v[i] >>= n; return a; }  // copies of the sign come in
TL_INLINE F32 toFloat(I32 a) { F32 r; TL_EACH r.v[i] = float(a.v[i]); return r; }
// Nearest even. NaN and what no int32 holds give a value that differs between targets.
TL_INLINE I32 toInt(F32 a) {
  I32 r;
  TL_EACH r.v[i] = std::fabs(a.v[i]) < 0x1p31f ? int32_t(roundEven(a.v[i])) : std::numeric_limits<int32_t>::min();
  return r;
}
TL_INLINE F32 asFloat(I32 a) { F32 r; TL_EACH r.v[i] = __builtin_bit_cast(float, a.v[i]); return r; }
TL_INLINE I32 asInt(F32 a) { I32 r; TL_EACH r.v[i] = __builtin_bit_cast(int32_t, a.v[i]); return r; }
// Signed bytes, saturated from lanes known to lie in −128 … 127.
TL_INLINE void storeBytes(int8_t* p, I32 a) { TL_EACH p[i] = int8_t(a.v[i]); }
TL_INLINE F32 loadBytes(const int8_t* p) { F32 r; TL_EACH r.v[i] = float(p[i]); return r; }
TL_INLINE F32 loadBytes(const uint8_t* p) { F32 r; TL_EACH r.v[i] = float(p[i]); return r; }
// The low and the high half of each byte, 0 … 15.
TL_INLINE void loadNibbles(const uint8_t* p, F32& low, F32& high) { TL_EACH low.v[i] = float(p[i] & 15), high.v[i] = float(p[i] >> 4); }
// kLanes vectors as a square matrix, mirrored at its diagonal.
TL_INLINE void transpose(F32 (&rows)[kLanes]) { TL_EACH for (int j = 0; j < i; ++j) std::swap(rows[i].v[j], rows[j].v[i]); }
TL_INLINE void prefetch(const void*) {}

}  // namespace tl::TL_TARGET
