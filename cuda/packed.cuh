// A weight as cpp/kernels/packed_layout_inl.h lays it out, read where it lies: groups of 4, 8 or 16 rows side by side, which is
// how neighbouring threads want them.
#pragma once
#include "core/device.cuh"

namespace tl::cuda {

struct Packed {
  const std::byte* data;
  int64_t rows, columns, groupBytes;
  PackFormat format;
  int32_t groupRows, parts, scaleBytes, minima /* bytes to a block's minima */, bytes /* and to its vectors */, blockBytes;
  uint32_t bias;
  bool hasMinimum;

  __device__ const std::byte* group(int64_t g) const { return data + g * groupBytes; }
  __device__ float scaleAt(const std::byte* p) const { return scaleBytes == 4 ? *reinterpret_cast<const float*>(p) : asFloat(*reinterpret_cast<const f16*>(p)); }
  // Of row `lane` of a group, block `block`.
  __device__ float scale(const std::byte* block, int part, int lane) const { return scaleAt(block + (part * groupRows + lane) * scaleBytes); }
  __device__ float minimum(const std::byte* block, int part, int lane) const {
    return hasMinimum ? scaleAt(block + minima + (part * groupRows + lane) * scaleBytes) : format == PackFormat::int4 ? scale(block, part, lane) * -8.0f : 0.0f;
  }
  // Four signed bytes: columns 4v … 4v + 3 of the block, v = 0 … 7.
  __device__ uint32_t columnsOf(const std::byte* block, int v, int lane) const {
    const auto* words = reinterpret_cast<const uint32_t*>(block + bytes);
    if (format != PackFormat::int4) return words[v * groupRows + lane] ^ bias;
    const uint32_t word = words[v % 4 * groupRows + lane];
    return (v < 4 ? word : word >> 4) & 0x0f0f0f0fu;
  }
  __device__ float element(int64_t row, int64_t column) const {
    const std::byte* g = group(row / groupRows);
    const int lane = int(row % groupRows);
    switch (format) {
      case PackFormat::float32: return reinterpret_cast<const float*>(g)[column * groupRows + lane];
      case PackFormat::float16: return asFloat(reinterpret_cast<const f16*>(g)[column * groupRows + lane]);
      case PackFormat::bfloat16: return asFloat(reinterpret_cast<const bf16*>(g)[column * groupRows + lane]);
      default: break;
    }
    const std::byte* block = g + column / 32 * blockBytes;
    const int j = int(column % 32), part = j * parts / 32;
    const float q = float(int8_t(columnsOf(block, j / 4, lane) >> (8 * (j % 4))));
    if (hasMinimum) return __fadd_rn(__fmul_rn(scale(block, part, lane), q), minimum(block, part, lane));
    return scale(block, part, lane) * (format == PackFormat::int4 ? q - 8 : q);
  }
};

inline bool isInteger(PackFormat format) { return format == PackFormat::int4 || format == PackFormat::int8; }

inline Status openPacked(const char* op, const char* name, const View& view, Packed& packed) {
  if (view.dtype != DType::packed || !view.data) return argumentError(op, name, "must be a packed weight", int64_t(view.dtype));
  const auto& weight = *view.as<const DeviceWeight>();
  packed = {};
  packed.data = weight.data;
  packed.rows = weight.rows, packed.columns = weight.columns, packed.groupBytes = weight.groupBytes;
  packed.format = weight.format;
  packed.groupRows = weight.groupRows;
  packed.hasMinimum = weight.hasMinimum;
  packed.bias = weight.byteBias * 0x01010101u;
  if (!isInteger(weight.format)) return {};
  packed.parts = 32 / weight.blockSize;
  packed.scaleBytes = weight.wideScale ? 4 : 2;
  packed.minima = packed.parts * packed.groupRows * packed.scaleBytes;
  packed.bytes = packed.minima * (weight.hasMinimum ? 2 : 1);
  packed.blockBytes = packed.bytes + (weight.format == PackFormat::int4 ? 4 : 8) * packed.groupRows * 4;
  return {};
}

}  // namespace tl::cuda
