// Quantises one row of activations to q8 (quantized_rows.h), for kernels whose output feeds an integer matmul. Include
// after simd/target.h.
#pragma once

#include "quantized_rows.h"

namespace tl::TL_TARGET {

// Thirty-two values at x to block `block` of `row`. Every block is computed by itself: the result does not depend on how
// a caller cuts a row.
TL_INLINE void quantizeBlock(const float* x, QuantizedRow row, int64_t block) {
  constexpr int kSteps = int(kQuantBlock) / kLanes;
  F32 value[kSteps], largest = zero(), spoiled = zero();
  for (int i = 0; i < kSteps; ++i) {
    value[i] = load(x + i * kLanes);
    largest = max(abs(value[i]), largest);
    spoiled = mulAdd(value[i], zero(), spoiled);  // NaN where a value is NaN or infinite
  }
  const float peak = maxLanes(largest);
  const bool finite = !any(isNan(spoiled));
  const bool empty = !finite || peak < 0x1p-100f;
  const float scale = finite ? (empty ? 0.0f : peak / 127.0f) : std::numeric_limits<float>::quiet_NaN();
  const F32 inverse = broadcast(empty ? 0.0f : 127.0f / peak);
  I32 half[2] = {zeroInt(), zeroInt()};
  for (int i = 0; i < kSteps; ++i) {
    const I32 q = empty ? zeroInt() : toInt(mul(value[i], inverse));
    half[i * kLanes / 16] = add(half[i * kLanes / 16], q);
    storeBytes(row.q + block * kQuantBlock + i * kLanes, q);
  }
  const float first = sumLanes(toFloat(half[0])), second = sumLanes(toFloat(half[1]));  // small integers: exact
  row.scale[block] = scale;
  row.scaledSum[block] = scale * (first + second);
  row.sum[2 * block] = int16_t(first);
  row.sum[2 * block + 1] = int16_t(second);
}

// x [columns] to the q8 row `row`.
inline void quantizeRow(const float* x, int64_t columns, QuantizedRow row) {
  const int64_t whole = columns / kQuantBlock, rest = columns % kQuantBlock;
  for (int64_t block = 0; block < whole; ++block) quantizeBlock(x + block * kQuantBlock, row, block);
  if (rest == 0) return;
  float last[kQuantBlock] = {};
  std::memcpy(last, x + whole * kQuantBlock, size_t(rest) * sizeof(float));
  quantizeBlock(last, row, whole);
}

}  // namespace tl::TL_TARGET
