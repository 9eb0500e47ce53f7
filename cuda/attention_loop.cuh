// The streaming loop in f32 on plain multiply-adds: any element type, any source, any mask, any head dimension. A block takes
// 16 rows (queries of the heads that share a key/value head) against tiles of 32 keys: a warp has four rows, its lanes are keys
// while scores are formed and dimensions while values are summed. Online softmax (arXiv 2205.14135).
#pragma once
#include "attention_source.cuh"

namespace tl::cuda {

constexpr int kLoopThreads = 128, kLoopWarps = kLoopThreads / kWarp, kWarpRows = 4, kLoopRows = kLoopWarps * kWarpRows, kLoopKeys = 32;

__host__ __device__ constexpr int keyStride(int headDim) { return headDim | 1; }  // odd: lanes that read one column meet no bank twice
inline size_t loopBytes(int headDim, int valueDim) {
  return sharedBytes<float>(kLoopRows * headDim) + sharedBytes<float>(kLoopKeys * keyStride(headDim)) + sharedBytes<float>(kLoopKeys * valueDim) +
         sharedBytes<float>(kLoopRows * kLoopKeys) + sharedBytes<int>(kLoopWarps);
}

// Queries of rows first … to `to` [kLoopRows][headDim]; rows past the end are zero.
__device__ inline void loadQueries(const Problem& p, const Unit& u, int32_t first, int32_t rowStep, float* to) {
  for (int r = warpIndex(); r < kLoopRows; r += kLoopWarps) {
    const Row row = openRow(p, u, first + r * rowStep);
    const int64_t at = p.query.at(u.batch, row.head, u.firstQuery + row.query);
    for (int d = laneIndex(); d < p.headDim; d += kWarp) to[r * p.headDim + d] = row.valid ? loadElement(p.query.data, p.query.dtype, at + d) : 0.0f;
  }
}

// dot[r] = queries [warp's rows] · this lane's key.
__device__ __forceinline__ void scoreKeys(const float* queries, const float* keys, int headDim, float (&dot)[kWarpRows]) {
  const float* q = queries + warpIndex() * kWarpRows * headDim;
  const float* k = keys + laneIndex() * keyStride(headDim);
  for (int r = 0; r < kWarpRows; ++r) dot[r] = 0;
  for (int d = 0; d < headDim; ++d) {
    const float x = k[d];
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) dot[r] = fmaf(q[r * headDim + d], x, dot[r]);
  }
}

// Part `split` of the keys, or all of them: grid (row tiles, units, splits). kColumns · 32 ≥ valueDim.
template <int kColumns, bool general> __global__ void __launch_bounds__(kLoopThreads, 3) attendRows(Problem p) {
  Shared shared;
  float* queries = shared.take<float>(kLoopRows * p.headDim);
  float* keys = shared.take<float>(kLoopKeys * keyStride(p.headDim));
  float* values = shared.take<float>(kLoopKeys * p.valueDim);
  float* weights = shared.take<float>(kLoopRows * kLoopKeys);
  int* seenBy = shared.take<int>(kLoopWarps);
  const Unit u = openUnit(p, int(blockIdx.y));
  const int32_t firstRow = int32_t(blockIdx.x) * kLoopRows;
  if (firstRow >= u.rows) return;  // the whole block
  const int lane = laneIndex(), warp = warpIndex();
  float* w = weights + warp * kWarpRows * kLoopKeys;
  Row rows[kWarpRows];
  float maximum[kWarpRows], sum[kWarpRows], out[kWarpRows][kColumns];
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    rows[r] = openRow(p, u, firstRow + warp * kWarpRows + r);
    maximum[r] = -TL_INFINITY;
    sum[r] = 0;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) out[r][c] = 0;
  }
  loadQueries(p, u, firstRow, 1, queries);
  const KeyRange range = keyRange(p, u, firstRow, firstRow + kLoopRows - 1);
  const int32_t begin = p.splits > 1 ? int32_t(blockIdx.z) * p.splitKeys : 0, end = p.splits > 1 ? min(begin + p.splitKeys, u.keys) : u.keys;
  for (int32_t key = begin; key < end; key += kLoopKeys) {
    if (key >= range.sinks && (key >= range.to || key + kLoopKeys <= range.from)) continue;
    if constexpr (general) {  // does any row see any of these keys?
      unsigned any = 0;
      for (int r = 0; r < kWarpRows; ++r) any |= ballot(sees(p, u, rows[r], key + lane));
      if (lane == 0) seenBy[warp] = any != 0;
      __syncthreads();
      int seen = 0;
      for (int i = 0; i < kLoopWarps; ++i) seen |= seenBy[i];
      __syncthreads();
      if (!seen) continue;
    }
    loadRows<Part::keys>(p, u, key, kLoopKeys, p.headDim, keys, keyStride(p.headDim));
    loadRows<Part::values>(p, u, key, kLoopKeys, p.valueDim, values, p.valueDim);
    __syncthreads();
    float dot[kWarpRows];
    unsigned visible[kWarpRows];
    scoreKeys(queries, keys, p.headDim, dot);
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      float s;
      const bool seen = score<general>(p, u, rows[r], key + lane, dot[r], s);
      visible[r] = ballot(seen);
      const float top = max(maximum[r], warpMax(s)), factor = correction(maximum[r], top), x = weight(seen, s, top);
      maximum[r] = top;
      sum[r] = sum[r] * factor + x;
      w[r * kLoopKeys + lane] = x;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) out[r][c] *= factor;
    }
    __syncwarp();
    for (int j = 0; j < kLoopKeys; ++j) {
      float v[kColumns];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) v[c] = c * kWarp + lane < p.valueDim ? values[j * p.valueDim + c * kWarp + lane] : 0.0f;
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) {
        if (!(visible[r] >> j & 1)) continue;  // a NaN that a row does not see stays unseen
#pragma unroll
        for (int c = 0; c < kColumns; ++c) out[r][c] = fmaf(w[r * kLoopKeys + j], v[c], out[r][c]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    float total = warpSum(sum[r]), top = maximum[r];
    if (!rows[r].valid) continue;  // no warp operation follows
    if (p.splits > 1) {
      float* to = p.partial + ((int64_t(blockIdx.y) * p.splits + blockIdx.z) * p.mostRows + firstRow + warp * kWarpRows + r) * (p.valueDim + 2);
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
        if (c * kWarp + lane < p.valueDim) to[c * kWarp + lane] = out[r][c];
      if (lane == 0) to[p.valueDim] = top, to[p.valueDim + 1] = total;
      continue;
    }
    const float factor = closeRow(p, rows[r].head, top, total);
    const int64_t at = p.out.at(u.batch, rows[r].head, u.firstQuery + rows[r].query);
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
      if (c * kWarp + lane < p.valueDim) storeElement(p.out.data, p.out.dtype, at + c * kWarp + lane, factor == 0 ? 0.0f : out[r][c] * factor);
    if (lane == 0 && p.logSumExp.data)
      reinterpret_cast<float*>(p.logSumExp.data)[p.logSumExp.at(u.batch, rows[r].head, u.firstQuery + rows[r].query)] = logSumExpOf(top, total);
  }
}

// The parts of a row become one, in order of keys: grid (rows, units), lanes are dimensions.
__global__ void __launch_bounds__(kLoopThreads) mergeSplits(Problem p) {
  const Unit u = openUnit(p, int(blockIdx.y));
  const Row row = openRow(p, u, int32_t(blockIdx.x));
  if (!row.valid) return;
  const int64_t step = int64_t(p.mostRows) * (p.valueDim + 2);
  const float* from = p.partial + (int64_t(blockIdx.y) * p.splits * p.mostRows + blockIdx.x) * (p.valueDim + 2);
  float top = -TL_INFINITY, total = 0;
  for (int i = 0; i < p.splits; ++i) top = max(top, from[i * step + p.valueDim]);
  for (int i = 0; i < p.splits; ++i) total += from[i * step + p.valueDim + 1] * shareOf(from[i * step + p.valueDim], from[i * step + p.valueDim + 1], top);
  float maximum = top;
  const float factor = closeRow(p, row.head, maximum, total);
  const int64_t at = p.out.at(u.batch, row.head, u.firstQuery + row.query);
  for (int d = int(threadIdx.x); d < p.valueDim; d += int(blockDim.x)) {
    float sum = 0;
    for (int i = 0; i < p.splits; ++i) sum = fmaf(from[i * step + d], shareOf(from[i * step + p.valueDim], from[i * step + p.valueDim + 1], top), sum);
    storeElement(p.out.data, p.out.dtype, at + d, factor == 0 ? 0.0f : sum * factor);
  }
  if (threadIdx.x == 0 && p.logSumExp.data)
    reinterpret_cast<float*>(p.logSumExp.data)[p.logSumExp.at(u.batch, row.head, u.firstQuery + row.query)] = logSumExpOf(maximum, total);
}

// columnSums[head][key] = Σ over the last columnQueries queries of their weights, scores formed once more: grid (key tiles,
// units, heads of the group). Warps take four queries each; their sums are added in order.
template <bool general> __global__ void __launch_bounds__(kLoopThreads, 4) sumColumns(Problem p) {
  Shared shared;
  float* queries = shared.take<float>(kLoopRows * p.headDim);
  float* keys = shared.take<float>(kLoopKeys * keyStride(p.headDim));
  float* sums = shared.take<float>(kLoopWarps * kLoopKeys);
  const Unit u = openUnit(p, int(blockIdx.y));
  const int32_t key = int32_t(blockIdx.x) * kLoopKeys;
  if (key >= u.keys) return;
  const int lane = laneIndex(), warp = warpIndex();
  loadRows<Part::keys>(p, u, key, kLoopKeys, p.headDim, keys, keyStride(p.headDim));
  float sum = 0;
  for (int32_t query = max(u.queries - p.columnQueries, 0); query < u.queries; query += kLoopRows) {
    const int32_t first = query * p.group + int32_t(blockIdx.z);
    loadQueries(p, u, first, p.group, queries);
    __syncthreads();
    float dot[kWarpRows];
    scoreKeys(queries, keys, p.headDim, dot);
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const Row row = openRow(p, u, first + (warp * kWarpRows + r) * p.group);
      float s;
      if (!score<general>(p, u, row, key + lane, dot[r], s)) continue;
      const float logSumExp = reinterpret_cast<const float*>(p.logSumExp.data)[p.logSumExp.at(u.batch, row.head, u.firstQuery + row.query)];
      if (logSumExp != -TL_INFINITY) sum += exp2Fast(s - logSumExp * kLog2E);
    }
    __syncthreads();
  }
  sums[warp * kLoopKeys + lane] = sum;
  __syncthreads();
  if (warp != 0 || key + lane >= u.keys) return;
  for (int i = 1; i < kLoopWarps; ++i) sum += sums[i * kLoopKeys + lane];
  reinterpret_cast<float*>(p.columnSums.data)[p.columnSums.at(u.batch, u.kvHead * p.group + blockIdx.z, u.firstKey + key + lane)] = sum;
}

}  // namespace tl::cuda
