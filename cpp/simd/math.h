// exp, tanh, sigmoid, erf once for all targets, on the vector types. The polynomials are minimax fits of our own (Remez
// exchange in 40 digits). The bounds stated here are tested in test/native/simd_test.cpp against double.
#pragma once

namespace tl::TL_TARGET {

// exp(x): x = n ln2 + r, |r| ≤ ln2/2, e^r = 1 + r + r² q(r). Within 2 ulp where the result is normal, the nearest or next
// denormal below; +0 below −103.97, +infinity above 88.72, NaN stays NaN. exp(0) = 1 exactly.
TL_INLINE F32 exp(F32 x) {
  const F32 clamped = min(broadcast(89.0f), max(broadcast(-104.0f), x));  // the second operand rules for NaN: see scalar.h
  const I32 whole = toInt(mul(clamped, broadcast(1.44269504088896341f)));
  const F32 n = toFloat(whole);
  F32 r = mulAdd(n, broadcast(-0.693145751953125f), clamped);  // ln2 in two parts: n times the first is exact
  r = mulAdd(n, broadcast(-1.42860682030941723e-6f), r);
  F32 q = broadcast(0.00138145986f);
  q = mulAdd(q, r, broadcast(0.00836871688f));
  q = mulAdd(q, r, broadcast(0.041668388f));
  q = mulAdd(q, r, broadcast(0.166665206f));
  q = mulAdd(q, r, broadcast(0.499999934f));
  const F32 p = add(mulAdd(q, mul(r, r), r), broadcast(1.0f));
  // 2^n in two factors, so that results near the ends are rounded once, into denormals or infinity.
  const I32 half = shiftRight(whole, 1), rest = sub(whole, half), bias = broadcast(int32_t(127));
  return mul(mul(p, asFloat(shiftLeft(add(half, bias), 23))), asFloat(shiftLeft(add(rest, bias), 23)));
}

TL_INLINE F32 sigmoid(F32 x) { return div(broadcast(1.0f), add(broadcast(1.0f), exp(sub(zero(), x)))); }

// tanh(x) = sign(x) (1 − e) / (1 + e), e = exp(−2|x|); x + x³ q(x²) near 0 where that would cancel. Within 3 ulp.
TL_INLINE F32 tanh(F32 x) {
  const F32 magnitude = abs(x), e = exp(mul(magnitude, broadcast(-2.0f)));
  const F32 far = div(sub(broadcast(1.0f), e), add(broadcast(1.0f), e));
  const F32 x2 = mul(x, x);
  F32 q = broadcast(-0.00571704548f);
  q = mulAdd(q, x2, broadcast(0.0206505877f));
  q = mulAdd(q, x2, broadcast(-0.0537434982f));
  q = mulAdd(q, x2, broadcast(0.133314913f));
  q = mulAdd(q, x2, broadcast(-0.333332839f));
  const F32 near = mulAdd(mul(q, x2), magnitude, magnitude);
  return copySign(select(lessThan(magnitude, broadcast(0.625f)), near, far), x);
}

// erf(x) = x p(x²) below 0.9, else sign(x) (1 − exp(q(|x|))), q ≈ log erfc; 1 beyond 4. Within 3 ulp.
TL_INLINE F32 erf(F32 x) {
  const F32 magnitude = abs(x), x2 = mul(x, x);
  F32 p = broadcast(-0.00060903605f);
  p = mulAdd(p, x2, broadcast(0.00501196292f));
  p = mulAdd(p, x2, broadcast(-0.026778909f));
  p = mulAdd(p, x2, broadcast(0.112821408f));
  p = mulAdd(p, x2, broadcast(-0.376125233f));
  p = mulAdd(p, x2, broadcast(1.12837915f));
  const F32 near = mul(magnitude, p), clamped = min(broadcast(4.0f), magnitude);
  F32 q = broadcast(0.000197180875f);
  q = mulAdd(q, clamped, broadcast(-0.00305559941f));
  q = mulAdd(q, clamped, broadcast(0.0222770554f));
  q = mulAdd(q, clamped, broadcast(-0.104037296f));
  q = mulAdd(q, clamped, broadcast(-0.637059824f));
  q = mulAdd(q, clamped, broadcast(-1.12774952f));
  q = mulAdd(q, clamped, broadcast(-0.000177504213f));
  const F32 far = sub(broadcast(1.0f), exp(q));
  return copySign(select(lessThan(magnitude, broadcast(0.9f)), near, far), x);
}

// 2^x = timesPower(2^rest, whole): leaves the rest, |rest| ≤ 1/2, in x. x ≤ 127; below −126 as −126; NaN stays in the rest.
// Adding 1.5 · 2^23 rounds to the nearest integer and leaves it in the low bits, ready for the exponent. Templates, so that a
// target's own functions are preferred.
template <typename Vector> TL_INLINE Vector splitPower(Vector& x) {
  const Vector magic = broadcast(0x1.8p23f), bounded = max(broadcast(-126.0f), x), shifted = add(bounded, magic);
  x = sub(bounded, sub(shifted, magic));
  return shifted;
}
template <typename Vector> TL_INLINE Vector timesPower(Vector a, Vector shifted) { return asFloat(add(asInt(a), shiftLeft(asInt(shifted), 23))); }

// Lane i: all lanes of rows[i] combined, in the order of maxLanes and sumLanes.
template <int N, typename Combine> TL_INLINE F32 lanesOfEach(F32 (&rows)[N], Combine combine) {
  transpose(rows);
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) rows[i] = combine(rows[i], rows[i + half]);
  return rows[0];
}
TL_INLINE F32 maximumOfEach(F32 (&rows)[kLanes]) { return lanesOfEach(rows, [](F32 a, F32 b) { return max(a, b); }); }
TL_INLINE F32 sumOfEach(F32 (&rows)[kLanes]) { return lanesOfEach(rows, [](F32 a, F32 b) { return add(a, b); }); }

}  // namespace tl::TL_TARGET
