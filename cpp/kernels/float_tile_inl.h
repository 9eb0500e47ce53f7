// The tile that all products of f32 rows share: some tokens by some groups of kLanes rows, whose elements lie side by side.
// Included after simd/target.h.
#pragma once

#if defined(TL_TARGET_SCALAR) || defined(TL_EMULATE_X86)
#define TL_UNROLL  // vectors are loops themselves here: unrolling these as well takes the compiler minutes
#else
#define TL_UNROLL _Pragma("GCC unroll 16")
#endif

// Keeps a tile a function of its own: inlined into a large one, its sums would not stay in registers.
#define TL_NOINLINE __attribute__((noinline))

namespace tl::TL_TARGET {

constexpr int kGroups = kLanes <= 4 ? 4 : 2;  // groups of a tile: with its tokens they fill the registers
constexpr int kTileTokens = kVectors >= 32 && kLanes > 4 ? 12 : 6;  // most tokens of a tile of kGroups groups

// What a tile adds up: products, or squares of differences.
struct Dot {
  TL_INLINE static F32 add(F32 sum, F32 a, F32 b) { return mulAdd(a, b, sum); }
};
struct SquaredDifference {
  TL_INLINE static F32 add(F32 sum, F32 a, F32 b) {
    const F32 difference = sub(a, b);
    return mulAdd(difference, difference, sum);
  }
};

// Rows side by side, as [columns][width], times `scale`: a tile reads them by one pointer. Of `width` rows `count` are there, the rest
// are zero. Writes up to kLanes floats past the end.
template <typename T> void packRows(const T* const* row, int64_t count, int64_t width, int64_t columns, float scale, float* to) {
  const F32 factor = broadcast(scale);
  for (int64_t column = 0; column < columns; column += kLanes) {
    const int64_t part = std::min<int64_t>(columns - column, kLanes), first = column * width;
    for (int64_t square = 0; square < width; square += kLanes) {
      F32 rows[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        if (square + i >= count) rows[i] = zero();
        else rows[i] = mul(part == kLanes ? load(row[square + i] + column) : loadPart(row[square + i] + column, int(part)), factor);
      }
      transpose(rows);
      // What reaches past a column's rows is overwritten by the next square or column.
      const int64_t left = width - square;
      for (int64_t i = 0; i < part; ++i) {
        if (left >= kLanes || square == 0) store(to + first + i * width + square, rows[i]);
        else storePart(to + first + i * width + square, rows[i], int(left));
      }
    }
  }
}

// sums[Tokens][Groups][kLanes] += columns terms, in ascending order. weight[g] is [columns][kLanes], x [columns][Tokens].
// Fetches the weights that lie `ahead` elements behind those it reads: the processor alone fetches too late.
template <typename Term, typename W, int Groups, int Tokens>
TL_INLINE void tile(const W* const (&weight)[Groups], const float* x, int64_t columns, int64_t ahead, float* sums) {
  F32 sum[Tokens][Groups];
  TL_UNROLL for (int t = 0; t < Tokens; ++t) TL_UNROLL for (int g = 0; g < Groups; ++g) sum[t][g] = load(sums + (t * Groups + g) * kLanes);
  for (int64_t column = 0; column < columns; ++column, x += Tokens) {
    TL_UNROLL for (int g = 0; g < Groups; ++g) prefetch(weight[g] + column * kLanes + ahead);
    if constexpr (Groups > Tokens) {  // what there is less of stays in registers
      F32 value[Tokens];
      TL_UNROLL for (int t = 0; t < Tokens; ++t) value[t] = broadcast(x[t]);
      TL_UNROLL for (int g = 0; g < Groups; ++g) {
        const F32 w = load(weight[g] + column * kLanes);
        TL_UNROLL for (int t = 0; t < Tokens; ++t) sum[t][g] = Term::add(sum[t][g], w, value[t]);
      }
    } else {
      F32 w[Groups];
      TL_UNROLL for (int g = 0; g < Groups; ++g) w[g] = load(weight[g] + column * kLanes);
      TL_UNROLL for (int t = 0; t < Tokens; ++t) {
        const F32 value = broadcast(x[t]);
        TL_UNROLL for (int g = 0; g < Groups; ++g) sum[t][g] = Term::add(sum[t][g], w[g], value);
      }
    }
  }
  TL_UNROLL for (int t = 0; t < Tokens; ++t) TL_UNROLL for (int g = 0; g < Groups; ++g) store(sums + (t * Groups + g) * kLanes, sum[t][g]);
}

}  // namespace tl::TL_TARGET
