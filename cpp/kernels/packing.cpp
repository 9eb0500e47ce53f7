// Repacks stored weight rows for this target's matmul, and reads single rows back. Layout: packed_layout_inl.h.
#include "../simd/target.h"
#include "dequantize_inl.h"
#include "packed_layout_inl.h"

namespace tl::TL_TARGET {
namespace {

struct Form { PackFormat format; int32_t blockSize; bool hasMinimum, wideScale; };

Form formOf(Storage storage) {
  switch (storage) {
    case Storage::f32: return {PackFormat::float32, 0, false, false};
    case Storage::f16: return {PackFormat::float16, 0, false, false};
    case Storage::bf16: return {PackFormat::bfloat16, 0, false, false};
    case Storage::q4_0: return {PackFormat::int4, 32, false, false};
    case Storage::q4_1: return {PackFormat::int4, 32, true, false};
    case Storage::q4_k: return {PackFormat::int4, 32, true, true};
    case Storage::q2_k: return {PackFormat::int4, 16, true, true};
    case Storage::q3_k: return {PackFormat::int4, 16, false, true};
    case Storage::q5_1: return {PackFormat::int8, 32, true, false};
    case Storage::q5_k: return {PackFormat::int8, 32, true, true};
    case Storage::q6_k: return {PackFormat::int8, 16, false, true};
    default: return {PackFormat::int8, 32, false, false};  // q5_0, q8_0, iq4_nl
  }
}

Status plan(Storage storage, int64_t rows, int64_t columns, PackedWeight& weight) {
  const int64_t elements = storageBlockElements(storage);
  if (elements == 0) return argumentError("pack", "storage", "is not a known storage type", int64_t(storage));
  if (rows <= 0 || columns <= 0) return argumentError("pack", "shape", "must have rows and columns", std::min(rows, columns));
  if (columns % elements != 0) return shapeError("pack", "columns", "must be a multiple of the storage block", elements, columns);
  const Form form = formOf(storage);
  weight.rows = rows;
  weight.columns = columns;
  weight.format = form.format;
  weight.blockSize = form.blockSize;
  weight.groupRows = kLanes;
  weight.hasMinimum = form.hasMinimum;
  weight.wideScale = form.wideScale;
  weight.isa = kIsa;
  // 8 bytes an element bound every layout: sizes are checked once, here.
  int64_t bound, total;
  if (!checkedMulAdd(columns, 8 * kLanes, 64, bound) || !checkedMulAdd(bound, ceilDiv(rows, kLanes), 0, total))
    return argumentError("pack", "shape", "is too large", rows);
  weight.groupBytes = roundUp(isInteger(form.format) ? layoutOf(weight).blocks * layoutOf(weight).blockBytes : columns * kLanes * floatElementBytes(form.format), 64);
  return {};
}

// One row of a float format into lane `lane` of its group.
template <typename T> void scatterFloats(const uint8_t* source, int64_t columns, std::byte* group, int lane) {
  T* out = reinterpret_cast<T*>(group) + lane;
  for (int64_t c = 0; c < columns; ++c) std::memcpy(out + c * kLanes, source + c * int64_t(sizeof(T)), sizeof(T));
}

void storeScale(std::byte* p, float value, bool wide) {
  if (wide) *reinterpret_cast<float*>(p) = value;
  else *reinterpret_cast<f16*>(p) = toF16(value);
}

// `at`: where the block starts.
void storeBlock(const DecodedBlock& decoded, const PackedWeight& weight, const PackedLayout& layout, std::byte* at, int lane) {
  auto* bytes = reinterpret_cast<uint8_t*>(at + layout.bytes) + lane * 4;
  for (int j = 0; j < 4 * int(layout.vectors); ++j) {
    const uint8_t q = uint8_t(decoded.q[j]);
    bytes[j / 4 * kVectorBytes + j % 4] = layout.vectors == 4 ? uint8_t(q | uint8_t(decoded.q[j + 16]) << 4) : q ^ kByteBias;
  }
  for (int64_t part = 0; part < layout.parts; ++part) {
    std::byte* scale = at + (part * kLanes + lane) * layout.scaleBytes;
    storeScale(scale, decoded.scale[part], weight.wideScale);
    if (weight.hasMinimum) storeScale(scale + layout.minima, decoded.minimum[part], weight.wideScale);
  }
}

// Q4_0 and Q4_1 pair columns in bytes as the packed form does: their bytes move as they are.
void copyNibbleBlock(const uint8_t* source, const PackedLayout& layout, std::byte* at, int lane) {
  const bool hasMinimum = layout.bytes != layout.minima;
  std::memcpy(at + lane * 2, source, 2);
  if (hasMinimum) std::memcpy(at + layout.minima + lane * 2, source + 2, 2);
  const uint8_t* qs = source + (hasMinimum ? 4 : 2);
  for (int v = 0; v < 4; ++v) std::memcpy(at + layout.bytes + v * kVectorBytes + lane * 4, qs + 4 * v, 4);
}

void packRow(Storage storage, const uint8_t* source, const PackedWeight& weight, std::byte* group, int lane) {
  switch (weight.format) {
    case PackFormat::float32: return scatterFloats<float>(source, weight.columns, group, lane);
    case PackFormat::float16: return scatterFloats<f16>(source, weight.columns, group, lane);
    case PackFormat::bfloat16: return scatterFloats<bf16>(source, weight.columns, group, lane);
    default: break;
  }
  const PackedLayout layout = layoutOf(weight);
  const bool copies = storage == Storage::q4_0 || storage == Storage::q4_1;
  for (int64_t block = 0; block < layout.blocks; ++block) {
    if (copies) {
      copyNibbleBlock(source + block * storageBlockBytes(storage), layout, group + block * layout.blockBytes, lane);
      continue;
    }
    DecodedBlock decoded;
    decodeColumns(storage, source, block, decoded);
    storeBlock(decoded, weight, layout, group + block * layout.blockBytes, lane);
  }
}

void zeroRow(const PackedWeight& weight, std::byte* group, int lane) {
  if (!isInteger(weight.format)) {
    const int64_t bytes = floatElementBytes(weight.format);
    for (int64_t c = 0; c < weight.columns; ++c) std::memset(group + (c * kLanes + lane) * bytes, 0, size_t(bytes));
    return;
  }
  const PackedLayout layout = layoutOf(weight);
  const DecodedBlock nothing = {};
  for (int64_t block = 0; block < layout.blocks; ++block) storeBlock(nothing, weight, layout, group + block * layout.blockBytes, lane);
}

void pack(Storage storage, const void* source, int64_t rowBegin, int64_t count, PackedWeight& weight) {
  const auto* bytes = static_cast<const uint8_t*>(source);
  const int64_t rowBytes = weight.columns / storageBlockElements(storage) * storageBlockBytes(storage);
  for (int64_t row = rowBegin; row < rowBegin + count; ++row)
    packRow(storage, bytes + (row - rowBegin) * rowBytes, weight, weight.buffer.as() + row / kLanes * weight.groupBytes, int(row % kLanes));
  if (rowBegin + count != weight.rows || weight.rows % kLanes == 0) return;
  for (int lane = int(weight.rows % kLanes); lane < kLanes; ++lane)
    zeroRow(weight, weight.buffer.as() + weight.rows / kLanes * weight.groupBytes, lane);
}

template <typename T> void gatherFloats(const std::byte* group, int64_t columns, int lane, float* out) {
  const T* values = reinterpret_cast<const T*>(group) + lane;
  for (int64_t c = 0; c < columns; ++c) out[c] = tl::toFloat(values[c * kLanes]);
}

void unpackRow(const PackedWeight& weight, int64_t row, float* out) {
  const std::byte* group = weight.buffer.as() + row / kLanes * weight.groupBytes;
  const int lane = int(row % kLanes);
  switch (weight.format) {
    case PackFormat::float32: return gatherFloats<float>(group, weight.columns, lane, out);
    case PackFormat::float16: return gatherFloats<f16>(group, weight.columns, lane, out);
    case PackFormat::bfloat16: return gatherFloats<bf16>(group, weight.columns, lane, out);
    default: break;
  }
  const PackedLayout layout = layoutOf(weight);
  const bool four = weight.format == PackFormat::int4;
  for (int64_t column = 0; column < weight.columns; ++column) {
    const int64_t j = column % 32, part = j * layout.parts / 32, k = four ? j % 16 : j;
    const std::byte* at = group + column / 32 * layout.blockBytes;
    const uint8_t byte = uint8_t(at[layout.bytes + k / 4 * kVectorBytes + lane * 4 + k % 4]);
    const std::byte* scale = at + (part * kLanes + lane) * layout.scaleBytes;
    const int q = four ? (j < 16 ? byte & 15 : byte >> 4) - (weight.hasMinimum ? 0 : 8) : int8_t(byte ^ kByteBias);
    const float product = scaleAt(scale, weight.wideScale) * float(q);
    out[column] = weight.hasMinimum ? product + scaleAt(scale + layout.minima, weight.wideScale) : product;
  }
}

}  // namespace

extern const PackingKernels packingKernels;
const PackingKernels packingKernels = {plan, pack, unpackRow};

}  // namespace tl::TL_TARGET
