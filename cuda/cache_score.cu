// What eviction ranks cached tokens by: see cpp/kernels/cache_score.cpp. A thread a token, the pages read where they lie.
#include "../cpp/core/random.h"
#include "cache_pages.cuh"

namespace tl::cuda {
namespace {

__global__ void observeColumns(Rows sums, int64_t group, float scale, bool accumulate, int32_t newTokens, Pages pages, float* scores, int64_t width) {
  const int32_t head = int32_t(blockIdx.y), j = int32_t(blockIdx.x * blockDim.x + threadIdx.x), tokens = pages.lengths[head];
  if (j >= tokens) return;
  float sum = 0;
  for (int64_t h = 0; h < group; ++h) sum += sums.row(head * group + h)[j];
  const bool held = accumulate && j < tokens - newTokens;
  scores[head * width + j] = fmaf(sum, scale, held ? scores[head * width + j] : 0.0f);
}

__global__ void takeScores(const float* scores, int64_t width, double seen, Pages pages, Rows out) {
  const int32_t head = int32_t(blockIdx.y), j = int32_t(blockIdx.x * blockDim.x + threadIdx.x);
  if (j >= out.width) return;
  float score = j < pages.lengths[head] ? scores[head * width + j] : -TL_INFINITY;
  if (seen > 0 && j < pages.lengths[head]) {
    const double queries = seen - double(pages.position(head, j));
    score /= float(queries > 1 ? queries : 1.0);
  }
  out.row(head)[j] = score;
}

__global__ void normTokens(Pages pages, bool values, bool absolute, float scale, Rows out) {
  const int32_t head = int32_t(blockIdx.y), j = int32_t(blockIdx.x * blockDim.x + threadIdx.x);
  if (j >= out.width) return;
  float sum = 0;
  if (j < pages.lengths[head])
    for (int d = 0; d < pages.dim; ++d) {
      const float x = values ? pages.value(head, j, d) : pages.key(head, j, d);
      sum = absolute ? sum + fabsf(x) : fmaf(x, x, sum);
    }
  out.row(head)[j] = j < pages.lengths[head] ? (absolute ? sum : sqrtf(sum)) * scale : -TL_INFINITY;
}

// norms[head][j] = ‖k_j‖.
__global__ void keyNorms(Pages pages, float* norms, int64_t width) {
  const int32_t head = int32_t(blockIdx.y), j = int32_t(blockIdx.x * blockDim.x + threadIdx.x);
  if (j >= pages.lengths[head]) return;
  float sum = 0;
  for (int d = 0; d < pages.dim; ++d) {
    const float x = pages.key(head, j, d);
    sum = fmaf(x, x, sum);
  }
  norms[head * width + j] = sqrtf(sum);
}

// mean[head][d] = Σ_j k_j[d] / ‖k_j‖ / tokens: a block a dimension and head.
__global__ void meanDirection(Pages pages, const float* norms, int64_t width, float* mean) {
  Shared shared;
  float* scratch = shared.take<float>(kWarp + 1);
  const int32_t head = int32_t(blockIdx.y), tokens = pages.lengths[head];
  float sum = 0;
  for (int32_t j = int32_t(threadIdx.x); j < tokens; j += int32_t(blockDim.x)) sum += pages.key(head, j, int(blockIdx.x)) / max(norms[head * width + j], 1e-12f);
  sum = blockSum(sum, scratch);
  if (threadIdx.x == 0) mean[head * pages.dim + blockIdx.x] = tokens > 0 ? sum / float(tokens) : 0.0f;
}

__global__ void distanceFromMean(Pages pages, const float* norms, int64_t width, const float* mean, Rows out) {
  const int32_t head = int32_t(blockIdx.y), j = int32_t(blockIdx.x * blockDim.x + threadIdx.x);
  if (j >= out.width) return;
  if (j >= pages.lengths[head]) {
    out.row(head)[j] = -TL_INFINITY;
    return;
  }
  float dot = 0, square = 0;
  for (int d = 0; d < pages.dim; ++d) {
    const float m = mean[head * pages.dim + d];
    dot = fmaf(pages.key(head, j, d), m, dot);
    square = fmaf(m, m, square);
  }
  out.row(head)[j] = -(dot / (max(norms[head * width + j], 1e-8f) * max(sqrtf(square), 1e-8f)));
}

__global__ void dotQuery(Pages pages, const float* query, int64_t headStride, int64_t group, Rows out) {
  const int32_t head = int32_t(blockIdx.y), j = int32_t(blockIdx.x * blockDim.x + threadIdx.x);
  if (j >= out.width) return;
  float sum = 0;
  if (j < pages.lengths[head])
    for (int d = 0; d < pages.dim; ++d) {
      float q = 0;  // Σ q · k = (Σ q) · k
      for (int64_t h = 0; h < group; ++h) q += query[(head * group + h) * headStride + d];
      sum = fmaf(pages.key(head, j, d), q, sum);
    }
  out.row(head)[j] = j < pages.lengths[head] ? sum : -TL_INFINITY;
}

__global__ void randomScores(Pages pages, uint64_t seed, Rows out) {
  const int32_t head = int32_t(blockIdx.y), j = int32_t(blockIdx.x * blockDim.x + threadIdx.x);
  if (j >= out.width) return;
  const uint64_t stream = uint64_t(pages.layer) * uint64_t(pages.kvHeads) + uint64_t(head);
  out.row(head)[j] = j < pages.lengths[head] ? float(uniform(seed, stream, uint64_t(uint32_t(pages.position(head, j))))) : -TL_INFINITY;
}

}  // namespace

Status cacheObserve(const CacheObserveArgs& args, DeviceContext& context) {
  constexpr const char* op = "cacheObserve";
  CacheLayer layer;
  Pages pages;
  Rows sums;
  TL_TRY(openPages(op, args.cache, args.layer, context, layer, pages));
  if (!layer.cache->scores) return argumentError(op, "cache", "keeps no scores: it has to be told to observe");
  TL_TRY(floatRows(op, "columnSums", args.columnSums, sums));
  if (sums.rows < pages.kvHeads || sums.rows % pages.kvHeads) return shapeError(op, "columnSums", "must have a multiple of the cache's heads", pages.kvHeads, sums.rows);
  if (sums.width < layer.mostKeys) return shapeError(op, "columnSums", "is too short for the longest head", layer.mostKeys, sums.width);
  if (layer.mostKeys == 0) return {};
  float* scores = nullptr;
  TL_TRY(copyScores(op, layer, context, layer.mostKeys, &scores));
  TL_TRY(launch(op, context, observeColumns, tokenGrid(layer.mostKeys, pages.kvHeads), dim3(kCacheThreads), 0, sums, sums.rows / pages.kvHeads, float(args.scale), args.accumulate != 0,
                int32_t(layer.cache->newTokens), pages, scores, layer.mostKeys));
  return returnScores(layer, context, layer.mostKeys, scores);
}

Status cacheScores(const CacheScoresArgs& args, DeviceContext& context) {
  constexpr const char* op = "cacheScores";
  Scoring scoring;
  TL_TRY(openScoring(op, args, context, scoring));
  const auto& [layer, pages, out] = scoring;
  if (!layer.cache->scores) return argumentError(op, "cache", "keeps no scores: it has to be told to observe");
  if (!(args.seen >= 0)) return argumentError(op, "seen", "must be 0 or more");
  float* scores = nullptr;
  TL_TRY(copyScores(op, layer, context, layer.mostKeys, &scores));
  return launch(op, context, takeScores, tokenGrid(out.width, pages.kvHeads), dim3(kCacheThreads), 0, scores, layer.mostKeys, args.seen, pages, out);
}

Status cacheNorms(const CacheNormsArgs& args, DeviceContext& context) {
  constexpr const char* op = "cacheNorms";
  Scoring scoring;
  TL_TRY(openScoring(op, args, context, scoring));
  const auto& [layer, pages, out] = scoring;
  if (args.order != 1 && args.order != 2) return argumentError(op, "order", "must be 1 or 2", int64_t(args.order));
  return launch(op, context, normTokens, tokenGrid(out.width, pages.kvHeads), dim3(kCacheThreads), 0, pages, args.values != 0, args.order == 1, float(args.scale), out);
}

Status cacheKeyDiff(const CacheKeyDiffArgs& args, DeviceContext& context) {
  constexpr const char* op = "cacheKeyDiff";
  Scoring scoring;
  TL_TRY(openScoring(op, args, context, scoring));
  const auto& [layer, pages, out] = scoring;
  float *norms = nullptr, *mean = nullptr;
  TL_TRY(context.scratch(op, pages.kvHeads * std::max<int64_t>(layer.mostKeys, 1), &norms));
  TL_TRY(context.scratch(op, pages.kvHeads * pages.dim, &mean));
  TL_TRY(launch(op, context, keyNorms, tokenGrid(layer.mostKeys, pages.kvHeads), dim3(kCacheThreads), 0, pages, norms, layer.mostKeys));
  TL_TRY(launch(op, context, meanDirection, dim3(unsigned(pages.dim), unsigned(pages.kvHeads)), dim3(kCacheThreads), sharedBytes<float>(kWarp + 1), pages, norms, layer.mostKeys, mean));
  return launch(op, context, distanceFromMean, tokenGrid(out.width, pages.kvHeads), dim3(kCacheThreads), 0, pages, norms, layer.mostKeys, mean, out);
}

Status cacheQueryScores(const CacheQueryScoresArgs& args, DeviceContext& context) {
  constexpr const char* op = "cacheQueryScores";
  Scoring scoring;
  TL_TRY(openScoring(op, args, context, scoring));
  const auto& [layer, pages, out] = scoring;
  const View& query = args.query;
  TL_TRY(checkType(op, "query", query, DType::f32, -1, -1, pages.dim));
  if (query.dims[0] < 1) return shapeError(op, "query", "must be [1 or more, heads, headDim]", 1, query.dims[0]);
  if (query.dims[1] < pages.kvHeads || query.dims[1] % pages.kvHeads) return shapeError(op, "query", "must have a multiple of the cache's heads", pages.kvHeads, query.dims[1]);
  return launch(op, context, dotQuery, tokenGrid(out.width, pages.kvHeads), dim3(kCacheThreads), 0, pages, query.as<const float>() + (query.dims[0] - 1) * query.strides[0], query.strides[1],
                query.dims[1] / pages.kvHeads, out);
}

Status cacheRandom(const CacheRandomArgs& args, DeviceContext& context) {
  constexpr const char* op = "cacheRandom";
  Scoring scoring;
  TL_TRY(openScoring(op, args, context, scoring));
  const auto& [layer, pages, out] = scoring;
  if (!(args.seed >= 0 && args.seed <= 9007199254740992.0)) return argumentError(op, "seed", "must be an integer in 0 … 2^53");
  return launch(op, context, randomScores, tokenGrid(out.width, pages.kvHeads), dim3(kCacheThreads), 0, pages, uint64_t(args.seed), out);
}

}  // namespace tl::cuda
