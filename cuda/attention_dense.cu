// attention: the whole family of AttentionArgs.
#include <limits>

#include "attention_open.cuh"

namespace tl::cuda {
namespace {

constexpr const char* kOp = "attention";

int64_t broadcastStride(const View& view, int axis) { return view.dims[axis] == 1 ? 0 : view.strides[axis]; }

Status openRows(const AttentionArgs& args, Problem& p) {
  const int64_t b = p.batch, h = p.kvHeads, keys = p.keys;
  TL_TRY(checkFloats(kOp, "key", args.key, b, h, keys, p.headDim));
  TL_TRY(checkFloats(kOp, "value", args.value, b, h, keys, p.valueDim));
  p.source.keys = strided(args.key);
  p.source.values = strided(args.value);
  return {};
}

Status openQuantized(const AttentionArgs& args, Problem& p) {
  const bool int4 = args.quantized == 2;
  if (args.quantized != 1 && !int4) return argumentError(kOp, "quantized", "must be 0, 1 (int8) or 2 (int4)", int64_t(args.quantized));
  const auto open = [&](const char* name, const View& view, const View& scale, const View& minimum, int64_t dim, Strided& rows, Strided& scales, const float*& minima) -> Status {
    if (view.dtype != DType::u8 && (int4 || view.dtype != DType::i8)) return argumentError(kOp, name, "must be bytes", int64_t(view.dtype));
    const int64_t dims[] = {p.batch, p.kvHeads, p.keys, int4 ? ceilDiv(dim, 2) : dim};
    TL_TRY(checkDims(kOp, name, view, 4, dims));
    rows = strided(view);
    if (!int4) {
      TL_TRY(checkType(kOp, "scale", scale, DType::f32, p.batch, p.kvHeads, p.keys));
      scales = strided(scale);
      return {};
    }
    TL_TRY(checkType(kOp, "scale", scale, DType::f32, p.batch, p.kvHeads, p.keys, ceilDiv(dim, 32)));
    TL_TRY(checkType(kOp, "minimum", minimum, DType::f32, p.batch, p.kvHeads, p.keys, ceilDiv(dim, 32)));
    for (int i = 0; i < 3; ++i)
      if (minimum.strides[i] != scale.strides[i]) return argumentError(kOp, "minimum", "must be laid out as the scales", minimum.strides[i]);
    scales = strided(scale);
    minima = minimum.as<const float>();
    return {};
  };
  p.source.quantized = int(args.quantized);
  TL_TRY(open("key", args.key, args.keyScale, args.keyMinimum, p.headDim, p.source.keys, p.source.keyScale, p.source.keyMinimum));
  return open("value", args.value, args.valueScale, args.valueMinimum, p.valueDim, p.source.values, p.source.valueScale, p.source.valueMinimum);
}

Status openBlockTable(const AttentionArgs& args, Problem& p) {
  if (args.cuQuery.present() || args.quantized != 0) return argumentError(kOp, "blockTable", "cannot be used with ragged or quantised keys");
  TL_TRY(checkFloats(kOp, "key", args.key, -1, -1, p.headDim));
  TL_TRY(checkFloats(kOp, "value", args.value, args.key.dims[0], args.key.dims[1], p.valueDim));
  TL_TRY(checkType(kOp, "blockTable", args.blockTable, DType::i32, p.batch, -1, -1));
  TL_TRY(checkType(kOp, "lengths", args.lengths, DType::i32, p.batch, p.kvHeads));
  if (args.key.dims[0] < 1 || args.key.dims[1] < 1) return shapeError(kOp, "key", "must have pages", 1, args.key.dims[0]);
  Source& source = p.source;
  source.layout = Layout::blockTable;
  source.keys = {args.key.as<std::byte>(), args.key.dtype, 0, 0, args.key.strides[1]};
  source.values = {args.value.as<std::byte>(), args.value.dtype, 0, 0, args.value.strides[1]};
  source.keyPage = args.key.strides[0];
  source.valuePage = args.value.strides[0];
  source.pageSize = int32_t(args.key.dims[1]);
  source.pageCount = int32_t(args.key.dims[0]);
  source.table = args.blockTable.as<int32_t>();
  source.tableBatch = args.blockTable.strides[0];
  source.tableHead = args.blockTable.strides[1];
  p.keys = int32_t(std::min<int64_t>(args.blockTable.dims[2] * int64_t(source.pageSize), 0x7ffffff0));
  p.lengths = args.lengths.as<int32_t>();
  p.lengthsBatch = args.lengths.strides[0];
  return {};
}

Status openRagged(const AttentionArgs& args, Problem& p) {
  if (p.batch != 1) return shapeError(kOp, "query", "a ragged batch lies in one row of tokens", 1, p.batch);
  TL_TRY(checkType(kOp, "cuQuery", args.cuQuery, DType::i32, -1));
  TL_TRY(checkType(kOp, "cuKey", args.cuKey, DType::i32, args.cuQuery.dims[0]));
  if (args.cuQuery.dims[0] < 1) return shapeError(kOp, "cuQuery", "must hold at least one offset", 1, 0);
  p.cuQuery = args.cuQuery.as<int32_t>();
  p.cuKey = args.cuKey.as<int32_t>();
  p.sequences = int32_t(args.cuQuery.dims[0] - 1);
  return {};
}

Status openMask(const AttentionArgs& args, Problem& p) {
  for (const double x : {args.window, args.sinkTokens, args.columnQueries, args.blockQuery, args.blockKey, args.gridStart, args.gridHeight, args.gridWidth, args.radius, args.factor, args.maskShape})
    if (!isWhole(x)) return argumentError(kOp, "window", "sizes must be whole numbers, 0 or more", int64_t(x));
  p.causal = args.causal != 0;
  p.window = int32_t(args.window);
  p.sinkTokens = int32_t(args.sinkTokens);
  p.shape = MaskShape(int32_t(args.maskShape));
  p.gridStart = int32_t(args.gridStart), p.gridHeight = int32_t(args.gridHeight), p.gridWidth = int32_t(args.gridWidth);
  p.radius = int32_t(args.radius), p.factor = int32_t(args.factor), p.causalGrid = args.causalGrid != 0;
  switch (int(args.maskShape)) {
    case 0: return {};
    case 1:
      if (args.blockQuery < 1 || args.blockKey < 1) return argumentError(kOp, "blockQuery", "must be 1 or more", int64_t(args.blockQuery));
      if (args.mask.rank == 3 && args.mask.dims[0] != 1 && args.mask.dims[0] != p.kvHeads * p.group) return shapeError(kOp, "mask", "must have one mask, or one a head", p.kvHeads * p.group, args.mask.dims[0]);
      p.blockQuery = int32_t(args.blockQuery), p.blockKey = int32_t(args.blockKey);
      TL_TRY(checkType(kOp, "mask", args.mask, DType::u8, -1, ceilDiv(p.queries, p.blockQuery), ceilDiv(p.keys, p.blockKey)));
      p.blocks = args.mask.as<uint8_t>();
      p.blocksHead = broadcastStride(args.mask, 0);
      p.blocksRow = args.mask.strides[1];
      return {};
    case 2:
      if (p.keys < p.queries) return shapeError(kOp, "key", "must hold the prefix and one key for each node", p.queries, p.keys);
      TL_TRY(checkType(kOp, "mask", args.mask, DType::i32, p.queries, -1));
      if (args.mask.dims[1] < ceilDiv(p.queries, 32)) return shapeError(kOp, "mask", "must have a bit for each node", ceilDiv(p.queries, 32), args.mask.dims[1]);
      p.tree = args.mask.as<const uint32_t>();
      p.treeWords = int32_t(args.mask.strides[0]);
      return {};
    case 3:
      if (p.queries != p.keys) return shapeError(kOp, "query", "a neighbourhood needs as many queries as keys", p.keys, p.queries);
      if (args.gridHeight < 1 || args.gridWidth < 1 || args.gridStart + args.gridHeight * args.gridWidth > double(p.keys)) return shapeError(kOp, "gridHeight", "the grid reaches past the keys", p.keys, int64_t(args.gridHeight));
      return {};
    case 4:
      if (args.gridHeight < 1 || args.gridWidth < 1 || args.factor < 1 || args.gridHeight * args.gridWidth != double(p.queries) || args.gridHeight * args.gridWidth * args.factor * args.factor != double(p.keys))
        return shapeError(kOp, "gridHeight", "must be a grid of the queries, with factor² keys each", p.queries, int64_t(args.gridHeight * args.gridWidth));
      return {};
    default: return argumentError(kOp, "maskShape", "is not a mask shape", int64_t(args.maskShape));
  }
}

Status openBias(const AttentionArgs& args, Problem& p) {
  const View& bias = args.bias;
  const int64_t dims[4] = {p.batch, p.kvHeads * p.group, p.queries, p.keys};
  if (bias.dtype != DType::f32 || bias.rank != 4) return shapeError(kOp, "bias", "must be f32 of rank 4", 4, bias.rank);
  for (int i = 0; i < 4; ++i)
    if (bias.dims[i] != dims[i] && (i == 3 || bias.dims[i] != 1)) return shapeError(kOp, "bias", "has another dimension than expected", dims[i], bias.dims[i]);
  if (bias.dims[3] > 1 && bias.strides[3] != 1) return argumentError(kOp, "bias", "must be contiguous along its last axis", bias.strides[3]);
  p.bias = bias.as<const float>();
  p.biasBatch = broadcastStride(bias, 0), p.biasHead = broadcastStride(bias, 1), p.biasQuery = broadcastStride(bias, 2);
  return {};
}

Status openRelative(const AttentionArgs& args, Problem& p) {
  const int64_t heads = p.kvHeads * p.group;
  if (args.softcap > 0) return argumentError(kOp, "softcap", "cannot be used with relative terms");
  TL_TRY(checkType(kOp, "relativeIndex", args.relativeIndex, DType::i32, std::max(p.queries + p.keys - 1, 0)));
  int64_t width = std::numeric_limits<int32_t>::max();
  if (const View& view = args.contentToPosition; view.present()) {
    TL_TRY(checkType(kOp, "contentToPosition", view, DType::f32, p.batch, heads, p.queries, -1));
    p.contentToPosition = view.as<const float>();
    p.contentBatch = view.strides[0], p.contentHead = view.strides[1], p.contentQuery = view.strides[2];
    width = std::min(width, view.dims[3]);
  }
  if (const View& view = args.positionToContent; view.present()) {
    TL_TRY(checkType(kOp, "positionToContent", view, DType::f32, p.batch, heads, p.keys, -1));
    p.positionToContent = view.as<const float>();
    p.positionBatch = view.strides[0], p.positionHead = view.strides[1], p.positionKey = view.strides[2];
    width = std::min(width, view.dims[3]);
  }
  if (width < 1) return shapeError(kOp, "relativeIndex", "points past the relative terms", 1, width);
  p.relativeIndex = args.relativeIndex.as<int32_t>();
  p.relativeWidth = int32_t(width);
  return {};
}

Status openScores(const AttentionArgs& args, Problem& p) {
  const bool plain = !args.cuQuery.present() && !args.blockTable.present(), keyBias = args.cuQuery.present() && args.bias.rank == 4 && args.bias.dims[2] == 1;
  if (((args.bias.present() && !keyBias) || args.relativeIndex.present() || args.scores.present() || args.maskShape > 0) && !plain)
    return argumentError(kOp, "bias", "bias of queries, relative terms, mask shapes and scores need keys [batch, kvHeads, keys, headDim]");
  const int64_t heads = p.kvHeads * p.group;
  if (args.bias.present()) TL_TRY(openBias(args, p));
  if (args.slopes.present()) {
    TL_TRY(checkType(kOp, "slopes", args.slopes, DType::f32, heads));
    p.slopes = args.slopes.as<const float>();
  }
  if (args.sinks.present()) {
    TL_TRY(checkType(kOp, "sinks", args.sinks, DType::f32, heads));
    p.sinks = args.sinks.as<const float>();
  }
  if (args.relativeIndex.present() != (args.contentToPosition.present() || args.positionToContent.present()))
    return argumentError(kOp, "relativeIndex", "goes with contentToPosition or positionToContent");
  if (args.relativeIndex.present()) TL_TRY(openRelative(args, p));
  p.scale = float(args.scale);
  p.softcap = float(args.softcap);
  p.offByOne = args.offByOne != 0;
  return {};
}

Status openOutputs(const AttentionArgs& args, Problem& p) {
  const int64_t heads = p.kvHeads * p.group;
  TL_TRY(checkFloats(kOp, "out", args.out, p.batch, heads, p.queries, p.valueDim));
  p.out = strided(args.out);
  if (args.logSumExp.present()) TL_TRY(checkType(kOp, "logSumExp", args.logSumExp, DType::f32, p.batch, heads, p.queries));
  p.logSumExp = strided(args.logSumExp);
  if (args.scores.present()) TL_TRY(checkType(kOp, "scores", args.scores, DType::f32, p.batch, heads, p.queries, p.keys));
  p.scores = strided(args.scores);
  if (!args.columnSums.present()) return {};
  if (!args.logSumExp.present() || args.blockTable.present()) return argumentError(kOp, "columnSums", "needs logSumExp, and keys without block table");
  TL_TRY(checkType(kOp, "columnSums", args.columnSums, DType::f32, p.batch, heads, p.keys));
  p.columnSums = strided(args.columnSums);
  p.columnQueries = int32_t(args.columnQueries);
  return {};
}

}  // namespace

Status attention(const AttentionArgs& args, DeviceContext& context) {
  const bool paged = args.blockTable.present();
  Problem p;
  if (!isFloat(args.query.dtype) || args.query.rank != 4) return shapeError(kOp, "query", "must be [batch, heads, queries, headDim], f32, f16 or bf16", 4, args.query.rank);
  if (args.key.rank != (paged ? 3 : 4)) return shapeError(kOp, "key", "has another rank than expected", paged ? 3 : 4, args.key.rank);
  const int64_t heads = args.query.dims[1], kvHeads = !paged ? args.key.dims[1] : args.blockTable.rank == 3 ? args.blockTable.dims[1] : 0;
  if (kvHeads < 1 || heads % kvHeads) return shapeError(kOp, "query", "must have a multiple of the key's heads", kvHeads, heads);
  for (int i = 0; i < 4; ++i)
    if (args.query.dims[i] > 0x7ffffff0 || (i < args.key.rank && args.key.dims[i] > 0x7ffffff0)) return shapeError(kOp, "query", "is longer than 32-bit indices", 0x7ffffff0, args.query.dims[i]);
  p.batch = p.sequences = int32_t(args.query.dims[0]);
  p.kvHeads = int32_t(kvHeads);
  p.group = int32_t(heads / kvHeads);
  p.queries = int32_t(args.query.dims[2]);
  p.keys = paged ? 0 : int32_t(args.key.dims[2]);
  p.headDim = int32_t(args.query.dims[3]);
  p.valueDim = args.out.rank == 4 ? int32_t(args.out.dims[3]) : 0;
  if (p.headDim < 1 || p.valueDim < 1) return shapeError(kOp, "query", "must have a head dimension of 1 or more", 1, p.headDim);
  TL_TRY(checkFloats(kOp, "query", args.query, p.batch, heads, p.queries, p.headDim));
  p.query = strided(args.query);
  TL_TRY(paged ? openBlockTable(args, p) : args.quantized != 0 ? openQuantized(args, p) : openRows(args, p));
  if (args.value.dtype != args.key.dtype) return argumentError(kOp, "value", "must have the key's element type", int64_t(args.value.dtype));
  if (args.cuQuery.present()) TL_TRY(openRagged(args, p));
  TL_TRY(openMask(args, p));
  TL_TRY(openScores(args, p));
  TL_TRY(openOutputs(args, p));
  return runAttention(kOp, p, context);
}

}  // namespace tl::cuda
