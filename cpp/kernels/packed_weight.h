// A weight matrix repacked at load for the target's dot product: rows are grouped by the target's vector lanes, so that one
// vector register holds one column step of a whole group. Kernels of another target cannot read it.
#pragma once
#include "../core/cpu.h"
#include "../core/dtype.h"
#include "../core/memory.h"
#include "../core/status.h"

namespace tl {

// As stored in files. The numbers are part of the interface with lib/native.ts.
enum class Storage : int32_t {
  f32 = 0, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, count
};

// Elements and bytes of one block of a stored row (1 element for plain types).
int64_t storageBlockElements(Storage storage);
int64_t storageBlockBytes(Storage storage);

// How the packed form keeps numbers.
enum class PackFormat : int32_t {
  int4 = 0,    // unsigned nibbles, w = scale · q + minimum, or scale · (q − 8) without minima
  int8,        // signed bytes, w = scale · q + minimum, or scale · q without minima
  float32,     // exact
  bfloat16,    // exact for bf16 sources
  float16,
};

struct PackedWeight {
  int64_t rows = 0, columns = 0;
  PackFormat format = PackFormat::float32;
  int32_t blockSize = 0;      // columns that share a scale: 16 or 32; 0 for float formats
  int32_t groupRows = 0;      // rows that lie side by side
  bool hasMinimum = false;
  bool wideScale = false;     // scales in f32 instead of f16
  Isa isa = Isa::scalar;
  int64_t groupBytes = 0;     // bytes from one row group to the next
  Buffer buffer;              // ceil(rows / groupRows) groups; rows past the end are zero
};

// One target's packing. `plan` fills all fields but the buffer; sizes were checked by the caller (columns > 0, rows > 0,
// columns a multiple of the storage block). `pack` converts `count` stored rows, contiguous at `source`, into packed rows
// rowBegin …; it may run in parallel for different row groups. `unpackRow` writes one row as f32 (embedding lookups, tests).
struct PackingKernels {
  Status (*plan)(Storage storage, int64_t rows, int64_t columns, PackedWeight& weight);
  void (*pack)(Storage storage, const void* source, int64_t rowBegin, int64_t count, PackedWeight& weight);
  void (*unpackRow)(const PackedWeight& weight, int64_t row, float* out);
};

}  // namespace tl
