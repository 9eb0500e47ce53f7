// The inner loops of attention: rows of queries against a block of 128 keys. Included after simd/target.h.
//   scores  S[row][key]  = Σ_d q[row][d] · k[key][d]          lanes = keys, d ascending
//   softmax P = 2^(S − max), Σ P                              scores are kept times log2(e)
//   values  O[row][dim] += Σ_key P[row][key] · v[key][dim]    lanes = dims, keys ascending
// A row's numbers never depend on the rows beside it. Keys that a row does not see are left out of its sums (not
// multiplied by zero): a NaN there stays unseen.
#pragma once

#include "float_tile_inl.h"

namespace tl::TL_TARGET {

constexpr int kPanelKeys = 32;                           // keys side by side in a panel: one cache page
constexpr int kBlockPanels = 4;
constexpr int kBlockKeys = kPanelKeys * kBlockPanels;    // softmax is rescaled once a block
constexpr int kPanelVectors = kPanelKeys / kLanes;
constexpr int kTileVectors = kVectors == 32 && kLanes == 4 ? 4 : 2;
constexpr int kTileWidth = kTileVectors * kLanes;        // value columns side by side
constexpr int kRows = !kFusedMulAdd ? 2 : kVectors == 32 && kTileVectors == 2 ? 12 : 6;  // accumulators fill the registers
// Rows that scores are formed for together: where registers are few, 3 × 4 vectors of keys take fewer loads than 6 × 2.
constexpr int kScoreRows = kFusedMulAdd && kVectors == 16 && kPanelKeys / kLanes == 4 ? kRows / 2 : kRows;
constexpr int kAheadRows = kRows < 6 ? kRows : 6;        // that fetch ahead: each number of rows is a loop of its own
constexpr int kGroupRows = 24;                           // rows that use a panel while it is in the first-level cache
constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Keys and values of a block in element type T: per panel keys [headDim][32], values at
// key · valueRow + (dim / kTileWidth) · valueColumn + dim % kTileWidth.
template <typename T> struct Block {
  const T* keys[kBlockPanels];
  const T* values[kBlockPanels];
  int64_t valueRow, valueColumn;
  // Read straight from memory: scores fetch this block's values ahead, values fetch the next block's keys (null = none), a
  // panel in the order in which it lies there.
  bool fetchValues = false, fetchKeys = false;
  const T* nextKeys[kBlockPanels];
  // int8 of the cache: a factor a token, for finished scores and for weights; null = none.
  const float *keyScales[kBlockPanels] = {}, *valueScales[kBlockPanels] = {};
  const struct QuantizedPanel* stored = nullptr;  // read this instead, see attention_quantized_inl.h
};

template <int Bytes> TL_INLINE void fetch(const std::byte* from) {
#pragma GCC unroll 8
  for (int at = 0; at < Bytes; at += 64) prefetch(from + at);
}

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

// 2^x for x ≤ 0, of N vectors side by side; NaN stays NaN, below −126 the result is 2^−126 or less. 2^0 = 1 exactly, relative
// error < 2e-7.
template <int N> TL_INLINE void exp2Clamped(F32 (&x)[N]) {
  F32 power[N], p[N];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) power[i] = splitPower(x[i]);
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {  // Estrin's scheme: half the latency of Horner's
    const F32 square = mul(x[i], x[i]);
    const F32 high = mulAdd(x[i], broadcast(0.00132647716f), broadcast(0.00967153162f));
    const F32 middle = mulAdd(x[i], broadcast(0.0555073395f), broadcast(0.240222424f));
    const F32 low = mulAdd(x[i], broadcast(0.693147004f), broadcast(1.0f));
    p[i] = mulAdd(square, mulAdd(square, high, middle), low);
  }
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) x[i] = timesPower(p[i], power[i]);
}
TL_INLINE F32 exp2Clamped(F32 x) {
  F32 one[1] = {x};
  exp2Clamped(one);
  return one[0];
}
inline float exp2Clamped(float x) {
  alignas(64) float lanes[kLanes];
  store(lanes, exp2Clamped(broadcast(x)));
  return lanes[0];
}

// sums[r][v] += factor(r) · vector(v). What there is less of stays in registers.
template <int MR, int NV, typename Factor, typename Vector> TL_INLINE void multiplyTile(F32 (&sums)[MR][NV], Factor&& factor, Vector&& vector) {
  if constexpr (MR < NV) {
    F32 x[MR];
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) x[r] = broadcast(factor(r));
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) {
      const F32 y = vector(v);
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) sums[r][v] = mulAdd(x[r], y, sums[r][v]);
    }
  } else {
    F32 y[NV];
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) y[v] = vector(v);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
      const F32 x = broadcast(factor(r));
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) sums[r][v] = mulAdd(x, y[v], sums[r][v]);
    }
  }
}

// A tile's sums: zero, to registers, and back.
template <int MR, int NV> TL_INLINE void zeroSums(F32 (&sums)[MR][NV]) {
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) sums[r][v] = zero();
}
template <int MR, int NV> TL_INLINE void loadSums(F32 (&sums)[MR][NV], const float* from, int64_t stride) {
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) sums[r][v] = load(from + r * stride + v * kLanes);
}
template <int MR, int NV> TL_INLINE void storeSums(const F32 (&sums)[MR][NV], float* to, int64_t stride) {
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) store(to + r * stride + v * kLanes, sums[r][v]);
}

// Vectors of keys that a tile of MR rows takes at a time: wider where few rows would leave registers empty.
template <int MR> constexpr int scoreWidth() {
  return MR * 2 <= kRows && 2 * kTileVectors <= kPanelVectors ? 2 * kTileVectors : kTileVectors;
}

// query [headDim][kRows], keys [headDim][32]; scores of MR rows at stride kBlockKeys. `ahead` [32][headDim] is fetched.
template <int MR, bool Ahead, typename T>
TL_INLINE void scorePanel(const float* query, const T* keys, int64_t headDim, const T* ahead, float* scores) {
  constexpr int NV = scoreWidth<MR>();
  for (int first = 0; first < kPanelVectors; first += NV) {
    F32 sums[MR][NV];
    zeroSums(sums);
    const T* k = keys + first * kLanes;
    const float* q = query;
#pragma GCC unroll 4  // short loops are predicted to their end
    for (int64_t d = 0; d < headDim; ++d, k += kPanelKeys, q += kRows) {
      if constexpr (Ahead) fetch<NV * kLanes * int(sizeof(T))>(reinterpret_cast<const std::byte*>(ahead + first * kLanes * headDim + d * NV * kLanes));
      multiplyTile(sums, [&](int r) { return q[r]; }, [&](int v) { return load(k + v * kLanes); });
    }
    storeSums(sums, scores + first * kLanes, kBlockKeys);
  }
}

// out[r] += Σ over keys begin ≤ j < end of weights[r][j] · values[j], for NC column groups from `column` on.
template <int MR, int NC, bool Ahead, typename T>
TL_INLINE void valueColumns(const float* weights, const Block<T>& block, int begin, int end, int column, float* out, int64_t stride) {
  constexpr int NV = NC * kTileVectors;
  F32 sums[MR][NV];
  out += column * kTileWidth;
  loadSums(sums, out, stride);
  for (int panel = begin / kPanelKeys; panel * kPanelKeys < end; ++panel) {
    const int from = std::max(begin - panel * kPanelKeys, 0), to = std::min(end - panel * kPanelKeys, kPanelKeys);
    const T* v0 = block.values[panel] + from * block.valueRow + column * block.valueColumn;
    const float* p = weights + panel * kPanelKeys + from;
    const T* ahead = block.nextKeys[panel] ? block.nextKeys[panel] + column * kTileWidth * kPanelKeys : v0;
#pragma GCC unroll 2
    for (int j = from; j < to; ++j, v0 += block.valueRow, ++p) {
      if constexpr (Ahead) fetch<NV * kLanes * int(sizeof(T))>(reinterpret_cast<const std::byte*>(ahead + j * NV * kLanes));
      multiplyTile(sums, [&](int r) { return p[r * kBlockKeys]; },
                   [&](int v) { return load(v0 + (v / kTileVectors) * block.valueColumn + (v % kTileVectors) * kLanes); });
    }
  }
  storeSums(sums, out, stride);
}

// Column groups that MR rows take at a time.
template <int MR> constexpr int valueWidth() { return MR == 1 && kRows >= 4 ? 4 : MR * 2 <= kRows ? 2 : 1; }

template <int MR, bool Ahead, typename T>
TL_INLINE void valueRows(const float* weights, const Block<T>& block, int begin, int end, int column, int endColumn, float* out, int64_t stride) {
  constexpr int NC = valueWidth<MR>();
  for (; column + NC <= endColumn; column += NC) valueColumns<MR, NC, Ahead>(weights, block, begin, end, column, out, stride);
  if constexpr (NC > 1)
    for (; column < endColumn; ++column) valueColumns<MR, 1, Ahead>(weights, block, begin, end, column, out, stride);
}

// The same for `rows` of 1 … MR.
template <int MR, bool Ahead, typename T> void fewScores(int rows, const float* query, const T* keys, int64_t headDim, const T* ahead, float* scores) {
  if constexpr (MR > 1)
    if (rows < MR) return fewScores<MR - 1, Ahead>(rows, query, keys, headDim, ahead, scores);
  scorePanel<MR, Ahead>(query, keys, headDim, ahead, scores);
}
template <int MR, bool Ahead, typename T>
void fewValues(int rows, const float* weights, const Block<T>& block, int begin, int end, int column, int endColumn, float* out, int64_t stride) {
  if constexpr (MR > 1)
    if (rows < MR) return fewValues<MR - 1, Ahead>(rows, weights, block, begin, end, column, endColumn, out, stride);
  valueRows<MR, Ahead>(weights, block, begin, end, column, endColumn, out, stride);
}

// Scores of any number of rows and one panel; the rows' queries lie in panels of kRows. The first rows fetch ahead.
template <typename T> void scoreRows(int rows, const float* query, const Block<T>& block, int panel, int64_t headDim, float* scores) {
  const T* keys = block.keys[panel];
  scores += panel * kPanelKeys;
  int r = 0;
  if (block.fetchValues) {
    constexpr int most = std::min(kScoreRows, kAheadRows);
    fewScores<most, true>(std::min(rows, most), query, keys, headDim, block.values[panel], scores);
    if constexpr (most < kScoreRows)
      if (rows > most) fewScores<kScoreRows, false>(std::min(rows, kScoreRows) - most, query + most, keys, headDim, keys, scores + most * kBlockKeys);
    r = kScoreRows;
  }
  const auto queryOf = [&](int row) { return query + row / kRows * kRows * headDim + row % kRows; };
  for (; r + kScoreRows <= rows; r += kScoreRows) scorePanel<kScoreRows, false>(queryOf(r), keys, headDim, keys, scores + r * kBlockKeys);
  if (r < rows) fewScores<kScoreRows, false>(rows - r, queryOf(r), keys, headDim, keys, scores + r * kBlockKeys);
}

// Weighted values of keys begin … end − 1 go to the sums of any number of rows, columns `column` … endColumn − 1.
template <typename T>
void addValueRows(int rows, const float* weights, const Block<T>& block, int begin, int end, int column, int endColumn, float* out, int64_t stride) {
  int r = 0;
  if (block.fetchKeys) {
    fewValues<kAheadRows, true>(std::min(rows, kAheadRows), weights, block, begin, end, column, endColumn, out, stride);
    r = std::min(rows, kAheadRows);
  }
  for (; r + kRows <= rows; r += kRows) valueRows<kRows, false>(weights + r * kBlockKeys, block, begin, end, column, endColumn, out + r * stride, stride);
  if (r < rows) fewValues<kRows, false>(rows - r, weights + r * kBlockKeys, block, begin, end, column, endColumn, out + r * stride, stride);
}

constexpr int kBlockVectors = kBlockKeys / kLanes;

// The bits of vector v's keys.
TL_INLINE uint32_t vectorBits(const Visible& visible, int v) {
  return (visible.word[v * kLanes / 32] >> (v * kLanes % 32)) & uint32_t((uint64_t(1) << kLanes) - 1);
}

// Largest scores of a row, lane by lane; −inf where it sees nothing. `visible` null = all keys.
TL_INLINE F32 maximumOfRow(const float* scores, const Visible* visible) {
  const F32 nothing = broadcast(-kInfinity);
  F32 largest[2] = {nothing, nothing};
  for (int p = 0; p < kBlockPanels; ++p) {
    const uint32_t seen = visible ? visible->word[p] : ~uint32_t(0);
    if (!seen) continue;
#pragma GCC unroll 8
    for (int v = 0; v < kPanelVectors; ++v) {
      F32 s = load(scores + p * kPanelKeys + v * kLanes);
      if (seen != ~uint32_t(0)) s = select(lanesOfBits(seen >> (v * kLanes)), s, nothing);
      largest[v % 2] = max(largest[v % 2], s);
    }
  }
  return max(largest[0], largest[1]);
}

// max may lose a NaN; where nothing else is seen it has to show.
inline bool rowHasNan(const float* scores, const Visible* visible) {
  for (int v = 0; v < kBlockVectors; ++v) {
    const uint32_t bits = visible ? vectorBits(*visible, v) : ~uint32_t(0);
    if (bits & bitsOfLanes(isNan(load(scores + v * kLanes)))) return true;
  }
  return false;
}

// Replaces scores by weights 2^(s − maximum) and answers their sums, lane by lane. Panels without a visible key are not
// touched.
TL_INLINE F32 weightsOfRow(float* scores, const Visible* visible, float maximum) {
  const F32 shift = broadcast(maximum);
  F32 total = zero();
#pragma GCC unroll 1
  for (int p = 0; p < kBlockPanels; ++p, scores += kPanelKeys) {
    const uint32_t seen = visible ? visible->word[p] : ~uint32_t(0);
    if (!seen) continue;
    F32 weight[kPanelVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kPanelVectors; ++v) weight[v] = sub(load(scores + v * kLanes), shift);
    exp2Clamped(weight);
    if (seen != ~uint32_t(0)) {
#pragma GCC unroll 8
      for (int v = 0; v < kPanelVectors; ++v) weight[v] = select(lanesOfBits(seen >> (v * kLanes)), weight[v], zero());
    }
#pragma GCC unroll 8
    for (int v = 0; v < kPanelVectors; ++v) store(scores + v * kLanes, weight[v]);
#pragma GCC unroll 4
    for (int half = kPanelVectors / 2; half > 0; half /= 2)  // pairwise: a short chain from panel to panel
#pragma GCC unroll 8
      for (int v = 0; v < half; ++v) weight[v] = add(weight[v], weight[v + half]);
    total = add(total, weight[0]);
  }
  return total;
}

// One step of online softmax for `rows` rows of scores, at stride kBlockKeys: scores become weights, maximum and sum are
// brought up to date, scale[r] is what the row's sums so far have to be multiplied by. All three have room for
// roundUp(rows, kLanes) rows; what lies past `rows` in maximum and sum stays as it is.
inline void softmaxRows(float* scores, const Visible* visible, int rows, float* maximum, float* sum, float* scale) {
  const F32 nothing = broadcast(-kInfinity);
  for (int first = 0; first < rows; first += kLanes) {  // a vector's worth of rows: what is horizontal becomes vertical
    const int count = std::min(rows - first, kLanes);
    const Visible* seen = visible ? visible + first : nullptr;
    float* row = scores + first * kBlockKeys;
    F32 lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = i < count ? maximumOfRow(row + i * kBlockKeys, seen ? seen + i : nullptr) : nothing;
    const F32 largest = maximumOfEach(lanes), before = load(maximum + first);
    alignas(64) float after[kLanes];
    store(after, select(greaterThan(largest, before), largest, before));
    const uint32_t something = bitsOfLanes(greaterThan(largest, nothing));
    for (int i = 0; i < count; ++i)
      if (!(something >> i & 1) && after[i] == -kInfinity && rowHasNan(row + i * kBlockKeys, seen ? seen + i : nullptr))
        after[i] = std::numeric_limits<float>::quiet_NaN();
    const F32 factor = select(greaterThan(before, nothing), exp2Clamped(sub(before, load(after))), broadcast(1.0f));  // else nothing to scale
    store(scale + first, factor);
    for (int i = 0; i < kLanes; ++i) {
      lanes[i] = zero();
      if (i >= count) continue;
      if (after[i] != -kInfinity) lanes[i] = weightsOfRow(row + i * kBlockKeys, seen ? seen + i : nullptr, after[i]);
      else for (int v = 0; v < kBlockVectors; ++v) store(row + i * kBlockKeys + v * kLanes, zero());  // nothing seen yet, or only −inf
    }
    store(sum + first, add(mul(load(sum + first), factor), sumOfEach(lanes)));
    store(maximum + first, load(after));
  }
}

// (maximum, sum, out) of two disjoint sets of keys become one; the second may be empty (maximum −inf). The order matters
// to the last bit, so callers always fold in ascending order of keys. (arXiv 2412.20501, 2310.01889)
// mine, theirs: 2^(maximum − the larger of both), of either side.
TL_INLINE void mergeScaled(float& maximum, float& sum, float* out, float otherMaximum, float otherSum, const float* other, int64_t width, float mine, float theirs) {
  if (otherMaximum == -kInfinity) return;
  if (maximum == -kInfinity) {
    std::memcpy(out, other, size_t(width) * sizeof(float));
    maximum = otherMaximum;
    sum = otherSum;
    return;
  }
  for (int64_t i = 0; i < width; i += kLanes)
    store(out + i, mulAdd(load(other + i), broadcast(theirs), mul(load(out + i), broadcast(mine))));
  sum = sum * mine + otherSum * theirs;
  maximum = maximum > otherMaximum ? maximum : otherMaximum;
}
// The same of `rows` rows of `width` floats; the rows' scalars have room for roundUp(rows, kLanes).
inline void mergeRows(int64_t rows, float* maximum, float* sum, float* out, const float* otherMaximum, const float* otherSum, const float* other, int64_t width) {
  for (int64_t first = 0; first < rows; first += kLanes) {
    const F32 before = load(maximum + first), after = load(otherMaximum + first), common = max(before, after);
    F32 factors[2] = {sub(before, common), sub(after, common)};
    exp2Clamped(factors);
    alignas(64) float mine[kLanes], theirs[kLanes];
    store(mine, factors[0]);
    store(theirs, factors[1]);
    for (int64_t r = first; r < std::min(first + kLanes, rows); ++r)
      mergeScaled(maximum[r], sum[r], out + r * width, otherMaximum[r], otherSum[r], other + r * width, width, mine[r - first], theirs[r - first]);
  }
}
inline void mergeRow(float& maximum, float& sum, float* out, float otherMaximum, float otherSum, const float* other, int64_t width) {
  const float common = maximum > otherMaximum ? maximum : otherMaximum;
  mergeScaled(maximum, sum, out, otherMaximum, otherSum, other, width, exp2Clamped(maximum - common), exp2Clamped(otherMaximum - common));
}

}  // namespace tl::TL_TARGET
