// The inner loops of attention: rows of queries against a block of 128 keys. Included after simd/target.h.
//   scores  S[row][key]  = Σ_d q[row][d] · k[key][d]          lanes = keys, d ascending
//   softmax P = 2^(S − max), Σ P                              scores are kept times log2(e)
//   values  O[row][dim] += Σ_key P[row][key] · v[key][dim]    lanes = dims, keys ascending
// A row's numbers never depend on the rows beside it. Keys that a row does not see are left out of its sums (not
// multiplied by zero): a NaN there stays unseen.
#pragma once

namespace tl::TL_TARGET {

constexpr int kPanelKeys = 32;                           // keys side by side in a panel: one cache page
constexpr int kBlockPanels = 4;
constexpr int kBlockKeys = kPanelKeys * kBlockPanels;    // softmax is rescaled once a block
constexpr int kPanelVectors = kPanelKeys / kLanes;
constexpr int kTileVectors = kVectors == 32 && kLanes == 4 ? 4 : 2;
constexpr int kTileWidth = kTileVectors * kLanes;        // value columns side by side
constexpr int kRows = !kFusedMulAdd ? 2 : kVectors == 32 && kTileVectors == 2 ? 12 : 6;  // accumulators fill the registers
constexpr int kGroupRows = 24;                           // rows that use a panel while it is in the first-level cache
constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Keys and values of a block in element type T: per panel keys [headDim][32], values at
// key · valueRow + (dim / kTileWidth) · valueColumn + dim % kTileWidth.
template <typename T> struct Block {
  const T* keys[kBlockPanels];
  const T* values[kBlockPanels];
  int64_t valueRow, valueColumn;
};

// Which keys of a block a row sees: bit j of word[j / 32].
struct Visible {
  uint32_t word[kBlockPanels];
  bool has(int key) const { return (word[key / 32] >> (key % 32)) & 1; }
};

// Adds keys begin … end − 1 (relative to the block, cut to it).
inline void addRange(Visible& visible, int64_t begin, int64_t end) {
  for (int p = 0; p < kBlockPanels; ++p) {
    const int64_t from = std::clamp<int64_t>(begin - p * 32, 0, 32), to = std::clamp<int64_t>(end - p * 32, 0, 32);
    if (to > from) visible.word[p] |= uint32_t(((uint64_t(1) << to) - 1) & ~((uint64_t(1) << from) - 1));
  }
}

// First key at or behind `from` that is (not) visible; kBlockKeys where there is none.
inline int nextKey(const Visible& visible, int from, bool wanted) {
  for (int p = from / 32; p < kBlockPanels; ++p) {
    uint32_t word = wanted ? visible.word[p] : ~visible.word[p];
    if (p == from / 32) word &= ~uint32_t(0) << (from % 32);
    if (word) return p * 32 + __builtin_ctz(word);
  }
  return kBlockKeys;
}

// 2^x for x ≤ 0; NaN stays NaN, below −126 the result is about 2^−126. 2^0 = 1 exactly, relative error < 2e-7.
TL_INLINE F32 exp2Clamped(F32 x) {
  const F32 clamped = max(broadcast(-126.0f), x), n = roundEven(clamped), f = sub(clamped, n);
  F32 p = broadcast(0.00132647716f);
  p = mulAdd(p, f, broadcast(0.00967153162f));
  p = mulAdd(p, f, broadcast(0.0555073395f));
  p = mulAdd(p, f, broadcast(0.240222424f));
  p = mulAdd(p, f, broadcast(0.693147004f));
  p = mulAdd(p, f, broadcast(1.0f));
  return asFloat(add(asInt(p), shiftLeft(toInt(n), 23)));
}
inline float exp2Clamped(float x) {
  alignas(64) float lanes[kLanes];
  store(lanes, exp2Clamped(broadcast(x)));
  return lanes[0];
}

// Vectors of keys that a tile of MR rows takes at a time: wider where few rows would leave registers empty.
template <int MR> constexpr int scoreWidth() {
  return MR * 2 <= kRows && 2 * kTileVectors <= kPanelVectors ? 2 * kTileVectors : kTileVectors;
}

// query [headDim][kRows], keys [headDim][32]; scores of MR rows at stride kBlockKeys.
template <int MR, typename T> void scorePanel(const float* query, const T* keys, int64_t headDim, float* scores) {
  constexpr int NV = scoreWidth<MR>();
  for (int first = 0; first < kPanelVectors; first += NV) {
    F32 sums[MR][NV];
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) sums[r][v] = zero();
    const T* k = keys + first * kLanes;
    const float* q = query;
    for (int64_t d = 0; d < headDim; ++d, k += kPanelKeys, q += kRows) {
      F32 key[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) key[v] = load(k + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) {
        const F32 x = broadcast(q[r]);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) sums[r][v] = mulAdd(x, key[v], sums[r][v]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) store(scores + r * kBlockKeys + (first + v) * kLanes, sums[r][v]);
  }
}

// out[r] += Σ over keys begin ≤ j < end of weights[r][j] · values[j], for NC column groups from `column` on.
template <int MR, int NC, typename T>
TL_INLINE void valueColumns(const float* weights, const Block<T>& block, int begin, int end, int column, float* out, int64_t stride) {
  constexpr int NV = NC * kTileVectors;
  F32 sums[MR][NV];
  out += column * kTileWidth;
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) sums[r][v] = load(out + r * stride + v * kLanes);
  for (int panel = begin / kPanelKeys; panel * kPanelKeys < end; ++panel) {
    const int from = std::max(begin - panel * kPanelKeys, 0), to = std::min(end - panel * kPanelKeys, kPanelKeys);
    const T* v0 = block.values[panel] + from * block.valueRow + column * block.valueColumn;
    const float* p = weights + panel * kPanelKeys + from;
    for (int j = from; j < to; ++j, v0 += block.valueRow, ++p) {
      F32 value[NV];
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) value[v] = load(v0 + (v / kTileVectors) * block.valueColumn + (v % kTileVectors) * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) {
        const F32 x = broadcast(p[r * kBlockKeys]);
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) sums[r][v] = mulAdd(x, value[v], sums[r][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) store(out + r * stride + v * kLanes, sums[r][v]);
}

// Column groups that MR rows take at a time.
template <int MR> constexpr int valueWidth() { return MR == 1 && kRows >= 4 ? 4 : MR * 2 <= kRows ? 2 : 1; }

template <int MR, typename T>
void valueRows(const float* weights, const Block<T>& block, int begin, int end, int column, int endColumn, float* out, int64_t stride) {
  constexpr int NC = valueWidth<MR>();
  for (; column + NC <= endColumn; column += NC) valueColumns<MR, NC>(weights, block, begin, end, column, out, stride);
  if constexpr (NC > 1)
    for (; column < endColumn; ++column) valueColumns<MR, 1>(weights, block, begin, end, column, out, stride);
}

// `rows` is 1 … MR.
template <int MR, typename T> void anyScorePanel(int rows, const float* query, const T* keys, int64_t headDim, float* scores) {
  if constexpr (MR > 1)
    if (rows < MR) return anyScorePanel<MR - 1>(rows, query, keys, headDim, scores);
  scorePanel<MR>(query, keys, headDim, scores);
}
template <int MR, typename T>
void anyValueRows(int rows, const float* weights, const Block<T>& block, int begin, int end, int column, int endColumn, float* out,
                  int64_t stride) {
  if constexpr (MR > 1)
    if (rows < MR) return anyValueRows<MR - 1>(rows, weights, block, begin, end, column, endColumn, out, stride);
  valueRows<MR>(weights, block, begin, end, column, endColumn, out, stride);
}

// Replaces a row's scores by weights 2^(s − maximum), brings maximum and sum up to date, and answers by what the row's
// sums so far have to be scaled. `visible` null = all keys. Vectors without a visible key are not touched.
inline float softmaxRow(float* scores, const Visible* visible, float& maximum, float& sum) {
  constexpr int vectors = kBlockKeys / kLanes;
  constexpr uint32_t lanes = uint32_t((uint64_t(1) << kLanes) - 1);
  const F32 nothing = broadcast(-kInfinity);
  F32 largest = nothing;
  if (!visible) {
    F32 other = nothing;
    for (int v = 0; v < vectors; v += 2) {
      largest = max(largest, load(scores + v * kLanes));
      other = max(other, load(scores + (v + 1) * kLanes));
    }
    largest = max(largest, other);
  } else {
    for (int v = 0; v < vectors; ++v) {
      const uint32_t bits = (visible->word[v * kLanes / 32] >> (v * kLanes % 32)) & lanes;
      if (bits) largest = max(largest, select(lanesOfBits(bits), load(scores + v * kLanes), nothing));
    }
  }
  const float before = maximum, blockMaximum = maxLanes(largest);
  if (blockMaximum > before) maximum = blockMaximum;
  if (maximum == -kInfinity) {  // nothing seen yet, or only −inf: weights of zero
    if (!(blockMaximum != blockMaximum)) {
      for (int v = 0; v < vectors; ++v) store(scores + v * kLanes, zero());
      return 1.0f;
    }
    maximum = blockMaximum;  // NaN: it spoils this row
  }
  const F32 shift = broadcast(maximum);
  F32 total = zero();
  if (!visible) {
    for (int v = 0; v < vectors; ++v) {
      const F32 weight = exp2Clamped(sub(load(scores + v * kLanes), shift));
      store(scores + v * kLanes, weight);
      total = add(total, weight);
    }
  } else {
    for (int v = 0; v < vectors; ++v) {
      const uint32_t bits = (visible->word[v * kLanes / 32] >> (v * kLanes % 32)) & lanes;
      if (!bits) continue;
      const F32 weight = select(lanesOfBits(bits), exp2Clamped(sub(load(scores + v * kLanes), shift)), zero());
      store(scores + v * kLanes, weight);
      total = add(total, weight);
    }
  }
  const float scale = maximum == before ? 1.0f : exp2Clamped(before - maximum);
  sum = sum * scale + sumLanes(total);
  return scale;
}

// (maximum, sum, out) of two disjoint sets of keys become one; the second may be empty (maximum −inf). The order matters
// to the last bit, so callers always fold in ascending order of keys. (arXiv 2412.20501, 2310.01889)
inline void mergeRow(float& maximum, float& sum, float* out, float otherMaximum, float otherSum, const float* other, int64_t width) {
  if (otherMaximum == -kInfinity) return;
  const float common = maximum > otherMaximum ? maximum : otherMaximum;
  const float mine = maximum == -kInfinity ? 0.0f : exp2Clamped(maximum - common), theirs = exp2Clamped(otherMaximum - common);
  for (int64_t i = 0; i < width; i += kLanes)
    store(out + i, mulAdd(load(other + i), broadcast(theirs), mul(load(out + i), broadcast(mine))));
  sum = sum * mine + otherSum * theirs;
  maximum = common;
}

}  // namespace tl::TL_TARGET
