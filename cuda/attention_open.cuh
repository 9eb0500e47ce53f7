// Operands of `attention` and `cachedAttention` as the kernels take them. What can be checked without reading device memory is
// checked here; numbers in it (lengths, block tables, offsets) the kernels hold within bounds.
#pragma once
#include <cmath>

#include "attention_unit.cuh"

namespace tl::cuda {

Status runAttention(const char* op, Problem& problem, DeviceContext& context);

inline bool isFloat(DType type) { return type == DType::f32 || type == DType::f16 || type == DType::bf16; }
inline bool isWhole(double x) { return x >= 0 && x <= 2147483647.0 && x == std::floor(x); }

inline Status checkDims(const char* op, const char* name, const View& view, int rank, const int64_t* dims) {
  if (view.rank != rank) return shapeError(op, name, "has another rank than expected", rank, view.rank);
  for (int i = 0; i < rank; ++i)
    if (dims[i] >= 0 && view.dims[i] != dims[i]) return shapeError(op, name, "has another dimension than expected", dims[i], view.dims[i]);
  if (rank > 0 && view.dims[rank - 1] > 1 && view.strides[rank - 1] != 1) return argumentError(op, name, "must be contiguous along its last axis", view.strides[rank - 1]);
  return {};
}
// −1 = any size.
template <typename... Dims> Status checkType(const char* op, const char* name, const View& view, DType type, Dims... dims) {
  const int64_t list[] = {int64_t(dims)...};
  if (view.dtype != type) return argumentError(op, name, "has another element type than expected", int64_t(view.dtype));
  return checkDims(op, name, view, int(sizeof...(dims)), list);
}
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
