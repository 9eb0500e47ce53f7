// out[token, row] = Σ_column x[token, column] · w[row, column] + bias[row] + residual[token, row], x quantised to 8 bits and
// w to 4 or 8. Within a block of 32 columns the sum is an exact integer; a row and token then add block by block
//
//   sum ← sum + (scaleW · scaleX) · Σ q_w q_x,   sum ← sum + minimumW · (scaleX · Σ q_x)
//
// with one fused rounding each, blocks ascending. Every path below does these operations in this order, so a result
// depends neither on how many tokens come together nor on the number of threads.
#include "../simd/target.h"
#include "activation_inl.h"
#include "matmul_inl.h"
#include "quantized_rows.h"

namespace tl::TL_TARGET {
namespace {

constexpr int kMaxTokens = kVectors >= 32 && kLanes > 4 ? 8 : 4;  // tokens of a tile of kGroups groups
constexpr int kManyGroups = 4;                                   // groups of a tile of one or two tokens
constexpr int64_t kSpreadBelow = 32;                             // fewer tokens: bound by memory rather than arithmetic
constexpr int64_t kTokenBlock = 64;                              // tokens whose activations and outputs stay close under all weights
constexpr int64_t kChunkBytes = 16384;                           // weights of a tile that stay in L1 under all tokens

// ---- Where a tile's weights come from. A block gives vector pairs (v, v + 4), v = 0 … 3, and scales a part.

struct Nibbles {
  using Weight = Bytes;
  using Sum = NibbleSum;
  TL_INLINE static Weight prepare(Bytes b) { return b; }
  TL_INLINE static Sum start(int32_t) { return nibbleZero(); }
};

struct SignedBytes {
  using Weight = ByteWeight;
  using Sum = ByteSum;
  TL_INLINE static Weight prepare(Bytes b) { return prepareByte(b); }
  TL_INLINE static Sum start(int32_t sumX) { return byteStart(sumX); }
};

template <bool Wide> TL_INLINE F32 loadScale(const std::byte* p) {
  if constexpr (Wide) return load(reinterpret_cast<const float*>(p));
  else return load(reinterpret_cast<const f16*>(p));
}

// A group as packed. Int4 without minima has zero point 8: the minimum is −8 · scale, exact.
template <typename Kind_, bool Minima, bool Wide, int Parts_> struct Packed {
  using Kind = Kind_;
  static constexpr int kParts = Parts_;
  static constexpr bool kFour = std::is_same_v<Kind, Nibbles>, kMinima = Minima || kFour;
  static constexpr int64_t kScaleBytes = kLanes * (Wide ? 4 : 2), kBytes = kParts * kScaleBytes * (Minima ? 2 : 1);
  static constexpr int64_t kBlockBytes = kBytes + kVectorBytes * (kFour ? 4 : 8);

  const std::byte* group;

  TL_INLINE void pair(int64_t block, int v, Bytes& low, Bytes& high) const {
    const std::byte* p = group + block * kBlockBytes + kBytes + v * kVectorBytes;
    if constexpr (kFour) splitNibbles(loadVector(p), low, high);
    else low = loadVector(p), high = loadVector(p + 4 * kVectorBytes);
  }
  TL_INLINE F32 scale(int64_t block, int part) const { return loadScale<Wide>(group + block * kBlockBytes + part * kScaleBytes); }
  TL_INLINE F32 minimum(int64_t block, int part) const {
    if constexpr (Minima) return loadScale<Wide>(group + block * kBlockBytes + (kParts + part) * kScaleBytes);
    else return mul(scale(block, part), broadcast(-8.0f));
  }
};

// ---- The tile: Tokens tokens by Groups groups of rows

// One token's quantised columns from some block on. `all` blocks a row: then come the scaled sums, then the integer ones.
struct TokenRow {
  const int8_t* q;
  const float* scale;
  TL_INLINE float scaledSum(int64_t block, int64_t all) const { return scale[all + block]; }
  TL_INLINE int32_t sum(int64_t block, int64_t all, int half) const {
    return reinterpret_cast<const int16_t*>(scale + 2 * all + block)[half];
  }
};

// The integer sums of one block: dots[part][token][group].
template <typename Source, int Groups, int Tokens, typename Dots>
TL_INLINE void dotBlock(const Source (&source)[Groups], const TokenRow (&x)[Tokens], int64_t block, int64_t all, Dots& dots) {
  using Kind = typename Source::Kind;
  constexpr int kParts = Source::kParts;
  TL_UNROLL for (int t = 0; t < Tokens; ++t) TL_UNROLL for (int part = 0; part < kParts; ++part) {
    const auto start = Kind::start(kParts == 2 ? x[t].sum(block, all, part) : x[t].sum(block, all, 0) + x[t].sum(block, all, 1));
    TL_UNROLL for (int g = 0; g < Groups; ++g) dots[part][t][g] = start;
  }
  TL_UNROLL for (int v = 0; v < 4; ++v) {
    if constexpr (Groups > Tokens) {  // what there is less of stays in registers
      Bytes first[Tokens], second[Tokens];
      TL_UNROLL for (int t = 0; t < Tokens; ++t) {
        first[t] = broadcastQuad(x[t].q + block * kQuantBlock + 4 * v);
        second[t] = broadcastQuad(x[t].q + block * kQuantBlock + 16 + 4 * v);
      }
      TL_UNROLL for (int g = 0; g < Groups; ++g) {
        Bytes low, high;
        source[g].pair(block, v, low, high);
        const typename Kind::Weight lowWeight = Kind::prepare(low), highWeight = Kind::prepare(high);
        TL_UNROLL for (int t = 0; t < Tokens; ++t) {
          dots[0][t][g] = dot(dots[0][t][g], lowWeight, first[t]);
          dots[kParts - 1][t][g] = dot(dots[kParts - 1][t][g], highWeight, second[t]);
        }
      }
    } else {
      typename Kind::Weight low[Groups], high[Groups];
      TL_UNROLL for (int g = 0; g < Groups; ++g) {
        Bytes first, second;
        source[g].pair(block, v, first, second);
        low[g] = Kind::prepare(first), high[g] = Kind::prepare(second);
      }
      TL_UNROLL for (int t = 0; t < Tokens; ++t) {
        const Bytes first = broadcastQuad(x[t].q + block * kQuantBlock + 4 * v);
        TL_UNROLL for (int g = 0; g < Groups; ++g) dots[0][t][g] = dot(dots[0][t][g], low[g], first);
      }
      TL_UNROLL for (int t = 0; t < Tokens; ++t) {
        const Bytes second = broadcastQuad(x[t].q + block * kQuantBlock + 16 + 4 * v);
        TL_UNROLL for (int g = 0; g < Groups; ++g) dots[kParts - 1][t][g] = dot(dots[kParts - 1][t][g], high[g], second);
      }
    }
  }
}

// sum += the products of blocks [0, blocks) of source and x, of rows of `all` blocks. Fetches what lies `ahead` bytes behind them, 0 = nothing.
template <typename Source, int Groups, int Tokens>
TL_INLINE void tile(const Source (&source)[Groups], const TokenRow (&x)[Tokens], int64_t blocks, int64_t all, int64_t ahead, F32 (&sum)[Tokens][Groups]) {
  constexpr int kParts = Source::kParts;
  for (int64_t block = 0; block < blocks; ++block) {
    if (ahead != 0)
      TL_UNROLL for (int g = 0; g < Groups; ++g) TL_UNROLL for (int64_t at = 0; at < Source::kBlockBytes; at += 64)
        prefetch(source[g].group + block * Source::kBlockBytes + ahead + at);
    typename Source::Kind::Sum dots[kParts][Tokens][Groups];
    dotBlock(source, x, block, all, dots);
    TL_UNROLL for (int part = 0; part < kParts; ++part) TL_UNROLL for (int g = 0; g < Groups; ++g) {
      const F32 scale = source[g].scale(block, part);
      TL_UNROLL for (int t = 0; t < Tokens; ++t)
        sum[t][g] = mulAdd(toFloat(total(dots[part][t][g])), mul(scale, broadcast(x[t].scale[block])), sum[t][g]);
      if constexpr (Source::kMinima) {
        const F32 minimum = source[g].minimum(block, part);
        TL_UNROLL for (int t = 0; t < Tokens; ++t) {
          const float sumX = kParts == 2 ? x[t].scale[block] * float(x[t].sum(block, all, part)) : x[t].scaledSum(block, all);
          sum[t][g] = mulAdd(minimum, broadcast(sumX), sum[t][g]);
        }
      }
    }
  }
}

// ---- One unit of work: some groups by a range of tokens

struct Unit {
  const MatmulRows& rows;
  int64_t blocks;
  int64_t firstGroup, step, groups;  // a tile takes groups firstGroup, firstGroup + step … of `groups` in all
  int64_t ahead;

  // A tile that reaches past the end computes the last group again, and drops it.
  const std::byte* group(int g) const {
    return rows.weight->buffer.as() + std::min(firstGroup + g * step, groups - 1) * rows.weight->groupBytes;
  }
  void prefetchOut(int64_t token) const { prefetch(rows.out + token * rows.outStride + firstGroup * kLanes); }
  void finishGroup(int64_t token, int g, F32 sum) const {
    if (firstGroup + g * step < groups) finish(rows, token, firstGroup + g * step, sum);
  }
  TokenRow token(int64_t t, int64_t block) const {
    const auto* q = reinterpret_cast<const int8_t*>(rows.x + t * rows.xStride);
    return {q + block * kQuantBlock, reinterpret_cast<const float*>(q + blocks * kQuantBlock) + block};
  }
};

// One tile over blocks [block, block + blocks). Its sums start at 0 before block 0, leave after the last one, and wait in
// `sums` [Tokens][Groups][kLanes] between. Where it reaches past `end` it computes the last token again, and drops it.
template <typename Source, int Groups, int Tokens>
TL_NOINLINE void sweepTile(const Unit& unit, const Source (&from)[Groups], int64_t block, int64_t blocks, int64_t token, int64_t end, float* sums) {
  Source source[Groups];  // copies, so that no store seems to change them
  TokenRow x[Tokens];
  F32 sum[Tokens][Groups];
  const bool last = block + blocks == unit.blocks;
  TL_UNROLL for (int g = 0; g < Groups; ++g) source[g] = from[g];
  TL_UNROLL for (int t = 0; t < Tokens; ++t) {
    x[t] = unit.token(std::min(token + t, end - 1), block);
    if (last) unit.prefetchOut(token + t);
    TL_UNROLL for (int g = 0; g < Groups; ++g) sum[t][g] = block == 0 ? zero() : load(sums + (t * Groups + g) * kLanes);
  }
  tile(source, x, blocks, unit.blocks, unit.ahead, sum);
  TL_UNROLL for (int t = 0; t < Tokens; ++t) TL_UNROLL for (int g = 0; g < Groups; ++g) {
    if (!last) store(sums + (t * Groups + g) * kLanes, sum[t][g]);
    else if (token + t < end) unit.finishGroup(token + t, g, sum[t][g]);
  }
}

template <typename Source, int Groups> void sweepTokens(const Unit& unit, const Source (&source)[Groups], int64_t block, int64_t blocks, int64_t token, int64_t tokens, float* sums) {
  const int64_t step = blocks == unit.blocks ? 0 : Groups * kLanes;  // floats a token: sums live on only between chunks
  const int64_t end = token + tokens;
  const auto by = [&]<int Tokens>(std::integral_constant<int, Tokens>, int64_t least = Tokens) {
    for (; end - token >= least; token += Tokens, sums += Tokens * step) sweepTile<Source, Groups, Tokens>(unit, source, block, blocks, token, end, sums);
  };
  if constexpr (Groups == kGroups) {
    // 6 or 7 tokens cost more in tiles of 4 and less than in one of 8.
    if constexpr (kMaxTokens == 8) by(std::integral_constant<int, 8>{}, 6);
    by(std::integral_constant<int, 4>{});
    by(std::integral_constant<int, 3>{});
  }
  by(std::integral_constant<int, 2>{});
  by(std::integral_constant<int, 1>{});
}

template <typename Source, int Groups> void sweep(const Unit& unit, int64_t token, int64_t tokens, std::byte* scratch) {
  constexpr int64_t kMost = std::max<int64_t>(1, kChunkBytes / (Groups * Source::kBlockBytes));
  const int64_t size = tokens <= kMaxTokens ? unit.blocks : ceilDiv(unit.blocks, ceilDiv(unit.blocks, kMost));
  Source source[Groups];
  for (int64_t block = 0; block < unit.blocks; block += size) {
    for (int g = 0; g < Groups; ++g) source[g].group = unit.group(g) + block * Source::kBlockBytes;
    sweepTokens<Source, Groups>(unit, source, block, std::min(size, unit.blocks - block), token, tokens, reinterpret_cast<float*>(scratch));
  }
  if (unit.rows.activation != 0)
    for (int g = 0; g < Groups; ++g) activateGroup(unit.rows, unit.firstGroup + g * unit.step, token, tokens);
}

template <typename Source, int Groups> void matmulBy(const MatmulRows& rows, Context& context) {
  const int64_t blocks = rows.weight->columns / kQuantBlock, groups = ceilDiv(rows.weight->rows, kLanes), tiles = ceilDiv(groups, Groups);
  const int64_t tokenBlocks = ceilDiv(rows.n, kTokenBlock), units = tiles * tokenBlocks;
  const int64_t each = roundUp(ceilDiv(rows.n, tokenBlocks), kMaxTokens);  // whole tiles: only the last block has smaller ones
  // Bound by memory, a tile takes its groups far apart, so that a core reads several long streams at once.
  const bool spread = rows.n < kSpreadBelow;
  context.pool.parallelFor(units, std::max<int64_t>(1, units / (16 * context.pool.threads())), [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t token = i / tiles * each, tokens = std::min(each, rows.n - token);
      const Unit unit{rows, blocks, spread ? i : i % tiles * Groups, spread ? tiles : 1, groups, spread ? kAheadBytes : 0};
      if (tokens > 0) sweep<Source, Groups>(unit, token, tokens, context.pool.scratch(thread));
    }
  });
}

template <typename Source> void matmulAs(const MatmulRows& rows, Context& context) {
  rows.n <= 2 ? matmulBy<Source, kManyGroups>(rows, context) : matmulBy<Source, kGroups>(rows, context);
}

Status matmulInteger(const MatmulRows& rows, Context& context) {
  const PackedWeight& w = *rows.weight;
  if (w.format == PackFormat::int4) {
    if (w.blockSize == 16) w.hasMinimum ? matmulAs<Packed<Nibbles, true, true, 2>>(rows, context) : matmulAs<Packed<Nibbles, false, true, 2>>(rows, context);
    else if (w.wideScale) matmulAs<Packed<Nibbles, true, true, 1>>(rows, context);
    else w.hasMinimum ? matmulAs<Packed<Nibbles, true, false, 1>>(rows, context) : matmulAs<Packed<Nibbles, false, false, 1>>(rows, context);
    return {};
  }
  if (w.blockSize == 16) matmulAs<Packed<SignedBytes, false, true, 2>>(rows, context);
  else if (w.wideScale) matmulAs<Packed<SignedBytes, true, true, 1>>(rows, context);
  else w.hasMinimum ? matmulAs<Packed<SignedBytes, true, false, 1>>(rows, context) : matmulAs<Packed<SignedBytes, false, false, 1>>(rows, context);
  return {};
}

// ---- The door

}  // namespace

void activateGroup(const MatmulRows& rows, int64_t group, int64_t token, int64_t tokens) {
  const int64_t first = group * kLanes, left = std::min<int64_t>(kLanes, rows.weight->rows - first);
  if (left <= 0) return;
  (void)withActivation("matmul", rows.activation - 1, [&](auto activate) -> Status {
    float* out = rows.out + token * rows.outStride + first;
    for (int64_t t = 0; t < tokens; ++t, out += rows.outStride) {
      if (left == kLanes) store(out, activate(load(out)));
      else storePart(out, activate(loadPart(out, int(left))), int(left));
    }
    return {};
  });
}

Status matmul(const MatmulArgs& args, Context& context) {
  if (args.weight.dtype != DType::packed || !args.weight.data)
    return argumentError("matmul", "weight", "must be a packed weight", int64_t(args.weight.dtype));
  const PackedWeight& weight = *args.weight.as<const PackedWeight>();
  if (weight.isa != kIsa || weight.groupRows != kLanes || !weight.buffer)
    return argumentError("matmul", "weight", "was packed for another instruction set", int64_t(weight.isa));
  const bool integer = isInteger(weight.format);
  const DType wanted = integer ? DType::q8 : DType::f32;
  if (args.x.dtype != wanted)
    return argumentError("matmul", "x", integer ? "must be q8 for a quantised weight" : "must be f32 for a float weight", int64_t(args.x.dtype));
  if (args.x.lastDim() != weight.columns) return shapeError("matmul", "x", "must have as many columns as the weight", weight.columns, args.x.lastDim());
  if (!integer && !args.x.rowsAreUniform()) return argumentError("matmul", "x", "must have rows at one stride", args.x.rank);
  MatmulRows rows = {};
  rows.weight = &weight;
  rows.x = args.x.as<const std::byte>();
  rows.n = args.x.rows();
  rows.xStride = integer ? quantizedRowBytes(weight.columns) : args.x.rowStride() * int64_t(sizeof(float));
  TL_TRY(checkProduct("out", args.out, rows.n, weight.rows));
  rows.out = args.out.as<float>();
  rows.outStride = args.out.rowStride();
  if (args.residual.present()) {
    TL_TRY(checkProduct("residual", args.residual, rows.n, weight.rows));
    rows.residual = args.residual.as<const float>();
    rows.residualStride = args.residual.rowStride();
  }
  if (args.bias.present()) {
    TL_TRY(checkProduct("bias", args.bias, 1, weight.rows));
    rows.bias = args.bias.as<const float>();
  }
  rows.activation = args.activation;
  if (rows.activation != 0) TL_TRY(withActivation("matmul", rows.activation - 1, [](auto) -> Status { return {}; }));
  if (rows.n == 0) return {};
  return integer ? matmulInteger(rows, context) : matmulFloat(rows, context);
}

}  // namespace tl::TL_TARGET
