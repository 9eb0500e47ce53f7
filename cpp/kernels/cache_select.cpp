// From scores to the tokens that stay.
//   poolScores  each score becomes the mean or maximum of its neighbourhood along the tokens (SnapKV, arXiv 2404.14469)
//   reduceRows  mean, maximum or sum over neighbouring rows, then weighted: (reduced + epsilon) · weight
//   keepTop     the best tokens within a budget; protected beginnings and ends count. Equal scores: the lowest index.
//               Across heads: arXiv 2407.11550
#include "../cache/kv.h"
#include "../simd/target.h"
#include "cache_rows_inl.h"
#include "keep_inl.h"

namespace tl::TL_TARGET {
namespace {

// Lengths of score rows: those of a cache's heads, or the rows' width.
struct RowLengths {
  CachedLayer cached;
  bool ofCache = false;
  int64_t width = 0;
  Status open(const char* op, const View& cache, double layer, int64_t rowWidth) {
    width = rowWidth;
    ofCache = cache.present();
    return ofCache ? cached.open(op, cache, layer) : Status{};
  }
  int64_t operator()(int64_t head) const { return ofCache ? cached.tokens(int32_t(head)) : width; }
};

float poolAt(const float* x, int64_t n, int64_t j, int64_t reach, bool maximum) {
  const int64_t first = std::max<int64_t>(j - reach, 0), last = std::min(j + reach + 1, n);
  float result = maximum ? kBehind : 0;
  for (int64_t i = first; i < last; ++i) result = maximum ? std::max(result, x[i]) : result + x[i];
  return maximum ? result : result / float(2 * reach + 1);
}

}  // namespace

Status poolScores(const PoolScoresArgs& args, Context& context) {
  constexpr const char* op = "poolScores";
  FloatRows x, out;
  TL_TRY(openPoolScores(args, x, out));
  RowLengths lengths;
  TL_TRY(lengths.open(op, args.cache, args.layer, x.width));
  if (lengths.ofCache && x.rows > lengths.cached.heads()) return shapeError(op, "x", "has more rows than the cache has heads", lengths.cached.heads(), x.rows);
  const int64_t reach = (int64_t(std::min(args.kernel, 0x1p40)) - 1) / 2;
  forRows(context, x.rows, x.width * std::min(2 * reach + 1, x.width + 1), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = std::max<int64_t>(std::min(lengths(i), x.width) - int64_t(std::min(args.last, 0x1p40)), 0);
      for (int64_t j = 0; j < n; ++j) out.row(i)[j] = poolAt(x.row(i), n, j, reach, args.maximum != 0);
      markBehind(out.row(i), n, out.width);
    }
  });
  return {};
}

Status reduceRows(const ReduceRowsArgs& args, Context& context) {
  constexpr const char* op = "reduceRows";
  enum Kind { mean, maximum, sum };
  if (args.kind != 0 && args.kind != 1 && args.kind != 2) return argumentError(op, "kind", "must be 0, 1 or 2", int64_t(args.kind));
  const Kind kind = Kind(int(args.kind));
  FloatRows x, out, weights;
  TL_TRY(floatRows(op, "x", args.x, x));
  TL_TRY(floatRows(op, "out", args.out, out));
  if (out.width != x.width) return shapeError(op, "out", "must have the columns of x", x.width, out.width);
  if (out.rows < 1 || x.rows % out.rows) return shapeError(op, "x", "must have a multiple of the output's rows", out.rows, x.rows);
  if (x.rows == 0) return shapeError(op, "x", "must have rows", 1, 0);
  if (args.weights.present()) {
    TL_TRY(floatRows(op, "weights", args.weights, weights));
    if (weights.rows != out.rows || weights.width != out.width) return shapeError(op, "weights", "must have the shape of the output", out.rows, weights.rows);
  }
  const int64_t group = x.rows / out.rows;
  const F32 share = broadcast(kind == mean ? 1 / float(group) : 1.0f), epsilon = broadcast(float(args.epsilon));
  const int64_t pieces = ceilDiv(x.width, kChunkElements);
  forRows(context, out.rows * pieces, group * kChunkElements, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t r = i / pieces, first = i % pieces * kChunkElements, last = std::min(first + kChunkElements, x.width);
      for (int64_t j = first; j < last; j += kLanes) {
        F32 reduced = loadUpTo(x.row(r * group) + j, last - j);
        for (int64_t g = 1; g < group; ++g) {
          const F32 next = loadUpTo(x.row(r * group + g) + j, last - j);
          reduced = kind == maximum ? max(next, reduced) : add(reduced, next);
        }
        if (kind == mean) reduced = mul(reduced, share);
        if (args.weights.present()) reduced = mul(add(reduced, epsilon), loadUpTo(weights.row(r) + j, last - j));
        storeUpTo(out.row(r) + j, reduced, last - j);
      }
    }
  });
  return {};
}

namespace {

struct Budget {
  int64_t tokens, first, last;
  double safeguard;
  // Marks the protected tokens of a row, and answers how many they are.
  int64_t protect(const Contest& row) const {
    const int64_t all = std::min(tokens, row.tokens), beginning = std::min(first, all), end = std::min(last, all - beginning);
    std::fill(row.kept, row.kept + beginning, uint8_t(1));
    std::fill(row.kept + row.tokens - end, row.kept + row.tokens, uint8_t(1));
    return beginning + end;
  }
};

template <typename Rows> void keepAcrossHeads(int64_t heads, Rows&& rowAt, const Budget& budget) {
  const int64_t safe = budget.safeguard > 0 ? std::max<int64_t>(1, int64_t(double(budget.tokens) * budget.safeguard)) : 0;
  int64_t left = heads * budget.tokens, all = 0;
  for (int64_t head = 0; head < heads; ++head) {
    const Contest row = rowAt(head);
    const int64_t kept = budget.protect(row), more = std::clamp<int64_t>(safe - kept, 0, row.tokens - kept);
    keepBest(1, [&](int64_t) { return row; }, more);
    left -= kept + more;
    all += row.tokens - kept - more;
  }
  keepBest(heads, rowAt, std::min(left, all));
}

Status checkKeepTop(const KeepTopArgs& args) {
  constexpr const char* op = "keepTop";
  const View& kept = args.kept;
  if (kept.dtype != DType::u8 || kept.rank != 1 || (kept.dims[0] > 1 && kept.strides[0] != 1)) return argumentError(op, "kept", "must be one row of u8", kept.rank);
  for (const double number : {args.tokens, args.budget, args.first, args.last})
    if (!(number >= 0 && number <= 0x1p40)) return argumentError(op, "tokens, budget, first, last", "must be integers in 0 … 2^40");
  if (!(args.safeguard <= 1)) return argumentError(op, "safeguard", "must be at most 1");
  if (!args.scores.present() && !args.cache.present()) return argumentError(op, "scores", "or a cache must be given");
  if (!args.scores.present() && args.safeguard >= 0) return argumentError(op, "scores", "must be given to compare heads");
  return {};
}

}  // namespace

Status keepTop(const KeepTopArgs& args, Context& context) {
  constexpr const char* op = "keepTop";
  TL_TRY(checkKeepTop(args));
  const int64_t stride = int64_t(args.tokens);
  FloatRows scores = {nullptr, 0, stride, 0};
  if (args.scores.present()) TL_TRY(floatRows(op, "scores", args.scores, scores));
  RowLengths lengths;
  TL_TRY(lengths.open(op, args.cache, args.layer, std::min(scores.width, stride)));
  const int64_t heads = lengths.ofCache ? lengths.cached.heads() : scores.rows, begin = int64_t(args.layer) * heads * stride;
  if (lengths.ofCache && lengths.cached.longest > stride) return shapeError(op, "kept", "is too short for the longest head", lengths.cached.longest, stride);
  if (args.scores.present() && scores.width < std::min(lengths.ofCache ? lengths.cached.longest : stride, stride)) return shapeError(op, "scores", "is too short for the longest head", stride, scores.width);
  if (args.scores.present() && scores.rows != heads && scores.rows != 1) return shapeError(op, "scores", "must have one row, or one a head", heads, scores.rows);
  if (!(args.layer >= 0) || begin + heads * stride > args.kept.dims[0]) return shapeError(op, "kept", "has no room for this layer", begin + heads * stride, args.kept.dims[0]);
  uint8_t* kept = args.kept.as<uint8_t>() + begin;
  std::fill(kept, kept + heads * stride, uint8_t(0));
  const Budget budget{int64_t(args.budget), int64_t(args.first), int64_t(args.last), args.safeguard};
  const auto rowAt = [&](int64_t head) { return Contest{scores.data ? scores.row(scores.rows == 1 ? 0 : head) : nullptr, kept + head * stride, lengths(head)}; };
  if (args.safeguard >= 0) {
    keepAcrossHeads(heads, rowAt, budget);
    return {};
  }
  forRows(context, heads, 4 * stride, [&](int64_t from, int64_t to, int) {
    for (int64_t head = from; head < to; ++head) {
      const Contest row = rowAt(head);
      const int64_t marked = budget.protect(row), more = std::min(budget.tokens, row.tokens) - marked;
      if (row.scores) keepBest(1, [&](int64_t) { return row; }, more);
      else Budget{budget.tokens, budget.first, row.tokens, -1}.protect(row);  // the newest fill the budget
    }
  });
  return {};
}

}  // namespace tl::TL_TARGET
