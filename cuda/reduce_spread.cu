// Choosing tokens that lie far apart, one after another: see cpp/kernels/reduce_spread.cpp. A block a sequence by the plain method: all
// distances are brought up to date with each choice. A distance is a warp's sum, the same whenever it is made.
#include "sequences.cuh"

namespace tl::cuda {
namespace {

template <bool squared> __device__ float warpTerms(const float* a, const float* b, int64_t n) {
  float sum = 0;
  for (int64_t c = laneIndex(); c < n; c += kWarp) {
    const float d = squared ? a[c] - b[c] : b[c];
    sum = fmaf(squared ? d : a[c], d, sum);
  }
  return warpSum(sum);
}

struct Spread {
  Rows rows;  // or directions of them
  Sequences sequences;
  const float* scores;
  const int32_t* counts;
  uint8_t* kept;
  int32_t* order;
  float* distances;
  int64_t start, first, all;
  bool euclidean, sum;
};

// As the nearest one counts (squares where Euclidean), or as distances are added up.
__device__ float distanceOf(const Spread& p, const float* a, const float* b, bool sum) {
  if (!p.euclidean) return 1 - warpTerms<false>(a, b, p.rows.width);
  const float square = warpTerms<true>(a, b, p.rows.width);
  return sum ? sqrtf(square) : square;
}

// Whether a distance is no number because the token is none: such tokens come last.
__device__ bool isLost(const Spread& p, const float* token, float far) {
  if (far == far) return false;
  const float own = distanceOf(p, token, token, false);
  return own != own;
}

// The first token of the largest distance, by the whole block; −1 where all are −∞ or no number.
__device__ int64_t farthest(const float* distance, int64_t n, unsigned long long* scratch) {
  unsigned long long best = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
    if (distance[i] > -TL_INFINITY) best = max(best, candidate(orderKey(distance[i]), uint32_t(i)));
  best = blockReduce(best, scratch, [](unsigned long long a, unsigned long long b) { return max(a, b); });
  return best == 0 ? -1 : int64_t(candidateIndex(best));
}

__global__ void __launch_bounds__(kSelectThreads) spreadOut(Spread p) {
  Shared shared;
  auto* scratch = shared.take<unsigned long long>(kWarp + 1);
  const int64_t s = blockIdx.x, begin = p.sequences.begin(s), n = p.sequences.length(s), count = min(max(int64_t(p.counts[s]), int64_t(0)), n);
  const int warp = warpIndex(), warps = int(blockDim.x) / kWarp;
  float* distance = p.distances + begin;
  for (int64_t i = begin + threadIdx.x; i < begin + n; i += blockDim.x) p.kept[i] = 0, p.order[i] = -1;
  if (s == p.sequences.count - 1)
    for (int64_t i = p.sequences.rows() + threadIdx.x; i < p.all; i += blockDim.x) p.kept[i] = 0, p.order[i] = -1;
  if (count == 0) return;
  const auto row = [&](int64_t i) { return p.rows.row(begin + i); };
  int64_t chosen = min(max(p.first, int64_t(0)), n - 1);
  if (p.start == 0) {  // the token whose nearest other one is farthest
    for (int64_t i = warp; i < n; i += warps) {
      float nearest = TL_INFINITY;
      for (int64_t j = 0; j < n; ++j) {
        if (j == i) continue;
        const float far = distanceOf(p, row(i), row(j), false);
        if (far < nearest || isLost(p, row(i), far)) nearest = far;
      }
      if (laneIndex() == 0) distance[i] = nearest;
    }
    __syncthreads();
    chosen = max(farthest(distance, n, scratch), int64_t(0));
  } else if (p.start == 1) {
    const float* scores = p.scores + begin;
    unsigned long long best = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) best = max(best, candidate(orderKey(scores[i]), uint32_t(i)));
    chosen = int64_t(candidateIndex(blockReduce(best, scratch, [](unsigned long long a, unsigned long long b) { return max(a, b); })));
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) distance[i] = p.sum ? 0.0f : TL_INFINITY;
  __syncthreads();
  for (int64_t k = 0;; ++k) {
    if (threadIdx.x == 0) p.kept[begin + chosen] = 1, p.order[begin + k] = int32_t(chosen), distance[chosen] = -TL_INFINITY;
    __syncthreads();
    if (k + 1 == count) return;
    for (int64_t i = warp; i < n; i += warps) {
      const float far = distanceOf(p, row(i), row(chosen), p.sum);
      const bool lost = isLost(p, row(i), far);
      if (laneIndex() != 0) continue;
      if (const float held = distance[i]; held != -TL_INFINITY) distance[i] = p.sum ? held + far : far < held || lost ? far : held;
    }
    __syncthreads();
    chosen = farthest(distance, n, scratch);
    for (int64_t i = 0; chosen < 0; ++i)
      if (!p.kept[begin + i]) chosen = i;
    __syncthreads();
  }
}

// Tokens in turn; the list of unique ones is shared by the warps.
__global__ void __launch_bounds__(kSelectThreads) markUnique(const float* unit, int64_t width, Sequences sequences, float threshold, uint8_t* unique, int32_t* counts, int32_t* work, int64_t all) {
  Shared shared;
  int* resembles = shared.take<int>(1);
  const int64_t s = blockIdx.x, begin = sequences.begin(s), n = sequences.length(s);
  const int warp = warpIndex(), warps = int(blockDim.x) / kWarp;
  int32_t* list = work + begin;
  int64_t count = 0;
  if (s == sequences.count - 1)
    for (int64_t i = sequences.rows() + threadIdx.x; i < all; i += blockDim.x) unique[i] = 0;
  for (int64_t i = begin; i < begin + n; ++i) {
    if (threadIdx.x == 0) *resembles = 0;
    __syncthreads();
    for (int64_t j = warp; j < count; j += warps) {
      const float cosine = warpTerms<false>(unit + i * width, unit + list[j] * width, width);
      if (laneIndex() == 0 && cosine > threshold) atomicOr(resembles, 1);
    }
    __syncthreads();
    const bool fresh = *resembles == 0;
    if (threadIdx.x == 0) {
      unique[i] = fresh;
      if (fresh) list[count] = int32_t(i);
    }
    count += fresh;
    __syncthreads();
  }
  if (threadIdx.x == 0) counts[s] = int32_t(count);
}

}  // namespace

Status farthestRows(const FarthestRowsArgs& args, DeviceContext& context) {
  constexpr const char* op = "farthestRows";
  Spread p{};
  TL_TRY(tokenRows(op, "x", args.x, args.bounds, p.rows, p.sequences));
  float *unit, *scores = nullptr;
  int32_t* counts;
  TL_TRY(flat(op, "unit", args.unit, DType::f32, p.rows.rows * p.rows.width, unit));
  TL_TRY(flat(op, "distances", args.distances, DType::f32, p.rows.rows, p.distances));
  TL_TRY(flat(op, "counts", args.counts, DType::i32, p.sequences.count, counts));
  TL_TRY(flat(op, "order", args.order, DType::i32, p.rows.rows, p.order));
  TL_TRY(flat(op, "kept", args.kept, DType::u8, p.rows.rows, p.kept));
  if (args.start == 1) TL_TRY(flat(op, "scores", args.scores, DType::f32, p.rows.rows, scores));
  p.scores = scores;
  p.counts = counts;
  p.start = int64_t(args.start), p.first = int64_t(std::min(std::max(args.first, 0.0), 0x1p40)), p.all = p.rows.rows;
  p.euclidean = args.distance != 0, p.sum = args.sum != 0;
  if (!p.euclidean) {
    TL_TRY(launch(op, context, unitRows, dim3(unsigned(p.rows.rows)), dim3(kThreads), kUnitBytes, p.rows, unit));
    p.rows = {unit, p.rows.rows, p.rows.width, p.rows.width};
  }
  return launch(op, context, spreadOut, dim3(unsigned(p.sequences.count)), dim3(kSelectThreads), sharedBytes<unsigned long long>(kWarp + 1), p);
}

Status uniqueRows(const UniqueRowsArgs& args, DeviceContext& context) {
  constexpr const char* op = "uniqueRows";
  Rows x;
  Sequences sequences;
  TL_TRY(tokenRows(op, "x", args.x, args.bounds, x, sequences));
  float* unit;
  int32_t *counts, *work;
  uint8_t* unique;
  TL_TRY(flat(op, "unit", args.unit, DType::f32, x.rows * x.width, unit));
  TL_TRY(flat(op, "work", args.work, DType::i32, x.rows, work));
  TL_TRY(flat(op, "counts", args.counts, DType::i32, sequences.count, counts));
  TL_TRY(flat(op, "unique", args.unique, DType::u8, x.rows, unique));
  TL_TRY(launch(op, context, unitRows, dim3(unsigned(x.rows)), dim3(kThreads), kUnitBytes, x, unit));
  return launch(op, context, markUnique, dim3(unsigned(sequences.count)), dim3(kSelectThreads), sharedBytes<int>(1), unit, x.width, sequences, float(args.threshold), unique, counts, work, x.rows);
}

}  // namespace tl::cuda
