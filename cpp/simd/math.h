// exp, tanh, sigmoid … once for all targets, on the vector types. Error bounds are tested in test/native against double.
#pragma once

namespace tl::TL_TARGET {

// exp(x): x = n ln2 + r, |r| ≤ ln2/2, e^r by a polynomial of degree 6. Relative error < 2e-7 where the result is normal;
// +0 below −103.97, +infinity above 88.72, NaN stays NaN. exp(0) = 1 exactly.
TL_INLINE F32 exp(F32 x) {
  const F32 clamped = min(broadcast(89.0f), max(broadcast(-104.0f), x));  // the second operand rules for NaN: see scalar.h
  const F32 n = roundEven(mul(clamped, broadcast(1.44269504088896341f)));
  F32 r = mulAdd(n, broadcast(-0.693145751953125f), clamped);  // ln2 in two parts: n times the first is exact
  r = mulAdd(n, broadcast(-1.42860682030941723e-6f), r);
  F32 p = broadcast(1.0f / 720);
  p = mulAdd(p, r, broadcast(1.0f / 120));
  p = mulAdd(p, r, broadcast(1.0f / 24));
  p = mulAdd(p, r, broadcast(1.0f / 6));
  p = mulAdd(p, r, broadcast(0.5f));
  p = mulAdd(p, r, broadcast(1.0f));
  p = mulAdd(p, r, broadcast(1.0f));
  // 2^n in two factors, so that results near the ends are rounded once, into denormals or infinity.
  const I32 half = toInt(roundEven(mul(n, broadcast(0.5f))));
  const I32 rest = toInt(sub(n, toFloat(half)));
  const F32 first = asFloat(shiftLeft(add(half, broadcast(int32_t(127))), 23)), second = asFloat(shiftLeft(add(rest, broadcast(int32_t(127))), 23));
  return mul(mul(p, first), second);
}

TL_INLINE F32 sigmoid(F32 x) { return div(broadcast(1.0f), add(broadcast(1.0f), exp(sub(zero(), x)))); }

// tanh(x) = sign(x) (1 − e) / (1 + e), e = exp(−2|x|); a polynomial near 0 where that would cancel.
TL_INLINE F32 tanh(F32 x) {
  const F32 magnitude = abs(x), e = exp(mul(magnitude, broadcast(-2.0f)));
  const F32 far = div(sub(broadcast(1.0f), e), add(broadcast(1.0f), e));
  const F32 x2 = mul(x, x);
  F32 p = broadcast(-0.0218694885f);
  p = mulAdd(p, x2, broadcast(0.0539682540f));
  p = mulAdd(p, x2, broadcast(-0.1333333333f));
  const F32 near = mulAdd(mul(mulAdd(p, x2, broadcast(0.3333333333f)), x2), sub(zero(), magnitude), magnitude);
  return copySign(select(lessThan(magnitude, broadcast(0.25f)), near, far), x);
}

}  // namespace tl::TL_TARGET
