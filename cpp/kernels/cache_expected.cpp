// ExpectedAttention (arXiv 2510.00636): which keys queries to come will look at, from the distribution of those so far.
//   queryStatistics      for each query head count, mean and Σ (q − mean)(q − mean)ᵀ, step after step (Chan, Golub and
//                        LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979)
//   cacheExpectedLogits  z_j = scale · μ·k_j + scale²/2 · k_jᵀ Σ k_j, with mean μ and covariance Σ rotated by the mean
//                        rotation of the positions to come
#include "../cache/kv.h"
#include "../simd/target.h"
#include "cache_rows_inl.h"

namespace tl::TL_TARGET {
namespace {

int64_t statisticsWidth(int64_t headDim) { return 1 + headDim + headDim * headDim; }

constexpr int64_t kRowsAtOnce = 4;  // so that a row of the moment is read and written once for them

// moment += weight · Σ x xᵀ of `count` rows x [n], one after the other; from the diagonal on, see mirror()
void addProducts(const float* x, int64_t count, int64_t n, float weight, float* moment) {
  for (int64_t i = 0; i < n; ++i, moment += n) {
    F32 factor[kRowsAtOnce];
    for (int64_t r = 0; r < count; ++r) factor[r] = broadcast(weight * x[r * n + i]);
    for (int64_t d = i / kLanes * kLanes; d < n; d += kLanes) {
      F32 sum = loadUpTo(moment + d, n - d);
      if (count == kRowsAtOnce) {
#pragma GCC unroll 4
        for (int64_t r = 0; r < kRowsAtOnce; ++r) sum = mulAdd(loadUpTo(x + r * n + d, n - d), factor[r], sum);
      } else {
        for (int64_t r = 0; r < count; ++r) sum = mulAdd(loadUpTo(x + r * n + d, n - d), factor[r], sum);
      }
      storeUpTo(moment + d, sum, n - d);
    }
  }
}

// What is above the diagonal of a symmetric matrix [n][n] goes below it.
void mirror(float* matrix, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t d = 0; d < i; ++d) matrix[i * n + d] = matrix[d * n + i];
}

// Rows of one head, `stride` apart, join what `statistics` says of those before. `mean`: scratch [n], `deviation` [kRowsAtOnce][n].
void joinStatistics(const float* rows, int64_t count, int64_t stride, int64_t n, float* statistics, float* mean, float* deviation) {
  float *heldMean = statistics + 1, *moment = heldMean + n;
  const float held = statistics[0], total = held + float(count);
  std::fill(mean, mean + n, 0.0f);
  for (int64_t i = 0; i < count; ++i) mapRow(mean, rows + i * stride, mean, n, [](F32 m, F32 v) { return add(m, v); });
  const F32 share = broadcast(1 / float(count)), step = broadcast(float(count) / total);
  mapRow(mean, mean, n, [=](F32 m) { return mul(m, share); });
  mapRow(mean, heldMean, deviation, n, [](F32 m, F32 h) { return sub(m, h); });
  if (held > 0) addProducts(deviation, 1, n, held * (float(count) / total), moment);
  mapRow(heldMean, deviation, heldMean, n, [=](F32 h, F32 d) { return mulAdd(d, step, h); });
  for (int64_t i = 0; i < count && count > 1; i += kRowsAtOnce) {
    const int64_t some = std::min(count - i, kRowsAtOnce);
    for (int64_t r = 0; r < some; ++r) mapRow(rows + (i + r) * stride, mean, deviation + r * n, n, [](F32 v, F32 m) { return sub(v, m); });
    addProducts(deviation, some, n, 1, moment);
  }
  mirror(moment, n);
  statistics[0] = total;
}

// Pair i of x, elements `step` apart, times the rotation's cosine and sine.
void rotateMean(float* x, int64_t step, const float* rotation, int64_t half, bool interleaved) {
  for (int64_t i = 0; i < half; ++i) {
    float &a = x[(interleaved ? 2 * i : i) * step], &b = x[(interleaved ? 2 * i + 1 : i + half) * step];
    const float c = rotation[i], s = rotation[half + i], first = a * c - b * s;
    b = b * c + a * s;
    a = first;
  }
}

struct Distribution {
  float *mean, *covariance;  // [n], [n][n]; covariance null: left out
};

// The distribution of rotated queries: R μ, R Σ Rᵀ; what is below the diagonal of Σ is added to what is above it.
Distribution distributionOf(const float* statistics, int64_t n, const float* rotation, int64_t half, bool interleaved, bool withCovariance, float* space) {
  const float count = std::max(statistics[0], 1.0f);
  Distribution made{space, withCovariance ? space + n : nullptr};
  std::copy(statistics + 1, statistics + 1 + n, made.mean);
  rotateMean(made.mean, 1, rotation, half, interleaved);
  if (!withCovariance) return made;
  const F32 share = broadcast(1 / count);
  mapRow(statistics + 1 + n, made.covariance, n * n, [=](F32 m) { return mul(m, share); });
  for (int64_t i = 0; i < n; ++i) rotateMean(made.covariance + i, n, rotation, half, interleaved);
  for (int64_t i = 0; i < n; ++i) rotateMean(made.covariance + i * n, 1, rotation, half, interleaved);
  for (int64_t d = 0; d < n; ++d)
    for (int64_t e = 0; e < d; ++e) {
      made.covariance[e * n + d] += made.covariance[d * n + e];
      made.covariance[d * n + e] = 0;
    }
  return made;
}

void expectedPanel(const float* panel, int64_t n, const Distribution& of, float scale, F32 (&logits)[kPanelVectors]) {
  std::fill(std::begin(logits), std::end(logits), zero());
  const F32 factor = broadcast(scale * scale / 2);
  for (int64_t d = 0; d < n; d += 2) {  // two dimensions at a time: a key's element is loaded once for both
    const int64_t rows = std::min<int64_t>(n - d, 2);
    F32 term[2][kPanelVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kPanelVectors; ++v) term[0][v] = term[1][v] = zero();
    if (const float* weights = of.covariance)
      for (int64_t e = d; e < n; ++e) {
        const F32 first = broadcast(weights[d * n + e]), second = broadcast(weights[(d + rows - 1) * n + e]);
#pragma GCC unroll 8
        for (int v = 0; v < kPanelVectors; ++v) {
          const F32 key = load(panel + e * kPanelKeys + v * kLanes);
          term[0][v] = mulAdd(key, first, term[0][v]);
          term[1][v] = mulAdd(key, second, term[1][v]);
        }
      }
    for (int64_t r = 0; r < rows; ++r) {
      const F32 mean = broadcast(of.mean[d + r] * scale);
#pragma GCC unroll 8
      for (int v = 0; v < kPanelVectors; ++v) logits[v] = mulAdd(mulAdd(term[r][v], factor, mean), load(panel + (d + r) * kPanelKeys + v * kLanes), logits[v]);
    }
  }
}

}  // namespace

Status queryStatistics(const QueryStatisticsArgs& args, Context& context) {
  constexpr const char* op = "queryStatistics";
  const View& query = args.query;
  if (query.dtype != DType::f32 || query.rank != 3) return shapeError(op, "query", "must be f32 [n, heads, headDim]", 3, query.rank);
  const int64_t rows = query.dims[0], heads = query.dims[1], n = query.dims[2];
  if (n > 1 && query.strides[2] != 1) return argumentError(op, "query", "must be contiguous along headDim", query.strides[2]);
  if ((1 + kRowsAtOnce) * n > kScratchFloats) return shapeError(op, "query", "has too large a head dimension", kScratchFloats / (1 + kRowsAtOnce), n);
  if (!(args.skip >= 0)) return argumentError(op, "skip", "must be 0 or more");
  FloatRows statistics;
  TL_TRY(floatRows(op, "statistics", args.statistics, statistics));
  if (statistics.rows != heads || statistics.width != statisticsWidth(n)) return shapeError(op, "statistics", "must be [heads, 1 + headDim + headDim²]", statisticsWidth(n), statistics.width);
  const int64_t skip = int64_t(std::min(args.skip, 0x1p40));
  if (skip >= rows) return {};
  forRows(context, heads, (rows - skip) * n * n, [&](int64_t begin, int64_t end, int thread) {
    float* scratch = reinterpret_cast<float*>(context.pool.scratch(thread));
    for (int64_t head = begin; head < end; ++head)
      joinStatistics(query.as<float>() + skip * query.strides[0] + head * query.strides[1], rows - skip, query.strides[0], n, statistics.row(head), scratch, scratch + n);
  });
  return {};
}

Status cacheExpectedLogits(const CacheExpectedLogitsArgs& args, Context& context) {
  constexpr const char* op = "cacheExpectedLogits";
  CachedLayer cached;
  TL_TRY(cached.open(op, args.cache, args.layer));
  const int64_t n = cached.headDim(), half = args.rotation.count() / 2;
  FloatRows statistics, out;
  TL_TRY(floatRows(op, "statistics", args.statistics, statistics));
  TL_TRY(cached.rows("out", args.out, statistics.rows, out));
  if (statistics.rows < cached.heads() || statistics.rows % cached.heads()) return shapeError(op, "statistics", "must have a multiple of the cache's heads", cached.heads(), statistics.rows);
  if (statistics.width != statisticsWidth(n)) return shapeError(op, "statistics", "must be [heads, 1 + headDim + headDim²]", statisticsWidth(n), statistics.width);
  TL_TRY(vectorOperand(op, "rotation", args.rotation, args.rotation.lastDim()));
  if (2 * half > n || args.rotation.count() % 2) return shapeError(op, "rotation", "must have an even number of at most headDim elements", n, args.rotation.count());
  if (!(args.sinks >= 0)) return argumentError(op, "sinks", "must be 0 or more");
  if (n * n + n + cached.panelFloats() > kScratchFloats) return shapeError(op, "cache", "has too large a head dimension", 700, n);
  const int64_t group = statistics.rows / cached.heads(), sinks = int64_t(std::min(args.sinks, 0x1p40));
  context.pool.parallelFor(statistics.rows, 1, [&](int64_t begin, int64_t end, int thread) {
    float* panel = reinterpret_cast<float*>(context.pool.scratch(thread));
    for (int64_t i = begin; i < end; ++i) {
      const int32_t head = int32_t(i / group);
      const int64_t tokens = cached.tokens(head);
      const Distribution of = distributionOf(statistics.row(i), n, args.rotation.as<float>(), half, args.interleaved != 0, args.covariance != 0, panel + cached.panelFloats());
      for (int64_t first = 0; first < tokens; first += kPanelKeys) {
        const int count = int(std::min<int64_t>(tokens - first, kPanelKeys));
        F32 logits[kPanelVectors];
        loadKeyPanel(cached.source(head), first, count, Ahead{}, panel);
        expectedPanel(panel, n, of, float(args.scale), logits);
        storeLanes(out.row(i) + first, logits, count);
      }
      std::fill(out.row(i), out.row(i) + std::min(sinks, tokens), kBehind);
      markBehind(out.row(i), tokens, out.width);
    }
  });
  return {};
}

}  // namespace tl::TL_TARGET
