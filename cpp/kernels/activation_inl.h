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
struct Gelu {  // ½x(1 + erf(x/√2))
  TL_INLINE F32 operator()(F32 x) const {
    const F32 half = mul(x, broadcast(0.5f));
    return mulAdd(half, erf(mul(x, broadcast(0.70710678118654752f))), half);
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
