// Element types and the scalar conversions between them. f16 and bf16 are storage types: arithmetic is in f32.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace tl {

// The numbers are part of the program encoding (lib/native.ts has the same list).
enum class DType : int32_t {
  none = 0,  // an optional operand that was left out
  f32 = 1,
  f16 = 2,
  bf16 = 3,
  i8 = 4,
  u8 = 5,
  i32 = 6,
  i64 = 7,
  q8 = 8,       // rows quantised for integer matmuls: see kernels/quantized_rows.h
  packed = 9,   // View::data points at a PackedWeight
  cache = 10,   // View::data points at a KvStep
  i4 = 11,      // two a byte, low half first: only within cache pages
};

constexpr size_t elementBytes(DType type) {
  switch (type) {
    case DType::f32: case DType::i32: return 4;
    case DType::f16: case DType::bf16: return 2;
    case DType::i8: case DType::u8: return 1;
    case DType::i64: return 8;
    default: return 0;
  }
}

struct f16 { uint16_t bits; };
struct bf16 { uint16_t bits; };

inline float toFloat(bf16 value) {
  uint32_t bits = uint32_t(value.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

inline bf16 toBf16(float value) {  // round to nearest even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return {uint16_t((bits >> 16) | 0x40)};
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline float toFloat(f16 value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, exponent = (value.bits >> 10) & 31, mantissa = value.bits & 0x3ff;
  uint32_t bits;
  if (exponent == 31) bits = sign | 0x7f800000 | (mantissa << 13);
  else if (exponent != 0) bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  else {  // subnormal: mantissa * 2^-24, exact in f32
    float magnitude = float(mantissa) * 5.9604644775390625e-8f;
    std::memcpy(&bits, &magnitude, 4);
    bits |= sign;
  }
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

inline f16 toF16(float value) {  // round to nearest even, overflow to infinity
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {uint16_t(sign | 0x7e00 | ((magnitude >> 13) & 0x3ff))};
  if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)};
  if (magnitude < 0x38800000) {  // subnormal result: let f32 addition round at 2^-24
    float scaled, magic = 0.5f;
    std::memcpy(&scaled, &magnitude, 4);
    scaled += magic;
    uint32_t rounded;
    std::memcpy(&rounded, &scaled, 4);
    return {uint16_t(sign | (rounded - 0x3f000000))};
  }
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23);
  return {uint16_t(sign | (rounded >> 13))};
}

inline float toFloat(float value) { return value; }

}  // namespace tl
