// From scores to the tokens that stay: see cpp/kernels/cache_select.cpp.
#include "cache_pages.cuh"
#include "select.cuh"

namespace tl::cuda {
namespace {

// Lengths of score rows: those of a cache's heads, or the rows' width.
struct RowLengths {
  const int32_t* lengths;
  int64_t width;
  __device__ int64_t of(int64_t head) const { return lengths ? lengths[head] : width; }
};

Status openLengths(const char* op, const View& cache, double number, int64_t width, DeviceContext& context, CacheLayer& layer, RowLengths& lengths) {
  lengths = {nullptr, width};
  if (!cache.present()) return {};
  Pages pages;
  TL_TRY(openPages(op, cache, number, context, layer, pages));
  lengths.lengths = pages.lengths;
  return {};
}

__global__ void poolRows(Rows x, RowLengths lengths, int64_t reach, int64_t last, bool maximum, Rows out) {
  const int64_t row = blockIdx.y, j = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (j >= out.width) return;
  const int64_t n = max(min(lengths.of(row), x.width) - last, int64_t(0));
  float result = -TL_INFINITY;
  if (j < n) {
    const int64_t first = max(j - reach, int64_t(0)), end = min(j + reach + 1, n);
    result = maximum ? -TL_INFINITY : 0.0f;
    for (int64_t i = first; i < end; ++i) result = maximum ? max(result, x.row(row)[i]) : result + x.row(row)[i];
    if (!maximum) result /= float(2 * reach + 1);
  }
  out.row(row)[j] = result;
}

__global__ void combineRows(Rows x, Rows weights, int64_t group, int kind, float epsilon, Rows out) {  // weights.rows 0: none
  const int64_t row = blockIdx.y, j = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (j >= out.width) return;
  float reduced = x.row(row * group)[j];
  for (int64_t g = 1; g < group; ++g) {
    const float next = x.row(row * group + g)[j];
    reduced = kind == 1 ? max(reduced, next) : reduced + next;
  }
  if (kind == 0) reduced *= 1 / float(group);
  out.row(row)[j] = weights.rows ? (reduced + epsilon) * weights.row(row)[j] : reduced;
}

struct Budget {
  int64_t tokens, first, last;
  double safeguard;
};

// Marks the protected tokens of a row of n, by all threads; answers how many they are.
__device__ int64_t protect(const Budget& b, uint8_t* kept, int64_t n, int64_t last) {
  const int64_t all = min(b.tokens, n), beginning = min(b.first, all), end = min(last, all - beginning);
  for (int64_t j = threadIdx.x; j < n; j += blockDim.x)
    if (j < beginning || j >= n - end) kept[j] = 1;
  __syncthreads();
  return beginning + end;
}

// A block a head.
__global__ void __launch_bounds__(kSelectThreads) keepOfHeads(Rows scores, RowLengths lengths, Budget budget, uint8_t* allKept, int64_t stride) {
  Shared shared;
  auto* scratch = shared.take<SelectScratch>(1);
  const int64_t head = blockIdx.x, n = lengths.of(head);
  uint8_t* kept = allKept + head * stride;
  for (int64_t j = threadIdx.x; j < stride; j += blockDim.x) kept[j] = 0;
  __syncthreads();
  const int64_t marked = protect(budget, kept, n, scores.data ? budget.last : n);  // without scores the newest fill the budget
  if (!scores.data) return;
  const float* row = scores.row(scores.rows == 1 ? 0 : head);
  keepBest(n, min(budget.tokens, n) - marked, scratch, [&](int64_t j) { return orderKey(row[j]); }, [&](int64_t j) { return kept[j] == 0; }, [&](int64_t j) { kept[j] = 1; });
}

// One block for all heads: what is left over goes to the best of them all.
__global__ void __launch_bounds__(kSelectThreads) keepAcrossHeads(Rows scores, RowLengths lengths, int64_t heads, Budget budget, uint8_t* kept, int64_t stride) {
  Shared shared;
  auto* scratch = shared.take<SelectScratch>(1);
  for (int64_t i = threadIdx.x; i < heads * stride; i += blockDim.x) kept[i] = 0;
  __syncthreads();
  const auto safe = budget.safeguard > 0 ? max(int64_t(1), int64_t(double(budget.tokens) * budget.safeguard)) : int64_t(0);
  int64_t left = heads * budget.tokens, all = 0;
  for (int64_t head = 0; head < heads; ++head) {
    uint8_t* own = kept + head * stride;
    const float* row = scores.row(scores.rows == 1 ? 0 : head);
    const int64_t n = lengths.of(head), marked = protect(budget, own, n, budget.last), more = min(max(safe - marked, int64_t(0)), n - marked);
    keepBest(n, more, scratch, [&](int64_t j) { return orderKey(row[j]); }, [&](int64_t j) { return own[j] == 0; }, [&](int64_t j) { own[j] = 1; });
    __syncthreads();
    left -= marked + more;
    all += n - marked - more;
  }
  const auto key = [&](int64_t i) { return orderKey(scores.row(scores.rows == 1 ? 0 : i / stride)[i % stride]); };
  keepBest(heads * stride, min(left, all), scratch, key, [&](int64_t i) { return i % stride < lengths.of(i / stride) && kept[i] == 0; }, [&](int64_t i) { kept[i] = 1; });
}

}  // namespace

Status poolScores(const PoolScoresArgs& args, DeviceContext& context) {
  constexpr const char* op = "poolScores";
  Rows x, out;
  TL_TRY(openPoolScores(args, x, out));
  CacheLayer layer;
  RowLengths lengths;
  TL_TRY(openLengths(op, args.cache, args.layer, x.width, context, layer, lengths));
  if (lengths.lengths && x.rows > layer.cache->shape.kvHeads) return shapeError(op, "x", "has more rows than the cache has heads", layer.cache->shape.kvHeads, x.rows);
  const int64_t reach = (int64_t(std::min(args.kernel, 0x1p40)) - 1) / 2;
  return launch(op, context, poolRows, tokenGrid(out.width, out.rows), dim3(kCacheThreads), 0, x, lengths, reach, int64_t(std::min(args.last, 0x1p40)), args.maximum != 0, out);
}

Status reduceRows(const ReduceRowsArgs& args, DeviceContext& context) {
  constexpr const char* op = "reduceRows";
  if (args.kind != 0 && args.kind != 1 && args.kind != 2) return argumentError(op, "kind", "must be 0, 1 or 2", int64_t(args.kind));
  Rows x, out, weights{};
  TL_TRY(floatRows(op, "x", args.x, x));
  TL_TRY(floatRows(op, "out", args.out, out));
  if (out.width != x.width) return shapeError(op, "out", "must have the columns of x", x.width, out.width);
  if (out.rows < 1 || x.rows % out.rows) return shapeError(op, "x", "must have a multiple of the output's rows", out.rows, x.rows);
  if (args.weights.present()) {
    TL_TRY(floatRows(op, "weights", args.weights, weights));
    TL_TRY(sameShape(op, "weights", out, weights));
  }
  if (x.rows == 0) return shapeError(op, "x", "must have rows", 1, 0);
  if (out.rows > 65535) return shapeError(op, "out", "has more rows than a grid", 65535, out.rows);
  return launch(op, context, combineRows, tokenGrid(out.width, out.rows), dim3(kCacheThreads), 0, x, weights, x.rows / out.rows, int(args.kind), float(args.epsilon), out);
}

Status keepTop(const KeepTopArgs& args, DeviceContext& context) {
  constexpr const char* op = "keepTop";
  TL_TRY(checkType(op, "kept", args.kept, DType::u8, -1));
  for (const double number : {args.tokens, args.budget, args.first, args.last})
    if (!(number >= 0 && number <= 0x1p40)) return argumentError(op, "tokens, budget, first, last", "must be integers in 0 … 2^40");
  if (!(args.safeguard <= 1)) return argumentError(op, "safeguard", "must be at most 1");
  if (!args.scores.present() && !args.cache.present()) return argumentError(op, "scores", "or a cache must be given");
  if (!args.scores.present() && args.safeguard >= 0) return argumentError(op, "scores", "must be given to compare heads");
  const int64_t stride = int64_t(args.tokens);
  Rows scores = {nullptr, 0, stride, 0};
  if (args.scores.present()) TL_TRY(floatRows(op, "scores", args.scores, scores));
  CacheLayer layer;
  RowLengths lengths;
  TL_TRY(openLengths(op, args.cache, args.layer, std::min(scores.width, stride), context, layer, lengths));
  const int64_t heads = lengths.lengths ? layer.cache->shape.kvHeads : scores.rows, begin = int64_t(args.layer) * heads * stride;
  if (lengths.lengths && layer.mostKeys > stride) return shapeError(op, "kept", "is too short for the longest head", layer.mostKeys, stride);
  if (args.scores.present() && scores.width < std::min(lengths.lengths ? layer.mostKeys : stride, stride)) return shapeError(op, "scores", "is too short for the longest head", stride, scores.width);
  if (args.scores.present() && scores.rows != heads && scores.rows != 1) return shapeError(op, "scores", "must have one row, or one a head", heads, scores.rows);
  if (!(args.layer >= 0) || begin + heads * stride > args.kept.dims[0]) return shapeError(op, "kept", "has no room for this layer", begin + heads * stride, args.kept.dims[0]);
  if (heads == 0 || stride == 0) return {};
  uint8_t* kept = args.kept.as<uint8_t>() + begin;
  const Budget budget{int64_t(args.budget), int64_t(args.first), int64_t(args.last), args.safeguard};
  if (args.safeguard >= 0) return launch(op, context, keepAcrossHeads, dim3(1), dim3(kSelectThreads), sharedBytes<SelectScratch>(1), scores, lengths, heads, budget, kept, stride);
  return launch(op, context, keepOfHeads, dim3(unsigned(heads)), dim3(kSelectThreads), sharedBytes<SelectScratch>(1), scores, lengths, budget, kept, stride);
}

}  // namespace tl::cuda
