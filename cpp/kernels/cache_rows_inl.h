// What kernels over cached tokens share: a layer of the paged cache, its pages as panels of f32, rows of scores.
// Included after simd/target.h and cache/kv.h.
#pragma once

#include "attention_tile_inl.h"
#include "attention_source_inl.h"
#include "rows_inl.h"
#include "select_inl.h"

namespace tl::TL_TARGET {

constexpr float kBehind = -std::numeric_limits<float>::infinity();  // the score of what is no token

// What lies behind a head's tokens is marked, so that later ops need no lengths.
inline void markBehind(float* row, int64_t tokens, int64_t width) { std::fill(row + tokens, row + width, kBehind); }

// Attention that tokens first … last − 1 got, columns of sums [group, …] at a stride, summed over the group's heads and times
// `scale`, onto their scores.
inline void addObserved(const float* sums, int64_t stride, int64_t group, int64_t first, int64_t last, F32 scale, float* scores) {
  for (int64_t j = first; j < last; j += kLanes) {
    F32 sum = zero();
    for (int64_t h = 0; h < group; ++h) sum = add(sum, loadUpTo(sums + h * stride + j, last - j));
    storeUpTo(scores + j, mulAdd(sum, scale, loadUpTo(scores + j, last - j)), last - j);
  }
}

// One layer of the cache that a step works on; the step's own tokens count.
struct CachedLayer {
  const char* op = "";
  const KvStep* step = nullptr;
  KvCache* cache = nullptr;
  int32_t layer = 0;
  int64_t longest = 0;

  Status open(const char* name, const View& view, double number) {
    op = name;
    if (view.dtype != DType::cache || !view.data) return argumentError(op, "cache", "must be a cache", int64_t(view.dtype));
    step = view.as<KvStep>();
    cache = step->cache;
    if (!(number >= 0 && number < cache->shape().layers)) return argumentError(op, "layer", "is not in the cache", int64_t(number));
    layer = int32_t(number);
    for (int32_t head = 0; head < heads(); ++head) {
      if (tokens(head) > cache->capacity(layer, head)) return argumentError(op, "cache", "has no pages reserved for this step", tokens(head));
      longest = std::max(longest, tokens(head));
    }
    return {};
  }
  int32_t heads() const { return cache->shape().kvHeads; }
  int64_t headDim() const { return cache->shape().headDim; }
  int64_t tokens(int32_t head) const { return cache->length(layer, head) + step->newTokens; }

  // f32 [rows, longest or more].
  Status rows(const char* name, const View& view, int64_t count, FloatRows& rows) const {
    TL_TRY(floatRows(op, name, view, rows));
    if (rows.rows != count) return shapeError(op, name, "has another number of rows than expected", count, rows.rows);
    if (rows.width < longest) return shapeError(op, name, "is too short for the longest head", longest, rows.width);
    return {};
  }

  // The same, and a row of scores for each head.
  Status openScores(const char* name, const View& view, double number, const View& out, FloatRows& scores) {
    TL_TRY(open(name, view, number));
    return rows("out", out, heads(), scores);
  }
  // body(head, its tokens, its row, thread) writes a head's scores; what lies behind them is marked.
  template <typename Body> void forHeads(Context& context, const FloatRows& scores, int64_t work, Body&& body) const {
    forRows(context, scores.rows, work, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t head = begin; head < end; ++head) {
        body(int32_t(head), tokens(int32_t(head)), scores.row(head), thread);
        markBehind(scores.row(head), tokens(int32_t(head)), scores.width);
      }
    });
  }

  Source source(int32_t head) const {
    Source made;
    made.pages = cache->pages(layer, head);
    made.headDim = made.valueDim = headDim();
    return made;
  }
  int64_t panelFloats() const { return paddedDim(headDim()) * kPanelKeys; }

  // body(head, first token, count, panel) for each page of each head; a panel is keys [headDim][32], or values
  // [columns / kTileWidth][32][kTileWidth] with zeros past headDim.
  template <bool kValues, typename Body> Status forPanels(Context& context, Body&& body) const {
    if (panelFloats() > kScratchFloats) return shapeError(op, "cache", "has too large a head dimension", kScratchFloats / kPanelKeys, headDim());
    const int64_t pieces = ceilDiv(longest, kPageTokens);
    context.pool.parallelFor(heads() * pieces, std::max<int64_t>(kParallelElements / panelFloats(), 1), [&](int64_t begin, int64_t end, int thread) {
      float* panel = reinterpret_cast<float*>(context.pool.scratch(thread));
      for (int64_t i = begin; i < end; ++i) {
        const int32_t head = int32_t(i / pieces);
        const int64_t first = i % pieces * kPageTokens;
        const int count = int(std::min<int64_t>(tokens(head) - first, kPageTokens));
        if (count <= 0) continue;
        const Source from = source(head);
        if (kValues) loadValuePanel(from, first, count, Ahead{}, panel);
        else loadKeyPanel(from, first, count, Ahead{}, panel);
        body(head, first, count, panel);
      }
    });
    return {};
  }
};

TL_INLINE void storeLanes(float* to, const F32 (&lanes)[kPanelVectors], int count) {
  for (int v = 0; v * kLanes < count; ++v) storeUpTo(to + v * kLanes, lanes[v], count - v * kLanes);
}

}  // namespace tl::TL_TARGET
