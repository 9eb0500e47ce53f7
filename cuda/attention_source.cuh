// Brings keys or values of a tile to shared memory as f32, from rows, block tables, quantised rows, or pages of the engine's
// cache (cpp/cache/kv.h: keys transposed, values by rows).
#pragma once
#include "attention_unit.cuh"

namespace tl::cuda {

enum class Part { keys, values };

// Where things lie in a page, as KvLayout says.
struct PageLayout {
  DType element;
  int64_t dim;
  __device__ int64_t groups() const { return (dim + kPageGroup - 1) / kPageGroup; }
  __device__ int64_t half() const {
    return kPageTokens * (element == DType::i4 ? (dim + 1) / 2 : element == DType::i8 ? dim : element == DType::f32 ? dim * 4 : dim * 2);
  }
  __device__ int64_t scaleBytes() const { return kPageTokens * (element == DType::i8 ? 4 : element == DType::i4 ? 4 * groups() : 0); }
  __device__ int splitHalf(int d) const { return (min(int(dim) - d / int(kPageSplit) * int(kPageSplit), int(kPageSplit)) + 1) / 2; }
  // Of an i4 value, as KvLayout's valueByte and valueInHighBits say; of a key two dimensions that follow each other.
  template <Part part> __device__ int pairOf(int d) const {
    return part == Part::keys ? d / 2 : d / int(kPageSplit) * int(kPageSplit / 2) + d % int(kPageSplit) % splitHalf(d);
  }
  template <Part part> __device__ bool inHighBits(int d) const { return part == Part::keys ? d % 2 != 0 : d % int(kPageSplit) >= splitHalf(d); }
};

__device__ __forceinline__ const std::byte* pageData(const KvPage* page) { return reinterpret_cast<const std::byte*>(page) + sizeof(KvPage); }

// Element d of x [dim] after rotateKey() of cpp/cache/kv.h.
template <typename X> __device__ inline float rotatedElement(int64_t dim, int64_t d, X x) {
  const int64_t width = rotationWidth(dim), block = d / width * width;
  float sum = 0;
  for (int64_t e = 0; e < width; ++e) {
    const float term = x(block + e);
    sum += __popc(unsigned((d - block) & e)) % 2 ? -term : term;
  }
  return sum / sqrtf(float(width));
}

// Element (slot, d) of a page; keys in i4 stay rotated.
template <Part part> __device__ inline float storedElement(const KvPage* page, int64_t dim, int slot, int d) {
  const PageLayout layout{page->element, dim};
  const std::byte* base = pageData(page) + (part == Part::values ? layout.half() : 0);
  const std::byte* scales = pageData(page) + 2 * layout.half() + (part == Part::values ? layout.scaleBytes() : 0);
  const int64_t at = part == Part::keys ? int64_t(d) * kPageTokens + slot : slot * dim + d;
  switch (layout.element) {
    case DType::f16: return asFloat(reinterpret_cast<const f16*>(base)[at]);
    case DType::bf16: return asFloat(reinterpret_cast<const bf16*>(base)[at]);
    case DType::i8: return float(reinterpret_cast<const int8_t*>(base)[at]) * reinterpret_cast<const float*>(scales)[slot];
    case DType::i4: {
      const int64_t byte = layout.pairOf<part>(d);
      const uint8_t pair = reinterpret_cast<const uint8_t*>(base)[part == Part::keys ? byte * kPageTokens + slot : slot * ((dim + 1) / 2) + byte];
      const f16* group = reinterpret_cast<const f16*>(scales) + d / kPageGroup * kPageTokens + slot;
      return fmaf(float(layout.inHighBits<part>(d) ? pair >> 4 : pair & 15), asFloat(group[0]), asFloat(group[layout.groups() * kPageTokens]));
    }
    default: return reinterpret_cast<const float*>(base)[at];
  }
}

// Element (slot, d) of a page.
template <Part part> __device__ inline float pageElement(const KvPage* page, int64_t dim, int slot, int d) {
  if (part == Part::values || page->element != DType::i4) return storedElement<part>(page, dim, slot, d);
  return rotatedElement(dim, d, [&](int64_t e) { return storedElement<part>(page, dim, slot, int(e)); });
}

// Where row `key` of a unit begins, in elements.
template <Part part> __device__ __forceinline__ int64_t rowStart(const Problem& p, const Unit& u, int32_t key) {
  const Source& source = p.source;
  const Strided& rows = part == Part::keys ? source.keys : source.values;
  if (source.layout != Layout::blockTable) return rows.at(u.batch, u.kvHead, u.firstKey + key);
  const int32_t page = within(source.table[u.batch * source.tableBatch + u.kvHead * source.tableHead + key / source.pageSize], source.pageCount - 1);
  return page * (part == Part::keys ? source.keyPage : source.valuePage) + key % source.pageSize * rows.token;
}

template <typename T, Part part> __device__ inline void loadFloatRows(const Problem& p, const Unit& u, int32_t first, int count, int dim, float* to, int stride) {
  const auto* data = reinterpret_cast<const T*>((part == Part::keys ? p.source.keys : p.source.values).data);
  for (int j = warpIndex(); j < count; j += int(blockDim.x) / kWarp) {
    const bool there = first + j < u.keys;
    const T* row = data + (there ? rowStart<part>(p, u, first + j) : 0);
    for (int d = laneIndex(); d < dim; d += kWarp) to[j * stride + d] = there ? asFloat(row[d]) : 0.0f;
  }
}

template <Part part> __device__ inline void loadQuantizedRows(const Problem& p, const Unit& u, int32_t first, int count, int dim, float* to, int stride) {
  const Source& source = p.source;
  const Strided &rows = part == Part::keys ? source.keys : source.values, &scale = part == Part::keys ? source.keyScale : source.valueScale;
  const auto* scales = reinterpret_cast<const float*>(scale.data);
  const float* minima = part == Part::keys ? source.keyMinimum : source.valueMinimum;
  for (int j = warpIndex(); j < count; j += int(blockDim.x) / kWarp) {
    const bool there = first + j < u.keys;
    const int32_t key = there ? u.firstKey + first + j : 0;
    const std::byte* row = rows.data + rows.at(u.batch, u.kvHead, key);
    const int64_t at = scale.at(u.batch, u.kvHead, key);
    for (int d = laneIndex(); d < dim; d += kWarp) {
      float value = 0;
      if (there && source.quantized == 1) value = float(reinterpret_cast<const int8_t*>(row)[d]) * scales[at];
      if (there && source.quantized == 2) {
        const auto pair = reinterpret_cast<const uint8_t*>(row)[d / 2];
        value = fmaf(float(d % 2 ? pair >> 4 : pair & 15), scales[at + d / 32], minima[at + d / 32]);
      }
      to[j * stride + d] = value;
    }
  }
}

// Those of i4 among keys first … first + count − 1, rotated back, by a warp each.
__device__ inline void loadRotatedKeys(const KvPage* const* pages, int32_t keys, int32_t first, int count, int dim, float* to, int stride) {
  const int width = int(rotationWidth(dim)), lane = laneIndex();
  const float unit = 1 / sqrtf(float(width));
  for (int j = warpIndex(); j < count; j += int(blockDim.x) / kWarp) {
    const int32_t key = first + j;
    if (key >= keys || pages[key / kPageTokens]->element != DType::i4) continue;
    float* row = to + j * stride;
    for (int d = lane; d < dim; d += kWarp) row[d] = storedElement<Part::keys>(pages[key / kPageTokens], dim, key % kPageTokens, d);
    __syncwarp();
    for (int step = 1; step < width; step *= 2) {
      for (int i = lane; i < dim / 2; i += kWarp) {
        const int d = i / step * 2 * step + i % step;
        const float a = row[d], b = row[d + step];
        row[d] = a + b;
        row[d + step] = a - b;
      }
      __syncwarp();
    }
    for (int d = lane; d < dim; d += kWarp) row[d] *= unit;
  }
}

template <Part part> __device__ inline void loadPageRows(const Problem& p, const Unit& u, int32_t first, int count, int dim, float* to, int stride) {
  const KvPage* const* pages = p.source.pages + u.kvHead * p.source.pagesHead;
  for (int i = int(threadIdx.x); i < count * dim; i += int(blockDim.x)) {
    // Neighbouring threads read neighbouring elements: tokens of keys, dimensions of values.
    const int j = part == Part::keys ? i % count : i / dim, d = part == Part::keys ? i / count : i % dim;
    const int32_t key = first + j;
    const bool there = key < u.keys;
    if (part == Part::keys && there && pages[key / kPageTokens]->element == DType::i4) continue;
    to[j * stride + d] = there ? storedElement<part>(pages[key / kPageTokens], dim, key % kPageTokens, d) : 0.0f;
  }
  if (part == Part::keys) loadRotatedKeys(pages, u.keys, first, count, dim, to, stride);
}

// Rows first … first + count − 1 to `to` [count][stride]; past the last key zeros. Reached by all threads; no barrier.
template <Part part> __device__ inline void loadRows(const Problem& p, const Unit& u, int32_t first, int count, int dim, float* to, int stride) {
  if (p.source.layout == Layout::pages) return loadPageRows<part>(p, u, first, count, dim, to, stride);
  if (p.source.quantized) return loadQuantizedRows<part>(p, u, first, count, dim, to, stride);
  switch ((part == Part::keys ? p.source.keys : p.source.values).dtype) {
    case DType::f16: return loadFloatRows<f16, part>(p, u, first, count, dim, to, stride);
    case DType::bf16: return loadFloatRows<bf16, part>(p, u, first, count, dim, to, stride);
    default: return loadFloatRows<float, part>(p, u, first, count, dim, to, stride);
  }
}

}  // namespace tl::cuda
