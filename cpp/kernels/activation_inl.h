// Activations as functors on vectors, by the numbers of args.h. Included after simd/target.h.
#pragma once
#include "../core/status.h"

namespace tl::TL_TARGET {

struct Silu { TL_INLINE F32 operator()(F32 x) const { return div(x, add(broadcast(1.0f), exp(sub(zero(), x)))); } };
// ½x(1 + tanh(u)) = x · sigmoid(2u), u = √(2/π)(x + 0.044715x³)
struct GeluTanh {
  TL_INLINE F32 operator()(F32 x) const {
    const F32 cubic = mulAdd(mul(x, x), broadcast(0.044715f), broadcast(1.0f));
    return div(x, add(broadcast(1.0f), exp(mul(mul(x, cubic), broadcast(-1.5957691216057308f)))));
  }
};
// xΦ(x) = max(x, 0) − a·Φ(−a), a = |x|. Φ(−a) = 2^(s(a) − a²/(2 ln 2)) with s ≈ log₂ Φ(−a) + a²/(2 ln 2), which is smooth: three fifths of
// what erf and its exp cost. The polynomials are minimax fits of our own, s for the error of a·Φ(−a) on [0, 5.75]. Within 2.5e-7 · max(1, |x|).
struct Gelu {
  TL_INLINE F32 operator()(F32 x) const {
    const F32 magnitude = abs(x), near = min(broadcast(5.75f), magnitude);
    F32 s = broadcast(5.184957444726024e-6f);
    s = mulAdd(s, near, broadcast(-2.272178971907124e-5f));
    s = mulAdd(s, near, broadcast(-5.336743779480457e-4f));
    s = mulAdd(s, near, broadcast(7.583160884678364e-3f));
    s = mulAdd(s, near, broadcast(-5.2855901420116425e-2f));
    s = mulAdd(s, near, broadcast(0.262257844209671f));
    s = mulAdd(s, near, broadcast(-1.1511194705963135f));
    s = mulAdd(s, near, broadcast(-0.9999997019767761f));
    // 2^-127 is 0 as the bits below make it: nothing is left of what lies far out.
    const F32 power = max(broadcast(-127.0f), mulAdd(mul(magnitude, magnitude), broadcast(-0.72134752044448171f), s));
    const I32 whole = toInt(power);
    const F32 r = sub(power, toFloat(whole));
    F32 p = broadcast(0.001327647129073739f);
    p = mulAdd(p, r, broadcast(0.009675540961325169f));
    p = mulAdd(p, r, broadcast(0.05550713092088699f));
    p = mulAdd(p, r, broadcast(0.24022120237350464f));
    p = mulAdd(p, r, broadcast(0.6931469440460205f));
    p = mulAdd(p, r, broadcast(1.0000001192092896f));
    const F32 tail = mul(mul(p, near), asFloat(shiftLeft(add(whole, broadcast(int32_t(127))), 23)));
    return sub(max(zero(), x), tail);
  }
};
struct Relu { TL_INLINE F32 operator()(F32 x) const { return max(zero(), x); } };  // second operand x: NaN stays
struct Sigmoid { TL_INLINE F32 operator()(F32 x) const { return sigmoid(x); } };
struct QuickGelu { TL_INLINE F32 operator()(F32 x) const { return div(x, add(broadcast(1.0f), exp(mul(x, broadcast(-1.702f))))); } };
struct Tanh { TL_INLINE F32 operator()(F32 x) const { return tanh(x); } };

// Calls f with the functor of `kind`.
template <typename Function> Status withActivation(const char* op, double kind, Function&& f) {
  if (kind == 0) return f(Silu{});
  if (kind == 1) return f(GeluTanh{});
  if (kind == 2) return f(Gelu{});
  if (kind == 3) return f(Relu{});
  if (kind == 4) return f(Sigmoid{});
  if (kind == 5) return f(Tanh{});
  if (kind == 6) return f(QuickGelu{});
  return argumentError(op, "kind", "is no activation");
}

}  // namespace tl::TL_TARGET
