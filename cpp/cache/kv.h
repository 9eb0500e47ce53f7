// The paged key/value cache: pages of 32 tokens for one layer and one key/value head; block tables and lengths per layer
// and head, so that head-wise budgets really free memory. Pages are reference counted (shared prefixes, copy on write).
//
// A page holds keys transposed, [headDim][32], then values, [32][headDim], both in the cache's element type: lanes are keys
// while scores are formed and head dimensions while values are summed, for one query as for many, so results do not
// depend on how many queries a step has.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "../core/dtype.h"
#include "../core/memory.h"
#include "../core/status.h"

namespace tl {

constexpr int32_t kPageTokens = 32;

struct KvShape {
  int32_t layers = 0, kvHeads = 0, headDim = 0;
  DType element = DType::f16;  // f32, f16 or bf16
  int64_t pageBytes() const { return int64_t(2) * kPageTokens * headDim * int64_t(elementBytes(element)); }
};

// Hands out pages of one size up to a byte limit (0 = none). Thread safe. Fresh pages are zeroed: what an earlier session
// kept is never readable. Freed pages go back to the system.
class KvPool;

class KvCache;

// What a running step sees: the cache and how many tokens it appends. View::data of dtype `cache` points here.
struct KvStep {
  KvCache* cache = nullptr;
  int64_t newTokens = 0;
};

}  // namespace tl
