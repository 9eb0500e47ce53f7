// Where things lie inside a group of a PackedWeight, for packing and matmul of one target. A group holds kLanes rows:
//
//   float formats   [columns][kLanes] elements
//   others          blocks of 32 columns, one behind the other, so that a group is read as one stream. A block is
//                     scales [parts][kLanes], minima [parts][kLanes] if any, f16 or f32, parts = 32 / blockSize, then
//     int4            [4][kLanes][4] bytes: byte (v, r, c) = column 4v + c | column 16 + 4v + c << 4 of row r
//     int8            [8][kLanes][4] bytes: byte (v, r, c) = column 4v + c of row r, ^ kByteBias
//
// Groups start at multiples of 64 bytes; vectors inside have no alignment. Include after simd/target.h.
#pragma once

#include "../simd/dot.h"
#include "packed_weight.h"

namespace tl::TL_TARGET {

constexpr int64_t kVectorBytes = int64_t(kLanes) * 4;

TL_INLINE bool isInteger(PackFormat format) { return format == PackFormat::int4 || format == PackFormat::int8; }

TL_INLINE int64_t floatElementBytes(PackFormat format) { return format == PackFormat::float32 ? 4 : 2; }

// Bytes inside a group of an integer format.
struct PackedLayout {
  int64_t blocks, parts, vectors /* a block */, scaleBytes;
  int64_t minima, bytes, blockBytes;  // where a block's minima and vectors start, and its size
};

TL_INLINE PackedLayout layoutOf(const PackedWeight& weight) {
  PackedLayout layout;
  layout.blocks = weight.columns / 32;
  layout.parts = 32 / weight.blockSize;
  layout.vectors = weight.format == PackFormat::int4 ? 4 : 8;
  layout.scaleBytes = weight.wideScale ? 4 : 2;
  layout.minima = layout.parts * kLanes * layout.scaleBytes;
  layout.bytes = layout.minima * (weight.hasMinimum ? 2 : 1);
  layout.blockBytes = layout.bytes + layout.vectors * kVectorBytes;
  return layout;
}

TL_INLINE float scaleAt(const std::byte* p, bool wide) {
  if (!wide) return toFloat(*reinterpret_cast<const f16*>(p));
  return *reinterpret_cast<const float*>(p);
}

}  // namespace tl::TL_TARGET
