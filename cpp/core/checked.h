// The one helper for arithmetic on sizes that come from files or callers: it never wraps.
#pragma once
#include <cstdint>

namespace tl {

// value = a * b + c in 64 bits; false where that does not fit or an operand is negative.
inline bool checkedMulAdd(int64_t a, int64_t b, int64_t c, int64_t& value) {
  if (a < 0 || b < 0 || c < 0) return false;
  int64_t product;
  return !__builtin_mul_overflow(a, b, &product) && !__builtin_add_overflow(product, c, &value);
}

constexpr int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t roundUp(int64_t a, int64_t b) { return ceilDiv(a, b) * b; }

}  // namespace tl
