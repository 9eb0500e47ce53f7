// The vector functions of one target behind plain pointers, so that baseline code can test them. Vectors are arrays of
// `lanes` floats (or int32), which the caller keeps; masks are bits.
#pragma once
#include <cstdint>

#include "../../cpp/core/cpu.h"
#include "../../cpp/core/dtype.h"

namespace tl::test {

using Unary = void (*)(const float* a, float* out);
using Binary = void (*)(const float* a, const float* b, float* out);
using IntBinary = void (*)(const int32_t* a, const int32_t* b, int32_t* out);

struct SimdProbe {
  int lanes;
  bool fused;
  Unary zero, abs, sqrt, roundEven, swapPairs, exp, sigmoid, tanh, erf;
  Binary add, sub, mul, div, max, min, copySign;
  void (*mulAdd)(const float* a, const float* b, const float* c, float* out);
  void (*broadcast)(float x, float* out);
  uint32_t (*lessThan)(const float* a, const float* b);
  uint32_t (*greaterThan)(const float* a, const float* b);
  uint32_t (*isNan)(const float* a);
  uint32_t (*firstLanes)(int n);
  uint32_t (*lanesOfBits)(uint32_t bits);
  bool (*any)(uint32_t bits);
  void (*select)(uint32_t bits, const float* yes, const float* no, float* out);
  float (*sumLanes)(const float* a);
  float (*maxLanes)(const float* a);
  void (*loadPart)(const float* p, int n, float* out);
  void (*storePart)(float* p, const float* a, int n);
  void (*loadF16)(const f16* p, float* out);
  void (*storeF16)(f16* p, const float* a);
  void (*loadPartF16)(const f16* p, int n, float* out);
  void (*storePartF16)(f16* p, const float* a, int n);
  void (*loadBf16)(const bf16* p, float* out);
  void (*storeBf16)(bf16* p, const float* a);
  void (*loadPartBf16)(const bf16* p, int n, float* out);
  void (*storePartBf16)(bf16* p, const float* a, int n);
  IntBinary addInt, subInt;
  void (*shiftLeft)(const int32_t* a, int n, int32_t* out);
  void (*shiftRight)(const int32_t* a, int n, int32_t* out);
  void (*toFloat)(const int32_t* a, float* out);
  void (*toInt)(const float* a, int32_t* out);
  void (*storeBytes)(int8_t* p, const int32_t* a);
  void (*loadSigned)(const int8_t* p, float* out);
  void (*loadUnsigned)(const uint8_t* p, float* out);
};

}  // namespace tl::test
