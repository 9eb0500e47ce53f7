#include "kv.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "../core/checked.h"

namespace tl {

Status KvPool::create(const KvShape& shape, int64_t byteLimit, std::shared_ptr<KvPool>& pool, PageMemory memory) {
  if (shape.layers < 1) return argumentError("kvPool", "layers", "expected at least 1", shape.layers);
  if (shape.kvHeads < 1) return argumentError("kvPool", "kvHeads", "expected at least 1", shape.kvHeads);
  if (shape.headDim < 1 || shape.headDim > (1 << 20)) return argumentError("kvPool", "headDim", "expected 1 … 1,048,576", shape.headDim);
  if (!isCacheElement(shape.element)) return argumentError("kvPool", "element", "expected f32, f16, bf16, i8 or i4", int64_t(shape.element));
  if (byteLimit < 0) return argumentError("kvPool", "byteLimit", "expected 0 (no limit) or more", byteLimit);
  int64_t heads;
  if (!checkedMulAdd(shape.layers, shape.kvHeads, 0, heads) || heads > (int64_t(1) << 24))
    return argumentError("kvPool", "layers", "too many layers and heads", shape.layers);
  KvPool* made = new (std::nothrow) KvPool(shape, byteLimit, memory);
  if (!made) return {Code::memory, "kvPool", "", "out of memory", 0, 0};
  try {
    pool.reset(made);  // deletes `made` where it throws
  } catch (const std::bad_alloc&) {
    return {Code::memory, "kvPool", "", "out of memory", 0, 0};
  }
  return {};
}

KvPage* KvPool::take(DType element, Status& status) {
  const int64_t bytes = layout(element).pageBytes();
  const int64_t before = held_.fetch_add(bytes, std::memory_order_relaxed);
  if (byteLimit_ > 0 && before + bytes > byteLimit_) {
    held_.fetch_sub(bytes, std::memory_order_relaxed);
    status = {Code::memory, "kvCache", "byteLimit", "the cache's byte limit is reached", byteLimit_, before + bytes};
    return nullptr;
  }
  void* memory = memory_.allocate ? memory_.allocate(size_t(bytes)) : allocateAligned(size_t(bytes), Owner::cache);
  if (!memory) {
    held_.fetch_sub(bytes, std::memory_order_relaxed);
    status = {Code::memory, memory_.name, "pages", "out of memory for cache pages", 0, bytes};
    return nullptr;
  }
  std::memset(memory, 0, size_t(bytes));
  KvPage* page = new (memory) KvPage{};
  page->references.store(1, std::memory_order_relaxed);
  page->element = element;
  return page;
}

void KvPool::release(KvPage* page) {
  if (page->references.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  const int64_t bytes = layout(page->element).pageBytes();
  page->~KvPage();
  if (memory_.release) memory_.release(page, size_t(bytes));
  else releaseAligned(page, size_t(bytes), Owner::cache);
  held_.fetch_sub(bytes, std::memory_order_relaxed);
}

KvCache::KvCache(std::shared_ptr<KvPool> pool) : pool_(std::move(pool)), heads_(size_t(pool_->shape().layers) * size_t(pool_->shape().kvHeads)) {}

// Replaces a page that others hold too by a copy.
Status KvCache::makeOwn(KvPage*& page) {
  if (page->references.load(std::memory_order_acquire) == 1) return {};
  Status status;
  KvPage* own = pool_->take(page->element, status);
  if (!own) return status;
  std::memcpy(own->positions, page->positions, sizeof own->positions);
  std::memcpy(own->keys(), page->keys(), size_t(layout(page->element).dataBytes()));
  pool_->release(page);
  page = own;
  return {};
}

Status KvCache::reserveHead(Head& head, int64_t n) {
  const size_t firstWritten = size_t(head.length / kPageTokens), needed = size_t(ceilDiv(head.length + n, kPageTokens));
  for (size_t i = firstWritten; i < std::min(needed, head.pages.size()); ++i) TL_TRY(makeOwn(head.pages[i]));
  try {
    head.pages.reserve(needed);
    if (observing_) {
      head.scores.resize(size_t(head.length));
      head.scores.resize(std::max(needed, head.pages.size()) * size_t(kPageTokens), 0.0f);
    }
  } catch (const std::exception&) {
    return {Code::memory, "kvCache", "", "out of memory for a block table", int64_t(needed), 0};
  }
  Status status;
  while (head.pages.size() < needed) {
    KvPage* page = pool_->take(shape().element, status);
    if (!page) return status;
    head.pages.push_back(page);  // capacity is there
  }
  return {};
}

Status KvCache::reserve(int64_t n) {
  if (n < 0) return argumentError("kvCache", "tokens", "expected 0 or more", n);
  if (n == 0) return {};
  const int64_t mostTokens = int64_t(1) << 40;
  for (Head& head : heads_) {
    Status status = n > mostTokens - head.length ? Status{Code::memory, "kvCache", "tokens", "more tokens than memory can hold", mostTokens, n}
                                                 : reserveHead(head, n);
    if (!status) continue;
    trim();  // a page copied for writing stays: its tokens are the same
    return status;
  }
  return {};
}

Status KvCache::commit(int64_t n, const int32_t* positions) {
  if (n < 0) return argumentError("kvCache", "tokens", "expected 0 or more", n);
  for (const Head& head : heads_)
    if (head.length + n > int64_t(head.pages.size()) * kPageTokens)
      return argumentError("kvCache", "tokens", "more tokens committed than reserved", n);
  const int64_t next = nextPosition();
  for (Head& head : heads_) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t token = head.length + i;
      head.pages[size_t(token / kPageTokens)]->positions[token % kPageTokens] = positions ? positions[i] : int32_t(next + i);
    }
    head.length += n;
  }
  return {};
}

Status KvCache::commitRows(int64_t n, const int32_t* path, int64_t count, const int32_t* positions) {
  if (count < 0 || count > n) return argumentError("kvCache", "path", "has more rows than were appended", count);
  for (int64_t i = 0; i < count; ++i)
    if (path[i] < (i ? path[i - 1] + 1 : 0) || path[i] >= n) return argumentError("kvCache", "path", "must rise within the appended rows", path[i]);
  for (Head& head : heads_) {
    if (head.length + n > int64_t(head.pages.size()) * kPageTokens) return argumentError("kvCache", "tokens", "more tokens committed than reserved", n);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t from = head.length + path[i], to = head.length + i;
      KvPage& page = *head.pages[size_t(to / kPageTokens)];
      if (from != to) copyToken(page, to % kPageTokens, *head.pages[size_t(from / kPageTokens)], from % kPageTokens);
      page.positions[to % kPageTokens] = positions[path[i]];
      if (observing_) head.scores[size_t(to)] = head.scores[size_t(from)];
    }
    head.length += count;
    trimHead(head);
  }
  return {};
}

void KvCache::trimHead(Head& head) {
  const size_t needed = size_t(ceilDiv(head.length, kPageTokens));
  while (head.pages.size() > needed) {
    pool_->release(head.pages.back());
    head.pages.pop_back();
  }
}

void KvCache::trim() {
  for (Head& head : heads_) trimHead(head);
}

void KvCache::truncate(int64_t length) {
  for (Head& head : heads_) {
    head.length = std::min(head.length, std::max<int64_t>(length, 0));
    trimHead(head);
  }
}

void KvCache::dropLast(int64_t n) {
  for (Head& head : heads_) {
    head.length = std::max<int64_t>(head.length - std::max<int64_t>(n, 0), 0);
    trimHead(head);
  }
}

void KvCache::clear() { truncate(0); }

Status KvCache::fork(std::unique_ptr<KvCache>& copy, int64_t tokens) const {
  try {
    auto made = std::make_unique<KvCache>(pool_);
    for (size_t i = 0; i < heads_.size(); ++i) {
      const int64_t length = std::min(heads_[i].length, tokens);
      const size_t used = size_t(ceilDiv(length, kPageTokens));
      made->heads_[i].pages.reserve(used);
      for (size_t p = 0; p < used; ++p) {
        pool_->share(heads_[i].pages[p]);
        made->heads_[i].pages.push_back(heads_[i].pages[p]);
      }
      if (observing_) made->heads_[i].scores.assign(heads_[i].scores.begin(), heads_[i].scores.begin() + length);
      made->heads_[i].length = length;
    }
    made->observing_ = observing_;
    made->mixed_ = mixed_;
    copy = std::move(made);
  } catch (const std::exception&) {  // bad_alloc; what was shared so far went back with `made`
    return {Code::memory, "kvCache", "", "out of memory for a block table", 0, 0};
  }
  return {};
}

int64_t KvCache::length() const {
  int64_t longest = 0;
  for (const Head& head : heads_) longest = std::max(longest, head.length);
  return longest;
}

int64_t KvCache::length(int32_t layer, int32_t head) const { return heads_[index(layer, head)].length; }

int64_t KvCache::capacity(int32_t layer, int32_t head) const { return int64_t(heads_[index(layer, head)].pages.size()) * kPageTokens; }

int32_t KvCache::position(int32_t layer, int32_t head, int64_t token) const {
  return heads_[index(layer, head)].pages[size_t(token / kPageTokens)]->positions[token % kPageTokens];
}

void KvCache::setPosition(int32_t layer, int32_t head, int64_t token, int32_t position) {
  heads_[index(layer, head)].pages[size_t(token / kPageTokens)]->positions[token % kPageTokens] = position;
}

int64_t KvCache::nextPosition() const {
  int64_t next = 0;
  for (const Head& head : heads_)
    for (int64_t token = std::max<int64_t>(head.length - kPageTokens, 0); token < head.length; ++token)
      next = std::max<int64_t>(next, int64_t(head.pages[size_t(token / kPageTokens)]->positions[token % kPageTokens]) + 1);
  return next;
}

int64_t KvCache::bytesHeld() const {
  int64_t bytes = 0;
  for (const Head& head : heads_)
    for (const KvPage* page : head.pages) bytes += layout(page->element).pageBytes();
  return bytes;
}

int64_t KvCache::bytesShared() const {
  int64_t bytes = 0;
  for (const Head& head : heads_)
    for (const KvPage* page : head.pages)
      if (page->references.load(std::memory_order_relaxed) > 1) bytes += layout(page->element).pageBytes();
  return bytes;
}

Status KvCache::observe() {
  try {
    for (Head& head : heads_) head.scores.resize(head.pages.size() * size_t(kPageTokens), 0.0f);
  } catch (const std::exception&) {
    return {Code::memory, "kvCache", "", "out of memory for scores", 0, 0};
  }
  observing_ = true;
  return {};
}

float* KvCache::scores(int32_t layer, int32_t head) { return observing_ ? heads_[index(layer, head)].scores.data() : nullptr; }
const float* KvCache::scores(int32_t layer, int32_t head) const { return observing_ ? heads_[index(layer, head)].scores.data() : nullptr; }

KvPage* const* KvCache::pages(int32_t layer, int32_t head) const { return heads_[index(layer, head)].pages.data(); }

}  // namespace tl
