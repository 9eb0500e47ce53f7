// The largest of a row, by radix descent on order-preserving keys: four passes of 256 bins count whole numbers in shared
// memory, so the answer depends on no order. Reached by all threads of a block of kSelectThreads.
#pragma once
#include "core/rows.cuh"

namespace tl::cuda {

constexpr int kSelectThreads = 256;

// Larger numbers have larger keys; NaN has the smallest. −0 and 0 are one.
__device__ __forceinline__ uint32_t orderKey(float x) {
  if (x != x) return 0;
  const uint32_t bits = __float_as_uint(x == 0 ? 0.0f : x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float keyValue(uint32_t key) { return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

// What is kept: keys above `key`, and of those equal to it as many as `equal`, lowest index first.
struct Cut {
  uint32_t key;
  unsigned long long equal;
};

struct CutScratch {
  unsigned long long bins[256];
  unsigned long long left, equal;
  uint32_t prefix;
};

// The smallest set of largest elements whose weights reach `wanted` ≥ 1; elements 0 … n − 1 have key(i) and weight(i), whole
// numbers; a weight depends on the key alone. All are kept where the total is less.
template <typename Key, typename Weight>
__device__ Cut cutAt(int64_t n, unsigned long long wanted, CutScratch* scratch, Key key, Weight weight) {
  const int thread = int(threadIdx.x);
  if (thread == 0) scratch->prefix = 0, scratch->left = wanted, scratch->equal = 0;
  uint32_t mask = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = thread; i < 256; i += int(blockDim.x)) scratch->bins[i] = 0;
    __syncthreads();
    const uint32_t prefix = scratch->prefix;
    for (int64_t i = thread; i < n; i += blockDim.x) {
      const uint32_t k = key(i);
      if ((k & mask) == prefix) atomicAdd(&scratch->bins[k >> shift & 255], weight(i));
    }
    __syncthreads();
    if (thread == 0) {
      unsigned long long left = scratch->left;
      int bin = 255, last = -1;
      for (; bin >= 0; --bin) {
        if (scratch->bins[bin] == 0) continue;
        last = bin;
        if (scratch->bins[bin] >= left) break;
        left -= scratch->bins[bin];
      }
      if (bin < 0) bin = last < 0 ? 0 : last, left = scratch->bins[bin];  // less than wanted in all: down to the smallest
      scratch->prefix = prefix | uint32_t(bin) << shift;
      scratch->left = left;
    }
    mask |= 255u << shift;
    __syncthreads();
  }
  const Cut cut{scratch->prefix, scratch->left};
  __syncthreads();
  return cut;  // `equal` counts weights here: see callers
}

// The k largest, equal ones by lowest index: how many of the elements equal to the k-th are kept is Cut::equal.
template <typename Key> __device__ Cut cutAtCount(int64_t n, int64_t k, CutScratch* scratch, Key key) {
  return cutAt(n, static_cast<unsigned long long>(k), scratch, key, [](int64_t) { return 1ull; });
}

// Calls take(i) for each kept element that competes, by one thread each; equal ones by lowest index, found a block of elements at a time.
// counts: kSelectThreads / 32 + 1 numbers of shared memory.
template <typename Key, typename Take, typename Competes> __device__ void forKept(int64_t n, Cut cut, int* counts, Key key, Take take, Competes competes) {
  const int lane = laneIndex(), warp = warpIndex(), warps = int(blockDim.x) / kWarp;
  unsigned long long seen = 0;
  for (int64_t first = 0; first < n; first += blockDim.x) {
    const int64_t i = first + threadIdx.x;
    const bool in = i < n && competes(i);
    const uint32_t k = in ? key(i) : 0;
    const bool equal = in && k == cut.key;
    const unsigned votes = ballot(equal);
    if (lane == 0) counts[warp] = __popc(votes);
    __syncthreads();
    unsigned long long before = seen + static_cast<unsigned>(__popc(votes & ((1u << lane) - 1)));
    for (int w = 0; w < warps; ++w) {
      if (w < warp) before += static_cast<unsigned>(counts[w]);
      seen += static_cast<unsigned>(counts[w]);
    }
    if (in && (k > cut.key || (equal && before < cut.equal))) take(i);
    __syncthreads();
  }
}
template <typename Key, typename Take> __device__ void forKept(int64_t n, Cut cut, int* counts, Key key, Take take) {
  forKept(n, cut, counts, key, take, [](int64_t) { return true; });
}

// Key and index as one number that falls with the index: equal keys come in order of index.
__device__ __forceinline__ unsigned long long candidate(uint32_t key, uint32_t index) { return static_cast<unsigned long long>(key) << 32 | ~index; }
__device__ __forceinline__ uint32_t candidateIndex(unsigned long long c) { return ~static_cast<uint32_t>(c); }
__device__ __forceinline__ uint32_t candidateKey(unsigned long long c) { return static_cast<uint32_t>(c >> 32); }

// Falling order; `count` ≤ kMostCandidates numbers in shared memory, room for the next power of two.
__device__ inline void sortFalling(unsigned long long* items, int count) {
  int size = 1;
  while (size < count) size *= 2;
  for (int i = count + int(threadIdx.x); i < size; i += int(blockDim.x)) items[i] = 0;
  __syncthreads();
  for (int width = 2; width <= size; width *= 2)
    for (int distance = width / 2; distance > 0; distance /= 2) {
      for (int i = int(threadIdx.x); i < size; i += int(blockDim.x)) {
        const int other = i ^ distance;
        if (other > i && (items[i] < items[other]) == ((i & width) == 0)) {
          const unsigned long long swap = items[i];
          items[i] = items[other];
          items[other] = swap;
        }
      }
      __syncthreads();
    }
}

struct SelectScratch {
  CutScratch cut;
  int counts[kSelectThreads / kWarp + 1];
  int used;
  unsigned long long items[kMostCandidates];
};

// The k ≤ kMostCandidates largest of x [n] in falling order, equal ones by lowest index, in scratch->items.
template <typename Key> __device__ void selectLargest(int64_t n, int k, SelectScratch* scratch, Key key) {
  const Cut cut = cutAtCount(n, k, &scratch->cut, key);
  if (threadIdx.x == 0) scratch->used = 0;
  __syncthreads();
  forKept(n, cut, scratch->counts, key, [&](int64_t i) { scratch->items[atomicAdd(&scratch->used, 1)] = candidate(key(i), uint32_t(i)); });
  sortFalling(scratch->items, k);
}

// Marks the best `count` of those that compete; index i of n has key(i), mark(i) notes it.
template <typename Key, typename Competes, typename Mark> __device__ void keepBest(int64_t n, int64_t count, SelectScratch* scratch, Key key, Competes competes, Mark mark) {
  if (count <= 0) return;
  const Cut cut = cutAt(n, static_cast<unsigned long long>(count), &scratch->cut, key, [&](int64_t i) { return competes(i) ? 1ull : 0ull; });
  forKept(n, cut, scratch->counts, key, mark, competes);
}

// Calls visit(i, flagged, flagged ones before i) for all i, and answers how many are flagged. counts as in forKept.
template <typename Flag, typename Visit> __device__ int64_t scanFlags(int64_t n, int* counts, Flag flag, Visit visit) {
  const int lane = laneIndex(), warp = warpIndex(), warps = int(blockDim.x) / kWarp;
  int64_t seen = 0;
  for (int64_t first = 0; first < n; first += blockDim.x) {
    const int64_t i = first + threadIdx.x;
    const bool flagged = i < n && flag(i);
    const unsigned votes = ballot(flagged);
    if (lane == 0) counts[warp] = __popc(votes);
    __syncthreads();
    int64_t before = seen + __popc(votes & ((1u << lane) - 1));
    for (int w = 0; w < warps; ++w) {
      if (w < warp) before += counts[w];
      seen += counts[w];
    }
    __syncthreads();
    if (i < n) visit(i, flagged, before);
  }
  return seen;
}

// Σ exp(x − shift) in f64 by every thread, in a fixed order. scratch: kWarp + 1 doubles of shared memory.
__device__ inline double sumOfExp(const float* x, int64_t n, float shift, double* scratch) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += double(expf(x[i] - shift));
  return blockReduce(sum, scratch, [](double a, double b) { return a + b; });
}

// The largest element; NaN where one is NaN.
__device__ inline float rowMaximum(const float* x, int64_t n, float* scratch) {
  float largest = -TL_INFINITY;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    const float value = x[i];
    largest = value > largest || value != value ? value : largest;
    if (largest != largest) break;
  }
  return blockReduce(largest, scratch, [](float a, float b) { return a != a ? a : b != b ? b : max(a, b); });
}

}  // namespace tl::cuda
