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
  __device__ int64_t halfScales() const { return element == DType::i8 ? kPageTokens : element == DType::i4 ? 2 * kPageTokens * groups() : 0; }
};

__device__ __forceinline__ const std::byte* pageData(const KvPage* page) { return reinterpret_cast<const std::byte*>(page) + sizeof(KvPage); }

// Element (slot, d) of a page.
template <Part part> __device__ inline float pageElement(const KvPage* page, int64_t dim, int slot, int d) {
  const PageLayout layout{page->element, dim};
  const std::byte* base = pageData(page) + (part == Part::values ? layout.half() : 0);
  const auto* scales = reinterpret_cast<const float*>(pageData(page) + 2 * layout.half()) + (part == Part::values ? layout.halfScales() : 0);
  const int64_t at = part == Part::keys ? int64_t(d) * kPageTokens + slot : slot * dim + d;
  switch (layout.element) {
    case DType::f16: return asFloat(reinterpret_cast<const f16*>(base)[at]);
    case DType::bf16: return asFloat(reinterpret_cast<const bf16*>(base)[at]);
    case DType::i8: return float(reinterpret_cast<const int8_t*>(base)[at]) * scales[slot];
    case DType::i4: {
      const int64_t bytes = (dim + 1) / 2, groups = layout.groups(), group = d / kPageGroup;
      const uint8_t pair = reinterpret_cast<const uint8_t*>(base)[part == Part::keys ? int64_t(d / 2) * kPageTokens + slot : slot * bytes + d / 2];
      const int64_t where = part == Part::keys ? group * kPageTokens + slot : slot * groups + group;
      return fmaf(float(d % 2 ? pair >> 4 : pair & 15), scales[where], scales[kPageTokens * groups + where]);
    }
    default: return reinterpret_cast<const float*>(base)[at];
  }
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

template <Part part> __device__ inline void loadPageRows(const Problem& p, const Unit& u, int32_t first, int count, int dim, float* to, int stride) {
  const KvPage* const* pages = p.source.pages + u.kvHead * p.source.pagesHead;
  for (int i = int(threadIdx.x); i < count * dim; i += int(blockDim.x)) {
    // Neighbouring threads read neighbouring elements: tokens of keys, dimensions of values.
    const int j = part == Part::keys ? i % count : i / dim, d = part == Part::keys ? i / count : i % dim;
    const int32_t key = first + j;
    to[j * stride + d] = key < u.keys ? pageElement<part>(pages[key / kPageTokens], dim, key % kPageTokens, d) : 0.0f;
  }
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
