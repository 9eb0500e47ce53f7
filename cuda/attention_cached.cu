// cachedAttention: the step's queries over the engine's own paged cache, whose pages the device reaches (DeviceCache).
#include "cache_pages.cuh"

namespace tl::cuda {
namespace {

// Scores of tokens from an accepted path's queries, node after node: a thread a token, grid (tokens, key/value heads).
__global__ void __launch_bounds__(kCacheThreads) observeNodes(Problem p, Pages pages, const int32_t* path, const int32_t* accepted, int32_t queries, float share, bool accumulate, float* scores, int64_t width) {
  const int32_t head = int32_t(blockIdx.y), key = int32_t(blockIdx.x * blockDim.x + threadIdx.x);
  const Unit u = openUnit(p, head);
  if (key >= u.keys) return;
  const int32_t count = within(*accepted, u.queries);
  float held = accumulate && key < u.offset ? scores[head * width + key] : 0.0f;
  for (int32_t k = max(count - queries, 0); k < count; ++k) {
    const int32_t node = within(path[k], u.queries - 1);
    float sum = 0;
    for (int32_t g = 0; g < p.group; ++g) {
      const Row row = openRow(p, u, node * p.group + g);
      const float* q = reinterpret_cast<const float*>(p.query.data) + p.query.at(0, row.head, node);
      float dot = 0, s;
      for (int d = 0; d < p.headDim; ++d) dot = fmaf(q[d], pages.key(head, key, d), dot);
      if (!score<true>(p, u, row, key, dot, s)) continue;
      const float logSumExp = reinterpret_cast<const float*>(p.logSumExp.data)[p.logSumExp.at(0, row.head, node)];
      if (logSumExp != -TL_INFINITY) sum += exp2Fast(s - logSumExp * kLog2E);
    }
    held = fmaf(sum, share, held);
  }
  if (count > max(count - queries, 0)) scores[head * width + key] = held;
}

}  // namespace

Status cachedAttention(const CachedAttentionArgs& args, DeviceContext& context) {
  constexpr const char* op = "cachedAttention";
  CacheLayer layer;
  TL_TRY(openLayer(op, args.cache, args.layer, layer));
  const DeviceCache& cache = *layer.cache;
  const int64_t n = cache.newTokens, heads = args.query.rank == 3 ? args.query.dims[1] : 0;
  TL_TRY(checkType(op, "query", args.query, DType::f32, n, heads, cache.shape.headDim));
  TL_TRY(checkType(op, "out", args.out, DType::f32, n, heads, cache.shape.headDim));
  if (heads < cache.shape.kvHeads || heads % cache.shape.kvHeads) return shapeError(op, "query", "must have a multiple of the cache's heads", cache.shape.kvHeads, heads);
  if (!isWhole(args.window) || !isWhole(args.sinks) || !isWhole(args.columnQueries)) return argumentError(op, "window", "must be a whole number, 0 or more", int64_t(args.window));
  Problem p;
  p.kvHeads = cache.shape.kvHeads;
  p.group = int32_t(heads / p.kvHeads);
  p.queries = int32_t(n);
  p.headDim = p.valueDim = cache.shape.headDim;
  p.query = {args.query.as<std::byte>(), DType::f32, 0, args.query.strides[1], args.query.strides[0]};
  p.out = {args.out.as<std::byte>(), DType::f32, 0, args.out.strides[1], args.out.strides[0]};
  p.scale = float(args.scale);
  p.softcap = float(args.softcap);
  p.causal = 1;
  p.window = int32_t(args.window);
  p.sinkTokens = int32_t(args.sinks);
  if (args.tree.present()) {
    TL_TRY(checkType(op, "tree", args.tree, DType::i32, n, -1));
    if (args.tree.dims[1] < ceilDiv(n, 32)) return shapeError(op, "tree", "must have a bit for each node", ceilDiv(n, 32), args.tree.dims[1]);
    if (args.columnSums.present()) return argumentError(op, "columnSums", "cannot be had of a tree");
    p.shape = MaskShape::path;
    p.tree = args.tree.as<const uint32_t>();
    p.treeWords = int32_t(args.tree.dims[1]);
    if (n > 1 && args.tree.strides[0] != args.tree.dims[1]) return argumentError(op, "tree", "must have contiguous rows", args.tree.strides[0]);
  }
  if (args.logSumExp.present()) {
    TL_TRY(checkType(op, "logSumExp", args.logSumExp, DType::f32, n, heads));
    p.logSumExp = {args.logSumExp.as<std::byte>(), DType::f32, 0, args.logSumExp.strides[1], args.logSumExp.strides[0]};
  }
  TL_TRY(uploadLayer(op, layer, context));
  if (layer.mostKeys > 0x7ffffff0) return shapeError(op, "cache", "is longer than 32-bit indices", 0x7ffffff0, layer.mostKeys);
  p.keys = int32_t(layer.mostKeys);
  p.lengths = layer.lengths;
  p.source.layout = Layout::pages;
  p.source.pages = layer.pages;
  p.source.pagesHead = layer.pagesHead;
  if (args.columnSums.present()) {
    if (!args.logSumExp.present()) return argumentError(op, "columnSums", "needs logSumExp");
    TL_TRY(checkType(op, "columnSums", args.columnSums, DType::f32, heads, -1));
    if (args.columnSums.dims[1] < layer.mostKeys) return shapeError(op, "columnSums", "is too short for the longest head", layer.mostKeys, args.columnSums.dims[1]);
    p.columnSums = {args.columnSums.as<std::byte>(), DType::f32, 0, args.columnSums.strides[0], 1};
    p.columnQueries = int32_t(args.columnQueries);
  }
  return runAttention(op, p, context);
}

Status observePath(const ObservePathArgs& args, DeviceContext& context) {
  constexpr const char* op = "observePath";
  CacheLayer layer;
  Pages pages;
  TL_TRY(openPages(op, args.cache, args.layer, context, layer, pages));
  const DeviceCache& cache = *layer.cache;
  const int64_t n = cache.newTokens, heads = args.query.rank == 3 ? args.query.dims[1] : 0;
  TL_TRY(checkType(op, "query", args.query, DType::f32, n, heads, cache.shape.headDim));
  if (heads < cache.shape.kvHeads || heads % cache.shape.kvHeads) return shapeError(op, "query", "must have a multiple of the cache's heads", cache.shape.kvHeads, heads);
  TL_TRY(checkType(op, "tree", args.tree, DType::i32, n, -1));
  if (args.tree.dims[1] < ceilDiv(n, 32)) return shapeError(op, "tree", "must have a bit for each node", ceilDiv(n, 32), args.tree.dims[1]);
  if (n > 1 && args.tree.strides[0] != args.tree.dims[1]) return argumentError(op, "tree", "must have contiguous rows", args.tree.strides[0]);
  TL_TRY(checkType(op, "logSumExp", args.logSumExp, DType::f32, n, heads));
  TL_TRY(checkType(op, "path", args.path, DType::i32, n));
  TL_TRY(checkType(op, "count", args.count, DType::i32, 1));
  if (!cache.scores) return argumentError(op, "cache", "keeps no scores: it has to be told to observe");
  if (!isWhole(args.queries)) return argumentError(op, "queries", "must be a whole number, 0 or more", int64_t(args.queries));
  if (layer.mostKeys > 0x7ffffff0) return shapeError(op, "cache", "is longer than 32-bit indices", 0x7ffffff0, layer.mostKeys);
  if (n == 0 || layer.mostKeys == 0) return {};
  Problem p;
  p.kvHeads = cache.shape.kvHeads;
  p.group = int32_t(heads / p.kvHeads);
  p.queries = int32_t(n);
  p.keys = int32_t(layer.mostKeys);
  p.headDim = p.valueDim = cache.shape.headDim;
  p.lengths = pages.lengths;
  p.query = {args.query.as<std::byte>(), DType::f32, 0, args.query.strides[1], args.query.strides[0]};
  p.logSumExp = {args.logSumExp.as<std::byte>(), DType::f32, 0, args.logSumExp.strides[1], args.logSumExp.strides[0]};
  p.scale = float(args.scale);
  p.softcap = float(args.softcap);
  p.shape = MaskShape::tree;
  p.tree = args.tree.as<const uint32_t>();
  p.treeWords = int32_t(args.tree.dims[1]);
  float* scores = nullptr;
  TL_TRY(copyScores(op, layer, context, layer.mostKeys, &scores));
  TL_TRY(launch(op, context, observeNodes, tokenGrid(layer.mostKeys, p.kvHeads), dim3(kCacheThreads), 0, p, pages, args.path.as<const int32_t>(), args.count.as<const int32_t>(), int32_t(args.queries),
                float(args.share), args.accumulate != 0, scores, layer.mostKeys));
  return returnScores(layer, context, layer.mostKeys, scores);
}

}  // namespace tl::cuda
