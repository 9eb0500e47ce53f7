// The paged key/value cache: pages of 32 tokens for one layer and one key/value head; block tables and lengths per layer
// and head, so that head-wise budgets really free memory. Pages are reference counted (shared prefixes, copy on write).
//
// A page holds keys transposed, [headDim][32], then values, [32][headDim], both in the cache's element type, and the
// position of each of its tokens. Lanes are keys while scores are formed and head dimensions while values are summed, for
// one query as for many, so results do not depend on how many queries a step has.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "../core/dtype.h"
#include "../core/memory.h"
#include "../core/status.h"

namespace tl {

constexpr int32_t kPageTokens = 32;

struct KvShape {
  int32_t layers = 0, kvHeads = 0, headDim = 0;
  DType element = DType::f16;  // f32, f16 or bf16
  int64_t halfPageBytes() const { return int64_t(kPageTokens) * headDim * int64_t(elementBytes(element)); }
  int64_t pageBytes() const;  // with its header
};

// One page: this header, then keys, then values. Written only by a cache that holds the one reference.
struct alignas(kAlignment) KvPage {
  std::atomic<int32_t> references;
  int32_t positions[kPageTokens];
  std::byte* keys() { return reinterpret_cast<std::byte*>(this + 1); }
  const std::byte* keys() const { return reinterpret_cast<const std::byte*>(this + 1); }
};

inline int64_t KvShape::pageBytes() const { return int64_t(sizeof(KvPage)) + 2 * halfPageBytes(); }

// Hands out pages of one size up to a byte limit (0 = none). Thread safe. Fresh pages are zeroed: what an earlier session
// kept is never readable. Freed pages go back to the system at once.
class KvPool {
 public:
  // Errors: a dimension below 1, an element type other than f32, f16, bf16, a page size that does not fit.
  static Status create(const KvShape& shape, int64_t byteLimit, std::shared_ptr<KvPool>& pool);
  ~KvPool() = default;
  KvPool(const KvPool&) = delete;
  KvPool& operator=(const KvPool&) = delete;

  const KvShape& shape() const { return shape_; }
  int64_t byteLimit() const { return byteLimit_; }
  int64_t bytesHeld() const { return held_.load(std::memory_order_relaxed); }

  KvPage* take(Status& status);  // null where the limit or the system's memory is reached; one reference
  void share(KvPage* page) { page->references.fetch_add(1, std::memory_order_relaxed); }
  void release(KvPage* page);

 private:
  KvPool(const KvShape& shape, int64_t byteLimit) : shape_(shape), byteLimit_(byteLimit) {}
  const KvShape shape_;
  const int64_t byteLimit_;
  std::atomic<int64_t> held_{0};
};

// One sequence. What kernels use is defined in kv.cpp, so that no library template is instantiated for a newer machine's
// instructions. Not thread safe by itself: one run or one call at a time. The order of a step:
//   reserve(n) · run (cacheAppend writes behind length, cachedAttention sees length + n) · commit(n, positions)
// A step that fails or is cancelled just does not commit: the tokens before it are untouched.
class KvCache {
 public:
  explicit KvCache(std::shared_ptr<KvPool> pool);
  ~KvCache() { clear(); }
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  const KvShape& shape() const { return pool_->shape(); }

  // Makes room for n more tokens in every layer and head, all or nothing, and makes the pages that they go to this cache's
  // own. Code::memory: nothing was lost, the cache is as before.
  Status reserve(int64_t n);
  // Counts n appended tokens, at `positions` [n] (null: behind the last position).
  Status commit(int64_t n, const int32_t* positions = nullptr);
  // Keeps the first `length` tokens of each layer and head, and gives the pages behind them back.
  void truncate(int64_t length);
  // Drops the last n tokens of each layer and head (rejected draft tokens).
  void dropLast(int64_t n);
  // Gives back pages that were reserved and not used.
  void trim();
  void clear();
  // A second cache of the same tokens that shares all pages; each side copies a page when it writes to it.
  Status fork(std::unique_ptr<KvCache>& copy) const;

  // The longest head's number of tokens; the same in all heads until a policy evicts.
  int64_t length() const;
  int64_t length(int32_t layer, int32_t head) const;
  int64_t capacity(int32_t layer, int32_t head) const;  // tokens that its pages have room for
  // One more than the largest position committed and kept; 0 where empty.
  int64_t nextPosition() const;
  int32_t position(int32_t layer, int32_t head, int64_t token) const;
  int64_t bytesHeld() const;    // all pages of this cache, shared ones too
  int64_t bytesShared() const;  // of these, pages that another cache holds as well

  // The block table of a head: capacity / 32 pages.
  KvPage* const* pages(int32_t layer, int32_t head) const;

 private:
  struct Head {
    std::vector<KvPage*> pages;
    int64_t length = 0;
  };
  size_t index(int32_t layer, int32_t head) const { return size_t(layer) * size_t(shape().kvHeads) + size_t(head); }
  Status reserveHead(Head& head, int64_t n);
  void trimHead(Head& head);
  std::shared_ptr<KvPool> pool_;
  std::vector<Head> heads_;
};

// What a running step sees: the cache and how many tokens it appends. View::data of dtype `cache` points here.
struct KvStep {
  KvCache* cache = nullptr;
  int64_t newTokens = 0;
};

}  // namespace tl
