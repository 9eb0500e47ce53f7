// out[token, row] = Σ_column x[token, column] · w[row, column] + bias[row] + residual[token, row], x f32 and w f32, f16 or
// bf16. Lanes are rows; each sum takes its columns in ascending order, one fused multiply-add each, from 0: in every path
// below, so a result depends neither on how many tokens come together nor on the number of threads.
#include "../simd/target.h"
#include "float_tile_inl.h"
#include "matmul_inl.h"

namespace tl::TL_TARGET {
namespace {

constexpr int64_t kTokenBlock = 48;                               // tokens whose activations and outputs stay close
constexpr int64_t kChunkBytes = 16384;                            // weights of a tile that stay in L1 under all tokens
constexpr int64_t kSpreadBelow = 8;                               // fewer tokens: bound by memory rather than arithmetic

// One unit of work: some groups by a range of tokens.
struct Unit {
  const MatmulRows& rows;
  int64_t firstGroup, step, groups;  // a tile takes groups firstGroup, firstGroup + step … of `groups` in all

  // A tile that reaches past the end computes the last group again, and drops it.
  template <typename W> const W* group(int g) const {
    return reinterpret_cast<const W*>(rows.weight->buffer.as() + std::min(firstGroup + g * step, groups - 1) * rows.weight->groupBytes);
  }
  const float* token(int64_t t) const { return reinterpret_cast<const float*>(rows.x + t * rows.xStride); }
  void finishGroup(int64_t token, int g, F32 sum) const {
    if (firstGroup + g * step < groups) finish(rows, token, firstGroup + g * step, sum);
  }
};

// One tile over columns [column, column + columns). Its sums [Tokens][Groups][kLanes] are unset before column 0, and leave
// after the last one.
template <typename W, int Groups, int Tokens>
TL_NOINLINE void sweepTile(const Unit& unit, const W* const (&weight)[Groups], int64_t column, int64_t columns, int64_t token, float* sums) {
  const float* x[Tokens];
  for (int t = 0; t < Tokens; ++t) x[t] = unit.token(token + t) + column;
  if (column == 0) std::memset(sums, 0, size_t(Tokens * Groups * kVectorBytes));
  tile<Dot, W, Groups, Tokens>(weight, x, columns, sums);
  const bool last = column + columns == unit.rows.weight->columns;
  for (int t = 0; last && t < Tokens; ++t)
    for (int g = 0; g < Groups; ++g) unit.finishGroup(token + t, g, load(sums + (t * Groups + g) * kLanes));
}

template <typename W, int Groups> void sweepTokens(const Unit& unit, const W* const (&weight)[Groups], int64_t column, int64_t columns, int64_t token, int64_t tokens, float* sums) {
  const auto run = [&]<int Tokens>(std::integral_constant<int, Tokens>) {
    sweepTile<W, Groups, Tokens>(unit, weight, column, columns, token, sums);
    token += Tokens, tokens -= Tokens, sums += Tokens * Groups * kLanes;
  };
  if constexpr (kTileTokens == 12 && Groups == kGroups)
    while (tokens >= 12) run(std::integral_constant<int, 12>{});
  constexpr int kMost = Groups == kGroups ? 6 : Groups <= 4 ? 3 : 1;
  while (tokens > 0) {
    switch (ceilDiv(tokens, ceilDiv(tokens, kMost))) {  // the rest in tiles of about one size
      case 1: run(std::integral_constant<int, 1>{}); break;
      case 2: run(std::integral_constant<int, std::min(2, kMost)>{}); break;
      case 3: run(std::integral_constant<int, std::min(3, kMost)>{}); break;
      case 4: run(std::integral_constant<int, std::min(4, kMost)>{}); break;
      case 5: run(std::integral_constant<int, std::min(5, kMost)>{}); break;
      default: run(std::integral_constant<int, kMost>{}); break;
    }
  }
}

template <typename W, int Groups> void sweep(const Unit& unit, int64_t token, int64_t tokens, std::byte* scratch) {
  constexpr int64_t kMost = kChunkBytes / (Groups * kLanes * int64_t(sizeof(W)));
  const int64_t all = unit.rows.weight->columns, size = tokens <= kTileTokens ? all : ceilDiv(all, ceilDiv(all, kMost));
  for (int64_t column = 0; column < all; column += size) {
    const W* weight[Groups];
    for (int g = 0; g < Groups; ++g) weight[g] = unit.group<W>(g) + column * kLanes;
    sweepTokens<W, Groups>(unit, weight, column, std::min(size, all - column), token, tokens, reinterpret_cast<float*>(scratch));
  }
  if (unit.rows.activation != 0)
    for (int g = 0; g < Groups; ++g) activateGroup(unit.rows, unit.firstGroup + g * unit.step, token, tokens);
}

template <typename W, int Groups> void matmulBy(const MatmulRows& rows, Context& context) {
  const int64_t groups = ceilDiv(rows.weight->rows, kLanes), tiles = ceilDiv(groups, Groups);
  const int64_t tokenBlocks = ceilDiv(rows.n, kTokenBlock), units = tiles * tokenBlocks;
  const int64_t each = roundUp(ceilDiv(rows.n, tokenBlocks), kTileTokens);  // whole tiles: only the last block has smaller ones
  // Bound by memory, a tile takes its groups far apart, so that a core reads several long streams at once.
  const bool spread = rows.n < kSpreadBelow;
  context.pool.parallelFor(units, std::max<int64_t>(1, units / (4 * context.pool.threads())), [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t token = i / tiles * each, tokens = std::min(each, rows.n - token);
      const Unit unit{rows, spread ? i : i % tiles * Groups, spread ? tiles : 1, groups};
      if (tokens > 0) sweep<W, Groups>(unit, token, tokens, context.pool.scratch(thread));
    }
  });
}

// Few tokens take many groups: the chains of multiply-adds must overlap.
template <typename W> void matmulAs(const MatmulRows& rows, Context& context) {
  if (rows.n == 1) matmulBy<W, 8>(rows, context);
  else if (rows.n <= 3) matmulBy<W, 4>(rows, context);
  else matmulBy<W, kGroups>(rows, context);
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
