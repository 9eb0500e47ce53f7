// What the integer and the float matmul share: checked operands, and how a finished tile leaves. Include after
// simd/target.h.
#pragma once

#include "packed_layout_inl.h"
#include "table.h"

#if defined(TL_TARGET_SCALAR) || defined(TL_EMULATE_X86)
#define TL_UNROLL  // vectors are loops themselves here: unrolling these as well takes the compiler minutes
#else
#define TL_UNROLL _Pragma("GCC unroll 16")
#endif

// Keeps a tile a function of its own: inlined into a large one, its sums would not stay in registers.
#define TL_NOINLINE __attribute__((noinline))

namespace tl::TL_TARGET {

// Operands after all checks; strides in elements, those of x in bytes.
struct MatmulRows {
  const PackedWeight* weight;
  const std::byte* x;
  int64_t xStride, n;
  const float *bias, *residual;
  int64_t residualStride;
  float* out;
  int64_t outStride;
};

Status matmulFloat(const MatmulRows& rows, Context& context);

constexpr int kGroups = kLanes <= 4 ? 4 : 2;  // groups of a tile: with its tokens they fill the registers

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
