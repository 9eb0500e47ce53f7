// Quantises rows: activations to q8 (quantized_rows.h) for the integer matmul that follows, cached tokens to int8 and int4
// (arXiv 2303.06865, 2402.02750). Include after simd/target.h.
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

// The same of kLanes blocks: what is horizontal in one is vertical in many. False, and nothing done, where a value is NaN or infinite.
TL_INLINE bool quantizeBlocks(const float* x, QuantizedRow row, int64_t block) {
  constexpr int kSteps = int(kQuantBlock) / kLanes;
  F32 lanes[kLanes], second[kLanes], spoiled = zero();
  for (int b = 0; b < kLanes; ++b) {
    lanes[b] = zero();
    for (int i = 0; i < kSteps; ++i) {
      const F32 value = load(x + b * kQuantBlock + i * kLanes);
      lanes[b] = max(abs(value), lanes[b]);
      spoiled = mulAdd(value, zero(), spoiled);
    }
  }
  if (any(isNan(spoiled))) return false;
  const F32 peak = maximumOfEach(lanes);
  const Mask empty = lessThan(peak, broadcast(0x1p-100f));
  const F32 scale = select(empty, zero(), div(peak, broadcast(127.0f)));
  alignas(64) float inverse[kLanes], sums[2][kLanes];
  store(inverse, select(empty, zero(), div(broadcast(127.0f), peak)));
  for (int b = 0; b < kLanes; ++b) {
    I32 half[2] = {zeroInt(), zeroInt()};
    for (int i = 0; i < kSteps; ++i) {
      const int64_t at = b * kQuantBlock + i * kLanes;
      const I32 q = toInt(mul(load(x + at), broadcast(inverse[b])));
      half[i * kLanes / 16] = add(half[i * kLanes / 16], q);
      storeBytes(row.q + block * kQuantBlock + at, q);
    }
    lanes[b] = toFloat(half[0]), second[b] = toFloat(half[1]);
  }
  const F32 first = sumOfEach(lanes), last = sumOfEach(second);
  store(row.scale + block, scale);
  store(row.scaledSum + block, mul(scale, add(first, last)));
  store(sums[0], first);
  store(sums[1], last);
  for (int b = 0; b < kLanes; ++b)
    for (int part = 0; part < 2; ++part) row.sum[2 * (block + b) + part] = int16_t(sums[part][b]);
  return true;
}

// x [columns] to the q8 row `row`.
inline void quantizeRow(const float* x, int64_t columns, QuantizedRow row) {
  const int64_t whole = columns / kQuantBlock, rest = columns % kQuantBlock;
  for (int64_t block = 0; block < whole;) {
    if (block + kLanes <= whole && quantizeBlocks(x + block * kQuantBlock, row, block)) block += kLanes;
    else for (const int64_t end = std::min<int64_t>(block + kLanes, whole); block < end; ++block) quantizeBlock(x + block * kQuantBlock, row, block);
  }
  if (rest == 0) return;
  float last[kQuantBlock] = {};
  std::memcpy(last, x + whole * kQuantBlock, size_t(rest) * sizeof(float));
  quantizeBlock(last, row, whole);
}

// x [n] to q = round-half-even(x / scale), −127 … 127; answers scale = max |x| / 127. A row of zeros: 0.
inline float quantizeInt8(const float* x, int64_t n, int8_t* q) {
  F32 largest = zero();
  for (int64_t i = 0; i < n; i += kLanes) largest = max(abs(n - i >= kLanes ? load(x + i) : loadPart(x + i, int(n - i))), largest);
  const float scale = maxLanes(largest) / 127;
  for (int64_t i = 0; i < n; i += kLanes) {
    const int part = int(std::min<int64_t>(n - i, kLanes));
    const F32 value = part == kLanes ? load(x + i) : loadPart(x + i, part);
    const I32 lanes = scale > 0 ? toInt(div(value, broadcast(scale))) : zeroInt();
    if (part == kLanes) {
      storeBytes(q + i, lanes);
      continue;
    }
    int8_t last[kLanes];
    storeBytes(last, lanes);
    std::memcpy(q + i, last, size_t(part));
  }
  return scale;
}

// x [n ≤ kInt4Group] to q = round-half-even((x − minimum) / scale), 0 … 15, one a byte; scale = (max − min) / 15.
inline void quantizeInt4(const float* x, int n, int8_t* q, float& scale, float& minimum) {
  minimum = x[0];
  float largest = x[0];
  for (int i = 1; i < n; ++i) {
    minimum = std::min(minimum, x[i]);
    largest = std::max(largest, x[i]);
  }
  scale = (largest - minimum) / 15;
  for (int i = 0; i < n; i += kLanes) {
    const int part = std::min(n - i, kLanes);
    const F32 value = part == kLanes ? load(x + i) : loadPart(x + i, part);
    int8_t lanes[kLanes];
    storeBytes(lanes, scale > 0 ? toInt(div(sub(value, broadcast(minimum)), broadcast(scale))) : zeroInt());
    std::memcpy(q + i, lanes, size_t(part));
  }
}

}  // namespace tl::TL_TARGET
