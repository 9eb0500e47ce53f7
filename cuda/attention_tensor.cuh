// The streaming loop on tensor cores, for f16 and bf16 queries, keys and values: mma.sync m16n8k16, sums in f32. A block takes 64
// rows against tiles of 64 keys, double-buffered by asynchronous copies; a warp has 16 rows, its queries and its sums stay
// in registers, and weights go from the first product to the second without leaving them (arXiv 2205.14135, 2307.08691).
// A masked key's weight is 0, but it is multiplied: unlike in the f32 loop, a NaN there spoils the row.
#pragma once
#include "attention_source.cuh"

namespace tl::cuda {

constexpr int kTensorThreads = 128, kTensorRows = 64, kTensorKeys = 64;
constexpr int tensorStride(int dim) { return dim + 8; }  // rows 16 bytes apart modulo 128: ldmatrix meets no bank twice
constexpr size_t tensorBytes(int dim) { return sharedBytes<f16>(kTensorRows * tensorStride(dim)) + 4 * sharedBytes<f16>(kTensorKeys * tensorStride(dim)); }

// One tile of keys or values; past the last key, and past the head dimension, zeros. `aligned`: all rows are, to 16 bytes.
template <typename T, int kDim, Part part> __device__ __forceinline__ void fetchTile(const Problem& p, const Unit& u, int32_t first, bool aligned, T* to) {
  const auto* data = reinterpret_cast<const T*>((part == Part::keys ? p.source.keys : p.source.values).data);
  constexpr int kPieces = kDim / 8;
  for (int i = int(threadIdx.x); i < kTensorKeys * kPieces; i += kTensorThreads) {
    const int j = i / kPieces, d = i % kPieces * 8;
    const bool there = first + j < u.keys && d < p.headDim;
    const T* from = data + (there ? rowStart<part>(p, u, first + j) + d : 0);
    T* piece = to + j * tensorStride(kDim) + d;
    if (aligned) {
      copyAsync(piece, from, there);
    } else {
      for (int e = 0; e < 8; ++e) piece[e] = there && d + e < p.headDim ? from[e] : T{0};
    }
  }
}

template <typename T, int kDim, bool general> __global__ void __launch_bounds__(kTensorThreads) attendTensor(const __grid_constant__ Problem p, bool aligned) {
  constexpr int kStride = tensorStride(kDim), kSteps = kDim / 16, kBlocks = kTensorKeys / 8, kOut = kDim / 8;
  Shared shared;
  T* queries = shared.take<T>(kTensorRows * kStride);
  T* keys = shared.take<T>(2 * kTensorKeys * kStride);
  T* values = shared.take<T>(2 * kTensorKeys * kStride);
  const Unit u = openUnit(p, int(blockIdx.y));
  const int32_t firstRow = int32_t(blockIdx.x) * kTensorRows;
  if (firstRow >= u.rows) return;  // the whole block
  const int lane = laneIndex(), warp = warpIndex(), quad = lane / 4, column = lane % 4 * 2;

  const KeyRange range = keyRange(p, u, firstRow, firstRow + kTensorRows - 1);
  const auto next = [&](int32_t key) {  // the first tile from `key` on that a row may see
    if (key >= range.sinks && key + kTensorKeys <= range.from) key = range.from / kTensorKeys * kTensorKeys;
    return key < range.sinks || key < range.to ? key : u.keys;
  };
  const auto fetch = [&](int32_t key, int buffer) {
    fetchTile<T, kDim, Part::keys>(p, u, key, aligned, keys + buffer * kTensorKeys * kStride);
    fetchTile<T, kDim, Part::values>(p, u, key, aligned, values + buffer * kTensorKeys * kStride);
    commitCopies();
  };

  int32_t key = next(0);
  if (key < u.keys) fetch(key, 0);
  const auto* from = reinterpret_cast<const T*>(p.query.data);
  for (int i = int(threadIdx.x); i < kTensorRows * kDim; i += kTensorThreads) {
    const int r = i / kDim, d = i % kDim;
    const Row row = openRow(p, u, firstRow + r);
    queries[r * kStride + d] = row.valid && d < p.headDim ? from[p.query.at(u.batch, row.head, u.firstQuery + row.query) + d] : T{0};
  }
  __syncthreads();
  uint32_t q[kSteps][4];
#pragma unroll
  for (int k = 0; k < kSteps; ++k) loadMatrix<false>(q[k], queries + (warp * 16 + lane % 16) * kStride + k * 16 + lane / 16 * 8);

  const Row rows[2] = {openRow(p, u, firstRow + warp * 16 + quad), openRow(p, u, firstRow + warp * 16 + quad + 8)};
  float maximum[2] = {-TL_INFINITY, -TL_INFINITY}, sum[2] = {0, 0}, out[kOut][4];
#pragma unroll
  for (int n = 0; n < kOut; ++n) out[n][0] = out[n][1] = out[n][2] = out[n][3] = 0;

  for (int buffer = 0; key < u.keys; buffer ^= 1) {
    const int32_t later = next(key + kTensorKeys);
    if (later < u.keys) {
      fetch(later, buffer ^ 1);
      waitCopies<1>();
    } else {
      waitCopies<0>();
    }
    __syncthreads();
    const T* k0 = keys + buffer * kTensorKeys * kStride;
    const T* v0 = values + buffer * kTensorKeys * kStride;
    float s[kBlocks][4];
#pragma unroll
    for (int n = 0; n < kBlocks; n += 2) {
      s[n][0] = s[n][1] = s[n][2] = s[n][3] = s[n + 1][0] = s[n + 1][1] = s[n + 1][2] = s[n + 1][3] = 0;
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        uint32_t b[4];
        loadMatrix<false>(b, k0 + (n * 8 + lane % 8 + lane / 16 * 8) * kStride + k * 16 + lane / 8 % 2 * 8);
        multiply<T>(s[n], q[k], {b[0], b[1]});
        multiply<T>(s[n + 1], q[k], {b[2], b[3]});
      }
    }
    float top[2] = {maximum[0], maximum[1]};
    unsigned seen = 0;  // of this lane's 32 scores
#pragma unroll
    for (int n = 0; n < kBlocks; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float x;
        bool sees;
        if constexpr (general) sees = scoreByCall(p, u, rows[i / 2], key + n * 8 + column + i % 2, s[n][i], x);
        else sees = score<false>(p, u, rows[i / 2], key + n * 8 + column + i % 2, s[n][i], x);
        s[n][i] = x;
        seen |= unsigned(sees) << (n * 4 + i);
        top[i / 2] = max(top[i / 2], x);
      }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      top[h] = max(top[h], shuffleXor(top[h], 1));
      top[h] = max(top[h], shuffleXor(top[h], 2));
      const float factor = correction(maximum[h], top[h]);
      maximum[h] = top[h];
      sum[h] *= factor;
#pragma unroll
      for (int n = 0; n < kOut; ++n) out[n][2 * h] *= factor, out[n][2 * h + 1] *= factor;
    }
#pragma unroll
    for (int n = 0; n < kBlocks; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[n][i] = weight(seen >> (n * 4 + i) & 1, s[n][i], maximum[i / 2]);
        sum[i / 2] += s[n][i];
      }
#pragma unroll
    for (int k = 0; k < kTensorKeys / 16; ++k) {
      const uint32_t a[4] = {packPair<T>(s[2 * k][0], s[2 * k][1]), packPair<T>(s[2 * k][2], s[2 * k][3]), packPair<T>(s[2 * k + 1][0], s[2 * k + 1][1]),
                             packPair<T>(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
      for (int n = 0; n < kOut; n += 2) {
        uint32_t b[4];
        loadMatrix<true>(b, v0 + (k * 16 + lane % 16) * kStride + n * 8 + lane / 16 * 8);
        multiply<T>(out[n], a, {b[0], b[1]});
        multiply<T>(out[n + 1], a, {b[2], b[3]});
      }
    }
    __syncthreads();
    key = later;
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    sum[h] += shuffleXor(sum[h], 1);
    sum[h] += shuffleXor(sum[h], 2);
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (!rows[h].valid) continue;
    const float factor = closeRow(p, rows[h].head, maximum[h], sum[h]);
    const int64_t at = p.out.at(u.batch, rows[h].head, u.firstQuery + rows[h].query);
#pragma unroll
    for (int n = 0; n < kOut; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (n * 8 + column + i < p.valueDim) storeElement(p.out.data, p.out.dtype, at + n * 8 + column + i, factor == 0 ? 0.0f : out[n][2 * h + i] * factor);
    if (column == 0 && p.logSumExp.data)
      reinterpret_cast<float*>(p.logSumExp.data)[p.logSumExp.at(u.batch, rows[h].head, u.firstQuery + rows[h].query)] = logSumExpOf(maximum[h], sum[h]);
  }
}

}  // namespace tl::cuda
