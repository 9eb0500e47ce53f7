// Tokens of the cache as values: read, written, moved, kept, requantised, saved.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "../core/checked.h"
#include "kv.h"

namespace tl {
namespace {

float readElement(DType element, const std::byte* data, int64_t i) {
  switch (element) {
    case DType::f32: return reinterpret_cast<const float*>(data)[i];
    case DType::f16: return toFloat(reinterpret_cast<const f16*>(data)[i]);
    case DType::bf16: return toFloat(reinterpret_cast<const bf16*>(data)[i]);
    default: return float(reinterpret_cast<const int8_t*>(data)[i]);
  }
}

void writeElement(DType element, std::byte* data, int64_t i, float value) {
  switch (element) {
    case DType::f32: reinterpret_cast<float*>(data)[i] = value; break;
    case DType::f16: reinterpret_cast<f16*>(data)[i] = toF16(value); break;
    case DType::bf16: reinterpret_cast<bf16*>(data)[i] = toBf16(value); break;
    default: reinterpret_cast<int8_t*>(data)[i] = int8_t(value);
  }
}

// One half of a page, keys or values, as a matrix [headDim] of one token: element d at start + d · step.
struct Half {
  std::byte* data;
  std::byte* scales;
  int64_t slot;
  bool keys;
  int64_t start, step;  // of elements; of bytes in i4
  float& scale() const { return reinterpret_cast<float*>(scales)[slot]; }
  f16& groupScale(int64_t d) const { return reinterpret_cast<f16*>(scales)[d / kPageGroup * kPageTokens + slot]; }
  f16& groupMinimum(const KvLayout& layout, int64_t d) const { return *(&groupScale(d) + layout.groups() * kPageTokens); }
  std::byte& pair(const KvLayout& layout, int64_t d) const { return data[start + (keys ? d / 2 : layout.valueByte(d)) * step]; }
  bool inHighBits(const KvLayout& layout, int64_t d) const { return keys ? d % 2 != 0 : layout.valueInHighBits(d); }
};

Half keysOf(KvPage& page, const KvLayout& layout, int64_t slot) { return {page.keys(), page.keyScales<std::byte>(layout), slot, true, slot, kPageTokens}; }
Half valuesOf(KvPage& page, const KvLayout& layout, int64_t slot) {
  const int64_t token = layout.element == DType::i4 ? layout.tokenBytes() : layout.headDim;
  return {page.values(layout), page.valueScales<std::byte>(layout), slot, false, slot * token, 1};
}

void readHalf(const Half& half, const KvLayout& layout, float* out) {
  if (layout.element != DType::i4) {
    const float scale = layout.element == DType::i8 ? half.scale() : 1;
    for (int64_t d = 0; d < layout.headDim; ++d) out[d] = readElement(layout.element, half.data, half.start + d * half.step) * scale;
    return;
  }
  for (int64_t d = 0; d < layout.headDim; ++d) {
    const uint8_t pair = uint8_t(half.pair(layout, d));
    out[d] = float(half.inHighBits(layout, d) ? pair >> 4 : pair & 15) * toFloat(half.groupScale(d)) + toFloat(half.groupMinimum(layout, d));  // the product is exact
  }
  if (half.keys) rotateKey(out, layout.headDim);
}

void writeInt8(const Half& half, const KvLayout& layout, const float* x) {
  float largest = 0;
  for (int64_t d = 0; d < layout.headDim; ++d) largest = std::max(largest, std::fabs(x[d]));
  const float scale = largest / 127;
  half.scale() = scale;
  for (int64_t d = 0; d < layout.headDim; ++d)
    writeElement(DType::i8, half.data, half.start + d * half.step, scale > 0 ? std::nearbyint(x[d] / scale) : 0);
}

// x [headDim]; that of a key is rotated already.
void writeInt4(const Half& half, const KvLayout& layout, const float* x) {
  for (int64_t begin = 0; begin < layout.headDim; begin += kPageGroup) {
    const int64_t count = std::min(kPageGroup, layout.headDim - begin);
    uint8_t q[kPageGroup];
    quantizePageGroup(x + begin, count, q, half.groupScale(begin), half.groupMinimum(layout, begin));
    for (int64_t d = begin; d < begin + count; ++d) {
      std::byte& pair = half.pair(layout, d);
      const std::byte mine{q[d - begin]};
      pair = half.inHighBits(layout, d) ? (pair & std::byte{15}) | mine << 4 : (pair & std::byte{0xf0}) | mine;
    }
  }
}

void writeHalf(const Half& half, const KvLayout& layout, const float* x) {
  if (layout.element == DType::i8) return writeInt8(half, layout, x);
  if (layout.element == DType::i4) {
    if (!half.keys) return writeInt4(half, layout, x);
    float rotated[kMostQuantizedDim];
    std::memcpy(rotated, x, size_t(layout.headDim) * sizeof(float));
    rotateKey(rotated, layout.headDim);
    return writeInt4(half, layout, rotated);
  }
  for (int64_t d = 0; d < layout.headDim; ++d) writeElement(layout.element, half.data, half.start + d * half.step, x[d]);
}

template <typename T> void moveLanes(std::byte* to, int64_t toSlot, const std::byte* from, int64_t fromSlot, int64_t rows) {
  T* target = reinterpret_cast<T*>(to) + toSlot;
  const T* source = reinterpret_cast<const T*>(from) + fromSlot;
  for (int64_t i = 0; i < rows; ++i) target[i * kPageTokens] = source[i * kPageTokens];
}

}  // namespace

void rotateKey(float* x, int64_t headDim) {
  const int64_t width = rotationWidth(headDim);
  for (int64_t step = 1; step < width; step *= 2)
    for (int64_t i = 0; i < headDim; i += 2 * step)
      for (int64_t d = i; d < i + step; ++d) {
        const float a = x[d], b = x[d + step];
        x[d] = a + b;
        x[d + step] = a - b;
      }
  const float unit = 1 / std::sqrt(float(width));
  for (int64_t d = 0; d < headDim; ++d) x[d] *= unit;
}

void quantizePageGroup(const float* x, int64_t n, uint8_t* q, f16& scale, f16& minimum) {
  float low = x[0], high = x[0], spoiled = 0;  // NaN where a value is NaN or infinite
  for (int64_t i = 0; i < n; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
    spoiled += x[i] * 0;
  }
  minimum = toF16(low + spoiled);
  const float base = toFloat(minimum);
  scale = toF16((high - base) / 15);
  const float step = toFloat(scale);
  for (int64_t i = 0; i < n; ++i) {
    const float steps = step > 0 ? (x[i] - base) / step : 0;
    q[i] = steps > 0 ? uint8_t(std::min(steps, 15.0f) + 0.5f) : uint8_t(0);
  }
}

void readToken(const KvPage& page, const KvLayout& layout, int64_t slot, float* key, float* value) {
  KvPage& any = const_cast<KvPage&>(page);  // Half serves readers and writers
  if (key) readHalf(keysOf(any, layout, slot), layout, key);
  if (value) readHalf(valuesOf(any, layout, slot), layout, value);
}

void writeToken(KvPage& page, const KvLayout& layout, int64_t slot, const float* key, const float* value) {
  if (key) writeHalf(keysOf(page, layout, slot), layout, key);
  if (value) writeHalf(valuesOf(page, layout, slot), layout, value);
}

// Within one page, or from a page of another element type, too.
void KvCache::copyToken(KvPage& to, int64_t toSlot, const KvPage& from, int64_t fromSlot) const {
  to.positions[toSlot] = from.positions[fromSlot];
  const KvLayout layout = this->layout(to.element);
  if (to.element != from.element) {
    float token[2 * kMostQuantizedDim];
    readToken(from, this->layout(from.element), fromSlot, token, token + layout.headDim);
    return writeToken(to, layout, toSlot, token, token + layout.headDim);
  }
  const int64_t rows = layout.element == DType::i4 ? layout.tokenBytes() : layout.headDim, bytes = layout.tokenBytes();
  if (to.element == DType::f32) moveLanes<float>(to.keys(), toSlot, from.keys(), fromSlot, rows);
  else if (elementBytes(to.element) == 2) moveLanes<uint16_t>(to.keys(), toSlot, from.keys(), fromSlot, rows);
  else moveLanes<uint8_t>(to.keys(), toSlot, from.keys(), fromSlot, rows);
  std::memmove(to.values(layout) + toSlot * bytes, from.values(layout) + fromSlot * bytes, size_t(bytes));
  // Both halves' scales, and in i4 the minima of all groups, lie one behind the other.
  if (layout.element == DType::i8) moveLanes<float>(to.keyScales<std::byte>(layout), toSlot, from.keyScales<std::byte>(layout), fromSlot, 2);
  if (layout.element == DType::i4) moveLanes<uint16_t>(to.keyScales<std::byte>(layout), toSlot, from.keyScales<std::byte>(layout), fromSlot, 4 * layout.groups());
}

// densePosition: where slot 0 is going to stand; null: nothing moves.
Status KvCache::prepareHead(Head& head, const uint8_t* kept, const int64_t* densePosition) {
  head.spare.clear();
  head.spare.reserve(head.pages.size());
  int64_t token = 0;
  for (int64_t slot = 0; slot < head.kept;) {
    const size_t page = size_t(slot / kPageTokens);
    bool changes = false;
    for (const int64_t end = std::min<int64_t>((int64_t(page) + 1) * kPageTokens, head.kept); slot < end; ++slot, ++token) {
      while (!kept[token]) ++token;
      changes |= token != slot || (densePosition && head.pages[size_t(token / kPageTokens)]->positions[token % kPageTokens] != int32_t(slot + *densePosition));
    }
    KvPage* spare = nullptr;
    if (changes && head.pages[page]->references.load(std::memory_order_acquire) > 1) {
      Status status;
      spare = pool_->take(head.pages[page]->element, status);
      if (!spare) return status;
    }
    head.spare.push_back(spare);
  }
  return {};
}

Status KvCache::prepareKeep(const uint8_t* kept, int64_t stride, bool dense) {
  if (stride < length()) return argumentError("kvCache", "kept", "is too short for the longest head", stride);
  Status status;
  int64_t longest = 0;
  for (size_t i = 0; i < heads_.size(); ++i) {
    const uint8_t* row = kept + int64_t(i) * stride;
    heads_[i].kept = std::count_if(row, row + heads_[i].length, [](uint8_t keep) { return keep != 0; });
    longest = std::max(longest, heads_[i].kept);
  }
  for (size_t i = 0; i < heads_.size() && !status; ++i) {
    try {
      const int64_t densePosition = longest - heads_[i].kept;
      status = prepareHead(heads_[i], kept + int64_t(i) * stride, dense ? &densePosition : nullptr);
    } catch (const std::exception&) {
      status = {Code::memory, "kvCache", "", "out of memory for a block table", 0, 0};
    }
  }
  if (!status) return {};
  for (Head& head : heads_) {
    for (KvPage* page : head.spare)
      if (page) pool_->release(page);
    head.spare.clear();
  }
  return status;
}

void KvCache::keepHead(int32_t layer, int32_t head, const uint8_t* kept) {
  Head& h = heads_[index(layer, head)];
  int64_t token = 0;
  for (int64_t slot = 0; slot < h.kept; ++slot, ++token) {
    while (!kept[token]) ++token;
    const size_t page = size_t(slot / kPageTokens);
    KvPage& to = h.spare[page] ? *h.spare[page] : *h.pages[page];
    if (token != slot || h.spare[page]) copyToken(to, slot % kPageTokens, *h.pages[size_t(token / kPageTokens)], token % kPageTokens);
    if (observing_) h.scores[size_t(slot)] = h.scores[size_t(token)];
    // Later slots read from this page's successors only.
    if (h.spare[page] && (slot % kPageTokens == kPageTokens - 1 || slot + 1 == h.kept)) {
      std::swap(h.spare[page], h.pages[page]);
      pool_->release(h.spare[page]);
      h.spare[page] = nullptr;
    }
  }
}

void KvCache::finishKeep() {
  for (Head& head : heads_) {
    head.length = head.kept;
    head.spare.clear();
    trimHead(head);
  }
}

Status KvCache::requantize(int64_t recent, DType element) {
  struct Change {
    KvPage** place;
    KvPage* page;
  };
  if (shape().headDim > kMostQuantizedDim) return shapeError("kvCache", "headDim", "is too large for pages of several element types", kMostQuantizedDim, shape().headDim);
  std::vector<Change> changes;
  Status status;
  try {
    float token[2 * kMostQuantizedDim];
    for (Head& head : heads_)
      for (int64_t p = 0; (p + 1) * kPageTokens <= head.length - recent && !status; ++p) {
        KvPage*& page = head.pages[size_t(p)];
        if (page->element == element) continue;
        changes.push_back({&page, nullptr});  // first: it may throw, and a page taken before would be lost
        KvPage* made = changes.back().page = pool_->take(element, status);
        if (!made) {
          changes.pop_back();
          break;
        }
        std::memcpy(made->positions, page->positions, sizeof made->positions);
        for (int64_t slot = 0; slot < kPageTokens; ++slot) {
          readToken(*page, layout(page->element), slot, token, token + shape().headDim);
          writeToken(*made, layout(element), slot, token, token + shape().headDim);
        }
      }
  } catch (const std::exception&) {
    status = {Code::memory, "kvCache", "", "out of memory for a block table", 0, 0};
  }
  for (const Change& change : changes) {
    pool_->release(status ? change.page : *change.place);
    if (!status) *change.place = change.page;
  }
  mixed_ |= !status && !changes.empty();
  return status;
}

// Per head: length, then for each page its element type, positions and data, then scores where they are observed.
int64_t KvCache::layerBytes(int32_t layer) const {
  int64_t bytes = 0;
  for (int32_t h = 0; h < shape().kvHeads; ++h) {
    const Head& head = heads_[index(layer, h)];
    bytes += 8;
    for (int64_t p = 0; p * kPageTokens < head.length; ++p) bytes += 8 + int64_t(sizeof KvPage::positions) + layout(head.pages[size_t(p)]->element).dataBytes();
    if (observing_) bytes += head.length * int64_t(sizeof(float));
  }
  return bytes;
}

void KvCache::saveLayer(int32_t layer, std::byte* to) const {
  const auto put = [&](const void* data, int64_t bytes) {
    if (bytes > 0) std::memcpy(to, data, size_t(bytes));
    to += bytes;
  };
  for (int32_t h = 0; h < shape().kvHeads; ++h) {
    const Head& head = heads_[index(layer, h)];
    put(&head.length, 8);
    for (int64_t p = 0; p * kPageTokens < head.length; ++p) {
      const KvPage& page = *head.pages[size_t(p)];
      const int64_t element = int64_t(page.element);
      put(&element, 8);
      put(page.positions, sizeof page.positions);
      put(page.keys(), layout(page.element).dataBytes());
    }
    if (observing_) put(head.scores.data(), head.length * int64_t(sizeof(float)));
  }
}

Status KvCache::loadLayer(int32_t layer, const std::byte* from, int64_t bytes) {
  constexpr const char* op = "kvCache";
  const auto malformed = [] { return argumentError(op, "layer", "the saved cache is damaged"); };
  const auto get = [&](void* data, int64_t count) {
    if (bytes < count) return false;
    if (count > 0) std::memcpy(data, from, size_t(count));  // an empty list has no address
    from += count;
    bytes -= count;
    return true;
  };
  for (int32_t h = 0; h < shape().kvHeads; ++h) {
    Head& head = heads_[index(layer, h)];
    int64_t length, element;
    if (head.length != 0 || !head.pages.empty()) return argumentError(op, "layer", "is not empty");
    if (!get(&length, 8) || length < 0 || length > bytes) return malformed();
    try {
      head.pages.reserve(size_t(ceilDiv(length, kPageTokens)));
      if (observing_) head.scores.resize(size_t(ceilDiv(length, kPageTokens) * kPageTokens));
    } catch (const std::exception&) {
      return {Code::memory, op, "", "out of memory for a block table", length, 0};
    }
    while (int64_t(head.pages.size()) * kPageTokens < length) {
      if (!get(&element, 8) || !isCacheElement(DType(element))) return malformed();
      Status status;
      KvPage* page = pool_->take(DType(element), status);
      if (!page) return status;
      head.pages.push_back(page);
      mixed_ |= page->element != shape().element;
      if (mixed_ && shape().headDim > kMostQuantizedDim) return malformed();
      if (!get(page->positions, sizeof page->positions) || !get(page->keys(), layout(page->element).dataBytes())) return malformed();
    }
    if (observing_ && !get(head.scores.data(), length * int64_t(sizeof(float)))) return malformed();
    head.length = length;
  }
  return bytes == 0 ? Status{} : malformed();
}

}  // namespace tl
