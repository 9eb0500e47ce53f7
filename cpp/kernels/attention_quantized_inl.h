// Few rows of queries against 32 keys in int8, or a page of the cache in int4, converted in registers; scores and weights of
// int8 are scaled outside, see Block. The numbers are bit for bit those of loadKeyPanel and loadValuePanel and the loops over what they load: a decoded token equals one of a prompt.
//   scores  S[row][token]  = Σ_d q[row][d] · k[d][token]           lanes = tokens, d ascending
//   values  O[row][dim]   += Σ_token P[row][token] · v[token][dim] lanes = dims, tokens ascending
// Included after attention_tile_inl.h and cache/kv.h.
#pragma once

namespace tl::TL_TARGET {

struct QuantizedPanel {
  const std::byte *keyBytes = nullptr, *valueBytes = nullptr;  // transposed; row by row
  int64_t valueRow = 0;                                        // bytes from token to token
  const KvPage* page = nullptr;                                // of int4: its scales
  KvLayout layout;
  int first = 0;  // of its tokens within the block
  const std::byte* ahead = nullptr;  // as many bytes as are read now: fetched meanwhile
  const int8_t* keys() const { return reinterpret_cast<const int8_t*>(keyBytes); }
  const int8_t* values() const { return reinterpret_cast<const int8_t*>(valueBytes); }
};

constexpr int kQuantizedRows = kRows < 8 ? kRows : 8;                          // more rows share what is converted once
constexpr int kQuantizedTile = kRows < 3 ? kRows : kVectors == 32 ? 4 : 3;     // of these, rows at a time
constexpr int kQuantizedVectors = 4;                                           // of dimensions at a time
constexpr int64_t kMostQuantizedGroups = 16;                                   // whose scales as f32 lie on the stack

static_assert(kPageSplit == 2 * kPageGroup && kPageGroup % kLanes == 0);

// Other head dimensions go through a buffer, and all of them where there are no vectors.
constexpr bool kReadsInRegisters = kFusedMulAdd;
inline bool readInRegisters(int64_t headDim) { return kReadsInRegisters && headDim % (kQuantizedVectors * kLanes) == 0 && headDim % kPageSplit == 0 && headDim <= kMostQuantizedGroups * kPageGroup; }

// work(rows at a time, first row)
template <typename Work> TL_INLINE void forQuantizedTiles([[maybe_unused]] int rows, [[maybe_unused]] Work&& work) {
  if constexpr (kReadsInRegisters) {
    int r = 0;
    for (; rows - r >= kQuantizedTile; r += kQuantizedTile) work(std::integral_constant<int, kQuantizedTile>{}, r);
    if constexpr (kQuantizedTile > 3)
      if (rows - r == 3) return work(std::integral_constant<int, 3>{}, r);
    if constexpr (kQuantizedTile > 2)
      if (rows - r == 2) return work(std::integral_constant<int, 2>{}, r);
    if (rows - r == 1) work(std::integral_constant<int, 1>{}, r);
  }
}

// query [headDim][kRows].
template <int MR> void int8Scores(const float* query, const QuantizedPanel& panel, float* scores) {
  constexpr int NV = scoreWidth<MR>();
  for (int first = 0; first < kPanelVectors; first += NV) {
    F32 sums[MR][NV];
    zeroSums(sums);
    const int8_t* k = panel.keys() + first * kLanes;
    const float* q = query;
    for (int64_t d = 0; d < panel.layout.headDim; d += 2, k += 2 * kPanelKeys, q += 2 * kRows) {
      prefetch(panel.ahead + d * kPanelKeys);
      multiplyTile(sums, [&](int r) { return q[r]; }, [&](int v) { return loadBytes(k + v * kLanes); });
      multiplyTile(sums, [&](int r) { return q[kRows + r]; }, [&](int v) { return loadBytes(k + kPanelKeys + v * kLanes); });
    }
    storeSums(sums, scores + first * kLanes, kBlockKeys);
  }
}

template <int MR> void int4Scores(const float* query, const QuantizedPanel& panel, float* scores) {
  constexpr int NV = scoreWidth<MR>();
  const f16* scales = panel.page->keyScales<f16>(panel.layout);
  const f16* minima = scales + panel.layout.groups() * kPageTokens;
  for (int first = 0; first < kPanelVectors; first += NV) {
    F32 sums[MR][NV], scale[NV], minimum[NV], low[NV], high[NV];
    zeroSums(sums);
    const auto* k = reinterpret_cast<const uint8_t*>(panel.keys()) + first * kLanes;
    const float* q = query;
    for (int64_t group = 0; group < panel.layout.groups(); ++group) {
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        scale[v] = load(scales + group * kPageTokens + (first + v) * kLanes);
        minimum[v] = load(minima + group * kPageTokens + (first + v) * kLanes);
      }
      for (int64_t d = 0; d < kPageGroup; d += 2, k += kPanelKeys, q += 2 * kRows) {
        prefetch(panel.ahead + (group * kPageGroup + d) / 2 * kPanelKeys);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
          loadNibbles(k + v * kLanes, low[v], high[v]);
          low[v] = mulAdd(low[v], scale[v], minimum[v]);
          high[v] = mulAdd(high[v], scale[v], minimum[v]);
        }
        multiplyTile(sums, [&](int r) { return q[r]; }, [&](int v) { return low[v]; });
        multiplyTile(sums, [&](int r) { return q[kRows + r]; }, [&](int v) { return high[v]; });
      }
    }
    storeSums(sums, scores + first * kLanes, kBlockKeys);
  }
}

// weights from the panel's first token on, at stride kBlockKeys; tokens begin … end − 1 of the panel.
template <int MR> void int8Values(const float* weights, const QuantizedPanel& panel, int begin, int end, float* out, int64_t stride) {
  constexpr int NV = kQuantizedVectors;
  const int64_t dim = panel.layout.headDim;
  for (int64_t d = 0; d < dim; d += NV * kLanes) {
    F32 sums[MR][NV];
    loadSums(sums, out + d, stride);
    for (int j = begin; j < end; ++j) {
      const int8_t* x = panel.values() + j * panel.valueRow + d;
      prefetch(panel.ahead + d * kPanelKeys + j * NV * kLanes);
      multiplyTile(sums, [&](int r) { return weights[r * kBlockKeys + j]; }, [&](int v) { return loadBytes(x + v * kLanes); });
    }
    storeSums(sums, out + d, stride);
  }
}

// scales [groups][32], minima [groups][32]. Two registers of bytes at a time: the low bits of each are the dimensions at
// dims[i], the high ones those a group behind.
template <int MR> void int4Values(const float* weights, const QuantizedPanel& panel, const float* scales, int begin, int end, float* out, int64_t stride) {
  const int64_t bytes = panel.layout.tokenBytes();
  const float* minima = scales + panel.layout.groups() * kPageTokens;
  for (int64_t byte = 0; byte < bytes; byte += 2 * kLanes) {
    int64_t dims[4];
    F32 sums[MR][4];
    for (int i = 0; i < 2; ++i) {
      const int64_t at = byte + i * kLanes;
      dims[2 * i] = at / kPageGroup * kPageSplit + at % kPageGroup;
      dims[2 * i + 1] = dims[2 * i] + kPageGroup;
    }
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) sums[r][v] = load(out + r * stride + dims[v]);
    const float *scale = scales + dims[0] / kPageGroup * kPageTokens, *minimum = minima + dims[0] / kPageGroup * kPageTokens;
    const int64_t second = (dims[2] / kPageGroup - dims[0] / kPageGroup) * kPageTokens;
    const auto* x = reinterpret_cast<const uint8_t*>(panel.values()) + byte;
    for (int j = begin; j < end; ++j) {
      F32 y[4];
      prefetch(panel.ahead + j * bytes + byte);
      loadNibbles(x + j * bytes, y[0], y[1]);
      loadNibbles(x + j * bytes + kLanes, y[2], y[3]);
      y[0] = mulAdd(y[0], broadcast(scale[j]), broadcast(minimum[j]));
      y[1] = mulAdd(y[1], broadcast(scale[j + kPageTokens]), broadcast(minimum[j + kPageTokens]));
      y[2] = mulAdd(y[2], broadcast(scale[j + second]), broadcast(minimum[j + second]));
      y[3] = mulAdd(y[3], broadcast(scale[j + second + kPageTokens]), broadcast(minimum[j + second + kPageTokens]));
      multiplyTile(sums, [&](int r) { return weights[r * kBlockKeys + j]; }, [&](int v) { return y[v]; });
    }
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) store(out + r * stride + dims[v], sums[r][v]);
  }
}

// scoreRows for a panel as it is stored, rows ≤ kQuantizedRows; `scores` are the block's.
inline void quantizedScores(int rows, const float* query, const QuantizedPanel& panel, float* scores) {
  scores += panel.first;
  forQuantizedTiles(rows, [&](auto tile, int r) {
    constexpr int MR = decltype(tile)::value;
    if (panel.layout.element == DType::i8) int8Scores<MR>(query + r, panel, scores + r * kBlockKeys);
    else int4Scores<MR>(query + r, panel, scores + r * kBlockKeys);
  });
}

// addValueRows for tokens begin … end − 1 of the block, all of them the panel's, and all columns.
inline void addQuantizedValues(int rows, const float* weights, const QuantizedPanel& panel, int begin, int end, float* out, int64_t stride) {
  weights += panel.first;
  begin -= panel.first;
  end -= panel.first;
  alignas(64) float scales[2 * kMostQuantizedGroups * kPageTokens];
  if (panel.layout.element == DType::i4) {
    const f16* stored = panel.page->valueScales<f16>(panel.layout);
    for (int64_t i = 0; i < 2 * panel.layout.groups() * kPageTokens; i += kLanes) store(scales + i, load(stored + i));
  }
  forQuantizedTiles(rows, [&](auto tile, int r) {
    constexpr int MR = decltype(tile)::value;
    if (panel.layout.element == DType::i8) int8Values<MR>(weights + r * kBlockKeys, panel, begin, end, out + r * stride, stride);
    else int4Values<MR>(weights + r * kBlockKeys, panel, scales, begin, end, out + r * stride, stride);
  });
}

// Whether the values of these tokens are all finite: int4's scales say, int8's are finite but for theirs.
inline bool finiteQuantized(const QuantizedPanel& panel, int begin, int end) {
  for (int j = begin - panel.first; j < end - panel.first; ++j) {
    for (int64_t g = 0; panel.layout.element == DType::i4 && g < 2 * panel.layout.groups(); ++g)
      if (!(std::fabs(toFloat(panel.page->valueScales<f16>(panel.layout)[g * kPageTokens + j])) < kInfinity)) return false;
  }
  return true;
}

}  // namespace tl::TL_TARGET
