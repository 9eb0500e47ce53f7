// Marks the best of one or more rows of scores. Included after simd/target.h.
#pragma once

#include "rows_inl.h"
#include "select_inl.h"

namespace tl::TL_TARGET {

// One row of tokens: kept[j] is 1 for those that stay already; the rest competes.
struct Contest {
  const float* scores;
  uint8_t* kept;
  int64_t tokens;
};

inline uint32_t rankOf(float score) { return score == score ? orderedKey(score) : 0; }  // NaN comes last

// Marks the best `count` of all that compete. Radix selection, a digit a pass; equal scores: lowest row, lowest index.
template <typename Rows> void keepBest(int64_t rows, Rows&& rowAt, int64_t count) {
  if (count <= 0) return;
  int64_t histogram[kHistogram];
  uint32_t prefix = 0;
  int64_t wanted = count;  // of those with the prefix
  for (int shift = 21, bits = 11; bits > 0;) {
    std::fill(histogram, histogram + kHistogram, 0);
    for (int64_t r = 0; r < rows; ++r) {
      const Contest row = rowAt(r);
      for (int64_t j = 0; j < row.tokens; ++j) {
        const uint32_t key = rankOf(row.scores[j]);
        if (!row.kept[j] && (shift + bits == 32 || key >> (shift + bits) == prefix)) ++histogram[(key >> shift) & ((1u << bits) - 1)];
      }
    }
    int digit = (1 << bits) - 1;
    for (; digit > 0 && histogram[digit] < wanted; --digit) wanted -= histogram[digit];
    prefix = prefix << bits | uint32_t(digit);
    bits = std::min(11, shift);
    shift -= bits;
  }
  for (int64_t r = 0; r < rows; ++r) {
    const Contest row = rowAt(r);
    for (int64_t j = 0; j < row.tokens; ++j) {
      if (row.kept[j]) continue;
      const uint32_t key = rankOf(row.scores[j]);
      row.kept[j] = key > prefix || (key == prefix && wanted-- > 0);
    }
  }
}

}  // namespace tl::TL_TARGET
