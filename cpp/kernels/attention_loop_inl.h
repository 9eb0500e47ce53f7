// The one loop of attention: tiles of query rows stream over blocks of keys, with online softmax (arXiv 2205.14135). Mask,
// score operands, key/value source and outputs are parts of a Unit. Included after attention_{mask,source,score}_inl.h.
//
// A row is one query of one head; the query heads of a key/value head are rows of one tile, so keys and values are read
// once for all of them. Sums start afresh every kChunkKeys keys, counted from the first key, and are merged in ascending
// order: a long cache can be split between threads, and a result depends neither on the split nor on the tile.
#pragma once

namespace tl::TL_TARGET {

constexpr int64_t kChunkBlocks = 4, kChunkKeys = kChunkBlocks * kBlockKeys;

// A float operand [queries, heads, …] of one unit; strides in elements.
struct Operand3 {
  std::byte* data = nullptr;
  DType dtype = DType::f32;
  int64_t token = 0, head = 0;
  bool present() const { return data != nullptr; }
  std::byte* at(int64_t query, int64_t h) const { return data + (query * token + h * head) * int64_t(elementBytes(dtype)); }
};

// One (sequence, key/value head). Heads are counted from the first of its `group` query heads.
struct Unit {
  Operand3 query, out;
  Operand3 logSumExp;   // f32, one element
  Operand3 scores;      // f32, one row of `keys`: the logits, −inf where not seen
  Operand3 columnSums;  // f32, `head` only: one row of `keys`
  int64_t queries = 0, keys = 0;
  Source source;
  KeyMask mask;
  ScoreOperands operands;
  const float* sinks = nullptr;  // a logit a head that joins the denominator only (arXiv 2508.10925)
};

struct Problem {
  int64_t units = 0, group = 1;           // group: query heads of one key/value head
  int64_t headDim = 0, valueDim = 0;
  int64_t mostQueries = 0, mostKeys = 0;  // of any unit
  float scale = 1;                        // of q · k, log2(e) included
  float softcap = 0;                      // times log2(e); with it `scale` is that of 2/cap · q · k
  bool offByOne = false;                  // a logit of 0 joins the denominator (softmax-off-by-one)
  bool columnSums = false;
  int64_t columnQueries = 0;              // the last queries whose weights are summed
  const void* context = nullptr;
  void (*unit)(const Problem& problem, int64_t index, Unit& unit) = nullptr;

  int64_t stride() const { return paddedDim(valueDim); }
  bool panelwise = false;                 // only ever a PassingBlock
  int64_t blockFloats() const { return panelwise ? kPanelKeys * std::max(headDim, stride()) : kBlockKeys * (headDim + stride() + 2); }
};

// What a tile works in, carved out of the thread's scratch.
struct Workspace {
  float *query, *block, *scores, *out, *merged, *maximum, *sum, *mergedMaximum, *mergedSum;
};

constexpr int64_t kTileBytes = int64_t(1) << 20;  // the rest of the scratch holds partial results or weights for column sums
constexpr int64_t kTileFloats = kTileBytes / int64_t(sizeof(float));

inline int64_t tileFloats(const Problem& problem, int64_t rows) {
  const int64_t padded = roundUp(rows, kRows);
  return problem.blockFloats() + padded * (problem.headDim + 2 * problem.stride() + 4) + kGroupRows * kBlockKeys + 320;
}

inline Workspace carve(const Problem& problem, int64_t rows, std::byte* scratch) {
  const int64_t padded = roundUp(rows, kRows);
  float* next = reinterpret_cast<float*>(scratch);
  const auto take = [&](int64_t count) {
    float* taken = next;
    next += roundUp(count, 16);
    return taken;
  };
  Workspace w;
  w.block = take(problem.blockFloats());
  w.scores = take(kGroupRows * kBlockKeys);
  w.query = take(padded * problem.headDim + kLanes);
  w.out = take(padded * problem.stride());
  w.merged = take(padded * problem.stride());
  w.maximum = take(padded + kLanes);
  w.sum = take(padded + kLanes);
  w.mergedMaximum = take(padded + kLanes);
  w.mergedSum = take(padded + kLanes);
  return w;
}

// The weights of a tile's rows before they are scaled, for column sums: see attention_sums_inl.h.
struct WeightStore {
  float* weights = nullptr;  // [rows][stride]
  float* maxima = nullptr;   // [rows][blocks]: the row's maximum when the block's weights were made; −inf: not seen
  int64_t stride = 0, blocks = 0;
};

struct Tile {
  const Problem& problem;
  const Unit& unit;
  int64_t row, rows;  // rows are numbered query · group + head
  Workspace space;
  WeightStore kept = {};
  int64_t query(int64_t r) const { return (row + r) / problem.group; }
  int64_t head(int64_t r) const { return (row + r) % problem.group; }
  Cover cover(int64_t first, int64_t count, int64_t key) const {
    return unit.mask.cover(query(first), query(first + count - 1), 0, problem.group - 1, key);
  }
};

// rows of 32 at stride kBlockKeys, times 32 factors.
inline void scaleRows(int rows, const float* factors, float* x) {
  for (int r = 0; r < rows; ++r, x += kBlockKeys)
    for (int v = 0; v < kPanelKeys; v += kLanes) store(x + v, mul(load(x + v), load(factors + v)));
}

template <typename T> void packPanel(const Tile& tile, int64_t first, float* to) {
  const int64_t rows = std::min<int64_t>(tile.rows - first, kRows);
  const T* from[kRows];
  for (int r = 0; r < rows; ++r) from[r] = reinterpret_cast<const T*>(tile.unit.query.at(tile.query(first + r), tile.head(first + r)));
  packRows(from, rows, kRows, tile.problem.headDim, tile.problem.scale, to);
}

// Queries as [panel][headDim][kRows], scaled; rows that fill the last panel up are zero.
inline void packQueries(const Tile& tile) {
  for (int64_t r = 0; r < tile.rows; r += kRows) {
    float* to = tile.space.query + r * tile.problem.headDim;
    if (tile.unit.query.dtype == DType::f16) packPanel<f16>(tile, r, to);
    else if (tile.unit.query.dtype == DType::bf16) packPanel<bf16>(tile, r, to);
    else packPanel<float>(tile, r, to);
    if (tile.unit.source.rotated) rotateColumns(to, tile.problem.headDim, kRows);
  }
}

inline void writeScores(const Tile& tile, int64_t r, int64_t key, int count, const float* scores, const Visible* visible) {
  float* out = reinterpret_cast<float*>(tile.unit.scores.at(tile.query(r), tile.head(r))) + key;
  for (int j = 0; j < count; ++j) out[j] = !visible || visible->has(j) ? scores[j] * kLn2 : -kInfinity;
}

// scoreRows, also of a panel as it is stored, and times its tokens' scales.
template <typename T> void scorePanelRows(int rows, const float* query, const Block<T>& block, int p, int64_t headDim, float* scores) {
  if constexpr (std::is_same_v<T, float>) {
    if (block.stored) quantizedScores(rows, query, *block.stored, scores);
    else scoreRows(rows, query, block, p, headDim, scores);
    if (block.keyScales[p]) scaleRows(rows, block.keyScales[p], scores + p * kPanelKeys);
  } else {
    scoreRows(rows, query, block, p, headDim, scores);
  }
}

// Scores of rows [first, first + rows), rows ≤ kGroupRows, and one block, after all that modifies them. `visible` says what
// each row sees unless the answer is Cover::full.
template <typename AnyBlock> Cover scoreGroup(const Tile& tile, AnyBlock& block, int64_t key, int64_t first, int rows, Visible* visible) {
  const Problem& problem = tile.problem;
  const Unit& unit = tile.unit;
  Cover cover = tile.cover(first, rows, key);
  if (cover == Cover::none) return cover;
  const int count = int(std::min<int64_t>(unit.keys - key, kBlockKeys));
  Visible any = {};
  for (int r = 0; r < rows; ++r) {
    if (cover == Cover::full && !unit.operands.bias) break;
    visible[r] = {};
    if (cover == Cover::full) addRange(visible[r], 0, count);
    else unit.mask.visible(tile.query(first + r), tile.head(first + r), key, visible[r]);
    for (int p = 0; p < kBlockPanels; ++p) any.word[p] |= visible[r].word[p];
  }
  float* scores = tile.space.scores;
  const float* query = tile.space.query + first * problem.headDim;
  for (int p = 0; p < kBlockPanels; ++p) {
    if (cover == Cover::partial && !any.word[p]) continue;
    block.needKeys(p);
    scorePanelRows(rows, query, block, p, problem.headDim, scores);
  }
  if (problem.softcap != 0)
    for (int r = 0; r < rows; ++r) softcapRow(scores + r * kBlockKeys, count, problem.softcap);
  if (unit.operands.any()) {
    for (int r = 0; r < rows; ++r) {
      const int64_t i = tile.query(first + r);
      modifyRow(unit.operands, problem.scale, tile.head(first + r), i, unit.mask.offset + i, unit.keys, key, count, scores + r * kBlockKeys, visible[r]);
      if (unit.operands.bias && nextKey(visible[r], 0, false) < kBlockKeys) cover = Cover::partial;
    }
  }
  if (unit.scores.present())
    for (int r = 0; r < rows; ++r) writeScores(tile, first + r, key, count, scores + r * kBlockKeys, cover == Cover::partial ? visible + r : nullptr);
  return cover;
}

// Whether the values of keys [begin, end) are all finite: then weights of zero may stand for keys that are not seen.
template <typename T> bool finiteValues(const Block<T>& block, int begin, int end, int columns) {
  if constexpr (std::is_same_v<T, float>) {
    for (int j = begin; j < end; ++j)
      if (const float* scales = block.valueScales[j / kPanelKeys]; scales && !(std::fabs(scales[j % kPanelKeys]) < kInfinity)) return false;
    if (block.stored) return finiteQuantized(*block.stored, begin, end);
  }
  for (int j = begin; j < end; ++j)
    for (int c = 0; c < columns; ++c)
      for (int v = 0; v < kTileVectors; ++v) {
        const F32 x = load(block.values[j / kPanelKeys] + j % kPanelKeys * block.valueRow + c * block.valueColumn + v * kLanes);
        if (bitsOfLanes(lessThan(abs(x), broadcast(kInfinity))) != uint32_t((uint64_t(1) << kLanes) - 1)) return false;
      }
  return true;
}

// What `count` ≤ kRows rows see of keys [begin, end).
struct Runs {
  int begin, end;  // a run that all of them see
  bool zeros;      // too ragged: all of [begin, end), with weights of zero for what is not seen
};

template <typename T> Runs runsOf(const Visible* visible, int count, const Block<T>& block, int begin, int end, int columns) {
  Visible all = visible[0], any = visible[0];
  int seen = 0;
  for (int i = 0; i < count; ++i)
    for (int p = 0; p < kBlockPanels; ++p) {
      all.word[p] &= visible[i].word[p];
      any.word[p] |= visible[i].word[p];
      if (p * kPanelKeys >= begin && p * kPanelKeys < end) seen += __builtin_popcount(visible[i].word[p]);
    }
  Runs runs;
  runs.begin = std::min(nextKey(all, begin, true), end);
  runs.end = runs.begin < end ? std::min(nextKey(all, runs.begin, false), end) : end;
  if (runs.begin == end) runs.begin = runs.end = end;
  runs.zeros = seen - count * (runs.end - runs.begin) > 16 * count && finiteValues(block, begin, end, columns);
  if (runs.zeros) {
    runs.begin = begin;
    runs.end = end;
  }
  return runs;
}

// addValueRows, also of a panel as it is stored, whose columns all come at once.
template <typename T>
void addAnyValues(int rows, const float* weights, const Block<T>& block, int begin, int end, int column, int endColumn, float* out, int64_t stride) {
  if constexpr (std::is_same_v<T, float>)
    if (block.stored) return addQuantizedValues(rows, weights, *block.stored, begin, end, out, stride);
  addValueRows(rows, weights, block, begin, end, column, endColumn, out, stride);
}

// Weighted values of keys [begin, end) go to the rows' sums; begin and end are multiples of kPanelKeys.
template <typename T> void valuesOfGroup(const Tile& tile, const Block<T>& block, int64_t first, int rows, int begin, int end, const Visible* visible) {
  const int64_t stride = tile.problem.stride();
  if constexpr (std::is_same_v<T, float>)
    for (int p = begin / kPanelKeys; p * kPanelKeys < end; ++p)
      if (block.valueScales[p]) scaleRows(rows, block.valueScales[p], tile.space.scores + p * kPanelKeys);
  const int columns = int(stride / kTileWidth), columnStep = rows <= kRows ? columns : 1;
  Runs runs[kGroupRows];
  if (visible)
    for (int r = 0; r < rows; r += kRows) {
      runs[r / kRows] = runsOf(visible + r, std::min(rows - r, kRows), block, begin, end, columns);
      if (!runs[r / kRows].zeros) continue;
      for (int i = r; i < std::min(r + kRows, rows); ++i)
        for (int v = begin / kLanes; v < end / kLanes; ++v)
          if (!visible[i].word[v / kPanelVectors]) store(tile.space.scores + i * kBlockKeys + v * kLanes, zero());
    }
  for (int c = 0; c < columns; c += columnStep) {
    if (!visible) {
      addAnyValues(rows, tile.space.scores, block, begin, end, c, c + columnStep, tile.space.out + first * stride, stride);
      continue;
    }
    for (int r = 0; r < rows; r += kRows) {
      const int count = std::min(rows - r, kRows);
      const float* weights = tile.space.scores + r * kBlockKeys;
      float* out = tile.space.out + (first + r) * stride;
      // All rows together where they see the same run of keys; what a row sees before and behind it, row by row.
      const auto ownRuns = [&](int i, int from, int to) {
        for (int a = nextKey(visible[r + i], from, true); a < to;) {
          const int b = std::min(nextKey(visible[r + i], a, false), to);
          addAnyValues(1, weights + i * kBlockKeys, block, a, b, c, c + columnStep, out + i * stride, stride);
          a = b < to ? nextKey(visible[r + i], b, true) : to;
        }
      };
      const Runs& run = runs[r / kRows];
      if (begin < run.begin)
        for (int i = 0; i < count; ++i) ownRuns(i, begin, run.begin);
      if (run.begin < run.end) addAnyValues(count, weights, block, run.begin, run.end, c, c + columnStep, out, stride);
      if (run.end < end)
        for (int i = 0; i < count; ++i) ownRuns(i, run.end, end);
    }
  }
}

// The same panel by panel where the block comes so.
template <typename AnyBlock> void addValues(const Tile& tile, AnyBlock& block, int64_t key, int64_t first, int rows, const Visible* seen) {
  const int count = int(std::min<int64_t>(tile.unit.keys - key, kBlockKeys)), end = int(roundUp(count, kPanelKeys));
  if constexpr (!AnyBlock::kPanelwise) return valuesOfGroup(tile, block, first, rows, 0, end, seen);
  for (int p = 0; p * kPanelKeys < end; ++p) {
    uint32_t any = seen ? 0 : 1;
    for (int r = 0; seen && r < rows; ++r) any |= seen[r].word[p];
    if (!any) continue;
    block.needValues(p);
    valuesOfGroup(tile, block, first, rows, p * kPanelKeys, (p + 1) * kPanelKeys, seen);
  }
}

inline void scaleSums(const Tile& tile, int64_t r, float scale) {
  float* out = tile.space.out + r * tile.problem.stride();
  for (int64_t d = 0; d < tile.problem.stride(); d += kLanes) store(out + d, mul(load(out + d), broadcast(scale)));
}

inline void keepWeights(const Tile& tile, int64_t key, int64_t first, int rows, const Visible* seen) {
  const WeightStore& kept = tile.kept;
  for (int r = 0; r < rows; ++r) {
    const float* from = tile.space.scores + r * kBlockKeys;
    float* to = kept.weights + (first + r) * kept.stride + key;
    for (int v = 0; v < kBlockKeys / kLanes; ++v) store(to + v * kLanes, seen && !seen[r].word[v / kPanelVectors] ? zero() : load(from + v * kLanes));
    kept.maxima[(first + r) * kept.blocks + key / kBlockKeys] = tile.space.maximum[first + r];
  }
}

// Rows [first, first + rows) of the tile, at most kGroupRows, against one block.
template <typename AnyBlock> void groupAgainstBlock(const Tile& tile, AnyBlock& block, int64_t key, int64_t first, int rows) {
  Visible visible[kGroupRows];
  const Cover cover = scoreGroup(tile, block, key, first, rows, visible);
  if (cover == Cover::none) return;
  const Visible* seen = cover == Cover::partial ? visible : nullptr;
  alignas(64) float scale[kGroupRows + kLanes];
  softmaxRows(tile.space.scores, seen, rows, tile.space.maximum + first, tile.space.sum + first, scale);
  for (int r = 0; r < rows; ++r)
    if (scale[r] != 1.0f) scaleSums(tile, first + r, scale[r]);
  if (tile.kept.weights) keepWeights(tile, key, first, rows, seen);
  addValues(tile, block, key, first, rows, seen);
}

template <typename AnyBlock> void tileAgainstBlock(const Tile& tile, AnyBlock block, int64_t key) {
  const int64_t next = std::min(key + kBlockKeys, tile.unit.keys), count = std::min(tile.unit.keys - next, int64_t(kBlockKeys));
  const bool fetchNext = tile.rows > kGroupRows && !block.fetchKeys && count > 0 && tile.cover(0, tile.rows, next) != Cover::none;
  for (int64_t r = 0; r < tile.rows; r += kGroupRows) {
    const int64_t end = std::min(r + kGroupRows, tile.rows);
    if (fetchNext) fetchTokens(tile.unit.source, next + count * r / tile.rows, next + count * end / tile.rows);
    groupAgainstBlock(tile, block, key, r, int(end - r));
  }
}

void groupAgainstPaths(const Tile& tile, int64_t key, int64_t first, int rows);  // attention_path_inl.h

// One chunk of keys: tile.space.{maximum, sum, out} become the chunk's own. False where no row sees any of it.
inline bool tileAgainstChunk(const Tile& tile, int64_t chunk) {
  const int64_t stride = tile.problem.stride(), keys = tile.unit.keys;
  const Source& source = tile.unit.source;
  const bool converted = source.element == DType::i8 || source.element == DType::i4 || source.mixed;  // before use, panel by panel
  const bool fewRows = tile.rows <= kGroupRows;
  const bool inPlace = !converted && source.valueDim % kTileWidth == 0 &&
                       (source.pages || (tile.rows <= 2 * kGroupRows && source.quantized == Quantized::none && source.wholePanels() && source.headDim % kSquareColumns<bf16> == 0));
  const int64_t paths = tile.unit.mask.shape == MaskShape::path ? tile.unit.mask.operands.prefix / kBlockKeys * kBlockKeys : keys;
  bool started = false;
  for (int64_t key = chunk * kChunkKeys; key < std::min((chunk + 1) * kChunkKeys, keys); key += kBlockKeys) {
    if (tile.cover(0, tile.rows, key) == Cover::none) continue;
    if (!started) {
      started = true;
      for (int64_t r = 0; r < tile.rows; ++r) {
        tile.space.maximum[r] = -kInfinity;
        tile.space.sum[r] = 0;
      }
      std::memset(tile.space.out, 0, size_t(tile.rows * stride) * sizeof(float));
    }
    if (key >= paths) {
      for (int64_t r = 0; r < tile.rows; r += kGroupRows) groupAgainstPaths(tile, key, r, int(std::min<int64_t>(tile.rows - r, kGroupRows)));
      continue;
    }
    const int count = int(std::min<int64_t>(keys - key, kBlockKeys));
    const auto asStored = [&](auto element) { tileAgainstBlock(tile, StoredBlock<decltype(element)>(source, key, count, keys, tile.rows, tile.space.block), key); };
    if (inPlace && (source.pages || count == kBlockKeys)) {
      if (source.element == DType::f16) asStored(f16{});
      else if (source.element == DType::bf16) asStored(bf16{});
      else asStored(0.0f);
    } else if (fewRows) tileAgainstBlock(tile, PassingBlock(source, key, keys, tile.space.block, tile.rows), key);
    else tileAgainstBlock(tile, LoadedBlock(source, key, count, tile.space.block), key);
  }
  return started;
}

template <typename T> void writeOut(T* out, const float* sums, int64_t width, F32 total) {
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) store(out + d, div(load(sums + d), total));
  if (d < width) storePart(out + d, div(load(sums + d), total), int(width - d));
}

// A row's results from its maximum, sum and weighted values over all keys.
inline void writeRow(const Problem& problem, const Unit& unit, int64_t row, float maximum, float sum, float* merged) {
  const int64_t query = row / problem.group, head = row % problem.group;
  if (problem.offByOne || unit.sinks) {  // one more key, whose value is zero
    const float logit = problem.offByOne ? 0 : unit.sinks[head] * kLog2E, common = maximum > logit ? maximum : logit;
    const float mine = maximum == -kInfinity ? 0 : exp2Clamped(maximum - common);
    sum = sum * mine + exp2Clamped(logit - common);
    for (int64_t d = 0; d < problem.stride(); d += kLanes) store(merged + d, mul(load(merged + d), broadcast(mine)));
    maximum = common;
  }
  if (unit.logSumExp.present()) {
    const double natural = (double(maximum) + std::log2(double(sum))) * 0.69314718055994530942;
    *reinterpret_cast<float*>(unit.logSumExp.at(query, head)) = sum == 0 ? -kInfinity : float(natural);
  }
  const F32 total = broadcast(sum == 0 ? 1.0f : sum);  // a row that saw no key: 0
  std::byte* out = unit.out.at(query, head);
  if (unit.out.dtype == DType::f16) writeOut(reinterpret_cast<f16*>(out), merged, problem.valueDim, total);
  else if (unit.out.dtype == DType::bf16) writeOut(reinterpret_cast<bf16*>(out), merged, problem.valueDim, total);
  else writeOut(reinterpret_cast<float*>(out), merged, problem.valueDim, total);
}

}  // namespace tl::TL_TARGET
