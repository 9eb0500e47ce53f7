#include "weights.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "../core/checked.h"

#if defined(_WIN32)
#define TL_SEEK _fseeki64
#else
#define TL_SEEK fseeko
#endif

namespace tl {
namespace {

constexpr int64_t kChunkBytes = int64_t(1) << 20;  // between two looks at the cancel flag

class File {
 public:
  explicit File(const std::string& path) : file_(std::fopen(path.c_str(), "rb")) {
    if (file_) std::setvbuf(file_, nullptr, _IONBF, 0);  // reads are large: no second copy
  }
  ~File() { if (file_) std::fclose(file_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  Status read(int64_t offset, void* out, int64_t bytes) {
    if (!file_) return {Code::io, "load", "path", "cannot open the model file"};
    if (TL_SEEK(file_, offset, SEEK_SET) != 0) return {Code::io, "load", "offset", "cannot seek in the model file", 0, offset};
    const int64_t got = int64_t(std::fread(out, 1, size_t(bytes), file_));
    if (got != bytes) return {Code::io, "load", "offset", "the model file ended while its weights were read", bytes, got};
    return {};
  }

 private:
  std::FILE* file_;
};

Status rowBytes(Storage storage, int64_t columns, int64_t& bytes) {
  const int64_t block = storageBlockElements(storage);
  if (columns <= 0 || columns % block != 0) return shapeError("load", "columns", "a row must be whole blocks", block, columns);
  if (!checkedMulAdd(columns / block, storageBlockBytes(storage), 0, bytes)) return argumentError("load", "columns", "row too long", columns);
  return {};
}

}  // namespace

Status loadPacked(const std::vector<StoredRows>& parts, int64_t columns, const KernelTable& table, ThreadPool& pool, const int32_t* cancel,
                  PackedWeight& weight) {
  int64_t rows = 0;
  for (const StoredRows& part : parts)
    if (part.rows <= 0 || !checkedMulAdd(part.rows, 1, rows, rows)) return argumentError("load", "rows", "row count out of range", part.rows);
  for (const StoredRows& part : parts)
    if (part.storage != parts[0].storage) return argumentError("load", "storage", "parts of one weight have different types");
  int64_t bytesPerRow, packed;
  TL_TRY(rowBytes(parts[0].storage, columns, bytesPerRow));
  TL_TRY(table.packing.plan(parts[0].storage, rows, columns, weight));
  const int64_t groups = ceilDiv(rows, weight.groupRows);
  if (!checkedMulAdd(groups, weight.groupBytes, 0, packed)) return argumentError("load", "rows", "weight too large", rows);
  weight.buffer = Buffer(size_t(packed), Owner::weight);
  // Chunks are whole groups, so that no two threads write one group.
  const int64_t groupSourceBytes = bytesPerRow * weight.groupRows, groupsPerChunk = std::max<int64_t>(1, kChunkBytes / groupSourceBytes);
  Buffer staging(size_t(std::min(groupsPerChunk, groups) * groupSourceBytes), Owner::scratch);
  if (!weight.buffer || !staging) return {Code::memory, "load", "weight", "out of memory for a weight", packed, 0};

  size_t part = 0;
  int64_t usedRows = 0;  // of parts[part]
  auto file = std::make_unique<File>(parts[0].path);
  for (int64_t group = 0; group < groups; group += groupsPerChunk) {
    if (cancel && __atomic_load_n(cancel, __ATOMIC_RELAXED) != 0) return {Code::cancelled, "load", "", "cancelled"};
    const int64_t rowBegin = group * weight.groupRows, rowEnd = std::min(rows, (group + groupsPerChunk) * weight.groupRows);
    for (int64_t row = rowBegin; row < rowEnd;) {
      if (usedRows == parts[part].rows) {
        usedRows = 0;
        file = std::make_unique<File>(parts[++part].path);
      }
      const int64_t count = std::min(rowEnd - row, parts[part].rows - usedRows);
      TL_TRY(file->read(parts[part].offset + usedRows * bytesPerRow, staging.as() + (row - rowBegin) * bytesPerRow, count * bytesPerRow));
      usedRows += count;
      row += count;
    }
    const int64_t chunkGroups = ceilDiv(rowEnd - rowBegin, weight.groupRows);
    pool.parallelFor(chunkGroups, std::max<int64_t>(1, chunkGroups / 16), [&](int64_t begin, int64_t end, int) {
      const int64_t first = rowBegin + begin * weight.groupRows, last = std::min(rowEnd, rowBegin + end * weight.groupRows);
      table.packing.pack(parts[0].storage, staging.as() + (first - rowBegin) * bytesPerRow, first, last - first, weight);
    });
  }
  return {};
}

Status loadFloats(const StoredRows& part, int64_t count, const KernelTable& table, float* out) {
  // One row of a weight, packed and unpacked: every storage type is decoded in one place only.
  int64_t bytes;
  TL_TRY(rowBytes(part.storage, count, bytes));
  File file(part.path);
  if (part.storage == Storage::f32) return file.read(part.offset, out, bytes);
  PackedWeight weight;
  TL_TRY(table.packing.plan(part.storage, 1, count, weight));
  weight.buffer = Buffer(size_t(weight.groupBytes), Owner::scratch);
  Buffer source(size_t(bytes), Owner::scratch);
  if (!weight.buffer || !source) return {Code::memory, "load", "vector", "out of memory for a vector", weight.groupBytes, 0};
  TL_TRY(file.read(part.offset, source.as(), bytes));
  table.packing.pack(part.storage, source.as(), 0, 1, weight);
  table.packing.unpackRow(weight, 0, out);
  return {};
}

namespace {

// One row as it would stand in a file. Adds what rounding takes, and what there was, squared.
void storeRow(const float* values, int64_t columns, float scale, Storage storage, std::byte* out, double& lost, double& whole) {
  const auto count = [&](float value, float stored) {
    lost += (double(value) - double(stored)) * (double(value) - double(stored));
    whole += double(value) * double(value);
  };
  if (storage == Storage::f32) {
    for (int64_t i = 0; i < columns; ++i) reinterpret_cast<float*>(out)[i] = values[i] * scale;
    return;
  }
  if (storage == Storage::bf16) {
    for (int64_t i = 0; i < columns; ++i) {
      const bf16 stored = reinterpret_cast<bf16*>(out)[i] = toBf16(values[i] * scale);
      count(values[i] * scale, toFloat(stored));
    }
    return;
  }
  for (int64_t block = 0; block < columns / 32; ++block, out += 34) {  // q8_0: an f16 scale and 32 signed bytes
    float most = 0;
    for (int64_t i = 0; i < 32; ++i) most = std::max(most, std::fabs(values[block * 32 + i] * scale));
    const f16 step = toF16(most / 127);
    std::memcpy(out, &step, 2);
    const float wide = toFloat(step);
    for (int64_t i = 0; i < 32; ++i) {
      const float value = values[block * 32 + i] * scale;
      const float q = wide > 0 ? std::clamp(std::nearbyint(value / wide), -127.0f, 127.0f) : 0;
      reinterpret_cast<int8_t*>(out + 2)[i] = int8_t(q);
      count(value, q * wide);
    }
  }
}

}  // namespace

Status packFloats(const float* values, int64_t rows, int64_t columns, const float* rowScale, Storage storage, const KernelTable& table,
                  ThreadPool& pool, const int32_t* cancel, PackedWeight& weight, double& relativeError) {
  if (storage != Storage::f32 && storage != Storage::bf16 && storage != Storage::q8_0) return argumentError("pack", "storage", "must be f32, bf16 or q8_0", int64_t(storage));
  int64_t bytesPerRow, packed;
  TL_TRY(rowBytes(storage, columns, bytesPerRow));
  TL_TRY(table.packing.plan(storage, rows, columns, weight));
  const int64_t groupRows = weight.groupRows, groups = ceilDiv(rows, groupRows), slots = 4 * int64_t(pool.threads());
  if (!checkedMulAdd(groups, weight.groupBytes, 0, packed)) return argumentError("pack", "rows", "weight too large", rows);
  weight.buffer = Buffer(size_t(packed), Owner::weight);
  const int64_t chunkGroups = std::clamp<int64_t>(kChunkBytes / (bytesPerRow * groupRows), std::min(slots, groups), groups);
  Buffer staging(size_t(chunkGroups * groupRows * bytesPerRow), Owner::scratch);
  std::vector<double> lost(size_t(groups), 0), whole(size_t(groups), 0);
  if (!weight.buffer || !staging) return {Code::memory, "pack", "weight", "out of memory for a weight", packed, 0};
  for (int64_t first = 0; first < groups; first += chunkGroups) {
    if (cancel && __atomic_load_n(cancel, __ATOMIC_RELAXED) != 0) return {Code::cancelled, "pack", "", "cancelled"};
    pool.parallelFor(std::min(chunkGroups, groups - first), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t group = begin; group < end; ++group) {
        const int64_t row = (first + group) * groupRows, count = std::min(groupRows, rows - row);
        std::byte* at = staging.as() + group * groupRows * bytesPerRow;
        for (int64_t i = 0; i < count; ++i)
          storeRow(values + (row + i) * columns, columns, rowScale ? rowScale[row + i] : 1, storage, at + i * bytesPerRow, lost[size_t(first + group)], whole[size_t(first + group)]);
        table.packing.pack(storage, at, row, count, weight);
      }
    });
  }
  double lostAll = 0, wholeAll = 0;
  for (int64_t group = 0; group < groups; ++group) lostAll += lost[size_t(group)], wholeAll += whole[size_t(group)];
  relativeError = wholeAll > 0 ? std::sqrt(lostAll / wholeAll) : 0;
  return {};
}

}  // namespace tl
