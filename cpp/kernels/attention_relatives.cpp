// Relatives of softmax attention on the tiles of attention_loop_inl.h; shapes and papers stand at their Args.
//   mergeStates        lse = log Σ_p exp(lse_p), out = Σ_p exp(lse_p − lse) · out_p
//   stickBreaking      A_j = σ(s_j) · Π_{j < k ≤ p} (1 − σ(s_k)), out = Σ_j A_j v_j, in logarithms, newest key first
//   landmarkAttention  softmax over the own block and earlier landmarks; a landmark's weight goes to its block by a softmax of it
#include "../cache/kv.h"
#include "../simd/target.h"
#include "attention_tile_inl.h"
#include "attention_mask_inl.h"
#include "attention_source_inl.h"
#include "attention_score_inl.h"
#include "attention_loop_inl.h"
#include "attention_run_inl.h"
#include "attention_open_inl.h"

namespace tl::TL_TARGET {
namespace {

// log2(1 + t) for 0 ≤ t ≤ 1: 2 atanh(t / (2 + t)) by its series. Relative error < 3e-7.
TL_INLINE F32 log2Plus1(F32 t) {
  const F32 z = div(t, add(t, broadcast(2.0f))), square = mul(z, z);
  F32 p = broadcast(1.0f / 15);
  for (const float coefficient : {1.0f / 13, 1.0f / 11, 1.0f / 9, 1.0f / 7, 1.0f / 5, 1.0f / 3, 1.0f}) p = mulAdd(p, square, broadcast(coefficient));
  return mul(mul(z, broadcast(2 * kLog2E)), p);
}

constexpr int64_t kMostRows = 96;  // of a tile

// [batch, heads, tokens, dim] operands of the ops below.
struct Operands {
  const View &query, &key, &value, &out;
  bool strict = false;  // stick-breaking without the query's own key
  const uint8_t* isLandmark = nullptr;
};

Status open(const char* op, const Operands& o, double scale, const Context& context, Problem& problem, int64_t& tileRows) {
  const View &query = o.query, &key = o.key;
  if (query.rank != 4 || key.rank != 4 || o.value.rank != 4) return shapeError(op, "query", "query, key and value must have rank 4", 4, query.rank);
  const int64_t batch = query.dims[0], heads = query.dims[1], kvHeads = key.dims[1], keys = key.dims[2], headDim = query.dims[3], valueDim = o.value.dims[3];
  if (kvHeads < 1 || heads % kvHeads) return shapeError(op, "query", "must have a multiple of the key's heads", kvHeads, heads);
  if (headDim < 1 || valueDim < 1) return shapeError(op, "query", "must have a head dimension of 1 or more", 1, headDim);
  TL_TRY(checkFloat(op, "query", query, false, batch, heads, -1, headDim));
  TL_TRY(checkFloat(op, "key", key, false, batch, kvHeads, keys, headDim));
  TL_TRY(checkFloat(op, "value", o.value, false, batch, kvHeads, keys, valueDim));
  TL_TRY(checkFloat(op, "out", o.out, true, batch, heads, query.dims[2], valueDim));
  if (o.value.dtype != key.dtype) return argumentError(op, "value", "must have the key's element type", int64_t(o.value.dtype));
  problem.units = batch * kvHeads;
  problem.group = heads / kvHeads;
  problem.headDim = headDim;
  problem.valueDim = valueDim;
  problem.mostQueries = query.dims[2];
  problem.mostKeys = keys;
  problem.scale = float(scale * double(kLog2E));
  problem.context = &o;
  const int64_t rows = problem.mostQueries * problem.group;
  tileRows = std::max<int64_t>(roundUp(std::min<int64_t>(rows, problem.units * ceilDiv(rows, kMostRows) < 4 * context.pool.threads() ? kMostRows / 2 : kMostRows), kRows), kRows);
  while (tileRows > kRows && tileFloats(problem, tileRows) > kTileFloats) tileRows -= kRows;
  if (tileFloats(problem, tileRows) > kTileFloats) return argumentError(op, "headDim", "is larger than the kernel's tiles", headDim);
  return {};
}

void openUnit(const Problem& problem, int64_t index, Unit& unit) {
  const auto& o = *static_cast<const Operands*>(problem.context);
  const int64_t kvHeads = o.key.dims[1], batch = index / kvHeads, kvHead = index % kvHeads, head = kvHead * problem.group;
  unit.queries = o.query.dims[2];
  unit.keys = o.key.dims[2];
  unit.query = operandAt(o.query, batch, head);
  unit.out = operandAt(o.out, batch, head);
  unit.source.element = o.key.dtype;
  unit.source.headDim = problem.headDim;
  unit.source.valueDim = problem.valueDim;
  unit.source.keys = rowsOf(o.key, batch, kvHead, 0, View{}, View{});
  unit.source.values = rowsOf(o.value, batch, kvHead, 0, View{}, View{});
  unit.mask.keys = unit.keys;
  unit.mask.offset = unit.keys - unit.queries - (o.strict ? 1 : 0);
}

// body(tile) for all tiles of all units, later rows first.
template <typename Body> void forTiles(const Problem& problem, int64_t tileRows, Context& context, Body&& body) {
  const int64_t tiles = ceilDiv(problem.mostQueries * problem.group, tileRows);
  context.pool.parallelFor(problem.units * tiles, 1, [&](int64_t begin, int64_t end, int thread) {
    const FlushedSubnormals flushed;
    for (int64_t i = begin; i < end; ++i) {
      Unit unit;
      openUnit(problem, i % problem.units, unit);
      const int64_t row = (tiles - 1 - i / problem.units) * tileRows;
      const Tile tile{problem, unit, row, std::min(unit.queries * problem.group - row, tileRows), carve(problem, tileRows, context.pool.scratch(thread))};
      packQueries(tile);
      std::memset(tile.space.out, 0, size_t(tile.rows * problem.stride()) * sizeof(float));
      body(tile, i % problem.units);
    }
  });
}

// Scores become weights; `left` is log2 of what newer keys left, and is brought down by this block.
void stickRow(float* scores, const Visible* visible, float& left) {
  alignas(64) float rest[kBlockKeys];  // log2(1 − β)
  const F32 none = zero();
  for (int v = 0; v < kBlockVectors; ++v) {
    const uint32_t bits = visible ? vectorBits(*visible, v) : uint32_t((uint64_t(1) << kLanes) - 1);
    const F32 s = bits ? load(scores + v * kLanes) : none, magnitude = abs(s);
    const F32 softplus = add(max(s, none), log2Plus1(exp2Clamped(sub(none, magnitude))));  // log2(1 + 2^s)
    store(rest + v * kLanes, select(lanesOfBits(bits), sub(none, softplus), none));
    store(scores + v * kLanes, sub(s, softplus));  // log2 β
  }
  for (int j = kBlockKeys - 1; j >= 0; --j) {
    const float own = rest[j];
    rest[j] = left;
    left += own;
  }
  for (int v = 0; v < kBlockVectors; ++v) {
    const uint32_t bits = visible ? vectorBits(*visible, v) : uint32_t((uint64_t(1) << kLanes) - 1);
    const F32 weight = exp2Clamped(add(load(scores + v * kLanes), load(rest + v * kLanes)));
    store(scores + v * kLanes, select(lanesOfBits(bits), weight, none));
  }
}

void stickTile(const Tile& tile, const StickBreakingArgs& args, int64_t index) {
  const Unit& unit = tile.unit;
  float* left = tile.space.sum;
  std::fill_n(left, size_t(tile.rows), 0.0f);
  for (int64_t key = (ceilDiv(unit.keys, kBlockKeys) - 1) * kBlockKeys; key >= 0; key -= kBlockKeys) {
    if (tile.cover(0, tile.rows, key) == Cover::none) continue;
    LoadedBlock block(unit.source, key, int(std::min<int64_t>(unit.keys - key, kBlockKeys)), tile.space.block);
    for (int64_t first = 0; first < tile.rows; first += kGroupRows) {
      const int rows = int(std::min<int64_t>(tile.rows - first, kGroupRows));
      Visible visible[kGroupRows];
      const Cover cover = scoreGroup(tile, block, key, first, rows, visible);
      if (cover == Cover::none) continue;
      const Visible* seen = cover == Cover::partial ? visible : nullptr;
      for (int r = 0; r < rows; ++r) stickRow(tile.space.scores + r * kBlockKeys, seen ? seen + r : nullptr, left[first + r]);
      addValues(tile, block, key, first, rows, seen);
    }
  }
  const int64_t kvHeads = args.key.dims[1], batch = index / kvHeads, head = index % kvHeads * tile.problem.group;
  const Operand3 remainders = operandAt(args.remainder, batch, head);
  for (int64_t r = 0; r < tile.rows; ++r) {
    const float remainder = exp2Clamped(left[r]);
    float* sums = tile.space.out + r * tile.problem.stride();
    const int64_t position = unit.keys - unit.queries + tile.query(r);
    if (args.addRemainder != 0 && position >= 0) {
      alignas(64) float value[kPanelKeys * kTileWidth];
      for (int64_t d = 0; d < tile.problem.valueDim; d += kTileWidth) {
        Source piece = unit.source;  // kTileWidth columns of one row
        piece.values.data += d * int64_t(elementBytes(piece.element));
        piece.valueDim = std::min<int64_t>(tile.problem.valueDim - d, kTileWidth);
        loadValuePanel(piece, position, 1, Ahead{}, value);
        for (int i = 0; i < kTileWidth; i += kLanes) store(sums + d + i, mulAdd(load(value + i), broadcast(remainder), load(sums + d + i)));
      }
    }
    if (remainders.present()) *reinterpret_cast<float*>(remainders.at(tile.query(r), tile.head(r))) = remainder;
    writeOut(reinterpret_cast<float*>(unit.out.at(tile.query(r), tile.head(r))), sums, tile.problem.valueDim, broadcast(1.0f));
  }
}

// Online softmax over runs of keys of one row.
struct RunningRow {
  float maximum = -kInfinity, sum = 0;
  float* out;
  int64_t stride;

  void rescale(float largest) {
    if (largest <= maximum) return;
    if (maximum != -kInfinity) {
      const float scale = exp2Clamped(maximum - largest);
      sum *= scale;
      for (int64_t d = 0; d < stride; d += kLanes) store(out + d, mul(load(out + d), broadcast(scale)));
    }
    maximum = largest;
  }
  void addKeys(const float* scores, const Block<float>& block, int begin, int end) {
    if (begin >= end) return;
    float largest = -kInfinity;
    for (int j = begin; j < end; ++j) largest = scores[j] > largest ? scores[j] : largest;
    rescale(largest);
    if (maximum == -kInfinity) return;
    alignas(64) float weights[kBlockKeys];
    for (int v = begin / kLanes; v * kLanes < end; ++v) store(weights + v * kLanes, exp2Clamped(sub(load(scores + v * kLanes), broadcast(maximum))));
    for (int j = begin; j < end; ++j) sum += weights[j];
    addValueRows(1, weights, block, begin, end, 0, int(stride / kTileWidth), out, stride);
  }
  // One key of logit `score` whose value is the mean of `inner`; that starts anew.
  void addGroup(float score, RunningRow& inner) {
    rescale(score);
    const float weight = exp2Clamped(score - maximum), share = inner.sum > 0 ? weight / inner.sum : 0;
    sum += weight;
    for (int64_t d = 0; d < stride; d += kLanes) {
      store(out + d, mulAdd(load(inner.out + d), broadcast(share), load(out + d)));
      store(inner.out + d, zero());
    }
    inner.maximum = -kInfinity;
    inner.sum = 0;
  }
};

void landmarkTile(const Tile& tile, const uint8_t* isLandmark) {
  const Unit& unit = tile.unit;
  const int64_t stride = tile.problem.stride();
  int64_t own[kMostRows];  // first key of each query's own block
  for (int64_t r = 0; r < tile.rows; ++r) {
    own[r] = std::max<int64_t>(unit.mask.offset + tile.query(r), 0);
    while (own[r] > 0 && !isLandmark[own[r] - 1]) --own[r];
  }
  std::memset(tile.space.merged, 0, size_t(tile.rows * stride) * sizeof(float));
  std::fill_n(tile.space.maximum, size_t(tile.rows), -kInfinity);
  std::fill_n(tile.space.mergedMaximum, size_t(tile.rows), -kInfinity);
  std::fill_n(tile.space.sum, size_t(tile.rows), 0.0f);
  std::fill_n(tile.space.mergedSum, size_t(tile.rows), 0.0f);
  for (int64_t key = 0; key < unit.keys; key += kBlockKeys) {
    if (tile.cover(0, tile.rows, key) == Cover::none) continue;
    LoadedBlock block(unit.source, key, int(std::min<int64_t>(unit.keys - key, kBlockKeys)), tile.space.block);
    for (int64_t first = 0; first < tile.rows; first += kGroupRows) {
      const int rows = int(std::min<int64_t>(tile.rows - first, kGroupRows));
      Visible visible[kGroupRows];
      if (scoreGroup(tile, block, key, first, rows, visible) == Cover::none) continue;
      for (int64_t r = first; r < first + rows; ++r) {
        const int64_t position = unit.mask.offset + tile.query(r);
        const int end = int(std::clamp<int64_t>(position + 1 - key, 0, std::min<int64_t>(unit.keys - key, kBlockKeys)));
        const float* scores = tile.space.scores + (r - first) * kBlockKeys;
        RunningRow inner{tile.space.maximum[r], tile.space.sum[r], tile.space.out + r * stride, stride};
        RunningRow outer{tile.space.mergedMaximum[r], tile.space.mergedSum[r], tile.space.merged + r * stride, stride};
        for (int j = 0; j < end;) {
          int run = j;
          while (run < end && !isLandmark[key + run]) ++run;
          (key + j >= own[r] ? outer : inner).addKeys(scores, block, j, run);
          if (run < end && key + run < own[r]) outer.addGroup(scores[run], inner);
          j = run + 1;
        }
        tile.space.maximum[r] = inner.maximum;
        tile.space.sum[r] = inner.sum;
        tile.space.mergedMaximum[r] = outer.maximum;
        tile.space.mergedSum[r] = outer.sum;
      }
    }
  }
  for (int64_t r = 0; r < tile.rows; ++r) {
    const float sum = tile.space.mergedSum[r];
    writeOut(reinterpret_cast<float*>(unit.out.at(tile.query(r), tile.head(r))), tile.space.merged + r * stride, tile.problem.valueDim, broadcast(sum == 0 ? 1.0f : sum));
  }
}

}  // namespace

Status mergeStates(const MergeStatesArgs& args, Context& context) {
  constexpr const char* op = "mergeStates";
  const View& in = args.partialOut;
  if (in.rank != 5) return shapeError(op, "partialOut", "must be [partials, batch, heads, queries, dim]", 5, in.rank);
  const int64_t partials = in.dims[0], batch = in.dims[1], heads = in.dims[2], queries = in.dims[3], dim = in.dims[4];
  TL_TRY(checkFloat(op, "partialOut", in, true, -1, -1, -1, -1, -1));
  TL_TRY(checkFloat(op, "partialLogSumExp", args.partialLogSumExp, true, partials, batch, heads, queries));
  TL_TRY(checkFloat(op, "out", args.out, true, batch, heads, queries, dim));
  if (args.logSumExp.present()) TL_TRY(checkFloat(op, "logSumExp", args.logSumExp, true, batch, heads, queries));
  context.pool.parallelFor(batch * heads * queries, std::max<int64_t>(1, 4096 / std::max<int64_t>(1, partials * dim)), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / (heads * queries), h = i / queries % heads, t = i % queries;
      const auto logOf = [&](int64_t p) {
        const View& view = args.partialLogSumExp;
        return view.as<float>()[p * view.strides[0] + b * view.strides[1] + h * view.strides[2] + t * view.strides[3]];
      };
      float* out = reinterpret_cast<float*>(operandAt(args.out, b, h).at(t, 0));
      std::fill_n(out, size_t(dim), 0.0f);
      double maximum = -std::numeric_limits<double>::infinity(), sum = 0;
      for (int64_t p = 0; p < partials; ++p) maximum = std::max<double>(maximum, logOf(p));
      for (int64_t p = 0; p < partials; ++p)
        if (logOf(p) != -kInfinity) sum += std::exp(logOf(p) - maximum);
      for (int64_t p = 0; p < partials; ++p) {
        if (logOf(p) == -kInfinity) continue;
        const F32 weight = broadcast(float(std::exp(logOf(p) - maximum) / sum));
        const float* from = in.as<float>() + p * in.strides[0] + b * in.strides[1] + h * in.strides[2] + t * in.strides[3];
        int64_t d = 0;
        for (; d + kLanes <= dim; d += kLanes) store(out + d, mulAdd(load(from + d), weight, load(out + d)));
        if (d < dim) storePart(out + d, mulAdd(loadPart(from + d, int(dim - d)), weight, loadPart(out + d, int(dim - d))), int(dim - d));
      }
      if (args.logSumExp.present()) *reinterpret_cast<float*>(operandAt(args.logSumExp, b, h).at(t, 0)) = sum == 0 ? -kInfinity : float(maximum + std::log(sum));
    }
  });
  return {};
}

Status stickBreaking(const StickBreakingArgs& args, Context& context) {
  Problem problem;
  int64_t tileRows;
  const Operands operands{args.query, args.key, args.value, args.out, args.attendCurrent == 0, nullptr};
  TL_TRY(open("stickBreaking", operands, args.scale, context, problem, tileRows));
  if (args.remainder.present()) TL_TRY(checkFloat("stickBreaking", "remainder", args.remainder, true, args.query.dims[0], args.query.dims[1], args.query.dims[2]));
  forTiles(problem, tileRows, context, [&](const Tile& tile, int64_t index) { stickTile(tile, args, index); });
  return {};
}

Status landmarkAttention(const LandmarkAttentionArgs& args, Context& context) {
  Problem problem;
  int64_t tileRows;
  const Operands operands{args.query, args.key, args.value, args.out, false, args.isLandmark.as<uint8_t>()};
  TL_TRY(open("landmarkAttention", operands, args.scale, context, problem, tileRows));
  TL_TRY(checkType("landmarkAttention", "isLandmark", args.isLandmark, DType::u8, problem.mostKeys));
  forTiles(problem, tileRows, context, [&](const Tile& tile, int64_t) { landmarkTile(tile, operands.isLandmark); });
  return {};
}

}  // namespace tl::TL_TARGET
