// Operands of `attention` and `cachedAttention` as the kernels take them. What can be checked without reading device memory is
// checked here; numbers in it (lengths, block tables, offsets) the kernels hold within bounds.
#pragma once
#include <cmath>

#include "../cpp/kernels/operands.h"
#include "attention_unit.cuh"

namespace tl::cuda {

Status runAttention(const char* op, Problem& problem, DeviceContext& context);

inline bool isWhole(double x) { return x >= 0 && x <= 2147483647.0 && x == std::floor(x); }

template <typename... Dims> Status checkFloats(const char* op, const char* name, const View& view, Dims... dims) {
  const int64_t list[] = {int64_t(dims)...};
  if (!isFloat(view.dtype)) return argumentError(op, name, "must be f32, f16 or bf16", int64_t(view.dtype));
  return checkDims(op, name, view, int(sizeof...(dims)), list);
}

// [batch, heads, tokens, …] as Strided.
inline Strided strided(const View& view) {
  return view.present() ? Strided{view.as<std::byte>(), view.dtype, view.strides[0], view.strides[1], view.strides[2]} : Strided{};
}

}  // namespace tl::cuda
