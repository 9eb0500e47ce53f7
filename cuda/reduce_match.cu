// Rows against rows: see cpp/kernels/reduce_match.cpp. A product takes its columns in ascending order, one fused multiply-add each;
// equal ones go to the lowest index. No matrix of all pairs is stored where none is asked for.
#include "sequences.cuh"

namespace tl::cuda {
namespace {

// Σ a·b or Σ (a − b)², by one thread.
template <bool squared> __device__ __forceinline__ float terms(const float* a, const float* b, int64_t n) {
  float sum = 0;
  for (int64_t c = 0; c < n; ++c) {
    const float d = squared ? a[c] - b[c] : b[c];
    sum = fmaf(squared ? d : a[c], d, sum);
  }
  return sum;
}

// ---- Products of all pairs

struct Batched {
  const float *x, *y;
  int64_t xStride, yStride, n, m, columns, yEntries;
};

__global__ void __launch_bounds__(kThreads) multiplyRows(Batched of, int64_t batch, const float* bias, bool cosine, bool transposed, float* out) {
  const int64_t i = threadNumber(), j = i % of.m, row = i / of.m, entry = of.yEntries == 1 ? 0 : row / of.n;
  if (row >= batch * of.n) return;
  const float* x = of.x + row * of.xStride;
  float sum;
  if (transposed) {
    const float* y = of.y + entry * of.columns * of.yStride + j;
    sum = 0;
    for (int64_t c = 0; c < of.columns; ++c) sum = fmaf(x[c], y[c * of.yStride], sum);
  } else {
    sum = terms<false>(x, of.y + (entry * of.m + j) * of.yStride, of.columns);
  }
  if (bias) sum += bias[j];
  out[i] = cosine ? sum / normOf(x, of.columns) : sum;
}

Status openBatched(const char* op, const View& x, const View& y, bool transposed, Batched& of, int64_t& batch) {
  Rows rows;
  if (x.rank != 3 || y.rank != 3) return shapeError(op, "x, y", "must have rank 3", 3, x.rank == 3 ? y.rank : x.rank);
  TL_TRY(floatRows(op, "x", x, rows));
  of.x = rows.data, of.xStride = rows.stride;
  TL_TRY(floatRows(op, "y", y, rows));
  of.y = rows.data, of.yStride = rows.stride;
  batch = x.dims[0], of.n = x.dims[1], of.columns = x.dims[2], of.yEntries = y.dims[0], of.m = y.dims[transposed ? 2 : 1];
  if (of.yEntries != batch && of.yEntries != 1) return shapeError(op, "y", "must have the batch of x, or 1", batch, of.yEntries);
  if (y.dims[transposed ? 1 : 2] != of.columns) return shapeError(op, "y", "must have the width of x", of.columns, y.dims[transposed ? 1 : 2]);
  return {};
}

// Directions of y's rows, in place of them.
Status useUnits(const char* op, DeviceContext& context, Batched& of) {
  float* unit = nullptr;
  const int64_t rows = of.yEntries * of.m;
  TL_TRY(context.scratch(op, std::max<int64_t>(rows * of.columns, 1), &unit));
  TL_TRY(launch(op, context, unitRows, dim3(unsigned(rows)), dim3(kThreads), kUnitBytes, Rows{const_cast<float*>(of.y), rows, of.columns, of.yStride}, unit));
  of.y = unit, of.yStride = of.columns;
  return {};
}

// ---- The closest row

struct Found {
  float best;
  int32_t index;
};

// Of rows other(j), j < count, the closest to x: by the whole block. −1 where nothing compares. scratch: kWarp + 1 of Found.
template <bool squared, typename Other> __device__ Found closestTo(const float* x, int64_t count, int64_t columns, Found* scratch, Other other) {
  Found found{-TL_INFINITY, -1};
  for (int64_t j = threadIdx.x; j < count; j += blockDim.x) {
    const float* y = other(j);
    if (!y) continue;
    const float value = squared ? -terms<true>(x, y, columns) : terms<false>(x, y, columns);
    if (value > found.best) found = {value, int32_t(j)};
  }
  const auto better = [](Found a, Found b) { return b.index >= 0 && (a.index < 0 || b.best > a.best || (b.best == a.best && b.index < a.index)); };
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const float best = shuffleXor(found.best, distance);
    const int32_t index = shuffleXor(found.index, distance);
    if (better(found, {best, index})) found = {best, index};
  }
  if (laneIndex() == 0) scratch[warpIndex()] = found;
  __syncthreads();
  for (int w = 0; w < int(blockDim.x) / kWarp; ++w)
    if (better(found, scratch[w])) found = scratch[w];
  __syncthreads();
  return found;
}
constexpr size_t kFoundBytes = sharedBytes<Found>(kWarp);

template <bool squared> __global__ void __launch_bounds__(kThreads) findClosest(Batched of, int32_t* index, float* best) {
  Shared shared;
  Found* scratch = shared.take<Found>(kWarp);
  const int64_t row = blockIdx.x, entry = of.yEntries == 1 ? 0 : row / of.n;
  const float* x = of.x + row * of.xStride;
  const Found found = closestTo<squared>(x, of.m, of.columns, scratch, [&](int64_t j) { return of.y + (entry * of.m + j) * of.yStride; });
  if (threadIdx.x != 0) return;
  index[row] = max(found.index, 0);
  best[row] = squared ? found.best : found.best / normOf(x, of.columns);
}

// ---- Bipartite matching

struct Matching {
  Rows metric;
  const float* unit;  // directions of all rows, or null
  Sequences sequences;
  const uint8_t* destinations;
  int32_t *map, *newBounds, *partner, *members, *sources;  // members: sources of a sequence first; sources [sequences]: how many
  float* best;
  uint8_t* merged;
  bool classToken, distillToken;
  int64_t merge;
};

__global__ void __launch_bounds__(kThreads) listMembers(Matching m) {
  Shared shared;
  int* counts = shared.take<int>(kWarp + 1);
  const int64_t s = blockIdx.x, begin = m.sequences.begin(s), length = m.sequences.length(s);
  const auto joins = [&](int64_t i) { return m.destinations ? m.destinations[begin + i] == 0 : i % 2 == 0; };
  const int64_t from = scanFlags(length, counts, joins, [](int64_t, bool, int64_t) {});
  scanFlags(length, counts, joins, [&](int64_t i, bool source, int64_t before) { m.members[begin + (source ? before : from + i - before)] = int32_t(begin + i); });
  if (threadIdx.x == 0) m.sources[s] = int32_t(from);
  for (int64_t i = threadIdx.x; i < length; i += blockDim.x) m.best[begin + i] = -TL_INFINITY, m.partner[begin + i] = -1;
  if (s == m.sequences.count - 1)
    for (int64_t i = m.sequences.rows() + threadIdx.x; i < m.metric.rows; i += blockDim.x) m.map[i] = -1, m.best[i] = -TL_INFINITY, m.partner[i] = -1;
}

// A block a row; those that are no sources have nothing to do.
template <bool squared> __global__ void __launch_bounds__(kThreads) matchSources(Matching m) {
  Shared shared;
  Found* scratch = shared.take<Found>(kWarp);
  const int64_t s = m.sequences.of(blockIdx.x);
  if (s >= m.sequences.count) return;
  const int64_t begin = m.sequences.begin(s), from = m.sources[s], to = m.sequences.length(s) - from, own = blockIdx.x - begin;
  if (own >= from || to == 0) return;
  const int32_t row = m.members[begin + own];
  const float* x = m.metric.row(row);
  const Found found = closestTo<squared>(x, to, m.metric.width, scratch, [&](int64_t j) -> const float* {
    const int32_t other = m.members[begin + from + j];
    return j == 0 && m.distillToken ? nullptr : squared ? m.metric.row(other) : m.unit + other * m.metric.width;
  });
  if (threadIdx.x != 0) return;
  m.partner[row] = found.index >= 0 ? found.index : m.distillToken && to > 1 ? 1 : 0;  // where nothing compares (NaN): the first one
  m.best[row] = found.index < 0 ? -TL_INFINITY : squared ? found.best : found.best / normOf(x, m.metric.width);
}

__global__ void __launch_bounds__(kSelectThreads) placeMatched(Matching m) {
  Shared shared;
  auto* scratch = shared.take<SelectScratch>(1);
  const int64_t s = blockIdx.x, begin = m.sequences.begin(s), length = m.sequences.length(s), from = m.sources[s], to = length - from;
  const int32_t *source = m.members + begin, *destination = source + from;
  uint8_t* merged = m.merged + begin;
  const int64_t spared = int64_t(m.classToken) + int64_t(m.distillToken), most = m.destinations ? from : max(int64_t(0), (length - spared) / 2);
  const int64_t count = to > 0 ? min(max(m.merge, int64_t(0)), most) : 0;
  const bool aside = from > 0 && m.classToken && source[0] == begin;  // takes no part
  for (int64_t i = threadIdx.x; i < from; i += blockDim.x) merged[i] = 0;
  __syncthreads();
  keepBest(from, min(count, from - int64_t(aside)), scratch, [&](int64_t i) { return orderKey(m.best[source[i]]); }, [&](int64_t i) { return !(aside && i == 0); }, [&](int64_t i) { merged[i] = 1; });
  __syncthreads();
  const int64_t kept = scanFlags(from, scratch->counts, [&](int64_t i) { return merged[i] == 0; }, [](int64_t, bool, int64_t) {});
  // With a distillation token: source 0, destination 0, then the other sources, the other destinations.
  const auto destinationPlace = [&](int64_t i) { return m.distillToken && i == 0 ? int64_t(kept > 0) : kept + i; };
  scanFlags(from, scratch->counts, [&](int64_t i) { return merged[i] == 0; }, [&](int64_t i, bool stays, int64_t next) {
    m.map[source[i]] = int32_t(!stays ? destinationPlace(m.partner[source[i]]) : m.distillToken && to > 0 && next > 0 ? next + 1 : next);
  });
  for (int64_t i = threadIdx.x; i < to; i += blockDim.x) m.map[destination[i]] = int32_t(destinationPlace(i));
  if (threadIdx.x == 0) m.newBounds[s + 1] = int32_t(kept + to);
}

// ---- Density peaks: a thread a token

struct Peaks {
  Rows x;
  Sequences sequences;
  int64_t k;
  float *density, *score, *nearest;
};

__global__ void __launch_bounds__(kThreads) findDensity(Peaks p) {
  const int64_t i = threadNumber();
  if (i >= p.x.rows) return;
  const int64_t s = p.sequences.of(i);
  if (s >= p.sequences.count) {
    p.density[i] = 0;
    return;
  }
  const int64_t begin = p.sequences.begin(s), length = p.sequences.length(s), k = min(p.k, length);
  float* nearest = p.nearest + i * p.k;  // in rising order
  for (int64_t j = 0; j < p.k; ++j) nearest[j] = TL_INFINITY;
  for (int64_t j = 0; j < length; ++j) {
    const float distance = terms<true>(p.x.row(i), p.x.row(begin + j), p.x.width);
    if (!(distance < nearest[p.k - 1])) continue;
    int64_t at = p.k - 1;
    for (; at > 0 && nearest[at - 1] > distance; --at) nearest[at] = nearest[at - 1];
    nearest[at] = distance;
  }
  float sum = 0;
  for (int64_t j = 0; j < k; ++j) sum += nearest[j] / float(p.x.width);
  p.density[i] = expf(-(sum / float(k)));
}

// score: the smallest square to a denser token; nearest[0]: the largest of all.
__global__ void __launch_bounds__(kThreads) findDenser(Peaks p) {
  const int64_t i = threadNumber();
  if (i >= p.x.rows) return;
  const int64_t s = p.sequences.of(i);
  if (s >= p.sequences.count) {
    p.score[i] = -TL_INFINITY;
    return;
  }
  const int64_t begin = p.sequences.begin(s), length = p.sequences.length(s);
  float smallest = TL_INFINITY, largest = 0;
  const float own = p.density[i];
  for (int64_t j = begin; j < begin + length; ++j) {
    const float square = terms<true>(p.x.row(i), p.x.row(j), p.x.width), other = p.density[j];
    if ((other > own || (other == own && j < i)) && square < smallest) smallest = square;
    if (square > largest) largest = square;
  }
  p.score[i] = smallest;
  p.nearest[i * p.k] = largest;
}

__global__ void __launch_bounds__(kThreads) finishScores(Peaks p) {
  Shared shared;
  float* scratch = shared.take<float>(kWarp + 1);
  const int64_t begin = p.sequences.begin(blockIdx.x), end = begin + p.sequences.length(blockIdx.x);
  float largest = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) largest = max(largest, p.nearest[i * p.k]);
  largest = blockMax(largest, scratch);
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) p.score[i] = sqrtf((p.score[i] == TL_INFINITY ? largest : p.score[i]) / float(p.x.width)) * p.density[i];
}

}  // namespace

Status rowProducts(const RowProductsArgs& args, DeviceContext& context) {
  constexpr const char* op = "rowProducts";
  Batched of{};
  int64_t batch = 0;
  float* out;
  TL_TRY(openBatched(op, args.x, args.y, args.transposed != 0, of, batch));
  TL_TRY(flat(op, "out", args.out, DType::f32, batch * of.n * of.m, out));
  if (args.bias.present()) TL_TRY(vectorOperand(op, "bias", args.bias, of.m));
  if (args.cosine != 0 && args.transposed == 0) TL_TRY(useUnits(op, context, of));
  return launch(op, context, multiplyRows, gridOf(batch * of.n * of.m), dim3(kThreads), 0, of, batch, args.bias.present() ? args.bias.as<const float>() : nullptr, args.cosine != 0, args.transposed != 0, out);
}

Status closestRows(const ClosestRowsArgs& args, DeviceContext& context) {
  constexpr const char* op = "closestRows";
  Batched of{};
  int64_t batch = 0;
  int32_t* index;
  float* best;
  TL_TRY(openBatched(op, args.x, args.y, false, of, batch));
  TL_TRY(flat(op, "best", args.best, DType::f32, batch * of.n, best));
  TL_TRY(flat(op, "index", args.index, DType::i32, batch * of.n, index));
  if (of.m < 1 && batch * of.n > 0) return shapeError(op, "y", "must have rows", 1, of.m);
  const dim3 grid(unsigned(batch * of.n));
  if (args.distance != 0) return launch(op, context, findClosest<true>, grid, dim3(kThreads), kFoundBytes, of, index, best);
  TL_TRY(useUnits(op, context, of));
  return launch(op, context, findClosest<false>, grid, dim3(kThreads), kFoundBytes, of, index, best);
}

Status bipartiteMatch(const BipartiteMatchArgs& args, DeviceContext& context) {
  constexpr const char* op = "bipartiteMatch";
  Matching m{};
  TL_TRY(tokenRows(op, "metric", args.metric, args.bounds, m.metric, m.sequences));
  const int64_t rows = m.metric.rows;
  m.classToken = args.classToken != 0, m.distillToken = args.distillToken != 0;
  m.merge = int64_t(std::min(std::max(args.merge, 0.0), 0x1p40));
  TL_TRY(flatOr(op, "destinations", args.destinations, DType::u8, rows, m.destinations));
  TL_TRY(flat(op, "map", args.map, DType::i32, rows, m.map));
  TL_TRY(flat(op, "newBounds", args.newBounds, DType::i32, m.sequences.count + 1, m.newBounds));
  TL_TRY(flat(op, "best", args.best, DType::f32, rows, m.best));
  TL_TRY(flat(op, "partner", args.partner, DType::i32, rows, m.partner));
  TL_TRY(flat(op, "members", args.members, DType::i32, rows, m.members));
  TL_TRY(context.scratch(op, std::max<int64_t>(m.sequences.count, 1), &m.sources));
  TL_TRY(context.scratch(op, std::max<int64_t>(rows, 1), &m.merged));
  const bool squared = args.distance != 0;
  if (!squared) {
    float* unit = nullptr;
    TL_TRY(context.scratch(op, std::max<int64_t>(rows * m.metric.width, 1), &unit));
    TL_TRY(launch(op, context, unitRows, dim3(unsigned(rows)), dim3(kThreads), kUnitBytes, m.metric, unit));
    m.unit = unit;
  }
  const dim3 each(unsigned(m.sequences.count)), all = dim3(unsigned(rows));
  TL_TRY(launch(op, context, listMembers, each, dim3(kThreads), sharedBytes<int>(kWarp + 1), m));
  TL_TRY(squared ? launch(op, context, matchSources<true>, all, dim3(kThreads), kFoundBytes, m) : launch(op, context, matchSources<false>, all, dim3(kThreads), kFoundBytes, m));
  TL_TRY(launch(op, context, placeMatched, each, dim3(kSelectThreads), sharedBytes<SelectScratch>(1), m));
  return launch(op, context, addBounds, dim3(1), dim3(kWarp), 0, m.newBounds, m.sequences.count);
}

Status densityPeaks(const DensityPeaksArgs& args, DeviceContext& context) {
  constexpr const char* op = "densityPeaks";
  Peaks p{};
  TL_TRY(tokenRows(op, "x", args.x, args.bounds, p.x, p.sequences));
  p.k = args.nearest.lastDim();
  if (p.k < 1) return shapeError(op, "nearest", "must have columns", 1, p.k);
  TL_TRY(flat(op, "density", args.density, DType::f32, p.x.rows, p.density));
  TL_TRY(flat(op, "score", args.score, DType::f32, p.x.rows, p.score));
  TL_TRY(flat(op, "nearest", args.nearest, DType::f32, p.x.rows * p.k, p.nearest));
  TL_TRY(launch(op, context, findDensity, gridOf(p.x.rows), dim3(kThreads), 0, p));
  TL_TRY(launch(op, context, findDenser, gridOf(p.x.rows), dim3(kThreads), 0, p));
  return launch(op, context, finishScores, dim3(unsigned(p.sequences.count)), dim3(kThreads), sharedBytes<float>(kWarp + 1), p);
}

}  // namespace tl::cuda
