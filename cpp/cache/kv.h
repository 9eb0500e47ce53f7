// The paged key/value cache: pages of 32 tokens for one layer and one key/value head; block tables and lengths per layer
// and head, so that head-wise budgets really free memory. Pages are reference counted (shared prefixes, copy on write).
//
// A page holds keys transposed, [headDim][32], then values, [32][headDim], both in the page's element type, and the
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
constexpr int64_t kMostQuantizedDim = 1024;  // of int8 and int4 pages, and where pages of several element types meet: rows pass through a buffer
constexpr int64_t kInt4Group = 32;   // elements of an int4 row that share scale and minimum (ops.quantizeRows)
constexpr int64_t kPageGroup = 16;   // dimensions of an i4 page that do
constexpr int64_t kPageSplit = 32;   // dimensions of an i4 value that share bytes: the first half of them in the low bits

constexpr bool isCacheElement(DType type) {
  return type == DType::f32 || type == DType::f16 || type == DType::bf16 || type == DType::i8 || type == DType::i4;
}

constexpr bool isQuantized(DType type) { return type == DType::i8 || type == DType::i4; }

struct KvShape {
  int32_t layers = 0, kvHeads = 0, headDim = 0;
  DType element = DType::f16;  // of what is appended: f32, f16, bf16, i8 or i4
};

// Where things lie in a page of one element type. Quantised (arXiv 2303.06865, 2402.02750):
//   i8  x = q · scale, a scale a token: key scales [32], value scales [32]
//   i4  x = minimum + q · scale for each 16 dimensions, both f16, [groups][32] scales then [groups][32] minima.
//       keys [⌈headDim / 2⌉][32], dimensions 2i and 2i + 1 in a byte, rotated by rotateKey(): what few dimensions of all keys
//       have much of is spread over all of them (arXiv 2404.00456). values [32][⌈headDim / 2⌉], see valueByte()
struct KvLayout {
  DType element;
  int64_t headDim;
  int64_t groups() const { return (headDim + kPageGroup - 1) / kPageGroup; }
  int64_t tokenBytes() const { return element == DType::i4 ? (headDim + 1) / 2 : headDim * int64_t(elementBytes(element)); }
  int64_t halfBytes() const { return kPageTokens * tokenBytes(); }
  int64_t scaleBytes() const { return kPageTokens * (element == DType::i8 ? int64_t(sizeof(float)) : element == DType::i4 ? 2 * groups() * int64_t(sizeof(f16)) : 0); }  // of a half
  int64_t dataBytes() const { return 2 * (halfBytes() + scaleBytes()); }
  // Where dimension d of an i4 value lies: byte 16 · (d / 32) + r with r = d mod 32 in the low bits, r − 16 in the high ones;
  // the last dimensions, where they are fewer than 32, are halved likewise.
  int64_t splitHalf(int64_t d) const {
    const int64_t rest = headDim - d / kPageSplit * kPageSplit;
    return ((rest < kPageSplit ? rest : kPageSplit) + 1) / 2;
  }
  int64_t valueByte(int64_t d) const { return d / kPageSplit * (kPageSplit / 2) + d % kPageSplit % splitHalf(d); }
  bool valueInHighBits(int64_t d) const { return d % kPageSplit >= splitHalf(d); }
  int64_t pageBytes() const;  // with the header
};

// One page: this header, keys, values, key scales, value scales. Written only by a cache that holds the one reference.
struct alignas(kAlignment) KvPage {
  std::atomic<int32_t> references;
  DType element;
  int32_t positions[kPageTokens];
  std::byte* keys() { return reinterpret_cast<std::byte*>(this + 1); }
  const std::byte* keys() const { return reinterpret_cast<const std::byte*>(this + 1); }
  std::byte* values(const KvLayout& layout) { return keys() + layout.halfBytes(); }
  const std::byte* values(const KvLayout& layout) const { return keys() + layout.halfBytes(); }
  // T: float in i8, f16 in i4.
  template <typename T> T* keyScales(const KvLayout& layout) { return reinterpret_cast<T*>(keys() + 2 * layout.halfBytes()); }
  template <typename T> const T* keyScales(const KvLayout& layout) const { return reinterpret_cast<const T*>(keys() + 2 * layout.halfBytes()); }
  template <typename T> T* valueScales(const KvLayout& layout) { return reinterpret_cast<T*>(keys() + 2 * layout.halfBytes() + layout.scaleBytes()); }
  template <typename T> const T* valueScales(const KvLayout& layout) const { return reinterpret_cast<const T*>(keys() + 2 * layout.halfBytes() + layout.scaleBytes()); }
};

inline int64_t KvLayout::pageBytes() const { return int64_t(sizeof(KvPage)) + dataBytes(); }

// Dimensions that an i4 key is rotated by at a time: the largest power of two in headDim, a Hadamard matrix's width.
constexpr int64_t rotationWidth(int64_t headDim) { return headDim & -headDim; }
// x [headDim] times that orthogonal, symmetric matrix, block by block: twice gives x again, and products of two rotated
// vectors are those of the vectors.
void rotateKey(float* x, int64_t headDim);
// One group of an i4 page, n ≤ 16 values, to q 0 … 15, scale and minimum; a NaN or an infinity makes the group NaN.
void quantizePageGroup(const float* x, int64_t n, uint8_t* q, f16& scale, f16& minimum);

// Reads a token's key and value as f32, or writes them, what is not null; any element type.
void readToken(const KvPage& page, const KvLayout& layout, int64_t slot, float* key, float* value);
void writeToken(KvPage& page, const KvLayout& layout, int64_t slot, const float* key, const float* value);

// Where pages come from instead of the host's memory, for caches that a device uses.
struct PageMemory {
  void* (*allocate)(size_t bytes) = nullptr;
  void (*release)(void* data, size_t bytes) = nullptr;
  const char* name = "kvCache";  // for errors
};

// Hands out pages up to a byte limit (0 = none). Thread safe. Fresh pages are zeroed: what an earlier session kept is never
// readable. Freed pages go back to the system at once.
class KvPool {
 public:
  // Errors: a dimension below 1, an element type that caches do not have, a page size that does not fit.
  static Status create(const KvShape& shape, int64_t byteLimit, std::shared_ptr<KvPool>& pool, PageMemory memory = {});
  ~KvPool() = default;
  KvPool(const KvPool&) = delete;
  KvPool& operator=(const KvPool&) = delete;

  const KvShape& shape() const { return shape_; }
  KvLayout layout(DType element) const { return {element, shape_.headDim}; }
  int64_t byteLimit() const { return byteLimit_; }
  bool onDevice() const { return memory_.allocate != nullptr; }
  int64_t bytesHeld() const { return held_.load(std::memory_order_relaxed); }

  // Null where the limit or the system's memory is reached; one reference.
  KvPage* take(DType element, Status& status);
  void share(KvPage* page) { page->references.fetch_add(1, std::memory_order_relaxed); }
  void release(KvPage* page);

 private:
  KvPool(const KvShape& shape, int64_t byteLimit, PageMemory memory) : shape_(shape), byteLimit_(byteLimit), memory_(memory) {}
  const KvShape shape_;
  const int64_t byteLimit_;
  const PageMemory memory_;
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
  KvLayout layout(DType element) const { return pool_->layout(element); }
  // Whether a device reaches its pages; the host always does.
  bool onDevice() const { return pool_->onDevice(); }

  // Makes room for n more tokens in every layer and head, all or nothing, and makes the pages that they go to this cache's
  // own. Code::memory: nothing was lost, the cache is as before.
  Status reserve(int64_t n);
  // Counts n appended tokens, at `positions` [n] (null: behind the last position).
  Status commit(int64_t n, const int32_t* positions = nullptr);
  // Of n appended tokens keeps rows path[0] < path[1] < … < path[count − 1], moved together, and gives the rest back: the
  // accepted path of a draft tree (arXiv 2305.09781). `positions` [n] are those of all rows.
  Status commitRows(int64_t n, const int32_t* path, int64_t count, const int32_t* positions);
  // Keeps the first `length` tokens of each layer and head, and gives the pages behind them back.
  void truncate(int64_t length);
  // Drops the last n tokens of each layer and head (rejected draft tokens).
  void dropLast(int64_t n);
  // Gives back pages that were reserved and not used.
  void trim();
  void clear();
  // A second cache of the first `tokens` tokens of each head that shares all pages; each side copies a page when it writes to it.
  Status fork(std::unique_ptr<KvCache>& copy, int64_t tokens) const;

  // Eviction, in three steps, so that all of it or nothing happens. `kept` [layers, kvHeads, stride]: 1 keeps a token.
  //   prepareKeep  takes the pages that shared ones have to make way for     Code::memory: the cache is as before
  //   keepHead     moves a head's kept tokens together; heads may go in parallel
  //   finishKeep   gives back what is free now
  // With `dense`, tokens that cacheRotate will move lie in pages of this cache alone: those that are not at position
  // slot + (longest head − their head's length).
  Status prepareKeep(const uint8_t* kept, int64_t stride, bool dense);
  void keepHead(int32_t layer, int32_t head, const uint8_t* kept);
  void finishKeep();
  // Pages of each head that lie wholly before its last `recent` tokens become pages of `element`. All or nothing; head
  // dimensions of at most kMostQuantizedDim.
  Status requantize(int64_t recent, DType element);

  // A number a token that moves with it: what attention has given it so far. Off by default.
  Status observe();
  bool observing() const { return observing_; }
  float* scores(int32_t layer, int32_t head);              // [capacity]; null where not observing
  const float* scores(int32_t layer, int32_t head) const;

  // One layer as bytes, and back into an empty layer: lengths, positions, pages. Not a file format by itself.
  int64_t layerBytes(int32_t layer) const;
  void saveLayer(int32_t layer, std::byte* to) const;
  Status loadLayer(int32_t layer, const std::byte* from, int64_t bytes);

  // The longest head's number of tokens; the same in all heads until a policy evicts.
  int64_t length() const;
  int64_t length(int32_t layer, int32_t head) const;
  int64_t capacity(int32_t layer, int32_t head) const;  // tokens that its pages have room for
  // One more than the largest position committed and kept; 0 where empty.
  int64_t nextPosition() const;
  int32_t position(int32_t layer, int32_t head, int64_t token) const;
  void setPosition(int32_t layer, int32_t head, int64_t token, int32_t position);
  int64_t bytesHeld() const;    // all pages of this cache, shared ones too
  int64_t bytesShared() const;  // of these, pages that another cache holds as well
  // Whether pages of more than one element type may be among those of a head.
  bool mixed() const { return mixed_; }

  // The block table of a head: capacity / 32 pages.
  KvPage* const* pages(int32_t layer, int32_t head) const;

 private:
  struct Head {
    std::vector<KvPage*> pages;
    std::vector<KvPage*> spare;  // between prepareKeep and keepHead: page i's stand-in, or null
    std::vector<float> scores;
    int64_t length = 0, kept = 0;
  };
  size_t index(int32_t layer, int32_t head) const { return size_t(layer) * size_t(shape().kvHeads) + size_t(head); }
  Status reserveHead(Head& head, int64_t n);
  Status prepareHead(Head& head, const uint8_t* kept, const int64_t* densePosition);
  Status makeOwn(KvPage*& page);
  void copyToken(KvPage& to, int64_t toSlot, const KvPage& from, int64_t fromSlot) const;
  void trimHead(Head& head);
  std::shared_ptr<KvPool> pool_;
  std::vector<Head> heads_;
  bool observing_ = false, mixed_ = false;
};

// What a running step sees: the cache and how many tokens it appends. View::data of dtype `cache` points here.
struct KvStep {
  KvCache* cache = nullptr;
  int64_t newTokens = 0;
};

}  // namespace tl
