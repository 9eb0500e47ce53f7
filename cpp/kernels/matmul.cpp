// out[token, row] = Σ_column x[token, column] · w[row, column] + bias[row] + residual[token, row], x quantised to 8 bits and
// w to 4 or 8. Within a block of 32 columns the sum is an exact integer; a row and token then add block by block
//
//   sum ← sum + (scaleW · scaleX) · Σ q_w q_x,   sum ← sum + minimumW · (scaleX · Σ q_x)
//
// with one fused rounding each, blocks ascending. Every path below does these operations in this order, so a result
// depends neither on how many tokens come together nor on the number of threads.
#include "../simd/target.h"
#include "matmul_inl.h"
#include "quantized_rows.h"

namespace tl::TL_TARGET {
namespace {

constexpr int kMaxTokens = kVectors >= 32 && kLanes > 4 ? 8 : 4;  // tokens of a tile
constexpr int64_t kTokenBlock = 128;                             // tokens that share one unpacking, and stay in L2
constexpr int64_t kUnpackFrom = 4 * kMaxTokens + 1;               // fewer tokens read the packed form directly
#ifndef AHEAD
#define AHEAD 4096
#endif
#ifndef PF
#define PF 3
#endif
constexpr int64_t kAhead = AHEAD;                                 // bytes: how far reading of the packed form runs ahead
constexpr int64_t kChunkBytes = 16384;                           // unpacked weights of a tile that stay in L1

// ---- Where a tile's weights come from. A block gives vector pairs (v, v + 4), v = 0 … 3, and scales a part.

struct Nibbles {
  using Weight = Bytes;
  using Sum = NibbleSum;
  static constexpr int kVectorsABlock = 8;
  TL_INLINE static Weight prepare(Bytes b) { return b; }
  TL_INLINE static Sum start(int32_t) { return nibbleZero(); }
};

struct SignedBytes {
  using Weight = ByteWeight;
  using Sum = ByteSum;
  static constexpr int kVectorsABlock = 8;
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
  static constexpr bool kFour = std::is_same_v<Kind, Nibbles>, kMinima = Minima || kFour, kStoredMinima = Minima;
  static constexpr int64_t kScaleBytes = kLanes * (Wide ? 4 : 2), kBlockBytes = kVectorBytes * (kFour ? 4 : 8);

  const std::byte *vectors, *scales, *minima;

  void open(const std::byte* group, const PackedLayout& layout) {
    vectors = group;
    scales = group + layout.scales;
    minima = group + layout.minima;
  }
  TL_INLINE void pair(int64_t block, int v, Bytes& low, Bytes& high) const {
    const std::byte* p = vectors + block * kBlockBytes + v * kVectorBytes;
    if constexpr (kFour) splitNibbles(loadVector(p), low, high);
    else low = loadVector(p), high = loadVector(p + 4 * kVectorBytes);
  }
  // The groups of a tile lie one behind the other: as the tile walks its blocks, this walks through all of their bytes.
  TL_INLINE void prefetchTile(int64_t block) const {
    constexpr int64_t kStep = kGroups * (kBlockBytes + kParts * kScaleBytes * (Minima ? 2 : 1));
    const auto ahead = reinterpret_cast<uintptr_t>(vectors) + uintptr_t(kAhead + block * kStep);
    TL_UNROLL for (int64_t line = 0; line < kStep; line += 64) __builtin_prefetch(reinterpret_cast<const void*>(ahead + uintptr_t(line)), 0, PF);
  }
  TL_INLINE F32 scale(int64_t block, int part) const { return loadScale<Wide>(scales + (block * kParts + part) * kScaleBytes); }
  TL_INLINE F32 minimum(int64_t block, int part) const {
    if constexpr (Minima) return loadScale<Wide>(minima + (block * kParts + part) * kScaleBytes);
    else return mul(scale(block, part), broadcast(-8.0f));
  }
};

// A chunk of a group in this thread's scratch: whole bytes, scales and minima in f32.
template <typename Kind_, bool Minima, int Parts_> struct Unpacked {
  using Kind = Kind_;
  static constexpr int kParts = Parts_;
  static constexpr bool kMinima = Minima;

  const std::byte* vectors;
  const float* scales;  // [blocks][parts][scale, minimum][kLanes]

  TL_INLINE void pair(int64_t block, int v, Bytes& low, Bytes& high) const {
    const std::byte* p = vectors + (block * 8 + v) * kVectorBytes;
    low = loadVector(p);
    high = loadVector(p + 4 * kVectorBytes);
  }
  TL_INLINE void prefetchTile(int64_t) const {}
  TL_INLINE F32 scale(int64_t block, int part) const { return load(scales + (block * kParts + part) * 2 * kLanes); }
  TL_INLINE F32 minimum(int64_t block, int part) const { return load(scales + (block * kParts + part) * 2 * kLanes + kLanes); }
};

// ---- The tile: Tokens tokens by kGroups groups of rows

struct TokenRows {
  const int8_t* q;
  const float *scale, *scaledSum;
  const int16_t* sum;
};

// sums[Tokens][kGroups][kLanes] += the products of `blocks` blocks; x starts at the same block as the source.
template <typename Source, int Tokens>
TL_INLINE void tile(const Source (&source)[kGroups], const TokenRows (&x)[Tokens], int64_t blocks, float* sums) {
  using Kind = typename Source::Kind;
  constexpr int kParts = Source::kParts;
  for (int64_t block = 0; block < blocks; ++block) {
    source[0].prefetchTile(block);
    typename Kind::Sum dots[kParts][Tokens][kGroups];
    TL_UNROLL for (int t = 0; t < Tokens; ++t) TL_UNROLL for (int part = 0; part < kParts; ++part) {
      const int16_t* sum = x[t].sum + 2 * block;
      const auto start = Kind::start(kParts == 2 ? sum[part] : sum[0] + sum[1]);
      TL_UNROLL for (int g = 0; g < kGroups; ++g) dots[part][t][g] = start;
    }
    TL_UNROLL for (int v = 0; v < 4; ++v) {
      typename Kind::Weight low[kGroups], high[kGroups];
      TL_UNROLL for (int g = 0; g < kGroups; ++g) {
        Bytes first, second;
        source[g].pair(block, v, first, second);
        low[g] = Kind::prepare(first), high[g] = Kind::prepare(second);
      }
      TL_UNROLL for (int t = 0; t < Tokens; ++t) {
        const Bytes first = broadcastQuad(x[t].q + block * kQuantBlock + 4 * v);
        TL_UNROLL for (int g = 0; g < kGroups; ++g) dots[0][t][g] = dot(dots[0][t][g], low[g], first);
        const Bytes second = broadcastQuad(x[t].q + block * kQuantBlock + 16 + 4 * v);
        TL_UNROLL for (int g = 0; g < kGroups; ++g) dots[kParts - 1][t][g] = dot(dots[kParts - 1][t][g], high[g], second);
      }
    }
    TL_UNROLL for (int part = 0; part < kParts; ++part) TL_UNROLL for (int g = 0; g < kGroups; ++g) {
      const F32 scale = source[g].scale(block, part);
      TL_UNROLL for (int t = 0; t < Tokens; ++t) {
        float* at = sums + (t * kGroups + g) * kLanes;
        F32 sum = mulAdd(toFloat(total(dots[part][t][g])), mul(scale, broadcast(x[t].scale[block])), load(at));
        if constexpr (Source::kMinima) {
          const float sumX = kParts == 2 ? x[t].scale[block] * float(x[t].sum[2 * block + part]) : x[t].scaledSum[block];
          sum = mulAdd(source[g].minimum(block, part), broadcast(sumX), sum);
        }
        store(at, sum);
      }
    }
  }
}

// ---- One unit of work: kGroups groups by a range of tokens

struct Unit {
  const MatmulRows& rows;
  PackedLayout layout;
  int64_t firstGroup, lastGroup;  // lastGroup: of the matrix; a tile past it repeats it

  const std::byte* group(int g) const {
    return rows.weight->buffer.as() + std::min(firstGroup + g, lastGroup) * rows.weight->groupBytes;
  }
  TokenRows token(int64_t t, int64_t block) const {
    const QuantizedRow row = quantizedRow(const_cast<std::byte*>(rows.x), rows.weight->columns, t);
    return {row.q + block * kQuantBlock, row.scale + block, row.scaledSum + block, row.sum + 2 * block};
  }
  void finishTile(int64_t token, int tokens, const float* sums) const {
    for (int t = 0; t < tokens; ++t)
      for (int g = 0; g < kGroups; ++g)
        if (firstGroup + g <= lastGroup) finish(rows, token + t, firstGroup + g, load(sums + (t * kGroups + g) * kLanes));
  }
};

// sums [tokens][kGroups][kLanes] += blocks [block, block + blocks) of tokens [token, token + tokens).
template <typename Source> void sweep(const Unit& unit, const Source (&source)[kGroups], int64_t token, int64_t tokens, int64_t block, int64_t blocks, float* sums) {
  const auto run = [&]<int Tokens>(std::integral_constant<int, Tokens>) {
    for (; tokens >= Tokens; tokens -= Tokens, token += Tokens, sums += Tokens * kGroups * kLanes) {
      TokenRows x[Tokens];
      for (int t = 0; t < Tokens; ++t) x[t] = unit.token(token + t, block);
      tile<Source, Tokens>(source, x, blocks, sums);
    }
  };
  if constexpr (kMaxTokens == 8) run(std::integral_constant<int, 8>{});
  run(std::integral_constant<int, 4>{});
  run(std::integral_constant<int, 2>{});
  run(std::integral_constant<int, 1>{});
}

template <typename Source> void fewTokens(const Unit& unit, int64_t token, int64_t tokens) {
  float sums[kUnpackFrom * kGroups * kLanes] = {};
  Source source[kGroups];
  for (int g = 0; g < kGroups; ++g) source[g].open(unit.group(g), unit.layout);
  sweep<Source>(unit, source, token, tokens, 0, unit.layout.blocks, sums);
  unit.finishTile(token, int(tokens), sums);
}

// The scratch of a thread: weights of a chunk, their scales, the sums of a token block.
struct Scratch {
  std::byte* vectors;
  float *scales, *sums;
};

template <typename Source> void manyTokens(const Unit& unit, int64_t token, int64_t tokens, std::byte* scratch) {
  using Chunk = Unpacked<typename Source::Kind, Source::kMinima, Source::kParts>;
  constexpr int64_t kMost = kChunkBytes / (kGroups * 8 * kVectorBytes);
  const int64_t chunks = ceilDiv(unit.layout.blocks, kMost), size = ceilDiv(unit.layout.blocks, chunks);
  constexpr int64_t kScaleFloats = kMost * Source::kParts * 2 * kLanes;
  float* sums = reinterpret_cast<float*>(scratch + kChunkBytes + kGroups * kScaleFloats * 4);
  std::memset(sums, 0, size_t(tokens * kGroups * kVectorBytes));
  for (int64_t block = 0; block < unit.layout.blocks; block += size) {
    const int64_t blocks = std::min(size, unit.layout.blocks - block);
    Chunk chunk[kGroups];
    for (int g = 0; g < kGroups; ++g) {
      Source source;
      source.open(unit.group(g), unit.layout);
      std::byte* vectors = scratch + g * kMost * 8 * kVectorBytes;
      float* scales = reinterpret_cast<float*>(scratch + kChunkBytes) + g * kScaleFloats;
      for (int64_t b = 0; b < blocks; ++b) {
        for (int part = 0; part < Source::kParts; ++part) {
          float* at = scales + (b * Source::kParts + part) * 2 * kLanes;
          store(at, source.scale(block + b, part));
          if constexpr (Source::kMinima) store(at + kLanes, source.minimum(block + b, part));
        }
        if constexpr (Source::kFour) {
          for (int v = 0; v < 4; ++v) {
            Bytes low, high;
            source.pair(block + b, v, low, high);
            storeVector(vectors + (b * 8 + v) * kVectorBytes, low);
            storeVector(vectors + (b * 8 + v + 4) * kVectorBytes, high);
          }
        }
      }
      chunk[g].vectors = Source::kFour ? vectors : unit.group(g) + block * 8 * kVectorBytes;
      chunk[g].scales = scales;
    }
    sweep<Chunk>(unit, chunk, token, tokens, block, blocks, sums);
  }
  unit.finishTile(token, int(tokens), sums);
}

template <typename Source> void matmulAs(const MatmulRows& rows, Context& context) {
  const PackedWeight& weight = *rows.weight;
  const PackedLayout layout = layoutOf(weight);
  const int64_t groups = ceilDiv(weight.rows, kLanes), tiles = ceilDiv(groups, kGroups);
  const int64_t tokenBlocks = ceilDiv(rows.n, kTokenBlock), tokensEach = ceilDiv(rows.n, tokenBlocks);
  const int64_t units = tiles * tokenBlocks;
  const int64_t chunk = std::max<int64_t>(1, units / (4 * context.pool.threads()));
  context.pool.parallelFor(units, chunk, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t token = i / tiles * tokensEach, tokens = std::min(tokensEach, rows.n - token);
      if (tokens <= 0) continue;
      const Unit unit{rows, layout, i % tiles * kGroups, groups - 1};
      if (tokens < kUnpackFrom) fewTokens<Source>(unit, token, tokens);
      else manyTokens<Source>(unit, token, tokens, context.pool.scratch(thread));
    }
  });
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

Status floatOperand(const char* name, const View& view, int64_t rows, int64_t columns) {
  if (view.dtype != DType::f32) return argumentError("matmul", name, "must be f32", int64_t(view.dtype));
  if (view.rank < 1 || !view.rowsAreUniform()) return argumentError("matmul", name, "must have rows at one stride", view.rank);
  if (view.lastDim() != columns) return shapeError("matmul", name, "must have one element a weight row", columns, view.lastDim());
  if (view.rows() != rows) return shapeError("matmul", name, "must have one row a token", rows, view.rows());
  return {};
}

}  // namespace

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
  TL_TRY(floatOperand("out", args.out, rows.n, weight.rows));
  rows.out = args.out.as<float>();
  rows.outStride = args.out.rowStride();
  if (args.residual.present()) {
    TL_TRY(floatOperand("residual", args.residual, rows.n, weight.rows));
    rows.residual = args.residual.as<const float>();
    rows.residualStride = args.residual.rowStride();
  }
  if (args.bias.present()) {
    TL_TRY(floatOperand("bias", args.bias, 1, weight.rows));
    rows.bias = args.bias.as<const float>();
  }
  if (rows.n == 0) return {};
  return integer ? matmulInteger(rows, context) : matmulFloat(rows, context);
}

}  // namespace tl::TL_TARGET
