// Compiled once per target.
#include "simd_probe.h"

#include "../../cpp/simd/target.h"

namespace tl::TL_TARGET {

#define TL_UNARY(name) [](const float* a, float* out) { store(out, name(load(a))); }
#define TL_BINARY(name) [](const float* a, const float* b, float* out) { store(out, name(load(a), load(b))); }
#define TL_COMPARE(name) [](const float* a, const float* b) { return bitsOfLanes(name(load(a), load(b))); }
#define TL_INT(name) [](const int32_t* a, const int32_t* b, int32_t* out) { store(out, name(load(a), load(b))); }
#define TL_SHIFT(name) [](const int32_t* a, int n, int32_t* out) { store(out, name(load(a), n)); }

const test::SimdProbe& simdProbe();
const test::SimdProbe& simdProbe() {
  static constexpr test::SimdProbe probe = {
      kLanes,
      kFusedMulAdd,
      [](const float*, float* out) { store(out, zero()); },
      TL_UNARY(abs), TL_UNARY(sqrt), TL_UNARY(roundEven), TL_UNARY(swapPairs), TL_UNARY(exp), TL_UNARY(sigmoid), TL_UNARY(tanh), TL_UNARY(erf),
      TL_BINARY(add), TL_BINARY(sub), TL_BINARY(mul), TL_BINARY(div), TL_BINARY(max), TL_BINARY(min), TL_BINARY(copySign),
      [](const float* a, const float* b, const float* c, float* out) { store(out, mulAdd(load(a), load(b), load(c))); },
      [](float x, float* out) { store(out, broadcast(x)); },
      TL_COMPARE(lessThan), TL_COMPARE(greaterThan),
      [](const float* a) { return bitsOfLanes(isNan(load(a))); },
      [](int n) { return bitsOfLanes(firstLanes(n)); },
      [](uint32_t bits) { return bitsOfLanes(lanesOfBits(bits)); },
      [](uint32_t bits) { return any(lanesOfBits(bits)); },
      [](uint32_t bits, const float* yes, const float* no, float* out) { store(out, select(lanesOfBits(bits), load(yes), load(no))); },
      [](const float* a) { return sumLanes(load(a)); },
      [](const float* a) { return maxLanes(load(a)); },
      [](const float* p, int n, float* out) { store(out, loadPart(p, n)); },
      [](float* p, const float* a, int n) { storePart(p, load(a), n); },
      [](const f16* p, float* out) { store(out, load(p)); },
      [](f16* p, const float* a) { store(p, load(a)); },
      [](const f16* p, int n, float* out) { store(out, loadPart(p, n)); },
      [](f16* p, const float* a, int n) { storePart(p, load(a), n); },
      [](const bf16* p, float* out) { store(out, load(p)); },
      [](bf16* p, const float* a) { store(p, load(a)); },
      [](const bf16* p, int n, float* out) { store(out, loadPart(p, n)); },
      [](bf16* p, const float* a, int n) { storePart(p, load(a), n); },
      TL_INT(add), TL_INT(sub), TL_SHIFT(shiftLeft), TL_SHIFT(shiftRight),
      [](const int32_t* a, float* out) { store(out, toFloat(load(a))); },
      [](const float* a, int32_t* out) { store(out, toInt(load(a))); },
      [](int8_t* p, const int32_t* a) { storeBytes(p, load(a)); },
      [](const int8_t* p, float* out) { store(out, loadBytes(p)); },
      [](const uint8_t* p, float* out) { store(out, loadBytes(p)); },
  };
  return probe;
}

}  // namespace tl::TL_TARGET
