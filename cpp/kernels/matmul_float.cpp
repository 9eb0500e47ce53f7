// out[token, row] = Σ_column x[token, column] · w[row, column] + bias[row] + residual[token, row], x f32 and w f32, f16 or
// bf16. Lanes are rows; each sum takes its columns in ascending order, one fused multiply-add each, from 0: in every path
// below, so a result depends neither on how many tokens come together nor on the number of threads.
#include "../simd/target.h"
#include "matmul_inl.h"

namespace tl::TL_TARGET {
namespace {

constexpr int kMaxTokens = kVectors >= 32 && kLanes > 4 ? 12 : 6;  // tokens of a tile of kGroups groups
constexpr int64_t kTokenBlock = 96;                               // tokens that share one conversion, and stay in L2
constexpr int64_t kChunkColumns = 16384 / (kGroups * kVectorBytes);  // weights of a tile that stay in L1

// sums[Tokens][Groups][kLanes] += columns products. weight[g] is [columns][kLanes].
template <typename W, int Groups, int Tokens>
TL_INLINE void tile(const W* const (&weight)[Groups], const float* const (&x)[Tokens], int64_t columns, float* sums) {
  F32 sum[Tokens][Groups];
  TL_UNROLL for (int t = 0; t < Tokens; ++t) TL_UNROLL for (int g = 0; g < Groups; ++g) sum[t][g] = load(sums + (t * Groups + g) * kLanes);
  for (int64_t column = 0; column < columns; ++column) {
    F32 w[Groups];
    TL_UNROLL for (int g = 0; g < Groups; ++g) w[g] = load(weight[g] + column * kLanes);
    TL_UNROLL for (int t = 0; t < Tokens; ++t) {
      const F32 value = broadcast(x[t][column]);
      TL_UNROLL for (int g = 0; g < Groups; ++g) sum[t][g] = mulAdd(w[g], value, sum[t][g]);
    }
  }
  TL_UNROLL for (int t = 0; t < Tokens; ++t) TL_UNROLL for (int g = 0; g < Groups; ++g) store(sums + (t * Groups + g) * kLanes, sum[t][g]);
}

struct Unit {
  const MatmulRows& rows;
  int64_t firstGroup, lastGroup;  // lastGroup: of the matrix; a tile past it repeats it

  template <typename W> const W* group(int g) const {
    return reinterpret_cast<const W*>(rows.weight->buffer.as() + std::min(firstGroup + g, lastGroup) * rows.weight->groupBytes);
  }
  const float* token(int64_t t) const { return reinterpret_cast<const float*>(rows.x + t * rows.xStride); }
  template <int Groups> void finishTile(int64_t token, int64_t tokens, const float* sums) const {
    for (int64_t t = 0; t < tokens; ++t)
      for (int g = 0; g < Groups; ++g)
        if (firstGroup + g <= lastGroup) finish(rows, token + t, firstGroup + g, load(sums + (t * Groups + g) * kLanes));
  }
};

// One to three tokens: enough groups at once that the chains of multiply-adds overlap.
template <typename W, int Groups, int Tokens> void fewTokens(const Unit& unit) {
  float sums[Tokens * Groups * kLanes] = {};
  const W* weight[Groups];
  const float* x[Tokens];
  for (int g = 0; g < Groups; ++g) weight[g] = unit.group<W>(g);
  for (int t = 0; t < Tokens; ++t) x[t] = unit.token(t);
  tile<W, Groups, Tokens>(weight, x, unit.rows.weight->columns, sums);
  unit.finishTile<Groups>(0, Tokens, sums);
}

template <int Tokens> TL_INLINE void sweepBy(const Unit& unit, const float* const (&weight)[kGroups], int64_t column, int64_t columns, int64_t& token, int64_t end, float*& sums) {
  for (; end - token >= Tokens; token += Tokens, sums += Tokens * kGroups * kLanes) {
    const float* x[Tokens];
    for (int t = 0; t < Tokens; ++t) x[t] = unit.token(token + t) + column;
    tile<float, kGroups, Tokens>(weight, x, columns, sums);
  }
}

template <typename W> void manyTokens(const Unit& unit, int64_t token, int64_t tokens, std::byte* scratch) {
  auto* converted = reinterpret_cast<float*>(scratch);
  float* sums = converted + kGroups * kChunkColumns * kLanes;
  std::memset(sums, 0, size_t(tokens * kGroups * kVectorBytes));
  const int64_t all = unit.rows.weight->columns, chunk = ceilDiv(all, ceilDiv(all, kChunkColumns));
  for (int64_t column = 0; column < all; column += chunk) {
    const int64_t columns = std::min(chunk, all - column);
    const float* weight[kGroups];
    for (int g = 0; g < kGroups; ++g) {
      const W* source = unit.group<W>(g) + column * kLanes;
      if constexpr (std::is_same_v<W, float>) {
        weight[g] = source;
      } else {
        float* target = converted + g * kChunkColumns * kLanes;
        for (int64_t c = 0; c < columns; ++c) store(target + c * kLanes, load(source + c * kLanes));
        weight[g] = target;
      }
    }
    int64_t at = token;
    float* sumsAt = sums;
    if constexpr (kMaxTokens == 12) sweepBy<12>(unit, weight, column, columns, at, token + tokens, sumsAt);
    sweepBy<6>(unit, weight, column, columns, at, token + tokens, sumsAt);
    sweepBy<4>(unit, weight, column, columns, at, token + tokens, sumsAt);
    sweepBy<2>(unit, weight, column, columns, at, token + tokens, sumsAt);
    sweepBy<1>(unit, weight, column, columns, at, token + tokens, sumsAt);
  }
  unit.finishTile<kGroups>(token, tokens, sums);
}

// body(unit, i, thread) for i of `units`, tile after tile of `groups` groups.
template <typename Body> void forUnits(const MatmulRows& rows, Context& context, int64_t groupsEach, int64_t repeats, Body&& body) {
  const int64_t groups = ceilDiv(rows.weight->rows, kLanes), tiles = ceilDiv(groups, groupsEach), units = tiles * repeats;
  context.pool.parallelFor(units, std::max<int64_t>(1, units / (4 * context.pool.threads())), [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) body(Unit{rows, i % tiles * groupsEach, groups - 1}, i / tiles, thread);
  });
}

template <typename W> void matmulAs(const MatmulRows& rows, Context& context) {
  switch (rows.n) {
    case 1: return forUnits(rows, context, 8, 1, [](const Unit& unit, int64_t, int) { fewTokens<W, 8, 1>(unit); });
    case 2: return forUnits(rows, context, 4, 1, [](const Unit& unit, int64_t, int) { fewTokens<W, 4, 2>(unit); });
    case 3: return forUnits(rows, context, 4, 1, [](const Unit& unit, int64_t, int) { fewTokens<W, 4, 3>(unit); });
    default: break;
  }
  const int64_t blocks = ceilDiv(rows.n, kTokenBlock), each = ceilDiv(rows.n, blocks);
  forUnits(rows, context, kGroups, blocks, [&](const Unit& unit, int64_t block, int thread) {
    const int64_t token = block * each, tokens = std::min(each, rows.n - token);
    if (tokens > 0) manyTokens<W>(unit, token, tokens, context.pool.scratch(thread));
  });
}

}  // namespace

Status matmulFloat(const MatmulRows& rows, Context& context) {
  switch (rows.weight->format) {
    case PackFormat::float32: matmulAs<float>(rows, context); return {};
    case PackFormat::float16: matmulAs<f16>(rows, context); return {};
    case PackFormat::bfloat16: matmulAs<bf16>(rows, context); return {};
    default: return argumentError("matmul", "weight", "is not a float format", int64_t(rows.weight->format));
  }
}

}  // namespace tl::TL_TARGET
