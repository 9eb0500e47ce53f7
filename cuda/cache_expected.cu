// ExpectedAttention (arXiv 2510.00636): see cpp/kernels/cache_expected.cpp.
#include "cache_pages.cuh"

namespace tl::cuda {
namespace {

constexpr int64_t kMostDim = 256;

// A block a head: the rows' mean, then each pair's products, then the mean of all.
__global__ void __launch_bounds__(kCacheThreads) joinStatistics(const float* query, int64_t rowStride, int64_t headStride, int64_t count, int64_t n, Rows statistics) {
  Shared shared;
  float *mean = shared.take<float>(n), *deviation = shared.take<float>(n);
  const float* x = query + blockIdx.x * headStride;
  float *held = statistics.row(blockIdx.x), *heldMean = held + 1, *moment = heldMean + n;
  const float before = held[0], total = before + float(count);
  for (int64_t d = threadIdx.x; d < n; d += blockDim.x) {
    float sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += x[i * rowStride + d];
    mean[d] = sum / float(count);
    deviation[d] = mean[d] - heldMean[d];
  }
  __syncthreads();
  for (int64_t pair = threadIdx.x; pair < n * n; pair += blockDim.x) {
    const int64_t a = pair / n, b = pair % n;
    float sum = moment[pair];
    if (before > 0) sum = fmaf(before * (float(count) / total) * deviation[a], deviation[b], sum);
    for (int64_t i = 0; i < count && count > 1; ++i) sum = fmaf(x[i * rowStride + a] - mean[a], x[i * rowStride + b] - mean[b], sum);
    moment[pair] = sum;
  }
  for (int64_t d = threadIdx.x; d < n; d += blockDim.x) heldMean[d] = fmaf(deviation[d], float(count) / total, heldMean[d]);
  __syncthreads();
  if (threadIdx.x == 0) held[0] = total;
}

// How dimension d is made by a rotation: of itself times `own`, and of `other` times `cross`.
struct Turn {
  int64_t other;
  float own, cross;
};
__device__ Turn turnOf(int64_t d, const float* rotation, int64_t half, bool interleaved) {
  if (d >= 2 * half) return {d, 1, 0};
  const int64_t pair = interleaved ? d / 2 : d % half;
  const bool second = interleaved ? d % 2 != 0 : d >= half;
  const int64_t other = interleaved ? d ^ 1 : second ? d - half : d + half;
  return {other, rotation[pair], second ? rotation[half + pair] : -rotation[half + pair]};
}

// [n] R μ, then [n][n] R Σ Rᵀ, for each query head.
__global__ void __launch_bounds__(kCacheThreads) rotateStatistics(Rows statistics, const float* rotation, int64_t half, bool interleaved, int64_t n, float* out) {
  const float *held = statistics.row(blockIdx.x), *mean = held + 1, *moment = mean + n, share = 1 / max(held[0], 1.0f);
  float* to = out + blockIdx.x * (n + n * n);
  for (int64_t d = threadIdx.x; d < n; d += blockDim.x) {
    const Turn t = turnOf(d, rotation, half, interleaved);
    to[d] = mean[d] * t.own + mean[t.other] * t.cross;
  }
  for (int64_t pair = threadIdx.x; pair < n * n; pair += blockDim.x) {
    const int64_t a = pair / n, b = pair % n;
    const Turn s = turnOf(a, rotation, half, interleaved), t = turnOf(b, rotation, half, interleaved);
    const float first = moment[a * n + b] * s.own + moment[s.other * n + b] * s.cross, second = moment[a * n + t.other] * s.own + moment[s.other * n + t.other] * s.cross;
    to[n + pair] = (first * t.own + second * t.cross) * share;
  }
}

// A block takes 32 tokens for one query head; its warps share the dimensions, sums are added in order.
__global__ void __launch_bounds__(kCacheThreads) expectLogits(Pages pages, const float* distributions, int64_t group, float scale, bool covariance, int64_t sinks, Rows out) {
  Shared shared;
  const int64_t n = pages.dim;
  const int32_t row = int32_t(blockIdx.y), head = int32_t(row / group), first = int32_t(blockIdx.x) * kPageTokens, tokens = pages.lengths[head], lane = laneIndex(), warp = warpIndex();
  float *keys = shared.take<float>(kPageTokens * n), *sums = shared.take<float>(kCacheThreads);
  const float *mean = distributions + row * (n + n * n), *sigma = mean + n;
  for (int64_t i = threadIdx.x; i < kPageTokens * n; i += blockDim.x) {
    const int32_t token = first + int32_t(i % kPageTokens);
    keys[i] = token < tokens ? pages.key(head, token, int(i / kPageTokens)) : 0.0f;
  }
  __syncthreads();
  float sum = 0;
  for (int64_t d = warp; d < n; d += kCacheThreads / kWarp) {
    float term = 0;
    for (int64_t e = 0; e < n && covariance; ++e) term = fmaf(keys[e * kPageTokens + lane], sigma[d * n + e], term);
    sum = fmaf(fmaf(term, scale * scale / 2, mean[d] * scale), keys[d * kPageTokens + lane], sum);
  }
  sums[warp * kWarp + lane] = sum;
  __syncthreads();
  const int64_t j = first + lane;
  if (warp != 0 || j >= out.width) return;
  for (int w = 1; w < kCacheThreads / kWarp; ++w) sum += sums[w * kWarp + lane];
  out.row(row)[j] = j < tokens && j >= sinks ? sum : -TL_INFINITY;
}

}  // namespace

Status queryStatistics(const QueryStatisticsArgs& args, DeviceContext& context) {
  constexpr const char* op = "queryStatistics";
  const View& query = args.query;
  TL_TRY(checkType(op, "query", query, DType::f32, -1, -1, -1));
  const int64_t rows = query.dims[0], heads = query.dims[1], n = query.dims[2];
  if (!(args.skip >= 0)) return argumentError(op, "skip", "must be 0 or more");
  Rows statistics;
  TL_TRY(floatRows(op, "statistics", args.statistics, statistics));
  if (statistics.rows != heads || statistics.width != 1 + n + n * n) return shapeError(op, "statistics", "must be [heads, 1 + headDim + headDim²]", 1 + n + n * n, statistics.width);
  if (n > kMostDim) return shapeError(op, "query", "has too large a head dimension", kMostDim, n);
  const int64_t skip = int64_t(std::min(args.skip, 0x1p40));
  if (skip >= rows) return {};
  return launch(op, context, joinStatistics, dim3(unsigned(heads)), dim3(kCacheThreads), 2 * sharedBytes<float>(n), query.as<const float>() + skip * query.strides[0], query.strides[0], query.strides[1],
                rows - skip, n, statistics);
}

Status cacheExpectedLogits(const CacheExpectedLogitsArgs& args, DeviceContext& context) {
  constexpr const char* op = "cacheExpectedLogits";
  CacheLayer layer;
  Pages pages;
  Rows statistics, out;
  TL_TRY(openPages(op, args.cache, args.layer, context, layer, pages));
  const int64_t n = pages.dim, half = args.rotation.count() / 2;
  TL_TRY(floatRows(op, "statistics", args.statistics, statistics));
  TL_TRY(openScores(op, args.out, layer, statistics.rows, out));
  if (statistics.rows < pages.kvHeads || statistics.rows % pages.kvHeads) return shapeError(op, "statistics", "must have a multiple of the cache's heads", pages.kvHeads, statistics.rows);
  if (statistics.width != 1 + n + n * n) return shapeError(op, "statistics", "must be [heads, 1 + headDim + headDim²]", 1 + n + n * n, statistics.width);
  TL_TRY(vectorOperand(op, "rotation", args.rotation, args.rotation.lastDim()));
  if (2 * half > n || args.rotation.count() % 2) return shapeError(op, "rotation", "must have an even number of at most headDim elements", n, args.rotation.count());
  if (!(args.sinks >= 0)) return argumentError(op, "sinks", "must be 0 or more");
  if (n > kMostDim) return shapeError(op, "cache", "has too large a head dimension", kMostDim, n);
  float* distributions = nullptr;
  TL_TRY(context.scratch(op, statistics.rows * (n + n * n), &distributions));
  TL_TRY(launch(op, context, rotateStatistics, dim3(unsigned(statistics.rows)), dim3(kCacheThreads), 0, statistics, args.rotation.as<const float>(), half, args.interleaved != 0, n, distributions));
  return launch(op, context, expectLogits, dim3(unsigned(ceilDiv(out.width, kPageTokens)), unsigned(statistics.rows)), dim3(kCacheThreads), sharedBytes<float>(kPageTokens * n) + sharedBytes<float>(kCacheThreads),
                pages, distributions, statistics.rows / pages.kvHeads, float(args.scale), args.covariance != 0, int64_t(std::min(args.sinks, 0x1p40)), out);
}

}  // namespace tl::cuda
