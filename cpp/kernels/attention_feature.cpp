// Attention whose softmax does not run along the keys, on the tiles of attention_loop_inl.h; papers stand at the Args.
//   slotAttention  a = softmax of s over the slots (or heads and slots), out = Σ_j (a_j + ε) v_j / Σ_j (a_j + ε)
//   pattention     out = gelu(s · sqrt(n) / ‖s‖₂) · values, s = scale · x · keysᵀ
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

// Scores of all rows become their softmax over the rows, key by key.
void softmaxOverRows(float* scores, int64_t rows, int vectors) {
  for (int v = 0; v < vectors; ++v) {
    float* column = scores + v * kLanes;
    F32 largest = broadcast(-kInfinity), total = zero();
    for (int64_t r = 0; r < rows; ++r) largest = max(largest, load(column + r * kBlockKeys));
    for (int64_t r = 0; r < rows; ++r) {
      const F32 weight = exp2Clamped(sub(load(column + r * kBlockKeys), largest));
      store(column + r * kBlockKeys, weight);
      total = add(total, weight);
    }
    for (int64_t r = 0; r < rows; ++r) store(column + r * kBlockKeys, div(load(column + r * kBlockKeys), total));
  }
}

struct SlotSpace {
  float *query, *scores, *out, *sum, *block;
};

int64_t slotFloats(const Problem& problem, int64_t rows) {
  return roundUp(rows, kRows) * (problem.headDim + kBlockKeys + problem.stride() + 1) + problem.blockFloats() + 256;
}

Unit slotUnit(const Problem& problem, const SlotAttentionArgs& args, int64_t batch, int64_t head) {
  Unit unit;
  unit.queries = args.query.dims[2];
  unit.keys = args.key.dims[2];
  unit.query = operandAt(args.query, batch, head);
  unit.source.element = args.key.dtype;
  unit.source.headDim = problem.headDim;
  unit.source.valueDim = problem.valueDim;
  unit.source.keys = rowsOf(args.key, batch, head, 0, View{}, View{});
  unit.source.values = rowsOf(args.value, batch, head, 0, View{}, View{});
  return unit;
}

// One softmax group: `heads` heads of `slots` rows each. Heads stay padded to kRows, with their rows side by side.
void slotGroup(const Problem& problem, const SlotAttentionArgs& args, int64_t batch, int64_t firstHead, int64_t heads, std::byte* scratch) {
  const int64_t slots = args.query.dims[2], keys = args.key.dims[2], rows = heads * slots, stride = problem.stride();
  SlotSpace space;
  float* next = reinterpret_cast<float*>(scratch);
  const auto take = [&](int64_t count) {
    float* taken = next;
    next += roundUp(count, 16);
    return taken;
  };
  space.block = take(problem.blockFloats());
  space.scores = take(rows * kBlockKeys);
  space.query = take(heads * roundUp(slots, kRows) * problem.headDim + kLanes);
  space.out = take(rows * stride);
  space.sum = take(rows);
  std::memset(space.out, 0, size_t(rows * stride) * sizeof(float));
  std::fill_n(space.sum, size_t(rows), 0.0f);
  const int64_t queryFloats = roundUp(slots, kRows) * problem.headDim;
  for (int64_t h = 0; h < heads; ++h) {
    const Unit unit = slotUnit(problem, args, batch, firstHead + h);
    Workspace w = {};
    w.query = space.query + h * queryFloats;
    packQueries(Tile{problem, unit, 0, slots, w});
  }
  for (int64_t key = 0; key < keys; key += kBlockKeys) {
    const int count = int(std::min<int64_t>(keys - key, kBlockKeys)), panels = int(ceilDiv(count, kPanelKeys));
    for (int64_t h = 0; h < heads; ++h) {
      const Unit unit = slotUnit(problem, args, batch, firstHead + h);
      LoadedBlock block(unit.source, key, count, space.block, true, false);
      for (int p = 0; p < panels; ++p)
        scoreRows(int(slots), space.query + h * queryFloats, block, p, problem.headDim, space.scores + h * slots * kBlockKeys);
    }
    softmaxOverRows(space.scores, rows, panels * kPanelVectors);
    for (int64_t h = 0; h < heads; ++h) {
      const Unit unit = slotUnit(problem, args, batch, firstHead + h);
      const Operand3 assignment = operandAt(args.assignment, batch, firstHead + h);
      LoadedBlock block(unit.source, key, count, space.block);
      for (int64_t s = 0; s < slots; ++s) {
        float* weights = space.scores + (h * slots + s) * kBlockKeys;
        if (assignment.present()) std::memcpy(reinterpret_cast<float*>(assignment.at(s, 0)) + key, weights, size_t(count) * sizeof(float));
        F32 total = zero();
        for (int j = 0; j < panels * kPanelKeys; j += kLanes) {
          const F32 weight = select(firstLanes(std::clamp(count - j, 0, kLanes)), add(load(weights + j), broadcast(float(args.epsilon))), zero());
          store(weights + j, weight);
          total = add(total, weight);
        }
        space.sum[h * slots + s] += sumLanes(total);
      }
      addValueRows(int(slots), space.scores + h * slots * kBlockKeys, block, 0, count, 0, int(stride / kTileWidth), space.out + h * slots * stride, stride);
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    const float sum = space.sum[i];
    writeOut(reinterpret_cast<float*>(operandAt(args.out, batch, firstHead + i / slots).at(i % slots, 0)), space.out + i * stride, problem.valueDim,
             broadcast(sum == 0 ? 1.0f : sum));
  }
}

// gelu(x) = x/2 · (1 + erf(x / √2)).
TL_INLINE F32 gelu(F32 x) { return mul(mul(x, broadcast(0.5f)), add(broadcast(1.0f), erf(mul(x, broadcast(0.70710678f))))); }

void pattentionTile(const Tile& tile) {
  const Unit& unit = tile.unit;
  const int64_t stride = tile.problem.stride();
  const int rows = int(tile.rows);
  double squares[kGroupRows] = {};
  std::memset(tile.space.out, 0, size_t(rows * stride) * sizeof(float));
  Visible visible[kGroupRows];
  for (int64_t key = 0; key < unit.keys; key += kBlockKeys) {
    PassingBlock block(unit.source, key, unit.keys, tile.space.block);
    const Cover cover = scoreGroup(tile, block, key, 0, rows, visible);
    for (int r = 0; r < rows; ++r) {
      F32 sum = zero();
      for (int v = 0; v < kBlockVectors; ++v) {
        const uint32_t bits = cover == Cover::partial ? vectorBits(visible[r], v) : ~uint32_t(0);
        if (!bits) continue;
        const F32 s = load(tile.space.scores + r * kBlockKeys + v * kLanes), seen = cover == Cover::partial ? select(lanesOfBits(bits), s, zero()) : s;
        sum = mulAdd(seen, seen, sum);
      }
      squares[r] += double(sumLanes(sum));
    }
  }
  for (int64_t key = 0; key < unit.keys; key += kBlockKeys) {
    PassingBlock block(unit.source, key, unit.keys, tile.space.block);
    const Cover cover = scoreGroup(tile, block, key, 0, rows, visible);
    for (int r = 0; r < rows; ++r) {
      const F32 scale = broadcast(squares[r] == 0 ? 0.0f : float(std::sqrt(double(unit.keys) / squares[r])));
      float* scores = tile.space.scores + r * kBlockKeys;
      for (int v = 0; v < kBlockVectors; ++v)
        if (cover == Cover::full || vectorBits(visible[r], v)) store(scores + v * kLanes, gelu(mul(load(scores + v * kLanes), scale)));
    }
    addValues(tile, block, key, 0, rows, cover == Cover::partial ? visible : nullptr);
  }
  for (int r = 0; r < rows; ++r) writeOut(reinterpret_cast<float*>(unit.out.at(tile.query(r), 0)), tile.space.out + r * stride, tile.problem.valueDim, broadcast(1.0f));
}

}  // namespace

Status slotAttention(const SlotAttentionArgs& args, Context& context) {
  constexpr const char* op = "slotAttention";
  const View &query = args.query, &key = args.key;
  if (query.rank != 4 || key.rank != 4 || args.value.rank != 4) return shapeError(op, "query", "query, key and value must have rank 4", 4, query.rank);
  const int64_t batch = query.dims[0], heads = query.dims[1], slots = query.dims[2], headDim = query.dims[3], valueDim = args.value.dims[3], keys = key.dims[2];
  if (headDim < 1 || valueDim < 1) return shapeError(op, "query", "must have a head dimension of 1 or more", 1, headDim);
  TL_TRY(checkFloat(op, "query", query, false, batch, heads, slots, headDim));
  TL_TRY(checkFloat(op, "key", key, false, batch, heads, keys, headDim));
  TL_TRY(checkFloat(op, "value", args.value, false, batch, heads, keys, valueDim));
  TL_TRY(checkFloat(op, "out", args.out, true, batch, heads, slots, valueDim));
  if (args.value.dtype != key.dtype) return argumentError(op, "value", "must have the key's element type", int64_t(args.value.dtype));
  if (args.assignment.present()) TL_TRY(checkFloat(op, "assignment", args.assignment, true, batch, heads, slots, keys));
  Problem problem;
  problem.headDim = headDim;
  problem.valueDim = valueDim;
  problem.scale = float(args.scale * double(kLog2E));
  const int64_t together = args.jointHeads != 0 ? heads : 1;
  if (heads == 0 || slots == 0) return {};
  if (slotFloats(problem, together * roundUp(slots, kRows)) > int64_t(kScratchBytes / sizeof(float)))
    return argumentError(op, "query", "has more slots and dimensions than the kernel's tiles", together * slots);
  context.pool.parallelFor(batch * heads / together, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) slotGroup(problem, args, i * together / heads, i * together % heads, together, context.pool.scratch(thread));
  });
  return {};
}

Status pattention(const PattentionArgs& args, Context& context) {
  constexpr const char* op = "pattention";
  const View& x = args.x;
  if (args.keys.rank != 2 || args.values.rank != 2) return shapeError(op, "keys", "keys and values must have rank 2", 2, args.keys.rank);
  const int64_t n = args.keys.dims[0], inputs = args.keys.dims[1], outputs = args.values.dims[1];
  TL_TRY(checkFloat(op, "keys", args.keys, false, n, inputs));
  TL_TRY(checkFloat(op, "values", args.values, false, n, outputs));
  if (args.values.dtype != args.keys.dtype) return argumentError(op, "values", "must have the keys' element type", int64_t(args.values.dtype));
  if (!isFloat(x.dtype) || args.out.dtype != DType::f32) return argumentError(op, "x", "must be f32, f16 or bf16, and out f32", int64_t(x.dtype));
  if (x.rank < 1 || !x.rowsAreUniform() || args.out.rank < 1 || !args.out.rowsAreUniform()) return argumentError(op, "x", "must have rows at one stride", x.rank);
  if (x.lastDim() != inputs) return shapeError(op, "x", "must have as many columns as keys", inputs, x.lastDim());
  if (args.out.lastDim() != outputs || args.out.rows() != x.rows()) return shapeError(op, "out", "must have a row for each row of x and a column for each of values", outputs, args.out.lastDim());
  if (inputs < 1 || outputs < 1) return shapeError(op, "keys", "must have a column or more", 1, inputs);
  Problem problem;
  problem.headDim = inputs;
  problem.valueDim = outputs;
  problem.scale = float(args.scale);
  problem.panelwise = true;
  int64_t tileRows = kGroupRows;
  const int64_t most = int64_t(kScratchBytes / sizeof(float));
  while (tileRows > kRows && tileFloats(problem, tileRows) > most) tileRows -= kRows;
  if (tileFloats(problem, tileRows) > most) return argumentError(op, "keys", "has more columns than the kernel's tiles", inputs);
  Unit unit;
  unit.queries = x.rows();
  unit.keys = n;
  unit.query = {x.as<std::byte>(), x.dtype, x.rowStride(), 0};
  unit.out = {args.out.as<std::byte>(), DType::f32, args.out.rowStride(), 0};
  unit.source.element = args.keys.dtype;
  unit.source.headDim = inputs;
  unit.source.valueDim = outputs;
  unit.source.keys.data = args.keys.as<std::byte>();
  unit.source.keys.rowBytes = args.keys.strides[0] * int64_t(elementBytes(args.keys.dtype));
  unit.source.values.data = args.values.as<std::byte>();
  unit.source.values.rowBytes = args.values.strides[0] * int64_t(elementBytes(args.values.dtype));
  unit.mask.keys = n;
  unit.mask.causal = false;
  context.pool.parallelFor(ceilDiv(x.rows(), tileRows), 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile{problem, unit, i * tileRows, std::min(x.rows() - i * tileRows, tileRows), carve(problem, tileRows, context.pool.scratch(thread))};
      packQueries(tile);
      pattentionTile(tile);
    }
  });
  return {};
}

}  // namespace tl::TL_TARGET
