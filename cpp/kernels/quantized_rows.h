// Rows of activations quantised to 8 bits in blocks of 32 (dtype q8), the left operand of integer matmuls. A row of
// `columns` elements takes blocks = ceil(columns / 32) blocks; a value is x ≈ scale[block] · q. One row, contiguous:
//   int8  q[blocks · 32]        (elements past `columns` are zero)
//   f32   scale[blocks]         = max|x| / 127
//   f32   scaledSum[blocks]     = scale · Σ q, what a weight's minimum is multiplied with
//   i16   sum[2 · blocks]       = Σ q over each half block of 16
// padded to a multiple of 64 bytes. q = round-to-nearest-even(x · (127 / max|x|)), so |q| ≤ 127.
// A block with max|x| < 2^-100 becomes zeros with scale 0. A block that holds NaN or infinity gets q = 0 and scale NaN: it
// spoils its own row of a product, and no other.
#pragma once
#include <cstdint>

#include "../core/checked.h"

#if defined(__CUDACC__)  // the CUDA twins write and read the same rows
#define TL_ANYWHERE __host__ __device__
#else
#define TL_ANYWHERE
#endif

namespace tl {

constexpr int64_t kQuantBlock = 32;
constexpr int64_t quantBlocks(int64_t columns) { return ceilDiv(columns, kQuantBlock); }
constexpr int64_t quantizedRowBytes(int64_t columns) { return roundUp(quantBlocks(columns) * 44, 64); }

struct QuantizedRow {
  int8_t* q;
  float* scale;
  float* scaledSum;
  int16_t* sum;
};

TL_ANYWHERE inline QuantizedRow quantizedRow(void* data, int64_t columns, int64_t row) {
  auto* base = static_cast<int8_t*>(data) + row * quantizedRowBytes(columns);
  const int64_t blocks = quantBlocks(columns);
  auto* scale = reinterpret_cast<float*>(base + blocks * kQuantBlock);
  return {base, scale, scale + blocks, reinterpret_cast<int16_t*>(scale + 2 * blocks)};
}

}  // namespace tl
