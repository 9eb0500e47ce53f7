// cachedAttention: the step's queries over the engine's own paged cache, whose pages the device reaches (DeviceCache).
#include "cache_layer.cuh"

namespace tl::cuda {

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

}  // namespace tl::cuda
