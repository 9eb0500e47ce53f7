// What one launch of attention works on: operands, masks and score modifiers as the host opened them, and the unit (one
// sequence, one key/value head) that a block takes from them. Mirrors cpp/kernels/attention_mask_inl.h and
// attention_score_inl.h.
#pragma once
#include "../cpp/cache/kv.h"
#include "core/device.cuh"

namespace tl::cuda {

// The numbers are AttentionArgs::maskShape; path: nodes of a draft tree over the engine's cache, see MaskShape.
enum class MaskShape : int32_t { plain = 0, blocks, tree, neighbourhood, region, path };

// Rows of numbers by batch, head and token; strides in elements (bytes of quantised operands).
struct Strided {
  std::byte* data = nullptr;
  DType dtype = DType::none;
  int64_t batch = 0, head = 0, token = 0;
  __device__ int64_t at(int64_t b, int64_t h, int64_t t) const { return b * batch + h * head + t * token; }
};

// Where keys and values lie.
enum class Layout : int32_t { rows = 0, blockTable, pages };

struct Source {
  Layout layout = Layout::rows;
  int32_t quantized = 0;  // 1 int8, 2 int4
  Strided keys, values;
  Strided keyScale, valueScale;  // f32; minima are laid out alike
  const float *keyMinimum = nullptr, *valueMinimum = nullptr;
  const int32_t* table = nullptr;  // of a block table: [batch, kvHeads, pages a head]
  int32_t pageSize = 1;
  int64_t tableBatch = 0, tableHead = 0, keyPage = 0, valuePage = 0;
  int32_t pageCount = 0;  // pages that there are: numbers in device memory cannot be checked before, so they are held within
  const KvPage* const* pages = nullptr;  // of the engine's cache: [kvHeads, pagesHead]
  int64_t pagesHead = 0;
};

struct Problem {
  int32_t batch = 1, kvHeads = 1, group = 1, queries = 0, keys = 0 /* the most of a unit, or all of a ragged batch */, headDim = 0, valueDim = 0, sequences = 1;
  Strided query, out, logSumExp, scores, columnSums;
  Source source;
  const int32_t *cuQuery = nullptr, *cuKey = nullptr;  // ragged
  const int32_t* lengths = nullptr;                    // keys of each head: [batch, kvHeads]
  int64_t lengthsBatch = 0;
  float scale = 1, softcap = 0;
  // mask
  MaskShape shape = MaskShape::plain;
  int32_t causal = 0, window = 0, sinkTokens = 0;
  const uint8_t* blocks = nullptr;
  int64_t blocksHead = 0, blocksRow = 0;
  int32_t blockQuery = 1, blockKey = 1;
  const uint32_t* tree = nullptr;
  int32_t treeWords = 0;
  int32_t gridStart = 0, gridHeight = 0, gridWidth = 0, radius = 0, factor = 1, causalGrid = 0;
  // score modifiers
  const float* bias = nullptr;
  int64_t biasBatch = 0, biasHead = 0, biasQuery = 0;
  const float *slopes = nullptr, *sinks = nullptr;
  const float *contentToPosition = nullptr, *positionToContent = nullptr;
  int64_t contentBatch = 0, contentHead = 0, contentQuery = 0, positionBatch = 0, positionHead = 0, positionKey = 0;
  const int32_t* relativeIndex = nullptr;
  int32_t relativeWidth = 1;
  int32_t offByOne = 0, columnQueries = 0;
  // split keys: parts of `splitKeys`, each leaves [rows][valueDim + 2] in `partial`
  int32_t splits = 1, splitKeys = 0, mostRows = 0;
  float* partial = nullptr;

  // Whether more than causal masks and windows touch a score.
  bool general() const { return shape != MaskShape::plain || softcap > 0 || bias || slopes || relativeIndex || scores.data; }
};

struct Unit {
  int32_t batch, kvHead, sequence;
  int32_t firstQuery, firstKey;  // of a ragged sequence
  int32_t queries, keys, offset, rows;
};

__device__ inline int32_t within(int32_t value, int32_t most) { return min(max(value, 0), most); }

__device__ inline Unit openUnit(const Problem& p, int32_t index) {
  Unit u;
  u.sequence = index / p.kvHeads;
  u.kvHead = index % p.kvHeads;
  u.batch = p.cuQuery ? 0 : u.sequence;
  u.firstQuery = p.cuQuery ? within(p.cuQuery[u.sequence], p.queries) : 0;
  u.firstKey = p.cuKey ? within(p.cuKey[u.sequence], p.keys) : 0;
  u.queries = p.cuQuery ? max(within(p.cuQuery[u.sequence + 1], p.queries) - u.firstQuery, 0) : p.queries;
  u.keys = p.cuKey ? max(within(p.cuKey[u.sequence + 1], p.keys) - u.firstKey, 0) : p.lengths ? within(p.lengths[u.batch * p.lengthsBatch + u.kvHead], p.keys) : p.keys;
  u.offset = u.keys - u.queries;
  u.rows = u.queries * p.group;
  return u;
}

__device__ inline int depthOf(const Problem& p, int query) {  // nodes on the path to it, itself included
  int nodes = 0;
  for (int w = 0; w < p.treeWords; ++w) nodes += __popc(p.tree[query * p.treeWords + w]);
  return nodes;
}

// Row r of a unit: query r / group, head r % group.
struct Row {
  int32_t query, head, position;  // head: of all query heads
  bool valid;
};

__device__ inline Row openRow(const Problem& p, const Unit& u, int32_t r) {
  Row row;
  row.valid = r < u.rows;
  row.query = row.valid ? r / p.group : 0;
  row.head = u.kvHead * p.group + (row.valid ? r % p.group : 0);
  row.position = u.offset + row.query;
  if (p.shape == MaskShape::path && row.valid) row.position = u.offset + depthOf(p, row.query) - 1;
  return row;
}

// The plain mask's keys of a query at `position`: [begin, end), and the first `sinks` besides.
__device__ inline int32_t keysBegin(const Problem& p, int32_t position) { return p.window > 0 ? max(position - p.window + 1, 0) : 0; }
__device__ inline int32_t keysEnd(const Problem& p, const Unit& u, int32_t position) {
  const int32_t end = p.causal ? position + 1 : p.window > 0 ? position + p.window : u.keys;
  return min(max(end, 0), u.keys);
}
__device__ inline int32_t sinksEnd(const Problem& p, const Unit& u, int32_t position) {
  return p.window > 0 ? min(p.sinkTokens, p.causal ? keysEnd(p, u, position) : u.keys) : 0;
}

__device__ inline bool seesPlain(const Problem& p, const Unit& u, int32_t position, int32_t key) {
  return (key >= keysBegin(p, position) && key < keysEnd(p, u, position)) || key < sinksEnd(p, u, position);
}

__device__ inline bool seesNeighbour(const Problem& p, int32_t query, int32_t key) {
  const int32_t gridEnd = p.gridStart + p.gridHeight * p.gridWidth;
  if (query < p.gridStart || query >= gridEnd) return key <= query;
  if (key < p.gridStart) return true;
  if (key >= gridEnd || (p.causalGrid && key > query)) return false;
  const int32_t q = query - p.gridStart, k = key - p.gridStart;
  const int32_t dy = q / p.gridWidth - k / p.gridWidth, dx = q % p.gridWidth - k % p.gridWidth;
  return dy <= p.radius && -dy <= p.radius && dx <= p.radius && -dx <= p.radius;
}

__device__ inline bool sees(const Problem& p, const Unit& u, const Row& row, int32_t key) {
  if (!row.valid || key >= u.keys) return false;
  if (p.shape == MaskShape::path && key >= u.offset) {  // an ancestor, at its place on the path
    const int32_t node = key - u.offset;
    if (!(p.tree[row.query * p.treeWords + node / 32] >> (node % 32) & 1)) return false;
    const int32_t at = u.offset + depthOf(p, node) - 1;
    return p.window == 0 || row.position - at < p.window || at < p.sinkTokens;
  }
  if (!seesPlain(p, u, row.position, key)) return false;
  switch (p.shape) {
    case MaskShape::blocks: return p.blocks[row.head * p.blocksHead + row.query / p.blockQuery * p.blocksRow + key / p.blockKey] != 0;
    case MaskShape::tree: return key < u.offset || (p.tree[row.query * p.treeWords + (key - u.offset) / 32] >> ((key - u.offset) % 32) & 1);
    case MaskShape::neighbourhood: return seesNeighbour(p, row.query, key);
    case MaskShape::region: {
      const int32_t width = p.gridWidth * p.factor, y = key / width, x = key % width;
      return y / p.factor == row.query / p.gridWidth && x / p.factor == row.query % p.gridWidth;
    }
    default: return true;
  }
}

// q · k to a score times log2(e); false where the row does not see the key. General: see Problem::general().
template <bool general> __device__ __forceinline__ bool score(const Problem& p, const Unit& u, const Row& row, int32_t key, float dot, float& s) {
  s = dot * p.scale;
  bool seen;
  if constexpr (!general) {
    seen = row.valid && key < u.keys && seesPlain(p, u, row.position, key);
  } else {
    seen = sees(p, u, row, key);
    if (p.softcap > 0) s = p.softcap * tanhf(s / p.softcap);
    if (seen && p.relativeIndex) {
      const int32_t x = within(p.relativeIndex[row.query - key + u.keys - 1], p.relativeWidth - 1);
      float relative = 0;
      if (p.contentToPosition) relative += p.contentToPosition[u.batch * p.contentBatch + row.head * p.contentHead + row.query * p.contentQuery + x];
      if (p.positionToContent) relative += p.positionToContent[u.batch * p.positionBatch + row.head * p.positionHead + key * p.positionKey + x];
      s += p.scale * relative;
    }
    if (p.slopes) s -= p.slopes[row.head] * fabsf(float(row.position - key));
    if (seen && p.bias) {
      const float b = p.bias[u.batch * p.biasBatch + row.head * p.biasHead + row.query * p.biasQuery + u.firstKey + key];
      s += b;
      seen = !(b == -TL_INFINITY);
    }
    if (p.scores.data && row.valid && key < u.keys)
      reinterpret_cast<float*>(p.scores.data)[p.scores.at(u.batch, row.head, row.query) + key] = seen ? s : -TL_INFINITY;
  }
  s = seen ? s * kLog2E : -TL_INFINITY;
  return seen;
}

// The general score as a call: the tensor-core loop forms 32 of them in a row, which would be 32 copies of it.
__device__ TL_CALL inline bool scoreByCall(const Problem& p, const Unit& u, const Row& row, int32_t key, float dot, float& s) { return score<true>(p, u, row, key, dot, s); }

// Keys that rows first … last of a tile may see: [from, to) and, before it, [0, sinks). What lies between is skipped.
struct KeyRange {
  int32_t sinks, from, to;
};
__device__ inline KeyRange keyRange(const Problem& p, const Unit& u, int32_t firstRow, int32_t lastRow) {
  if (u.rows == 0 || u.keys <= 0) return {0, 0, 0};
  const int32_t last = min(lastRow, u.rows - 1);
  if (p.shape == MaskShape::path) {  // depths rise along the rows
    const int32_t a = openRow(p, u, firstRow).position, b = openRow(p, u, last).position;
    return {sinksEnd(p, u, b), min(keysBegin(p, a), u.offset), b >= u.offset ? u.keys : keysEnd(p, u, b)};
  }
  const int32_t a = u.offset + firstRow / p.group, b = u.offset + last / p.group;
  return {sinksEnd(p, u, b), keysBegin(p, a), keysEnd(p, u, b)};
}

// The running softmax of one row, scores in powers of two.
__device__ __forceinline__ float correction(float before, float after) { return after == -TL_INFINITY ? 1.0f : exp2Fast(before - after); }
__device__ __forceinline__ float weight(bool seen, float s, float maximum) {  // a score that is no number makes its row one
  return seen && (maximum != -TL_INFINITY || s != s) ? exp2Fast(s - maximum) : 0.0f;
}
// What a part's sums are multiplied with; a part that saw nothing adds 0, one without a number stays so.
__device__ __forceinline__ float shareOf(float partMaximum, float partSum, float maximum) { return partMaximum == -TL_INFINITY ? 0.0f * partSum : exp2Fast(partMaximum - maximum); }

// What joins the denominator besides keys: an attention sink's logit, or 0. Answers the factor of the values.
__device__ inline float closeRow(const Problem& p, int32_t head, float& maximum, float& sum) {
  if (!p.sinks && !p.offByOne) return sum > 0 || sum != sum ? 1 / sum : 0;
  const float extra = p.sinks ? p.sinks[head] * kLog2E : 0.0f, top = max(maximum, extra);
  if (top == -TL_INFINITY) return 0;
  const float factor = maximum == -TL_INFINITY ? 0.0f : exp2Fast(maximum - top);
  sum = sum * factor + exp2Fast(extra - top);
  maximum = top;
  return factor / sum;
}
__device__ inline float logSumExpOf(float maximum, float sum) { return sum == 0 ? -TL_INFINITY : maximum * kLn2 + logf(sum); }

}  // namespace tl::cuda
