// Squares of stored elements turned over while keys come from rows: shuffles on the narrow type cost a half or a quarter of
// those on f32. Include after target.h.
//   transposeSquare(rows, at, to)   to[c · 32 + r] = element c of rows[r] + at bytes, for kSquareRows<T> rows and
//                                   kSquareColumns<T> columns
//   kNarrowSquares                  types narrower than f32 are turned in registers too
#pragma once

namespace tl::TL_TARGET {

constexpr int64_t kSquareStride = 32;
#if defined(TL_TARGET_AVX2) || defined(TL_TARGET_AVX512) || defined(TL_TARGET_AVX512BF16)
constexpr bool kNarrowSquares = true;
#else
constexpr bool kNarrowSquares = false;
#endif
template <typename T> constexpr int kSquareRows = sizeof(T) == 4 ? kLanes : sizeof(T) == 2 ? 8 : 16;
template <typename T> constexpr int kSquareColumns = sizeof(T) == 4 ? kLanes : sizeof(T) == 2 ? 16 : 32;

TL_INLINE void transposeSquare(const std::byte* const* rows, int64_t at, float* to) {
  F32 square[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) square[i] = load(reinterpret_cast<const float*>(rows[i] + at));
  transpose(square);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) store(to + i * kSquareStride, square[i]);
}

#if (defined(TL_TARGET_AVX2) || defined(TL_TARGET_AVX512) || defined(TL_TARGET_AVX512BF16)) && !defined(TL_EMULATE_X86)
// Each round interleaves the first half of the registers with the second: the number of a register and the place within it,
// written side by side, turn by a bit. After as many rounds as a number has bits they have changed places.
template <typename T> TL_INLINE void transposeSquare(const std::byte* const* rows, int64_t at, T* to) {
  constexpr int R = kSquareRows<T>;
  const auto low = [](__m256i a, __m256i b) { return sizeof(T) == 1 ? _mm256_unpacklo_epi8(a, b) : _mm256_unpacklo_epi16(a, b); };
  const auto high = [](__m256i a, __m256i b) { return sizeof(T) == 1 ? _mm256_unpackhi_epi8(a, b) : _mm256_unpackhi_epi16(a, b); };
  __m256i square[R], next[R];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) square[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[i] + at));
#pragma GCC unroll 4
  for (int round = 1; round < R; round *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < R / 2; ++i) {
      next[2 * i] = low(square[i], square[i + R / 2]);
      next[2 * i + 1] = high(square[i], square[i + R / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) square[i] = next[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {  // a half of the columns in either half of the registers
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * kSquareStride), _mm256_castsi256_si128(square[i]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + (i + R) * kSquareStride), _mm256_extracti128_si256(square[i], 1));
  }
}
#else
template <typename T> TL_INLINE void transposeSquare(const std::byte* const* rows, int64_t at, T* to) {
  for (int r = 0; r < kSquareRows<T>; ++r)
    for (int c = 0; c < kSquareColumns<T>; ++c) std::memcpy(to + c * kSquareStride + r, rows[r] + at + c * int64_t(sizeof(T)), sizeof(T));
}
#endif

}  // namespace tl::TL_TARGET
