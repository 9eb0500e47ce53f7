// Where keys and values come from. Brings panels of 32 keys of one key/value head to the layout of the inner loops, in f32.
// Included after attention_tile_inl.h and cache/kv.h.
//   pages  the engine's own cache, cache/kv.h: keys lie transposed already
//   rows   [tokens, headDim] at any stride, or in pages of a block table (arXiv 2309.06180); f32, f16, bf16,
//          int8 with a scale a token, int4 with scale and minimum for each 32 elements (arXiv 2303.06865, 2402.02750)
#pragma once

#include "../simd/square.h"
#include "attention_quantized_inl.h"
#include "hadamard_inl.h"

namespace tl::TL_TARGET {

enum class Quantized : int32_t { none = 0, int8, int4 };

// Rows of one head. Addresses in bytes.
struct Rows {
  const std::byte* data = nullptr;
  int64_t rowBytes = 0, pageBytes = 0;
  const float *scale = nullptr, *minimum = nullptr;
  int64_t scaleRow = 0;  // elements from token to token
};

struct Source {
  KvPage* const* pages = nullptr;  // null: rows
  DType element = DType::f16;      // of rows; of all pages unless `mixed`
  bool mixed = false;
  bool rotated = false;            // int4 keys are wanted as they are stored: the queries are rotated too
  bool scaledApart = false;        // int8 is wanted without its scales: a block names them
  Quantized quantized = Quantized::none;
  int64_t headDim = 0, valueDim = 0;
  Rows keys, values;
  const int32_t* table = nullptr;  // block table of the head, null = one run of rows
  int64_t pageSize = 0;

  KvLayout pageLayout(int64_t panel) const { return {pages[panel]->element, headDim}; }
  template <typename T> const T* pageKeys(int64_t panel) const { return reinterpret_cast<const T*>(pages[panel]->keys()); }
  template <typename T> const T* pageValues(int64_t panel) const { return pageKeys<T>(panel) + headDim * kPageTokens; }
  int64_t rowBytes(int64_t dim) const {
    return quantized == Quantized::int4 ? (dim + 1) / 2 : quantized == Quantized::int8 ? dim : dim * int64_t(elementBytes(element));
  }
  // Panels of rows can be used as they lie: none is cut by the end of a page, and turning their keys over is cheap.
  bool wholePanels() const { return !pages && (!table || pageSize % kPanelKeys == 0) && (kNarrowSquares || rowBytes(1) == 4); }
  const std::byte* row(const Rows& rows, int64_t key) const {
    return rows.data + (table ? table[key / pageSize] * rows.pageBytes + key % pageSize * rows.rowBytes : key * rows.rowBytes);
  }
};

inline int64_t paddedDim(int64_t dim) { return roundUp(dim, kTileWidth); }

// Readers of one row: kLanes elements from dimension d on; past `part` zero. offset(d): the byte where dimension d lies.
template <typename T> struct FloatReader {
  const T* at;
  void open(const Source& source, const Rows& rows, int64_t key) { at = reinterpret_cast<const T*>(source.row(rows, key)); }
  TL_INLINE F32 operator()(int64_t d, int part) const { return part == kLanes ? load(at + d) : loadPart(at + d, part); }
  static int64_t offset(int64_t d) { return d * int64_t(sizeof(T)); }
};

struct Int8Reader {
  const int8_t* at;
  float scale;
  void open(const Source& source, const Rows& rows, int64_t key) {
    at = reinterpret_cast<const int8_t*>(source.row(rows, key));
    scale = source.scaledApart ? 1.0f : rows.scale[key * rows.scaleRow];
  }
  TL_INLINE F32 operator()(int64_t d, int part) const {
    if (part == kLanes) return mul(loadBytes(at + d), broadcast(scale));
    int8_t lanes[kLanes] = {};
    std::memcpy(lanes, at + d, size_t(part));
    return mul(loadBytes(lanes), broadcast(scale));
  }
  static int64_t offset(int64_t d) { return d; }
};

struct Int4Reader {
  const uint8_t* at;
  const float *scale, *minimum;
  void open(const Source& source, const Rows& rows, int64_t key) {
    at = reinterpret_cast<const uint8_t*>(source.row(rows, key));
    scale = rows.scale + key * rows.scaleRow;
    minimum = rows.minimum + key * rows.scaleRow;
  }
  TL_INLINE F32 operator()(int64_t d, int part) const {
    int8_t lanes[kLanes] = {};
    if constexpr (kLanes % 8 == 0) {
      if (part == kLanes) {
        for (int i = 0; i < kLanes; i += 8) {  // four bytes at a time, their halves spread over eight
          uint32_t four;
          std::memcpy(&four, at + (d + i) / 2, sizeof(four));
          uint64_t spread = (uint64_t(four) | uint64_t(four) << 16) & 0x0000ffff0000ffff;
          spread = (spread | spread << 8) & 0x00ff00ff00ff00ff;
          spread = (spread | spread << 4) & 0x0f0f0f0f0f0f0f0f;
          std::memcpy(lanes + i, &spread, sizeof(spread));
        }
        return mulAdd(loadBytes(lanes), broadcast(scale[d / kInt4Group]), broadcast(minimum[d / kInt4Group]));
      }
    }
    for (int i = 0; i < part; i += 2) {
      const uint8_t pair = at[(d + i) / 2];
      lanes[i] = int8_t(pair & 15);
      if (i + 1 < part) lanes[i + 1] = int8_t(pair >> 4);
    }
    const F32 value = mulAdd(loadBytes(lanes), broadcast(scale[d / kInt4Group]), broadcast(minimum[d / kInt4Group]));
    return part == kLanes ? value : select(firstLanes(part), value, zero());
  }
  static int64_t offset(int64_t d) { return d / 2; }
};

// What to fetch into the cache while a panel is loaded: the same keys' rows somewhere else. rows null = nothing.
struct Ahead {
  const Rows* rows = nullptr;
  int64_t first = 0, keys = 0;  // the key that goes with the panel's first, and how many there are in all
  const std::byte* row(const Source& source, int j) const { return rows && first + j < keys ? source.row(*rows, first + j) : nullptr; }
};

template <typename Reader, int Known> void transposeColumns(const Reader* readers, int known, const std::byte* const* ahead, int64_t headDim, float* panel) {
  const int count = Known ? Known : known;
  for (int64_t d = 0; d < headDim; d += kLanes) {
    const int part = int(std::min<int64_t>(headDim - d, kLanes));
    F32 square[kLanes];
    if (ahead && Reader::offset(d) % 64 < Reader::offset(kLanes))
      for (int i = 0; i < count; ++i) prefetch(ahead[i] + Reader::offset(d));
    float* to = panel + d * kPanelKeys;
    if (Known && part == kLanes) {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = readers[i](d, kLanes);
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(to + i * kPanelKeys, square[i]);
    } else {
      for (int i = 0; i < kLanes; ++i) square[i] = i < count ? readers[i](d, part) : zero();
      transpose(square);
      for (int i = 0; i < part; ++i) store(to + i * kPanelKeys, square[i]);
    }
  }
}

// Keys first … first + count − 1 as [headDim][32]; lanes past them are zero.
template <typename Reader> void transposeKeys(const Source& source, int64_t first, int count, const Ahead& ahead, float* panel) {
  for (int j = 0; j < kPanelKeys; j += kLanes) {
    Reader readers[kLanes] = {};
    const std::byte* later[kLanes];
    const int known = std::clamp(count - j, 0, kLanes);
    bool fetch = ahead.rows != nullptr;
    for (int i = 0; i < known; ++i) {
      readers[i].open(source, source.keys, first + j + i);
      fetch &= (later[i] = ahead.row(source, j + i)) != nullptr;
    }
    if (known == kLanes) transposeColumns<Reader, kLanes>(readers, known, fetch ? later : nullptr, source.headDim, panel + j);
    else transposeColumns<Reader, 0>(readers, known, nullptr, source.headDim, panel + j);
  }
}

// A whole panel's keys as [headDim][32], in the element type that they are stored in; headDim is whole squares. The values of
// the same keys are fetched meanwhile, in the order in which they lie.
template <typename T> void transposePanel(const Source& source, int64_t first, T* panel) {
  constexpr int R = kSquareRows<T>, C = kSquareColumns<T>;
  const std::byte *keys = source.row(source.keys, first), *values = source.row(source.values, first);
  const int64_t steps = kPanelKeys / R * (source.headDim / C), valueBytes = source.valueDim * int64_t(sizeof(T));
  int64_t step = 0, fetched = 0;
  for (int j = 0; j < kPanelKeys; j += R) {
    const std::byte* rows[R];
    for (int i = 0; i < R; ++i) rows[i] = keys + (j + i) * source.keys.rowBytes;
    for (int64_t d = 0; d < source.headDim; d += C) {
      for (++step; fetched * steps < step * kPanelKeys; ++fetched)
        for (int64_t at = 0; at < valueBytes; at += 64) prefetch(values + fetched * source.values.rowBytes + at);
      transposeSquare(rows, d * int64_t(sizeof(T)), panel + d * kPanelKeys + j);
    }
  }
}

// Values as [columns / kTileWidth][32][kTileWidth]; past valueDim and past the last key zero.
template <typename Reader, typename Open> void spreadValues(const Source& source, int count, const Ahead& ahead, float* panel, Open open) {
  constexpr int64_t column = kPanelKeys * kTileWidth;
  const int64_t whole = source.valueDim / kTileWidth * kTileWidth;
  for (int j = 0; j < kPanelKeys; ++j, panel += kTileWidth) {
    float* to = panel;
    if (j >= count) {
      for (int64_t d = 0; d < source.valueDim; d += kTileWidth, to += column)
        for (int v = 0; v < kTileVectors; ++v) store(to + v * kLanes, zero());
      continue;
    }
    const Reader reader = open(j);
    if (const std::byte* later = ahead.row(source, j))
      for (int64_t at = 0; at < Reader::offset(source.valueDim); at += 64) prefetch(later + at);
    for (int64_t d = 0; d < whole; d += kTileWidth, to += column)
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) store(to + v * kLanes, reader(d + v * kLanes, kLanes));
    if (whole == source.valueDim) continue;
    for (int64_t d = whole; d < whole + kTileWidth; d += kLanes)
      store(to + d - whole, d < source.valueDim ? reader(d, int(std::min<int64_t>(source.valueDim - d, kLanes))) : zero());
  }
}

template <typename T> void pageKeysToPanel(const Source& source, int64_t first, float* panel) {
  const T* from = source.pageKeys<T>(first / kPanelKeys);
  for (int64_t i = 0; i < source.headDim * kPanelKeys; i += kLanes) store(panel + i, load(from + i));
}

inline void int8KeysToPanel(const Source& source, int64_t first, float* panel) {
  const int8_t* from = source.pageKeys<int8_t>(first / kPanelKeys);
  const float* scales = source.pages[first / kPanelKeys]->keyScales<float>(source.pageLayout(first / kPanelKeys));
  F32 scale[kPanelVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kPanelVectors; ++v) scale[v] = source.scaledApart ? broadcast(1.0f) : load(scales + v * kLanes);
  for (int64_t d = 0; d < source.headDim; ++d, from += kPanelKeys, panel += kPanelKeys)
#pragma GCC unroll 8
    for (int v = 0; v < kPanelVectors; ++v) store(panel + v * kLanes, mul(loadBytes(from + v * kLanes), scale[v]));
}

inline void int4KeysToPanel(const Source& source, int64_t first, float* panel) {
  const KvPage& page = *source.pages[first / kPanelKeys];
  const KvLayout layout = source.pageLayout(first / kPanelKeys);
  const auto* from = reinterpret_cast<const uint8_t*>(page.keys());
  float* to = panel;
  for (int64_t d = 0; d < source.headDim; d += 2, from += kPanelKeys, to += 2 * kPanelKeys) {
    const f16* scales = page.keyScales<f16>(layout) + d / kPageGroup * kPageTokens;
    for (int v = 0; v < kPanelKeys; v += kLanes) {
      const F32 scale = load(scales + v), minimum = load(scales + layout.groups() * kPageTokens + v);
      F32 low, high;
      loadNibbles(from + v, low, high);
      store(to + v, mulAdd(low, scale, minimum));
      if (d + 1 < source.headDim) store(to + kPanelKeys + v, mulAdd(high, scale, minimum));
    }
  }
  if (!source.rotated) rotateColumns(panel, source.headDim, kPanelKeys);
}

inline void loadKeyPanel(const Source& source, int64_t first, int count, const Ahead& ahead, float* panel) {
  if (source.pages) {
    switch (source.pages[first / kPanelKeys]->element) {
      case DType::f16: return pageKeysToPanel<f16>(source, first, panel);
      case DType::bf16: return pageKeysToPanel<bf16>(source, first, panel);
      case DType::i8: return int8KeysToPanel(source, first, panel);
      case DType::i4: return int4KeysToPanel(source, first, panel);
      default: return pageKeysToPanel<float>(source, first, panel);
    }
  } else if (source.quantized == Quantized::int8) transposeKeys<Int8Reader>(source, first, count, ahead, panel);
  else if (source.quantized == Quantized::int4) transposeKeys<Int4Reader>(source, first, count, ahead, panel);
  else if (source.element == DType::f16) transposeKeys<FloatReader<f16>>(source, first, count, ahead, panel);
  else if (source.element == DType::bf16) transposeKeys<FloatReader<bf16>>(source, first, count, ahead, panel);
  else transposeKeys<FloatReader<float>>(source, first, count, ahead, panel);
}

template <typename T> void pageValuesToPanel(const Source& source, int64_t first, int count, float* panel) {
  const T* from = source.pageValues<T>(first / kPanelKeys);
  spreadValues<FloatReader<T>>(source, count, Ahead{}, panel, [&](int j) { return FloatReader<T>{from + j * source.valueDim}; });
}
template <typename Reader> void rowValuesToPanel(const Source& source, int64_t first, int count, const Ahead& ahead, float* panel) {
  spreadValues<Reader>(source, count, ahead, panel, [&](int j) {
    Reader reader;
    reader.open(source, source.values, first + j);
    return reader;
  });
}

inline void int8ValuesToPanel(const Source& source, int64_t first, int count, float* panel) {
  const KvPage& page = *source.pages[first / kPanelKeys];
  const KvLayout layout = source.pageLayout(first / kPanelKeys);
  const auto* from = reinterpret_cast<const int8_t*>(page.values(layout));
  spreadValues<Int8Reader>(source, count, Ahead{}, panel, [&](int j) { return Int8Reader{from + j * source.valueDim, source.scaledApart ? 1.0f : page.valueScales<float>(layout)[j]}; });
}

inline void int4ValuesToPanel(const Source& source, int64_t first, int count, float* panel) {
  const KvPage& page = *source.pages[first / kPanelKeys];
  const KvLayout layout = source.pageLayout(first / kPanelKeys);
  const int64_t bytes = layout.tokenBytes();
  alignas(64) float scale[kPanelKeys] = {}, minimum[kPanelKeys] = {};
  for (int64_t d = 0; d < paddedDim(source.valueDim); d += kLanes) {
    float* to = panel + d / kTileWidth * kPanelKeys * kTileWidth + d % kTileWidth;
    const int part = int(std::clamp<int64_t>(source.valueDim - d, 0, kLanes)), tokens = part > 0 ? count : 0;
    for (int j = tokens; j < kPanelKeys; ++j) store(to + j * kTileWidth, zero());
    if (tokens == 0) continue;
    const auto* from = reinterpret_cast<const uint8_t*>(page.values(layout));
    const f16* scales = page.valueScales<f16>(layout) + d / kPageGroup * kPageTokens;
    for (int v = 0; v < kPanelKeys; v += kLanes) {
      store(scale + v, load(scales + v));
      store(minimum + v, load(scales + layout.groups() * kPageTokens + v));
    }
    if (layout.splitHalf(d) == kPageGroup) {  // these dimensions lie in one half of their bytes
      const bool inHigh = layout.valueInHighBits(d);
      from += layout.valueByte(d);
      for (int j = 0; j < tokens; ++j) {
        F32 low, high;
        loadNibbles(from + j * bytes, low, high);
        store(to + j * kTileWidth, mulAdd(inHigh ? high : low, broadcast(scale[j]), broadcast(minimum[j])));
      }
      continue;
    }
    for (int j = 0; j < tokens; ++j) {
      uint8_t lanes[kLanes] = {};
      for (int i = 0; i < part; ++i) lanes[i] = uint8_t(from[j * bytes + layout.valueByte(d + i)] >> (layout.valueInHighBits(d + i) ? 4 : 0) & 15);
      const F32 value = mulAdd(loadBytes(lanes), broadcast(scale[j]), broadcast(minimum[j]));
      store(to + j * kTileWidth, part == kLanes ? value : select(firstLanes(part), value, zero()));
    }
  }
}

inline void loadValuePanel(const Source& source, int64_t first, int count, const Ahead& ahead, float* panel) {
  if (source.pages) {
    switch (source.pages[first / kPanelKeys]->element) {
      case DType::f16: return pageValuesToPanel<f16>(source, first, count, panel);
      case DType::bf16: return pageValuesToPanel<bf16>(source, first, count, panel);
      case DType::i8: return int8ValuesToPanel(source, first, count, panel);
      case DType::i4: return int4ValuesToPanel(source, first, count, panel);
      default: return pageValuesToPanel<float>(source, first, count, panel);
    }
  } else if (source.quantized == Quantized::int8) rowValuesToPanel<Int8Reader>(source, first, count, ahead, panel);
  else if (source.quantized == Quantized::int4) rowValuesToPanel<Int4Reader>(source, first, count, ahead, panel);
  else if (source.element == DType::f16) rowValuesToPanel<FloatReader<f16>>(source, first, count, ahead, panel);
  else if (source.element == DType::bf16) rowValuesToPanel<FloatReader<bf16>>(source, first, count, ahead, panel);
  else rowValuesToPanel<FloatReader<float>>(source, first, count, ahead, panel);
}

// Fetches keys and values of tokens [from, to) into the cache: what is loaded next, while this block is used.
inline void fetchTokens(const Source& source, int64_t from, int64_t to) {
  const auto fetchRow = [](const std::byte* row, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) prefetch(row + at);
  };
  const KvLayout layout{source.element, source.headDim};  // a page of another element type is fetched in part: no harm
  for (int64_t token = from; token < to; ++token) {
    if (source.pages) {  // a page's halves, shared out evenly
      const std::byte* keys = source.pages[token / kPageTokens]->keys() + token % kPageTokens * layout.tokenBytes();
      fetchRow(keys, layout.tokenBytes());
      fetchRow(keys + layout.halfBytes(), layout.tokenBytes());
    } else {
      fetchRow(source.row(source.keys, token), source.rowBytes(source.headDim));
      fetchRow(source.row(source.values, token), source.rowBytes(source.valueDim));
    }
  }
}

// Names the scales of keys first … first + count − 1 as those of panel p of a block; those of rows are gathered in `space`,
// behind what the block holds.
inline void nameScales(Block<float>& block, int p, const Source& source, int64_t first, int count, float* space) {
  block.keyScales[p] = block.valueScales[p] = nullptr;
  if (!source.scaledApart) return;
  if (source.pages) {
    const KvPage& page = *source.pages[first / kPanelKeys];
    if (page.element != DType::i8) return;
    block.keyScales[p] = page.keyScales<float>(source.pageLayout(first / kPanelKeys));
    block.valueScales[p] = page.valueScales<float>(source.pageLayout(first / kPanelKeys));
    return;
  }
  float* keyScales = space + kBlockKeys * (source.headDim + paddedDim(source.valueDim)) + p * kPanelKeys;
  float* valueScales = keyScales + kBlockKeys;
  for (int j = 0; j < kPanelKeys; ++j) {
    keyScales[j] = j < count ? source.keys.scale[(first + j) * source.keys.scaleRow] : 0.0f;
    valueScales[j] = j < count ? source.values.scale[(first + j) * source.values.scaleRow] : 0.0f;
  }
  block.keyScales[p] = keyScales;
  block.valueScales[p] = valueScales;
}

// How the loop comes to a block: `needKeys` and `needValues` are called before a panel is used.

// Many rows: the whole block is converted once and used by all of them.
struct LoadedBlock : Block<float> {
  static constexpr bool kPanelwise = false;
  LoadedBlock(const Source& source, int64_t first, int count, float* space, bool withKeys = true, bool withValues = true) {
    float* valueSpace = space + kBlockKeys * source.headDim;
    for (int p = 0; p * kPanelKeys < count; ++p) {
      float* k = space + p * kPanelKeys * source.headDim;
      float* v = valueSpace + p * kPanelKeys * paddedDim(source.valueDim);
      keys[p] = k;
      this->values[p] = v;
      nameScales(*this, p, source, first + p * kPanelKeys, std::min(count - p * kPanelKeys, kPanelKeys), space);
      if (withKeys) loadKeyPanel(source, first + p * kPanelKeys, std::min(count - p * kPanelKeys, kPanelKeys), Ahead{}, k);
      if (withValues) loadValuePanel(source, first + p * kPanelKeys, std::min(count - p * kPanelKeys, kPanelKeys), Ahead{}, v);
    }
    valueRow = kTileWidth;
    valueColumn = kPanelKeys * kTileWidth;
  }
  void needKeys(int) {}
  void needValues(int) {}
};

// Few rows: one panel at a time goes through the first-level cache, or is read as it is stored where rows are so few that
// each element is converted once or twice. While keys are loaded this block's values are fetched, while values are loaded the
// next block's keys.
struct PassingBlock : Block<float> {
  static constexpr bool kPanelwise = true;
  PassingBlock(const Source& from, int64_t firstKey, int64_t keyCount, float* to, int64_t rows = kGroupRows)
      : source(from), first(firstKey), allKeys(keyCount), inRegisters(rows <= kQuantizedRows && readInRegisters(from.headDim) && (from.pages ? !from.mixed : readsBytes(from))), space(to) {
    for (int p = 0; p < kBlockPanels; ++p) keys[p] = values[p] = space;
    valueRow = kTileWidth;
    valueColumn = kPanelKeys * kTileWidth;
  }
  static bool readsBytes(const Source& from) {
    return from.quantized == Quantized::int8 && from.scaledApart && from.wholePanels() && from.headDim == from.valueDim && from.headDim % kSquareColumns<int8_t> == 0;
  }
  // Keys or values of the 32 keys from `key` on.
  void fetchHalf(int64_t key, bool valueHalf) {
    if (key >= allKeys) return;
    if (!source.pages) {
      const Rows& rows = valueHalf ? source.values : source.keys;
      if (quantized.keyBytes && rows.rowBytes == source.headDim) quantized.ahead = source.row(rows, key);
      return;
    }
    const int64_t panel = key / kPanelKeys;
    const KvLayout layout = source.pageLayout(panel);
    const std::byte* half = valueHalf ? source.pages[panel]->values(layout) : source.pages[panel]->keys();
    if (quantized.keyBytes) quantized.ahead = half;
    else
      for (int64_t at = 0; at < layout.halfBytes(); at += 64) prefetch(half + at);
    const std::byte* scales = valueHalf ? source.pages[panel]->valueScales<std::byte>(layout) : source.pages[panel]->keyScales<std::byte>(layout);
    for (int64_t at = 0; at < layout.scaleBytes(); at += 64) prefetch(scales + at);
  }
  int countFrom(int64_t key) const { return int(std::min<int64_t>(allKeys - key, kPanelKeys)); }
  bool asStored(int p, int64_t key) {
    quantized = {};
    if (inRegisters && source.pages && isQuantized(source.pageLayout(key / kPanelKeys).element)) {
      const KvPage* page = source.pages[key / kPanelKeys];
      const KvLayout layout = source.pageLayout(key / kPanelKeys);
      quantized = {page->keys(), page->values(layout), layout.tokenBytes(), page, layout, p * kPanelKeys, page->keys()};
    } else if (inRegisters && !source.pages && countFrom(key) == kPanelKeys) {
      const std::byte* values = source.row(source.values, key);
      quantized = {reinterpret_cast<const std::byte*>(space), values, source.values.rowBytes, nullptr, {DType::i8, source.headDim}, p * kPanelKeys, values};
    }
    this->stored = quantized.keyBytes ? &quantized : nullptr;
    return this->stored != nullptr;
  }
  void needKeys(int p) {
    const int64_t key = first + p * kPanelKeys;
    nameScales(*this, p, source, key, countFrom(key), space);  // for the values too: they are asked for later
    const bool done = asStored(p, key);
    fetchHalf(key, true);
    if (done && !source.pages) transposePanel(source, key, reinterpret_cast<int8_t*>(space));
    if (!done) loadKeyPanel(source, key, countFrom(key), Ahead{&source.values, key, allKeys}, space);
  }
  void needValues(int p) {
    const int64_t key = first + p * kPanelKeys;
    const bool done = asStored(p, key);
    fetchHalf(key + kBlockKeys, false);
    if (!done) loadValuePanel(source, key, countFrom(key), Ahead{&source.keys, key + kBlockKeys, allKeys}, space);
  }
  const Source& source;
  const int64_t first, allKeys;
  const bool inRegisters;
  float* space;
  QuantizedPanel quantized;
};

// Keys and values read as they are stored and converted in registers: the cache's pages, or whole blocks of rows, whose keys
// are transposed first: panel by panel through the first-level cache for one group of rows, else once for all groups. Few
// rows fetch what comes next.
template <typename T> struct StoredBlock : Block<T> {
  static constexpr bool kPanelwise = false;
  StoredBlock(const Source& from, int64_t firstKey, int count, int64_t allKeys, int64_t rows, float* space) : source(from), first(firstKey), oneGroup(rows <= kGroupRows) {
    for (int p = 0; p < kBlockPanels; ++p) {
      const int64_t key = first + p * kPanelKeys, next = key + kBlockKeys;
      this->nextKeys[p] = next >= allKeys ? nullptr : reinterpret_cast<const T*>(source.pages ? source.pages[next / kPanelKeys]->keys() : keysInOneRun() ? source.row(source.keys, next) : nullptr);
      if (p * kPanelKeys >= count) continue;
      this->keys[p] = source.pages ? source.pageKeys<T>(key / kPanelKeys) : reinterpret_cast<const T*>(space) + (oneGroup ? 0 : p * kPanelKeys * source.headDim);
      this->values[p] = source.pages ? source.pageValues<T>(key / kPanelKeys) : reinterpret_cast<const T*>(source.row(source.values, key));
    }
    this->valueRow = source.pages ? source.valueDim : source.values.rowBytes / int64_t(sizeof(T));
    this->valueColumn = kTileWidth;
    this->fetchKeys = oneGroup || !source.pages;
    this->fetchValues = oneGroup && source.pages;
  }
  bool keysInOneRun() const { return source.keys.rowBytes == source.headDim * int64_t(sizeof(T)); }
  void needKeys(int p) {
    if (source.pages || (transposed >> p & 1)) return;
    transposePanel(source, first + p * kPanelKeys, const_cast<T*>(this->keys[p]));
    if (!oneGroup) transposed |= 1u << p;
  }
  void needValues(int) {}
  const Source& source;
  const int64_t first;
  const bool oneGroup;
  uint32_t transposed = 0;
};

}  // namespace tl::TL_TARGET
