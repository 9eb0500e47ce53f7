// Attention. out_i = Σ_j softmax_j(s_ij) v_j, s_ij = scale · q_i · k_j (arXiv 1706.03762), computed block by block of keys
// without the matrix s (arXiv 2205.14135). Query head h reads key/value head h / (heads / kvHeads) (arXiv 2305.13245).
//   attention        the family over dense, ragged, paged and quantised keys: see AttentionArgs
//   cachedAttention  the step's queries over the engine's own paged cache
//   observePath      what an accepted path of a draft tree attended to, for eviction
// They are one loop, attention_loop_inl.h. Its parts:
//   attention_tile_inl.h   multiply-adds and softmax on tiles       attention_mask_inl.h   which keys a query sees
//   attention_score_inl.h  what is added to scores                  attention_source_inl.h where keys and values lie
//   attention_quantized_inl.h few rows against int8 and int4 pages
//   attention_path_inl.h   draft trees over the cache
//   attention_run_inl.h    threads, split keys, column sums         attention_open_inl.h   operands of `attention`
#include "../cache/kv.h"
#include "../simd/target.h"
#include "attention_tile_inl.h"
#include "attention_mask_inl.h"
#include "attention_source_inl.h"
#include "attention_score_inl.h"
#include "attention_loop_inl.h"
#include "attention_run_inl.h"
#include "attention_open_inl.h"
#include "cache_rows_inl.h"

namespace tl::TL_TARGET {
namespace {

struct CachedContext {
  const CachedAttentionArgs& args;
  const KvStep& step;
  int32_t layer;
};

void cachedUnit(const Problem& problem, int64_t index, Unit& unit) {
  const auto& context = *static_cast<const CachedContext*>(problem.context);
  const View &query = context.args.query, &out = context.args.out;
  const KvCache& cache = *context.step.cache;
  unit.query = {reinterpret_cast<std::byte*>(query.as<float>() + index * problem.group * query.strides[1]), DType::f32, query.strides[0], query.strides[1]};
  unit.out = {reinterpret_cast<std::byte*>(out.as<float>() + index * problem.group * out.strides[1]), DType::f32, out.strides[0], out.strides[1]};
  unit.queries = query.dims[0];
  unit.keys = cache.length(context.layer, int32_t(index)) + context.step.newTokens;
  unit.source.pages = cache.pages(context.layer, int32_t(index));
  unit.source.element = cache.shape().element;
  unit.source.mixed = cache.mixed();
  unit.source.scaledApart = true;
  unit.source.rotated = unit.source.element == DType::i4 && !unit.source.mixed;
  unit.source.headDim = problem.headDim;
  unit.source.valueDim = problem.valueDim;
  unit.mask.keys = unit.keys;
  unit.mask.offset = unit.keys - unit.queries;
  unit.mask.window = int64_t(context.args.window);
  unit.mask.sinks = int64_t(context.args.sinks);
  if (const View& tree = context.args.tree; tree.present()) {
    unit.mask.shape = MaskShape::path;
    unit.mask.operands.tree = tree.as<int32_t>();
    unit.mask.operands.treeWords = tree.dims[1];
    unit.mask.operands.prefix = unit.keys - unit.queries;
  }
  if (const View& lse = context.args.logSumExp; lse.present())
    unit.logSumExp = {reinterpret_cast<std::byte*>(lse.as<float>() + index * problem.group * lse.strides[1]), DType::f32, lse.strides[0], lse.strides[1]};
  if (const View& sums = context.args.columnSums; sums.present())
    unit.columnSums = {reinterpret_cast<std::byte*>(sums.as<float>() + index * problem.group * sums.strides[0]), DType::f32, 0, sums.strides[0]};
}

// Row i of a tree's mask: its own bit, and its ancestors' before it; nodes come in order of depth.
Status checkTree(const char* op, const View& tree, int64_t nodes) {
  if (tree.dtype != DType::i32 || tree.rank != 2) return argumentError(op, "tree", "must be i32 [nodes, words]", int64_t(tree.dtype));
  if (tree.dims[0] != nodes) return shapeError(op, "tree", "must have one row for each new token", nodes, tree.dims[0]);
  const int64_t words = tree.dims[1];
  if (words < ceilDiv(nodes, 32)) return shapeError(op, "tree", "must have a bit for each node", ceilDiv(nodes, 32), words);
  if (nodes > 1 && tree.strides[0] != words) return argumentError(op, "tree", "must have contiguous rows", tree.strides[0]);
  int64_t before = 0;
  for (int64_t i = 0; i < nodes; ++i) {
    const auto* row = reinterpret_cast<const uint32_t*>(tree.as<int32_t>()) + i * words;
    int64_t depth = 0;
    for (int64_t w = 0; w < words; ++w) {
      const int64_t past = std::clamp<int64_t>(i + 1 - w * 32, 0, 32);  // bits of this word that may be set
      if (past < 32 && row[w] >> past) return argumentError(op, "tree", "a node sees a later one", i);
      depth += __builtin_popcount(row[w]);
    }
    if (!(row[i / 32] >> (i % 32) & 1)) return argumentError(op, "tree", "a node does not see itself", i);
    if (depth < before) return argumentError(op, "tree", "nodes must come in order of depth", i);
    before = depth;
  }
  return {};
}

Status checkColumnSums(const char* op, const CachedAttentionArgs& args, int64_t heads, int64_t keys) {
  if (!args.logSumExp.present()) return argumentError(op, "columnSums", "needs logSumExp");
  if (!isWhole(args.columnQueries)) return argumentError(op, "columnQueries", "must be a whole number, 0 or more", int64_t(args.columnQueries));
  const View& sums = args.columnSums;
  if (sums.dtype != DType::f32 || sums.rank != 2 || sums.dims[0] != heads) return shapeError(op, "columnSums", "must be f32 [heads, keys]", heads, sums.dims[0]);
  if (sums.dims[1] < keys) return shapeError(op, "columnSums", "is too short for the longest head", keys, sums.dims[1]);
  return {};
}

Status checkRows(const char* op, const char* name, const View& view, int64_t n, int64_t heads, int64_t headDim) {
  if (view.dtype != DType::f32) return argumentError(op, name, "must be f32", int64_t(view.dtype));
  if (view.rank != 3) return shapeError(op, name, "must be [n, heads, headDim]", 3, view.rank);
  if (view.dims[0] != n) return shapeError(op, name, "must have one row for each new token", n, view.dims[0]);
  if (view.dims[1] != heads) return shapeError(op, name, "has another number of heads than expected", heads, view.dims[1]);
  if (view.dims[2] != headDim) return shapeError(op, name, "has another head dimension than the cache", headDim, view.dims[2]);
  if (view.strides[2] != 1 && headDim > 1) return argumentError(op, name, "must be contiguous along headDim", view.strides[2]);
  return {};
}

// scale and softcap as the loop wants them.
void setScale(Problem& problem, double scale, double softcap) {
  problem.scale = float(scale * (softcap > 0 ? 2 / softcap : 1) * double(kLog2E));
  problem.softcap = softcap > 0 ? float(softcap * double(kLog2E)) : 0;
}

// What cachedAttention and observePath have in common; `problem` gets all but its context and unit.
Status openCached(const char* op, const CachedAttentionArgs& args, Problem& problem) {
  if (args.cache.dtype != DType::cache || !args.cache.data) return argumentError(op, "cache", "must be a cache", int64_t(args.cache.dtype));
  const KvStep& step = *args.cache.as<KvStep>();
  const KvCache& cache = *step.cache;
  const KvShape& shape = cache.shape();
  const int64_t heads = args.query.rank == 3 ? args.query.dims[1] : 0;
  TL_TRY(checkRows(op, "query", args.query, step.newTokens, heads, shape.headDim));
  TL_TRY(checkRows(op, "out", args.out, step.newTokens, heads, shape.headDim));
  if (heads < shape.kvHeads || heads % shape.kvHeads) return shapeError(op, "query", "must have a multiple of the cache's heads", shape.kvHeads, heads);
  if (!(args.layer >= 0 && args.layer < shape.layers)) return argumentError(op, "layer", "is not in the cache", int64_t(args.layer));
  if (!(args.window >= 0 && args.sinks >= 0)) return argumentError(op, "window", "must be 0 or more", int64_t(args.window));
  problem.units = shape.kvHeads;
  problem.group = heads / shape.kvHeads;
  problem.headDim = problem.valueDim = shape.headDim;
  problem.mostQueries = step.newTokens;
  for (int32_t head = 0; head < shape.kvHeads; ++head) {
    const int64_t keys = cache.length(int32_t(args.layer), head) + step.newTokens;
    if (keys > cache.capacity(int32_t(args.layer), head)) return argumentError(op, "cache", "has no pages reserved for this step", keys);
    problem.mostKeys = std::max(problem.mostKeys, keys);
  }
  if (args.tree.present()) TL_TRY(checkTree(op, args.tree, step.newTokens));
  if (args.logSumExp.present() && (args.logSumExp.dtype != DType::f32 || args.logSumExp.rank != 2 || args.logSumExp.dims[0] != step.newTokens || args.logSumExp.dims[1] != heads))
    return shapeError(op, "logSumExp", "must be f32 [n, heads]", heads, args.logSumExp.rank == 2 ? args.logSumExp.dims[1] : -1);
  if (args.columnSums.present()) TL_TRY(checkColumnSums(op, args, heads, problem.mostKeys));
  problem.columnSums = args.columnSums.present();
  problem.columnQueries = int64_t(args.columnQueries);
  setScale(problem, args.scale, args.softcap);
  return {};
}

struct PathContext {
  CachedContext cached;
  int32_t node;
};

// One node of a draft tree over the keys where they lie: the prefix and its ancestors.
void pathUnit(const Problem& problem, int64_t index, Unit& unit) {
  const auto& context = *static_cast<const PathContext*>(problem.context);
  Problem all = problem;
  all.context = &context.cached;
  cachedUnit(all, index, unit);
  unit.query.data = unit.query.at(context.node, 0);
  unit.logSumExp.data = unit.logSumExp.at(context.node, 0);
  unit.mask.shape = MaskShape::tree;
  unit.mask.operands.tree += context.node * unit.mask.operands.treeWords;
  unit.mask.causal = false;
  unit.queries = 1;
}

Status checkPath(const ObservePathArgs& args, int64_t nodes, int64_t& count) {
  constexpr const char* op = "observePath";
  for (const View* view : {&args.path, &args.count})
    if (view->dtype != DType::i32 || view->rank != 1) return argumentError(op, view == &args.path ? "path" : "count", "must be i32 in a row", int64_t(view->dtype));
  if (args.path.dims[0] != nodes || args.count.dims[0] != 1) return shapeError(op, "path", "must have one element a node", nodes, args.path.dims[0]);
  count = args.count.as<int32_t>()[0];
  if (count < 0 || count > nodes) return argumentError(op, "count", "is not a number of nodes", count);
  const int32_t* path = args.path.as<int32_t>();
  for (int64_t i = 0; i < count; ++i)
    if (path[i] < (i ? path[i - 1] + 1 : 0) || path[i] >= nodes) return argumentError(op, "path", "must rise within the nodes", path[i]);
  return {};
}

}  // namespace

Status attention(const AttentionArgs& args, Context& context) {
  AttentionContext c{args};
  c.paged = args.blockTable.present();
  c.ragged = args.cuQuery.present();
  if (!isFloat(args.query.dtype) || args.query.rank != 4) return shapeError(kAttention, "query", "must be [batch, heads, queries, headDim], f32, f16 or bf16", 4, args.query.rank);
  if (args.key.rank != (c.paged ? 3 : 4)) return shapeError(kAttention, "key", "has another rank than expected", c.paged ? 3 : 4, args.key.rank);
  if (c.paged && (c.ragged || args.quantized != 0)) return argumentError(kAttention, "blockTable", "cannot be used with ragged or quantised keys");
  c.batch = args.query.dims[0];
  c.heads = args.query.dims[1];
  c.queries = args.query.dims[2];
  const int64_t headDim = args.query.dims[3], valueDim = args.out.rank == 4 ? args.out.dims[3] : -1;
  c.kvHeads = !c.paged ? args.key.dims[1] : args.blockTable.rank == 3 ? args.blockTable.dims[1] : 0;
  c.keys = c.paged ? 0 : args.key.dims[2];
  if (c.kvHeads < 1 || c.heads % c.kvHeads) return shapeError(kAttention, "query", "must have a multiple of the key's heads", c.kvHeads, c.heads);
  if (headDim < 1 || valueDim < 1) return shapeError(kAttention, "query", "must have a head dimension of 1 or more", 1, headDim);
  TL_TRY(checkFloat(kAttention, "query", args.query, false, c.batch, c.heads, c.queries, headDim));
  TL_TRY(checkFloat(kAttention, "out", args.out, false, c.batch, c.heads, c.queries, valueDim));
  Problem problem;
  problem.mostQueries = c.queries;
  problem.mostKeys = c.keys;
  c.sequences = c.batch;
  if (c.paged) {
    TL_TRY(checkFloat(kAttention, "key", args.key, false, -1, -1, headDim));
    TL_TRY(checkFloat(kAttention, "value", args.value, false, args.key.dims[0], args.key.dims[1], valueDim));
    TL_TRY(checkPaged(args, c, problem.mostKeys));
  } else if (args.quantized != 0) {
    TL_TRY(checkQuantized(args, c, headDim, valueDim));
  } else {
    TL_TRY(checkFloat(kAttention, "key", args.key, false, c.batch, c.kvHeads, c.keys, headDim));
    TL_TRY(checkFloat(kAttention, "value", args.value, false, c.batch, c.kvHeads, c.keys, valueDim));
  }
  if (args.value.dtype != args.key.dtype) return argumentError(kAttention, "value", "must have the key's element type", int64_t(args.value.dtype));
  if (c.ragged) {
    if (c.batch != 1) return shapeError(kAttention, "query", "a ragged batch lies in one row of tokens", 1, c.batch);
    TL_TRY(checkRagged(args.cuQuery, "cuQuery", c.queries));
    TL_TRY(checkRagged(args.cuKey, "cuKey", c.keys));
    if (args.cuKey.dims[0] != args.cuQuery.dims[0]) return shapeError(kAttention, "cuKey", "must have as many offsets as cuQuery", args.cuQuery.dims[0], args.cuKey.dims[0]);
    c.sequences = args.cuQuery.dims[0] - 1;
  }
  TL_TRY(checkMask(args, c));
  TL_TRY(checkScoreOperands(args, c));
  if (args.logSumExp.present()) TL_TRY(checkFloat(kAttention, "logSumExp", args.logSumExp, true, c.batch, c.heads, c.queries));
  if (args.scores.present()) TL_TRY(checkFloat(kAttention, "scores", args.scores, true, c.batch, c.heads, c.queries, c.keys));
  if (args.columnSums.present()) {
    if (!args.logSumExp.present() || c.paged) return argumentError(kAttention, "columnSums", "needs logSumExp, and keys without block table");
    TL_TRY(checkFloat(kAttention, "columnSums", args.columnSums, true, c.batch, c.heads, c.keys));
  }
  problem.units = c.sequences * c.kvHeads;
  problem.group = c.heads / c.kvHeads;
  problem.headDim = headDim;
  problem.valueDim = valueDim;
  problem.offByOne = args.offByOne != 0;
  problem.columnSums = args.columnSums.present();
  problem.columnQueries = int64_t(args.columnQueries);
  setScale(problem, args.scale, args.softcap);
  problem.context = &c;
  problem.unit = attentionUnit;
  return runAttention(kAttention, problem, context);
}

Status cachedAttention(const CachedAttentionArgs& args, Context& context) {
  constexpr const char* op = "cachedAttention";
  Problem problem;
  TL_TRY(openCached(op, args, problem));
  if (args.tree.present() && args.columnSums.present()) return argumentError(op, "columnSums", "cannot be had of a tree");
  const CachedContext cached{args, *args.cache.as<KvStep>(), int32_t(args.layer)};
  problem.context = &cached;
  problem.unit = cachedUnit;
  return runAttention(op, problem, context);
}

// Node by node, as steps of one token would have added to the scores, so that the sums are theirs to the bit.
Status observePath(const ObservePathArgs& args, Context& context) {
  constexpr const char* op = "observePath";
  const CachedAttentionArgs all{args.query, args.cache, args.tree, args.query, args.logSumExp, args.columnSums, args.layer, args.scale, 0, args.softcap, 0, 1};
  Problem problem;
  TL_TRY(openCached(op, all, problem));
  for (const auto& [name, view] : {std::pair{"tree", &args.tree}, {"logSumExp", &args.logSumExp}, {"columnSums", &args.columnSums}})
    if (!view->present()) return argumentError(op, name, "is missing");
  const KvStep& step = *args.cache.as<KvStep>();
  KvCache& cache = *step.cache;
  const int32_t layer = int32_t(args.layer);
  if (!cache.observing()) return argumentError(op, "cache", "keeps no scores: it has to be told to observe");
  int64_t count = 0;
  TL_TRY(checkPath(args, step.newTokens, count));
  if (!isWhole(args.queries)) return argumentError(op, "queries", "must be a whole number, 0 or more", int64_t(args.queries));
  const int64_t chunks = ceilDiv(problem.mostKeys, kChunkKeys), rows = roundUp(problem.group, kRows), from = std::max<int64_t>(count - int64_t(args.queries), 0);
  if (tileFloats(problem, rows) > kTileFloats) return argumentError(op, "headDim", "is larger than the kernel's tiles", problem.headDim);
  problem.unit = pathUnit;
  context.pool.parallelFor(problem.units * chunks, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) {
      const int32_t head = int32_t(i % problem.units);
      const int64_t before = cache.length(layer, head), first = i / problem.units * kChunkKeys, last = std::min(first + kChunkKeys, before + step.newTokens);
      float* scores = cache.scores(layer, head);
      for (int64_t k = from; k < count; ++k) {
        const PathContext node{{all, step, layer}, args.path.as<int32_t>()[k]};
        Problem one = problem;
        one.context = &node;
        sumsOfChunk(one, head, i / problem.units, rows, context.pool.scratch(thread));
        const int64_t unseen = k > from ? last : args.accumulate != 0 ? std::max(before, first) : first;  // tokens without a score
        if (unseen < last) std::fill(scores + unseen, scores + last, 0.0f);
        if (first < last)
          addObserved(args.columnSums.as<float>() + head * problem.group * args.columnSums.strides[0], args.columnSums.strides[0], problem.group, first, last, broadcast(float(args.share)), scores);
      }
    }
  });
  return {};
}

}  // namespace tl::TL_TARGET
