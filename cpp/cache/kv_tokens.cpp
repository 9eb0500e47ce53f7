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
  float* scales;
  int64_t start, step;              // of elements; of bytes in i4
  int64_t scaleStart, scaleStep;    // of groups
};

Half keysOf(KvPage& page, const KvLayout& layout, int64_t slot) { return {page.keys(), page.keyScales(layout), slot, kPageTokens, slot, kPageTokens}; }
Half valuesOf(KvPage& page, const KvLayout& layout, int64_t slot) {
  const int64_t token = layout.element == DType::i4 ? layout.tokenBytes() : layout.headDim;
  return {page.values(layout), page.valueScales(layout), slot * token, 1, layout.element == DType::i8 ? slot : slot * layout.groups(), 1};
}

void readHalf(const Half& half, const KvLayout& layout, float* out) {
  if (layout.element != DType::i4) {
    const float scale = layout.element == DType::i8 ? half.scales[half.scaleStart] : 1;
    for (int64_t d = 0; d < layout.headDim; ++d) out[d] = readElement(layout.element, half.data, half.start + d * half.step) * scale;
    return;
  }
  const float* minima = half.scales + kPageTokens * layout.groups();
  for (int64_t d = 0; d < layout.headDim; ++d) {
    const uint8_t pair = uint8_t(half.data[half.start + d / 2 * half.step]);
    const int64_t group = half.scaleStart + d / kPageGroup * half.scaleStep;
    out[d] = std::fma(float(d % 2 ? pair >> 4 : pair & 15), half.scales[group], minima[group]);
  }
}

void writeInt8(const Half& half, const KvLayout& layout, const float* x) {
  float largest = 0;
  for (int64_t d = 0; d < layout.headDim; ++d) largest = std::max(largest, std::fabs(x[d]));
  const float scale = largest / 127;
  half.scales[half.scaleStart] = scale;
  for (int64_t d = 0; d < layout.headDim; ++d)
    writeElement(DType::i8, half.data, half.start + d * half.step, scale > 0 ? std::nearbyint(x[d] / scale) : 0);
}

void writeInt4(const Half& half, const KvLayout& layout, const float* x) {
  float* minima = half.scales + kPageTokens * layout.groups();
  for (int64_t g = 0; g < layout.groups(); ++g) {
    const int64_t begin = g * kPageGroup, end = std::min(begin + kPageGroup, layout.headDim);
    const auto [low, high] = std::minmax_element(x + begin, x + end);
    const float minimum = *low, scale = (*high - minimum) / 15;
    half.scales[half.scaleStart + g * half.scaleStep] = scale;
    minima[half.scaleStart + g * half.scaleStep] = minimum;
    for (int64_t d = begin; d < end; d += 2) {
      const auto quantized = [&](int64_t i) { return i < end && scale > 0 ? unsigned(std::clamp(std::nearbyint((x[i] - minimum) / scale), 0.0f, 15.0f)) : 0u; };
      half.data[half.start + d / 2 * half.step] = std::byte(quantized(d) | quantized(d + 1) << 4);
    }
  }
}

void writeHalf(const Half& half, const KvLayout& layout, const float* x) {
  if (layout.element == DType::i8) return writeInt8(half, layout, x);
  if (layout.element == DType::i4) return writeInt4(half, layout, x);
  for (int64_t d = 0; d < layout.headDim; ++d) writeElement(layout.element, half.data, half.start + d * half.step, x[d]);
}

template <typename T> void moveLanes(std::byte* to, int64_t toSlot, const std::byte* from, int64_t fromSlot, int64_t rows) {
  T* target = reinterpret_cast<T*>(to) + toSlot;
  const T* source = reinterpret_cast<const T*>(from) + fromSlot;
  for (int64_t i = 0; i < rows; ++i) target[i * kPageTokens] = source[i * kPageTokens];
}

}  // namespace

void readToken(const KvPage& page, const KvLayout& layout, int64_t slot, float* key, float* value) {
  KvPage& any = const_cast<KvPage&>(page);  // Half serves readers and writers
  if (key) readHalf(keysOf(any, layout, slot), layout, key);
  if (value) readHalf(valuesOf(any, layout, slot), layout, value);
}

void writeToken(KvPage& page, const KvLayout& layout, int64_t slot, const float* key, const float* value) {
  writeHalf(keysOf(page, layout, slot), layout, key);
  writeHalf(valuesOf(page, layout, slot), layout, value);
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
  if (layout.halfScales() == 0) return;
  const int64_t sets = layout.halfScales() / kPageTokens;  // i8: 1, i4: scales and minima of all groups
  moveLanes<float>(reinterpret_cast<std::byte*>(to.keyScales(layout)), toSlot, reinterpret_cast<const std::byte*>(from.keyScales(layout)), fromSlot, sets);
  const int64_t groups = layout.element == DType::i4 ? layout.groups() : 1;
  for (int64_t half = 0; half < sets / groups; ++half)
    for (int64_t g = 0; g < groups; ++g)
      to.valueScales(layout)[half * kPageTokens * groups + toSlot * groups + g] = from.valueScales(layout)[half * kPageTokens * groups + fromSlot * groups + g];
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
