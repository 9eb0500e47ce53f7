// Reads stored weights from a file straight into packed form: no mapping outlives the load, so a file that shrinks or
// vanishes later can hurt nobody.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "../kernels/table.h"

namespace tl {

// Rows of one stored tensor: `rows` rows of `columns` elements from byte `offset` of `path`.
struct StoredRows {
  std::string path;
  int64_t offset = 0, rows = 0;
  Storage storage = Storage::f32;
};

// Packs the parts' rows, one after another, into one weight. Works in chunks through `pool` (the caller holds a Turn).
Status loadPacked(const std::vector<StoredRows>& parts, int64_t columns, const KernelTable& table, ThreadPool& pool, const int32_t* cancel,
                  PackedWeight& weight);
// Reads one vector of `count` elements of any storage type as f32.
Status loadFloats(const StoredRows& part, int64_t count, const KernelTable& table, float* out);

// Packs rows that are in memory, each times its rowScale (optional), as f32, bf16 or q8_0. relativeError: the 2-norm of what
// rounding took, by that of the weight.
Status packFloats(const float* values, int64_t rows, int64_t columns, const float* rowScale, Storage storage, const KernelTable& table,
                  ThreadPool& pool, const int32_t* cancel, PackedWeight& weight, double& relativeError);

}  // namespace tl
