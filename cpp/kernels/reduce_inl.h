// What kernels over sequences of tokens share: bounds, contiguous operands, directions of rows. Included after simd/target.h.
#pragma once

#include "rows_inl.h"

namespace tl::TL_TARGET {

// Where sequences begin among rows: bounds i32 [count + 1].
struct Sequences {
  const int32_t* bounds = nullptr;
  int64_t count = 0;

  Status open(const char* op, const char* name, const View& view, int64_t rows) {
    int32_t* data;
    if (view.rank != 1) return argumentError(op, name, "must be one row of i32", view.rank);
    TL_TRY(flat(op, name, view, DType::i32, 1, data));
    bounds = data;
    count = view.count() - 1;
    if (data[0] != 0 || data[count] > rows) return argumentError(op, name, "must begin with 0 and end within the rows", data[count]);
    for (int64_t s = 0; s < count; ++s)
      if (data[s] > data[s + 1]) return argumentError(op, name, "must not fall", data[s + 1]);
    return {};
  }
  int64_t begin(int64_t s) const { return bounds[s]; }
  int64_t length(int64_t s) const { return bounds[s + 1] - bounds[s]; }
  int64_t rows() const { return bounds[count]; }
};

// Rows of tokens, and where sequences begin among them.
inline Status tokenRows(const char* op, const char* name, const View& view, const View& bounds, FloatRows& rows, Sequences& sequences) {
  TL_TRY(floatRows(op, name, view, rows));
  return sequences.open(op, "bounds", bounds, rows.rows);
}

// What makes a direction of a row: its 2-norm; 1 for a row of zeros, which stays.
inline float normOf(const float* x, int64_t n) {
  const float norm = std::sqrt(sumRow(x, n, [](F32 v) { return mul(v, v); }));
  return norm > 0 ? norm : 1.0f;
}

// out = x / ‖x‖, x itself allowed.
inline void writeUnit(const float* x, float* out, int64_t n) {
  const F32 divisor = broadcast(normOf(x, n));
  mapRow(x, out, n, [=](F32 v) { return div(v, divisor); });
}

// The larger one of each lane; NaN stays, whichever side it is on.
TL_INLINE F32 largerOf(F32 v, F32 most) { return select(isNan(v), v, max(v, most)); }

}  // namespace tl::TL_TARGET
