// Attention. out_i = Σ_j softmax_j(s_ij) v_j, s_ij = scale · q_i · k_j (arXiv 1706.03762), computed block by block of keys
// without the matrix s (arXiv 2205.14135). Query [n, heads, headDim], keys and values of the paged cache; query head h reads
// key/value head h / (heads / kvHeads) (arXiv 2305.13245).
#include "../cache/kv.h"
#include "../simd/target.h"
#include "attention_tile_inl.h"
#include "attention_mask_inl.h"
#include "attention_source_inl.h"
#include "attention_score_inl.h"
#include "attention_loop_inl.h"
#include "attention_run_inl.h"

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
  unit.source.headDim = problem.headDim;
  unit.source.valueDim = problem.valueDim;
  unit.mask.keys = unit.keys;
  unit.mask.offset = unit.keys - unit.queries;
  unit.mask.window = int64_t(context.args.window);
  unit.mask.sinks = int64_t(context.args.sinks);
}

Status checkRows(const char* name, const View& view, int64_t n, int64_t heads, int64_t headDim) {
  constexpr const char* op = "cachedAttention";
  if (view.dtype != DType::f32) return argumentError(op, name, "must be f32", int64_t(view.dtype));
  if (view.rank != 3) return shapeError(op, name, "must be [n, heads, headDim]", 3, view.rank);
  if (view.dims[0] != n) return shapeError(op, name, "must have one row for each new token", n, view.dims[0]);
  if (view.dims[1] != heads) return shapeError(op, name, "has another number of heads than expected", heads, view.dims[1]);
  if (view.dims[2] != headDim) return shapeError(op, name, "has another head dimension than the cache", headDim, view.dims[2]);
  if (view.strides[2] != 1 && headDim > 1) return argumentError(op, name, "must be contiguous along headDim", view.strides[2]);
  return {};
}

}  // namespace

Status cachedAttention(const CachedAttentionArgs& args, Context& context) {
  constexpr const char* op = "cachedAttention";
  if (args.cache.dtype != DType::cache || !args.cache.data) return argumentError(op, "cache", "must be a cache", int64_t(args.cache.dtype));
  const KvStep& step = *args.cache.as<KvStep>();
  const KvCache& cache = *step.cache;
  const KvShape& shape = cache.shape();
  const int64_t heads = args.query.rank == 3 ? args.query.dims[1] : 0;
  TL_TRY(checkRows("query", args.query, step.newTokens, heads, shape.headDim));
  TL_TRY(checkRows("out", args.out, step.newTokens, heads, shape.headDim));
  if (heads < shape.kvHeads || heads % shape.kvHeads) return shapeError(op, "query", "must have a multiple of the cache's heads", shape.kvHeads, heads);
  if (!(args.layer >= 0 && args.layer < shape.layers)) return argumentError(op, "layer", "is not in the cache", int64_t(args.layer));
  if (!(args.window >= 0 && args.sinks >= 0)) return argumentError(op, "window", "must be 0 or more", int64_t(args.window));
  const CachedContext cached{args, step, int32_t(args.layer)};
  Problem problem;
  problem.units = shape.kvHeads;
  problem.group = heads / shape.kvHeads;
  problem.headDim = problem.valueDim = shape.headDim;
  problem.mostQueries = step.newTokens;
  for (int32_t head = 0; head < shape.kvHeads; ++head) {
    const int64_t keys = cache.length(cached.layer, head) + step.newTokens;
    if (keys > cache.capacity(cached.layer, head)) return argumentError(op, "cache", "has no pages reserved for this step", keys);
    problem.mostKeys = std::max(problem.mostKeys, keys);
  }
  problem.scale = float(args.scale * (args.softcap > 0 ? 2 / args.softcap : 1) * double(kLog2E));
  problem.softcap = args.softcap > 0 ? float(args.softcap * double(kLog2E)) : 0;
  problem.context = &cached;
  problem.unit = cachedUnit;
  return runAttention(op, problem, context);
}

}  // namespace tl::TL_TARGET
