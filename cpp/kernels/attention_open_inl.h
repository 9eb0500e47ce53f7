// Checks the operands of `attention` for what memory safety needs, and cuts them into units. Included after
// attention_run_inl.h.
#pragma once

namespace tl::TL_TARGET {

constexpr const char* kAttention = "attention";

template <typename... Dims> Status checkFloat(const char* op, const char* name, const View& view, bool onlyF32, Dims... dims) {
  const int64_t list[] = {int64_t(dims)...};
  if (onlyF32 ? view.dtype != DType::f32 : !isFloat(view.dtype))
    return argumentError(op, name, onlyF32 ? "must be f32" : "must be f32, f16 or bf16", int64_t(view.dtype));
  return checkDims(op, name, view, int(sizeof...(dims)), list);
}
inline bool isWhole(double x) { return x >= 0 && x <= 9007199254740991.0 && x == std::floor(x); }

// `view` [batch, heads, tokens, …] from (sequence, head, token) on.
inline Operand3 operandAt(const View& view, int64_t batch, int64_t head, int64_t token = 0) {
  Operand3 operand;
  if (!view.present()) return operand;
  operand.dtype = view.dtype;
  operand.data = view.as<std::byte>() + (batch * view.strides[0] + head * view.strides[1] + token * view.strides[2]) * int64_t(elementBytes(view.dtype));
  operand.head = view.strides[1];
  operand.token = view.strides[2];
  return operand;
}

struct AttentionContext {
  const AttentionArgs& args;
  int64_t batch = 0, heads = 0, kvHeads = 0, queries = 0, keys = 0, sequences = 0;  // sequences: of a ragged batch, else batch
  bool ragged = false, paged = false;
};

inline Rows rowsOf(const View& view, int64_t batch, int64_t head, int64_t token, const View& scale, const View& minimum) {
  Rows rows;
  const int64_t bytes = int64_t(elementBytes(view.dtype));
  rows.data = view.as<std::byte>() + (batch * view.strides[0] + head * view.strides[1] + token * view.strides[2]) * bytes;
  rows.rowBytes = view.strides[2] * bytes;
  if (scale.present()) {
    const int64_t at = batch * scale.strides[0] + head * scale.strides[1] + token * scale.strides[2];
    rows.scale = scale.as<float>() + at;
    rows.scaleRow = scale.strides[2];
    rows.minimum = minimum.present() ? minimum.as<float>() + at : nullptr;
  }
  return rows;
}
inline Rows pagedRows(const View& view) {
  Rows rows;
  const int64_t bytes = int64_t(elementBytes(view.dtype));
  rows.data = view.as<std::byte>();
  rows.pageBytes = view.strides[0] * bytes;
  rows.rowBytes = view.strides[1] * bytes;
  return rows;
}

inline int64_t broadcastStride(const View& view, int axis) { return view.dims[axis] == 1 ? 0 : view.strides[axis]; }

inline void openOperands(const AttentionContext& context, int64_t batch, int64_t head, int64_t firstKey, Unit& unit) {
  const AttentionArgs& args = context.args;
  ScoreOperands& operands = unit.operands;
  if (args.bias.present()) {
    operands.biasHead = broadcastStride(args.bias, 1);
    operands.biasQuery = broadcastStride(args.bias, 2);
    operands.bias = args.bias.as<float>() + batch * broadcastStride(args.bias, 0) + head * operands.biasHead + firstKey;
  }
  if (args.slopes.present()) operands.slopes = args.slopes.as<float>() + head;
  if (args.sinks.present()) unit.sinks = args.sinks.as<float>() + head;
  if (args.relativeIndex.present()) operands.relativeIndex = args.relativeIndex.as<int32_t>();
  if (const View& view = args.contentToPosition; view.present()) {
    operands.contentHead = view.strides[1];
    operands.contentQuery = view.strides[2];
    operands.contentToPosition = view.as<float>() + batch * view.strides[0] + head * view.strides[1];
  }
  if (const View& view = args.positionToContent; view.present()) {
    operands.positionHead = view.strides[1];
    operands.positionKey = view.strides[2];
    operands.positionToContent = view.as<float>() + batch * view.strides[0] + head * view.strides[1];
  }
}

inline void openMask(const AttentionContext& context, int64_t head, Unit& unit) {
  const AttentionArgs& args = context.args;
  KeyMask& mask = unit.mask;
  mask.keys = unit.keys;
  mask.offset = unit.keys - unit.queries;
  mask.causal = args.causal != 0;
  mask.window = int64_t(args.window);
  mask.sinks = int64_t(args.sinkTokens);
  mask.shape = MaskShape(int32_t(args.maskShape));
  ShapeOperands& shape = mask.operands;
  if (mask.shape == MaskShape::blocks) {
    shape.blocksHead = broadcastStride(args.mask, 0);
    shape.blocks = args.mask.as<uint8_t>() + head * shape.blocksHead;
    shape.blockQuery = int64_t(args.blockQuery);
    shape.blockKey = int64_t(args.blockKey);
  } else if (mask.shape == MaskShape::tree) {
    shape.tree = args.mask.as<int32_t>();
    shape.treeWords = args.mask.strides[0];
    shape.prefix = unit.keys - unit.queries;
  }
  shape.start = int64_t(args.gridStart);
  shape.gridHeight = int64_t(args.gridHeight);
  shape.gridWidth = int64_t(args.gridWidth);
  shape.radius = int64_t(args.radius);
  shape.factor = int64_t(args.factor);
  shape.causalGrid = args.causalGrid != 0;
}

inline void attentionUnit(const Problem& problem, int64_t index, Unit& unit) {
  const auto& context = *static_cast<const AttentionContext*>(problem.context);
  const AttentionArgs& args = context.args;
  const int64_t sequence = index / context.kvHeads, kvHead = index % context.kvHeads, head = kvHead * problem.group;
  const int64_t batch = context.ragged ? 0 : sequence;
  int64_t firstQuery = 0, firstKey = 0;
  unit.queries = context.queries;
  unit.keys = context.keys;
  if (context.ragged) {
    firstQuery = args.cuQuery.as<int32_t>()[sequence];
    firstKey = args.cuKey.as<int32_t>()[sequence];
    unit.queries = args.cuQuery.as<int32_t>()[sequence + 1] - firstQuery;
    unit.keys = args.cuKey.as<int32_t>()[sequence + 1] - firstKey;
  }
  Source& source = unit.source;
  source.element = args.key.dtype;
  source.quantized = Quantized(int32_t(args.quantized));
  source.scaledApart = source.quantized == Quantized::int8;
  source.headDim = problem.headDim;
  source.valueDim = problem.valueDim;
  if (context.paged) {
    unit.keys = args.lengths.as<int32_t>()[batch * args.lengths.strides[0] + kvHead];
    source.table = args.blockTable.as<int32_t>() + batch * args.blockTable.strides[0] + kvHead * args.blockTable.strides[1];
    source.pageSize = args.key.dims[1];
    source.keys = pagedRows(args.key);
    source.values = pagedRows(args.value);
  } else {
    source.keys = rowsOf(args.key, batch, kvHead, firstKey, args.keyScale, args.keyMinimum);
    source.values = rowsOf(args.value, batch, kvHead, firstKey, args.valueScale, args.valueMinimum);
  }
  unit.query = operandAt(args.query, batch, head, firstQuery);
  unit.out = operandAt(args.out, batch, head, firstQuery);
  unit.logSumExp = operandAt(args.logSumExp, batch, head, firstQuery);
  unit.scores = operandAt(args.scores, batch, head, firstQuery);
  unit.columnSums = operandAt(args.columnSums, batch, head, firstKey);
  openOperands(context, batch, head, firstKey, unit);
  openMask(context, head, unit);
}

inline Status checkRagged(const View& cumulative, const char* name, int64_t tokens) {
  TL_TRY(checkType(kAttention, name, cumulative, DType::i32, -1));
  if (cumulative.dims[0] < 1) return shapeError(kAttention, name, "must hold at least one offset", 1, cumulative.dims[0]);
  const int32_t* at = cumulative.as<int32_t>();
  for (int64_t i = 0; i < cumulative.dims[0]; ++i)
    if (at[i] < (i ? at[i - 1] : 0) || at[i] > tokens) return argumentError(kAttention, name, "must rise from 0 to at most the tokens", at[i]);
  return {};
}

inline Status checkPaged(const AttentionArgs& args, const AttentionContext& context, int64_t& mostKeys) {
  TL_TRY(checkType(kAttention, "blockTable", args.blockTable, DType::i32, context.batch, -1, -1));
  TL_TRY(checkType(kAttention, "lengths", args.lengths, DType::i32, context.batch, context.kvHeads));
  const int64_t pages = args.key.dims[0], pageSize = args.key.dims[1];
  for (int64_t b = 0; b < context.batch; ++b)
    for (int64_t g = 0; g < context.kvHeads; ++g) {
      const int32_t length = args.lengths.as<int32_t>()[b * args.lengths.strides[0] + g];
      const int32_t* table = args.blockTable.as<int32_t>() + b * args.blockTable.strides[0] + g * args.blockTable.strides[1];
      if (length < 0 || ceilDiv(length, std::max<int64_t>(pageSize, 1)) > args.blockTable.dims[2]) return argumentError(kAttention, "lengths", "reaches past the block table", length);
      for (int64_t i = 0; length > 0 && i < ceilDiv(length, pageSize); ++i)
        if (table[i] < 0 || table[i] >= pages) return argumentError(kAttention, "blockTable", "names a page that does not exist", table[i]);
      mostKeys = std::max<int64_t>(mostKeys, length);
    }
  return {};
}

inline Status checkQuantized(const AttentionArgs& args, const AttentionContext& context, int64_t headDim, int64_t valueDim) {
  const bool int4 = args.quantized == 2;
  if (args.quantized != 1 && !int4) return argumentError(kAttention, "quantized", "must be 0, 1 (int8) or 2 (int4)", int64_t(args.quantized));
  const auto check = [&](const char* name, const View& view, const View& scale, const View& minimum, int64_t dim) -> Status {
    if (view.dtype != DType::u8 && (int4 || view.dtype != DType::i8)) return argumentError(kAttention, name, "must be bytes", int64_t(view.dtype));
    const int64_t dims[] = {context.batch, context.kvHeads, context.keys, int4 ? ceilDiv(dim, 2) : dim};
    TL_TRY(checkDims(kAttention, name, view, 4, dims));
    if (!int4) return checkFloat(kAttention, "scale", scale, true, context.batch, context.kvHeads, context.keys);
    TL_TRY(checkFloat(kAttention, "scale", scale, true, context.batch, context.kvHeads, context.keys, ceilDiv(dim, kInt4Group)));
    TL_TRY(checkFloat(kAttention, "minimum", minimum, true, context.batch, context.kvHeads, context.keys, ceilDiv(dim, kInt4Group)));
    for (int i = 0; i < 3; ++i)
      if (minimum.strides[i] != scale.strides[i]) return argumentError(kAttention, "minimum", "must be laid out as the scales", minimum.strides[i]);
    return {};
  };
  TL_TRY(check("key", args.key, args.keyScale, args.keyMinimum, headDim));
  return check("value", args.value, args.valueScale, args.valueMinimum, valueDim);
}

inline Status checkBroadcast(const char* name, const View& view, const int64_t (&dims)[4]) {
  if (view.dtype != DType::f32) return argumentError(kAttention, name, "must be f32", int64_t(view.dtype));
  if (view.rank != 4) return shapeError(kAttention, name, "must have rank 4", 4, view.rank);
  for (int i = 0; i < 4; ++i)
    if (view.dims[i] != dims[i] && (i == 3 || view.dims[i] != 1)) return shapeError(kAttention, name, "has another dimension than expected", dims[i], view.dims[i]);
  if (view.dims[3] > 1 && view.strides[3] != 1) return argumentError(kAttention, name, "must be contiguous along its last axis", view.strides[3]);
  return {};
}

inline Status checkScoreOperands(const AttentionArgs& args, const AttentionContext& c) {
  const bool plain = !c.ragged && !c.paged, keyBias = c.ragged && args.bias.rank == 4 && args.bias.dims[2] == 1;
  if (((args.bias.present() && !keyBias) || args.relativeIndex.present() || args.scores.present() || args.maskShape > 0) && !plain)
    return argumentError(kAttention, "bias", "bias of queries, relative terms, mask shapes and scores need keys [batch, kvHeads, keys, headDim]");
  if (args.bias.present()) TL_TRY(checkBroadcast("bias", args.bias, {c.batch, c.heads, c.queries, c.keys}));
  if (args.slopes.present()) TL_TRY(checkFloat(kAttention, "slopes", args.slopes, true, c.heads));
  if (args.sinks.present()) TL_TRY(checkFloat(kAttention, "sinks", args.sinks, true, c.heads));
  if (args.relativeIndex.present() != (args.contentToPosition.present() || args.positionToContent.present()))
    return argumentError(kAttention, "relativeIndex", "goes with contentToPosition or positionToContent");
  if (!args.relativeIndex.present()) return {};
  if (args.softcap > 0) return argumentError(kAttention, "softcap", "cannot be used with relative terms");
  TL_TRY(checkType(kAttention, "relativeIndex", args.relativeIndex, DType::i32, std::max<int64_t>(c.queries + c.keys - 1, 0)));
  int64_t width = std::numeric_limits<int64_t>::max();
  if (args.contentToPosition.present()) {
    TL_TRY(checkFloat(kAttention, "contentToPosition", args.contentToPosition, true, c.batch, c.heads, c.queries, -1));
    width = args.contentToPosition.dims[3];
  }
  if (args.positionToContent.present()) {
    TL_TRY(checkFloat(kAttention, "positionToContent", args.positionToContent, true, c.batch, c.heads, c.keys, -1));
    width = std::min(width, args.positionToContent.dims[3]);
  }
  for (int64_t i = 0; i < args.relativeIndex.dims[0]; ++i)
    if (const int32_t x = args.relativeIndex.as<int32_t>()[i]; x < 0 || x >= width) return argumentError(kAttention, "relativeIndex", "points past the relative terms", x);
  return {};
}

inline Status checkMask(const AttentionArgs& args, const AttentionContext& c) {
  for (const double x : {args.window, args.sinkTokens, args.columnQueries, args.blockQuery, args.blockKey, args.gridStart, args.gridHeight, args.gridWidth, args.radius, args.factor, args.maskShape})
    if (!isWhole(x)) return argumentError(kAttention, "window", "sizes must be whole numbers, 0 or more", int64_t(x));
  switch (int(args.maskShape)) {
    case 0: return {};
    case 1:
      if (args.blockQuery < 1 || args.blockKey < 1) return argumentError(kAttention, "blockQuery", "must be 1 or more", int64_t(args.blockQuery));
      if (args.mask.rank == 3 && args.mask.dims[0] != 1 && args.mask.dims[0] != c.heads) return shapeError(kAttention, "mask", "must have one mask, or one a head", c.heads, args.mask.dims[0]);
      TL_TRY(checkType(kAttention, "mask", args.mask, DType::u8, -1, ceilDiv(c.queries, int64_t(args.blockQuery)), ceilDiv(c.keys, int64_t(args.blockKey))));
      if (args.mask.dims[1] > 1 && args.mask.strides[1] != args.mask.dims[2]) return argumentError(kAttention, "mask", "must have contiguous rows", args.mask.strides[1]);
      return {};
    case 2:
      if (c.keys < c.queries) return shapeError(kAttention, "key", "must hold the prefix and one key for each node", c.queries, c.keys);
      TL_TRY(checkType(kAttention, "mask", args.mask, DType::i32, c.queries, -1));
      if (args.mask.dims[1] < ceilDiv(c.queries, 32)) return shapeError(kAttention, "mask", "must have a bit for each node", ceilDiv(c.queries, 32), args.mask.dims[1]);
      return {};
    case 3:
      if (c.queries != c.keys) return shapeError(kAttention, "query", "a neighbourhood needs as many queries as keys", c.keys, c.queries);
      if (args.gridHeight < 1 || args.gridWidth < 1 || args.gridStart + args.gridHeight * args.gridWidth > double(c.keys))
        return shapeError(kAttention, "gridHeight", "the grid reaches past the keys", c.keys, int64_t(args.gridStart + args.gridHeight * args.gridWidth));
      return {};
    case 4:
      if (args.gridHeight < 1 || args.gridWidth < 1 || args.factor < 1 || args.gridHeight * args.gridWidth != double(c.queries) ||
          args.gridHeight * args.gridWidth * args.factor * args.factor != double(c.keys))
        return shapeError(kAttention, "gridHeight", "must be a grid of the queries, with factor² keys each", c.queries, int64_t(args.gridHeight * args.gridWidth));
      return {};
    default: return argumentError(kAttention, "maskShape", "is not a mask shape", int64_t(args.maskShape));
  }
}

}  // namespace tl::TL_TARGET
