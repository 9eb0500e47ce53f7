// What eviction policies rank cached tokens by. All scores are f32 [kvHeads, tokens], −inf behind a head's length; the
// cache is read in place, whatever its element type.
//   cacheObserve      attention's column sums, a by-product of the step, become the scores kept beside the tokens
//   cacheScores       those scores, as they are or divided by how many queries could see the token (arXiv 2306.14048)
//   cacheNorms        Σ|x| or ‖x‖₂ of keys or values (arXiv 2406.11430)
//   cacheKeyDiff      −cos(k_j, mean_i k_i / ‖k_i‖) (arXiv 2504.15364)
//   cacheQueryScores  q · k summed over the query heads of each key/value head (arXiv 2409.17422)
//   cacheRandom       numbers in [0, 1) that a token keeps: a function of seed, head and position
#include "../cache/kv.h"
#include "../simd/target.h"
#include "cache_rows_inl.h"

namespace tl::TL_TARGET {
namespace {

Status checkObserve(const CacheObserveArgs& args, const CachedLayer& cached, FloatRows& sums) {
  constexpr const char* op = "cacheObserve";
  if (!cached.cache->observing()) return argumentError(op, "cache", "keeps no scores: it has to be told to observe");
  TL_TRY(floatRows(op, "columnSums", args.columnSums, sums));
  if (sums.rows < cached.heads() || sums.rows % cached.heads()) return shapeError(op, "columnSums", "must have a multiple of the cache's heads", cached.heads(), sums.rows);
  if (sums.width < cached.longest) return shapeError(op, "columnSums", "is too short for the longest head", cached.longest, sums.width);
  return {};
}

}  // namespace

Status cacheObserve(const CacheObserveArgs& args, Context& context) {
  CachedLayer cached;
  FloatRows sums;
  TL_TRY(cached.open("cacheObserve", args.cache, args.layer));
  TL_TRY(checkObserve(args, cached, sums));
  const int64_t group = sums.rows / cached.heads(), pieces = ceilDiv(cached.longest, kChunkElements);
  const F32 scale = broadcast(float(args.scale));
  forRows(context, cached.heads() * pieces, group * kChunkElements, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int32_t head = int32_t(i / pieces);
      const int64_t first = i % pieces * kChunkElements, last = std::min(first + kChunkElements, cached.tokens(head));
      if (first >= last) continue;
      const int64_t before = args.accumulate != 0 ? cached.cache->length(cached.layer, head) : 0;  // tokens that have a score
      float* scores = cached.cache->scores(cached.layer, head);
      if (before < last) std::fill(scores + std::max(before, first), scores + last, 0.0f);
      addObserved(sums.row(head * group), sums.stride, group, first, last, scale, scores);
    }
  });
  return {};
}

Status cacheScores(const CacheScoresArgs& args, Context& context) {
  constexpr const char* op = "cacheScores";
  CachedLayer cached;
  FloatRows out;
  TL_TRY(cached.openScores(op, args.cache, args.layer, args.out, out));
  if (!cached.cache->observing()) return argumentError(op, "cache", "keeps no scores: it has to be told to observe");
  if (!(args.seen >= 0)) return argumentError(op, "seen", "must be 0 or more");
  cached.forHeads(context, out, out.width, [&](int32_t head, int64_t n, float* row, int) {
    const float* scores = cached.cache->scores(cached.layer, head);
    std::copy(scores, scores + n, row);
    if (args.seen > 0)
      for (int64_t j = 0; j < n; ++j) row[j] /= float(std::max(args.seen - cached.cache->position(cached.layer, head, j), 1.0));
  });
  return {};
}

Status cacheNorms(const CacheNormsArgs& args, Context& context) {
  CachedLayer cached;
  FloatRows out;
  TL_TRY(cached.openScores("cacheNorms", args.cache, args.layer, args.out, out));
  if (args.order != 1 && args.order != 2) return argumentError("cacheNorms", "order", "must be 1 or 2", int64_t(args.order));
  const bool absolute = args.order == 1;
  const F32 scale = broadcast(float(args.scale));
  const auto term = [=](F32 x, F32 sum) { return absolute ? add(sum, abs(x)) : mulAdd(x, x, sum); };
  for (int64_t head = 0; head < out.rows; ++head) markBehind(out.row(head), cached.tokens(int32_t(head)), out.width);
  const auto finish = [&](int32_t head, int64_t first, int count, F32 (&sums)[kPanelVectors]) {
    for (F32& sum : sums) sum = mul(absolute ? sum : sqrt(sum), scale);
    storeLanes(out.row(head) + first, sums, count);
  };
  if (args.values == 0)
    return cached.forPanels<false>(context, [&](int32_t head, int64_t first, int count, const float* panel) {
      F32 sums[kPanelVectors];
      std::fill(std::begin(sums), std::end(sums), zero());
      for (int64_t d = 0; d < cached.headDim(); ++d)
        for (int v = 0; v < kPanelVectors; ++v) sums[v] = term(load(panel + d * kPanelKeys + v * kLanes), sums[v]);
      finish(head, first, count, sums);
    });
  return cached.forPanels<true>(context, [&](int32_t head, int64_t first, int count, const float* panel) {
    alignas(64) float token[kPanelKeys];
    const int64_t column = kPanelKeys * kTileWidth;
    for (int j = 0; j < kPanelKeys; ++j) {
      F32 sum = zero();
      for (int64_t d = 0; d < paddedDim(cached.headDim()); d += kTileWidth)
        for (int v = 0; v < kTileWidth; v += kLanes) sum = term(load(panel + d / kTileWidth * column + j * kTileWidth + v), sum);
      token[j] = sumLanes(sum);
    }
    F32 sums[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v) sums[v] = load(token + v * kLanes);
    finish(head, first, count, sums);
  });
}

namespace {

// What keyDiff needs of one panel: dots with `other` and squared norms, a lane a key.
void keyDots(const float* panel, int64_t headDim, const float* other, F32 (&dots)[kPanelVectors], F32 (&squares)[kPanelVectors]) {
  std::fill(std::begin(dots), std::end(dots), zero());
  std::fill(std::begin(squares), std::end(squares), zero());
  for (int64_t d = 0; d < headDim; ++d)
    for (int v = 0; v < kPanelVectors; ++v) {
      const F32 x = load(panel + d * kPanelKeys + v * kLanes);
      dots[v] = mulAdd(x, broadcast(other[d]), dots[v]);
      squares[v] = mulAdd(x, x, squares[v]);
    }
}

// One head, page after page: the mean direction first, then the distance from it.
void keyDiffHead(const CachedLayer& cached, int32_t head, float* out, float* panel, float* mean) {
  const int64_t n = cached.tokens(head), headDim = cached.headDim();
  const Source source = cached.source(head);
  F32 dots[kPanelVectors], squares[kPanelVectors];
  std::fill(mean, mean + headDim, 0.0f);
  for (int64_t first = 0; first < n; first += kPanelKeys) {
    const int count = int(std::min<int64_t>(n - first, kPanelKeys));
    loadKeyPanel(source, first, count, Ahead{}, panel);
    keyDots(panel, headDim, mean, dots, squares);
    F32 inverse[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v)
      inverse[v] = select(firstLanes(std::clamp(count - v * kLanes, 0, kLanes)), div(broadcast(1.0f), max(sqrt(squares[v]), broadcast(1e-12f))), zero());
    for (int64_t d = 0; d < headDim; ++d) {
      F32 sum = zero();
      for (int v = 0; v < kPanelVectors; ++v) sum = mulAdd(load(panel + d * kPanelKeys + v * kLanes), inverse[v], sum);
      mean[d] += sumLanes(sum);
    }
  }
  for (int64_t d = 0; d < headDim; ++d) mean[d] /= float(n);
  const float meanNorm = std::max(std::sqrt(sumRow(mean, headDim, [](F32 x) { return mul(x, x); })), 1e-8f);
  for (int64_t first = 0; first < n; first += kPanelKeys) {
    const int count = int(std::min<int64_t>(n - first, kPanelKeys));
    loadKeyPanel(source, first, count, Ahead{}, panel);
    keyDots(panel, headDim, mean, dots, squares);
    for (int v = 0; v < kPanelVectors; ++v)
      dots[v] = sub(zero(), div(dots[v], mul(max(sqrt(squares[v]), broadcast(1e-8f)), broadcast(meanNorm))));
    storeLanes(out + first, dots, count);
  }
}

}  // namespace

Status cacheKeyDiff(const CacheKeyDiffArgs& args, Context& context) {
  constexpr const char* op = "cacheKeyDiff";
  CachedLayer cached;
  FloatRows out;
  TL_TRY(cached.openScores(op, args.cache, args.layer, args.out, out));
  if (cached.panelFloats() + cached.headDim() > kScratchFloats) return shapeError(op, "cache", "has too large a head dimension", kScratchFloats / (kPanelKeys + 1), cached.headDim());
  cached.forHeads(context, out, cached.longest * cached.headDim(), [&](int32_t head, int64_t n, float* row, int thread) {
    float* panel = reinterpret_cast<float*>(context.pool.scratch(thread));
    if (n > 0) keyDiffHead(cached, head, row, panel, panel + cached.panelFloats());
  });
  return {};
}

Status cacheQueryScores(const CacheQueryScoresArgs& args, Context& context) {
  constexpr const char* op = "cacheQueryScores";
  CachedLayer cached;
  FloatRows out;
  TL_TRY(cached.openScores(op, args.cache, args.layer, args.out, out));
  const View& query = args.query;
  const int64_t headDim = cached.headDim();
  if (query.dtype != DType::f32) return argumentError(op, "query", "must be f32", int64_t(query.dtype));
  if (query.rank != 3 || query.dims[0] < 1) return shapeError(op, "query", "must be [1 or more, heads, headDim]", 3, query.rank);
  if (query.dims[1] < cached.heads() || query.dims[1] % cached.heads()) return shapeError(op, "query", "must have a multiple of the cache's heads", cached.heads(), query.dims[1]);
  if (query.dims[2] != headDim || (headDim > 1 && query.strides[2] != 1)) return shapeError(op, "query", "must be contiguous along the cache's head dimension", headDim, query.dims[2]);
  const int64_t group = query.dims[1] / cached.heads();
  const float* last = query.as<float>() + (query.dims[0] - 1) * query.strides[0];
  for (int64_t head = 0; head < out.rows; ++head) markBehind(out.row(head), cached.tokens(int32_t(head)), out.width);
  return cached.forPanels<false>(context, [&](int32_t head, int64_t first, int count, const float* panel) {
    F32 sums[kPanelVectors];
    std::fill(std::begin(sums), std::end(sums), zero());
    for (int64_t d = 0; d < headDim; ++d) {
      float q = 0;  // Σ q · k = (Σ q) · k
      for (int64_t h = 0; h < group; ++h) q += last[(head * group + h) * query.strides[1] + d];
      for (int v = 0; v < kPanelVectors; ++v) sums[v] = mulAdd(load(panel + d * kPanelKeys + v * kLanes), broadcast(q), sums[v]);
    }
    storeLanes(out.row(head) + first, sums, count);
  });
}

Status cacheRandom(const CacheRandomArgs& args, Context& context) {
  CachedLayer cached;
  FloatRows out;
  TL_TRY(cached.openScores("cacheRandom", args.cache, args.layer, args.out, out));
  if (!(args.seed >= 0 && args.seed <= 0x1p53)) return argumentError("cacheRandom", "seed", "must be an integer in 0 … 2^53");
  cached.forHeads(context, out, 16 * out.width, [&](int32_t head, int64_t n, float* row, int) {
    const uint64_t stream = uint64_t(cached.layer) * uint64_t(cached.heads()) + uint64_t(head);
    for (int64_t j = 0; j < n; ++j) row[j] = float(uniform(uint64_t(args.seed), stream, uint64_t(uint32_t(cached.cache->position(cached.layer, head, j)))));
  });
  return {};
}

}  // namespace tl::TL_TARGET
