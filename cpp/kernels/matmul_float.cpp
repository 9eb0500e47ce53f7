// out[token, row] = Σ_column x[token, column] · w[row, column] + bias[row] + residual[token, row], x f32 and w f32, f16 or
// bf16. Lanes are rows; each sum takes its columns in ascending order, one fused multiply-add each, from 0: in every path
// below, so a result depends neither on how many tokens come together nor on the number of threads.
#include "../simd/target.h"
#include "float_tile_inl.h"
#include "matmul_inl.h"

namespace tl::TL_TARGET {
namespace {

constexpr int64_t kTokenBlock = 96;                               // tokens under which weights pass from further away
constexpr int64_t kChunkBytes = 16384;                            // weights of a tile that stay in L1 under all tokens
constexpr int64_t kSumsFloats = kTokenBlock * kGroups * kLanes;    // of scratch; then come the tokens' panels
constexpr int64_t kSpreadBelow = 48;                              // fewer tokens: bound by memory rather than arithmetic

// One unit of work: some groups by a range of tokens.
struct Unit {
  const MatmulRows& rows;
  int64_t firstGroup, step, groups;  // a tile takes groups firstGroup, firstGroup + step … of `groups` in all
  int64_t ahead;                     // bytes

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
// after the last one. x is the tile's panel, [all columns][Tokens].
template <typename W, int Groups, int Tokens>
TL_NOINLINE void sweepTile(const Unit& unit, const W* const (&weight)[Groups], const float* x, int64_t column, int64_t columns, int64_t token, float* sums) {
  if (column == 0) std::memset(sums, 0, size_t(Tokens * Groups * kVectorBytes));
  tile<Dot, W, Groups, Tokens>(weight, x + column * Tokens, columns, unit.ahead / int64_t(sizeof(W)), sums);
  const bool last = column + columns == unit.rows.weight->columns;
  for (int t = 0; last && t < Tokens; ++t)
    for (int g = 0; g < Groups; ++g) unit.finishGroup(token + t, g, load(sums + (t * Groups + g) * kLanes));
}

// Most tokens of a tile, and those of the next tile where so many are left: the rest is cut into tiles of about one size.
template <int Groups> constexpr int kMostTokens = Groups == kGroups ? 6 : Groups <= 4 ? 3 : 1;
template <int Groups> int64_t tokensOfTile(int64_t left) {
  if (Groups == kGroups && left >= kTileTokens) return kTileTokens;
  return ceilDiv(left, ceilDiv(left, kMostTokens<Groups>));
}

// The panels of tokens [token, token + tokens), tile by tile.
template <int Groups> const float* packTokens(const Unit& unit, int64_t token, int64_t tokens, float* panels) {
  if (tokens == 1) return unit.token(token);  // is its own panel
  const int64_t columns = unit.rows.weight->columns;
  for (int64_t done = 0; done < tokens;) {
    const int64_t size = tokensOfTile<Groups>(tokens - done);
    const float* row[kTileTokens];
    for (int64_t t = 0; t < size; ++t) row[t] = unit.token(token + done + t);
    packRows(row, size, size, columns, 1, panels + done * columns);
    done += size;
  }
  return panels;
}

template <typename W, int Groups>
void sweepTokens(const Unit& unit, const W* const (&weight)[Groups], const float* x, int64_t column, int64_t columns, int64_t token, int64_t tokens, float* sums) {
  const auto run = [&]<int Tokens>(std::integral_constant<int, Tokens>) {
    sweepTile<W, Groups, Tokens>(unit, weight, x, column, columns, token, sums);
    token += Tokens, tokens -= Tokens, sums += Tokens * Groups * kLanes, x += Tokens * unit.rows.weight->columns;
  };
  constexpr int kMost = kMostTokens<Groups>;
  while (tokens > 0) {
    switch (tokensOfTile<Groups>(tokens)) {
      case 1: run(std::integral_constant<int, 1>{}); break;
      case 2: run(std::integral_constant<int, std::min(2, kMost)>{}); break;
      case 3: run(std::integral_constant<int, std::min(3, kMost)>{}); break;
      case 4: run(std::integral_constant<int, std::min(4, kMost)>{}); break;
      case 5: run(std::integral_constant<int, std::min(5, kMost)>{}); break;
      case 6: run(std::integral_constant<int, kMost>{}); break;
      default: run(std::integral_constant<int, Groups == kGroups ? kTileTokens : kMost>{}); break;
    }
  }
}

template <typename W, int Groups> void sweep(const Unit& unit, const float* x, int64_t token, int64_t tokens, float* sums) {
  constexpr int64_t kMost = kChunkBytes / (Groups * kLanes * int64_t(sizeof(W)));
  const int64_t all = unit.rows.weight->columns, size = tokens <= kTileTokens ? all : ceilDiv(all, ceilDiv(all, kMost));
  for (int64_t column = 0; column < all; column += size) {
    const W* weight[Groups];
    for (int g = 0; g < Groups; ++g) weight[g] = unit.group<W>(g) + column * kLanes;
    sweepTokens<W, Groups>(unit, weight, x, column, std::min(size, all - column), token, tokens, sums);
  }
  if (unit.rows.activation != 0)
    for (int g = 0; g < Groups; ++g) activateGroup(unit.rows, unit.firstGroup + g * unit.step, token, tokens);
}

template <typename W, int Groups> void matmulBy(const MatmulRows& rows, Context& context) {
  const int64_t groups = ceilDiv(rows.weight->rows, kLanes), tiles = ceilDiv(groups, Groups);
  const int64_t fit = (int64_t(kScratchBytes / sizeof(float)) - kSumsFloats - kLanes) / std::max<int64_t>(rows.weight->columns, 1);
  const int64_t block = std::clamp<int64_t>(fit, 1, kTokenBlock), tokenBlocks = ceilDiv(rows.n, block), units = tiles * tokenBlocks;
  // Whole tiles: only the last block has smaller ones.
  const int64_t each = std::min(block, roundUp(ceilDiv(rows.n, tokenBlocks), kTileTokens));
  // Bound by memory, a tile takes its groups far apart, so that a core reads several long streams at once.
  const bool spread = rows.n < kSpreadBelow;
  const auto spaceOf = [&](int thread) { return reinterpret_cast<float*>(context.pool.scratch(thread)); };
  // One block is laid out once for all threads; else each thread lays out the block it comes to.
  const float* only = tokenBlocks == 1 ? packTokens<Groups>(Unit{rows, 0, 1, groups, 0}, 0, rows.n, spaceOf(0) + kSumsFloats) : nullptr;
  context.pool.parallelFor(units, std::max<int64_t>(1, units / (16 * context.pool.threads())), [&](int64_t begin, int64_t end, int thread) {
    float* sums = spaceOf(thread);
    const float* x = only;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t token = i / tiles * each, tokens = std::min(each, rows.n - token);
      if (tokens <= 0) continue;
      const Unit unit{rows, spread ? i : i % tiles * Groups, spread ? tiles : 1, groups, spread ? kAheadBytes : 0};
      if (!only && (i == begin || i % tiles == 0)) x = packTokens<Groups>(unit, token, tokens, sums + kSumsFloats);
      sweep<W, Groups>(unit, x, token, tokens, sums);
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
