// What the integer and the float matmul share: checked operands, and how a finished tile leaves. Include after
// simd/target.h.
#pragma once

#include "float_tile_inl.h"
#include "packed_layout_inl.h"
#include "table.h"

namespace tl::TL_TARGET {

constexpr int64_t kAheadBytes = 3072;  // what a stream of weights fetches before it is read: the processor alone fetches too late

// Operands after all checks; strides in elements, those of x in bytes.
struct MatmulRows {
  const PackedWeight* weight;
  const std::byte* x;
  int64_t xStride, n;
  const float *bias, *residual;
  int64_t residualStride;
  float* out;
  int64_t outStride;
  double activation;  // 0 none, else 1 + kind
};

Status matmulFloat(const MatmulRows& rows, Context& context);

// Applies the activation to finished rows of `group`, while they are still close.
void activateGroup(const MatmulRows& rows, int64_t group, int64_t token, int64_t tokens);

// out[token, the rows of `group`] = sum + bias + residual, in this order.
TL_INLINE void finish(const MatmulRows& rows, int64_t token, int64_t group, F32 sum) {
  const int64_t first = group * kLanes, left = rows.weight->rows - first;
  float* out = rows.out + token * rows.outStride + first;
  if (left >= kLanes) {
    if (rows.bias) sum = add(sum, load(rows.bias + first));
    if (rows.residual) sum = add(sum, load(rows.residual + token * rows.residualStride + first));
    store(out, sum);
    return;
  }
  if (left <= 0) return;
  if (rows.bias) sum = add(sum, loadPart(rows.bias + first, int(left)));
  if (rows.residual) sum = add(sum, loadPart(rows.residual + token * rows.residualStride + first, int(left)));
  storePart(out, sum, int(left));
}

}  // namespace tl::TL_TARGET
