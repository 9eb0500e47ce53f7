// From scores to places, and from places to new rows: see cpp/kernels/reduce_rows.cpp.
#include "sequences.cuh"

namespace tl::cuda {
namespace {

__global__ void countOfSequences(Sequences sequences, double rate, double add, double first, double rounding, int32_t* counts) {
  const int64_t s = threadNumber();
  if (s >= sequences.count) return;
  const double length = double(sequences.length(s)), always = first < length ? first : length, share = rate * (length - always), whole = floor(share), part = share - whole;
  const bool up = rounding == 2 ? part > 0 : rounding == 1 && (part > 0.5 || (part == 0.5 && fmod(whole, 2.0) != 0));
  const double count = always + whole + double(up) + add;
  counts[s] = int32_t(count > 0 ? (count < length ? count : length) : 0);
}

__global__ void __launch_bounds__(kSelectThreads) keepOfSequences(const float* allScores, Sequences sequences, const int32_t* counts, int64_t first, uint8_t* allKept, int64_t rows) {
  Shared shared;
  auto* scratch = shared.take<SelectScratch>(1);
  const int64_t s = blockIdx.x, begin = sequences.begin(s), length = sequences.length(s), always = min(first, length);
  const float* scores = allScores + begin;
  uint8_t* kept = allKept + begin;
  for (int64_t i = threadIdx.x; i < length; i += blockDim.x) kept[i] = i < always;
  if (s == sequences.count - 1)
    for (int64_t i = sequences.rows() + threadIdx.x; i < rows; i += blockDim.x) allKept[i] = 0;
  __syncthreads();
  keepBest(length, min(int64_t(counts[s]), length) - always, scratch, [&](int64_t i) { return orderKey(scores[i]); }, [&](int64_t i) { return i >= always; }, [&](int64_t i) { kept[i] = 1; });
}

// Maps within sequences; newBounds[s + 1] gets the count of new rows.
__global__ void __launch_bounds__(kThreads) placeKept(const uint8_t* allKept, Sequences sequences, int64_t most, int32_t* allMap, int32_t* newBounds, int64_t rows) {
  Shared shared;
  int* counts = shared.take<int>(kWarp + 1);
  const int64_t s = blockIdx.x, begin = sequences.begin(s), length = sequences.length(s);
  const uint8_t* kept = allKept + begin;
  int32_t* map = allMap + begin;
  const int64_t stay = scanFlags(length, counts, [&](int64_t i) { return kept[i] != 0; }, [](int64_t, bool, int64_t) {});
  const int64_t others = length - stay, runs = min(most, others), each = runs > 0 ? others / runs : 0, longer = runs > 0 ? others % runs : 0;  // the first `longer` runs are one longer
  scanFlags(length, counts, [&](int64_t i) { return kept[i] != 0; }, [&](int64_t i, bool stays, int64_t before) {
    const int64_t at = i - before;  // of the others
    const int64_t run = runs == 0 ? 0 : at < longer * (each + 1) ? at / (each + 1) : longer + (at - longer * (each + 1)) / each;
    map[i] = stays ? int32_t(before) : runs == 0 ? -1 : int32_t(stay + run);
  });
  if (s == sequences.count - 1)
    for (int64_t i = sequences.rows() + threadIdx.x; i < rows; i += blockDim.x) allMap[i] = -1;
  if (threadIdx.x == 0) newBounds[s + 1] = int32_t(stay + runs);
}

__global__ void __launch_bounds__(kThreads) placeSegments(const uint8_t* boundary, Sequences sequences, bool start, int32_t* allMap, int32_t* newBounds, int64_t rows) {
  Shared shared;
  int* counts = shared.take<int>(kWarp + 1);
  const int64_t s = blockIdx.x, begin = sequences.begin(s), length = sequences.length(s);
  const int64_t opened = scanFlags(length, counts, [&](int64_t i) { return i > 0 && boundary[begin + i - (start ? 0 : 1)] != 0; },
                                   [&](int64_t i, bool opens, int64_t before) { allMap[begin + i] = int32_t(before + opens); });
  if (s == sequences.count - 1)
    for (int64_t i = sequences.rows() + threadIdx.x; i < rows; i += blockDim.x) allMap[i] = -1;
  if (threadIdx.x == 0) newBounds[s + 1] = length > 0 ? int32_t(opened + 1) : 0;
}

enum MergeKind { mean, sum, maximum, first, last };

struct Merge {
  Rows x, out;
  Sequences from, to;
  const int32_t* map;
  const float *weights, *sizes;
  const uint8_t* kept;
  float *newSizes, *totals;
  MergeKind kind;
};

// A block a new row: its members are looked for among the sequence's tokens, and added in their order.
__global__ void __launch_bounds__(kThreads) mergeMembers(Merge m, int* problems) {
  const int64_t row = blockIdx.x, s = m.to.of(row), width = m.out.width;
  float* values = m.out.row(row);
  float size = 0, total = 0;
  int64_t members = 0, opener = -1, closer = -1;
  const int64_t begin = s < m.to.count ? m.from.begin(s) : 0, end = s < m.to.count ? begin + m.from.length(s) : 0, own = s < m.to.count ? row - m.to.begin(s) : -1;
  for (int64_t i = begin; i < end; ++i) {
    if (m.map[i] >= 0 && m.map[i] >= m.to.length(s) && threadIdx.x == 0) reportProblem(problems, Problems::index);
    if (m.map[i] != own || own < 0) continue;
    size += m.sizes ? m.sizes[i] : 1.0f;
    total += m.weights ? m.weights[i] : 1.0f;
    const bool opens = opener < 0;
    if (opens) opener = i;
    if (!(opens && m.kept && m.kept[i]) && (opens || members > 0)) ++members;
    closer = i;
  }
  if (threadIdx.x == 0) m.newSizes[row] = size, m.totals[row] = total;
  const bool plain = m.kind == mean && total == 0;  // weights that add up to nothing: as if there were none
  for (int64_t c = threadIdx.x; c < width; c += blockDim.x) {
    float value = 0;
    if (opener >= 0) {
      if (members == 0 || m.kind == first || (m.kind == mean && members == 1)) value = m.x.row(opener)[c];
      else if (m.kind == last) value = m.x.row(closer)[c];
      else {
        if (m.kind == maximum) value = m.x.row(opener)[c];
        for (int64_t i = opener; i < end; ++i) {
          if (m.map[i] != own) continue;
          const float member = m.x.row(i)[c];
          value = m.kind == maximum ? largerOf(value, member) : fmaf(member, m.weights && !plain ? m.weights[i] : 1.0f, value);
        }
        if (m.kind == mean) value /= plain ? float(members) : total;
      }
    }
    values[c] = value;
  }
}

__global__ void followMap(const int32_t* source, const int32_t* map, Sequences original, Sequences now, int64_t count, int32_t* out, int* problems) {
  const int64_t i = threadNumber();
  if (i >= count) return;
  const int64_t s = original.of(i);
  out[i] = s >= original.count || source[i] < 0 ? -1 : map[now.begin(s) + checkedIndex(source[i], now.length(s), problems)];
}

__global__ void __launch_bounds__(kThreads) copyBack(Rows x, const int32_t* source, Sequences original, Sequences now, Rows out, int* problems) {
  const int64_t i = blockIdx.x, s = original.of(i);
  const bool there = s < original.count && source[i] >= 0;
  const int64_t row = there ? now.begin(s) + checkedIndex(source[i], now.length(s), problems) : 0;
  for (int64_t c = threadIdx.x; c < out.width; c += blockDim.x) out.row(i)[c] = there ? x.row(row)[c] : 0.0f;
}

__global__ void averageHeads(const float* x, int64_t rowStride, int64_t headStride, int64_t heads, Rows out) {
  const int64_t i = threadNumber(), row = i / out.width, c = i % out.width;
  if (row >= out.rows) return;
  float all = 0;
  for (int64_t head = 0; head < heads; ++head) all += x[row * rowStride + head * headStride + c];
  out.row(row)[c] = all / float(heads);
}

__global__ void logarithms(const float* sizes, int64_t n, float* out) {
  const int64_t i = threadNumber();
  if (i < n) out[i] = sizes[i] == 1 ? 0.0f : float(log(double(sizes[i])));
}

// Where each row goes, and where the sequences begin then: bounds, map and newBounds of `args`.
template <typename Args> Status openPlaces(const char* op, const Args& args, int64_t rows, Sequences& sequences, int32_t*& map, int32_t*& newBounds) {
  TL_TRY(openSequences(op, "bounds", args.bounds, rows, sequences));
  TL_TRY(flat(op, "map", args.map, DType::i32, rows, map));
  return flat(op, "newBounds", args.newBounds, DType::i32, sequences.count + 1, newBounds);
}

}  // namespace

Status countTokens(const CountTokensArgs& args, DeviceContext& context) {
  Sequences sequences;
  int32_t* counts;
  TL_TRY(openSequences("countTokens", "bounds", args.bounds, 0x7fffffff, sequences));
  TL_TRY(flat("countTokens", "counts", args.counts, DType::i32, sequences.count, counts));
  return launch("countTokens", context, countOfSequences, gridOf(sequences.count), dim3(kThreads), 0, sequences, args.rate, args.add, args.first, args.rounding, counts);
}

Status keepTokens(const KeepTokensArgs& args, DeviceContext& context) {
  constexpr const char* op = "keepTokens";
  const int64_t rows = args.scores.count();
  Sequences sequences;
  float* scores;
  int32_t* counts;
  uint8_t* kept;
  TL_TRY(flat(op, "scores", args.scores, DType::f32, rows, scores));
  TL_TRY(openSequences(op, "bounds", args.bounds, rows, sequences));
  TL_TRY(flat(op, "counts", args.counts, DType::i32, sequences.count, counts));
  TL_TRY(flat(op, "kept", args.kept, DType::u8, rows, kept));
  return launch(op, context, keepOfSequences, dim3(unsigned(sequences.count)), dim3(kSelectThreads), sharedBytes<SelectScratch>(1), scores, sequences, counts,
                int64_t(std::min(std::max(args.first, 0.0), 0x1p40)), kept, rows);
}

Status keptMap(const KeptMapArgs& args, DeviceContext& context) {
  constexpr const char* op = "keptMap";
  const int64_t rows = args.kept.count();
  Sequences sequences;
  uint8_t* kept;
  int32_t *map, *newBounds;
  TL_TRY(flat(op, "kept", args.kept, DType::u8, rows, kept));
  TL_TRY(openPlaces(op, args, rows, sequences, map, newBounds));
  TL_TRY(launch(op, context, placeKept, dim3(unsigned(sequences.count)), dim3(kThreads), sharedBytes<int>(kWarp + 1), kept, sequences, int64_t(std::min(std::max(args.gather, 0.0), 0x1p30)), map, newBounds, rows));
  return launch(op, context, addBounds, dim3(1), dim3(kWarp), 0, newBounds, sequences.count);
}

Status segmentMap(const SegmentMapArgs& args, DeviceContext& context) {
  constexpr const char* op = "segmentMap";
  const int64_t rows = args.boundary.count();
  Sequences sequences;
  uint8_t* boundary;
  int32_t *map, *newBounds;
  TL_TRY(flat(op, "boundary", args.boundary, DType::u8, rows, boundary));
  TL_TRY(openPlaces(op, args, rows, sequences, map, newBounds));
  TL_TRY(launch(op, context, placeSegments, dim3(unsigned(sequences.count)), dim3(kThreads), sharedBytes<int>(kWarp + 1), boundary, sequences, args.start != 0, map, newBounds, rows));
  return launch(op, context, addBounds, dim3(1), dim3(kWarp), 0, newBounds, sequences.count);
}

Status mergeRows(const MergeRowsArgs& args, DeviceContext& context) {
  constexpr const char* op = "mergeRows";
  if (!(args.kind >= 0 && args.kind <= 4)) return argumentError(op, "kind", "must be 0 … 4", int64_t(args.kind));
  Merge m{};
  m.kind = MergeKind(int(args.kind));
  TL_TRY(floatRows(op, "x", args.x, m.x));
  TL_TRY(floatRows(op, "out", args.out, m.out));
  if (m.out.width != m.x.width) return shapeError(op, "out", "must have the width of x", m.x.width, m.out.width);
  const int64_t rows = m.x.rows, newRows = m.out.rows;
  int32_t* map;
  TL_TRY(openSequences(op, "bounds", args.bounds, rows, m.from));
  TL_TRY(openSequences(op, "newBounds", args.newBounds, newRows, m.to));
  if (m.from.count != m.to.count) return shapeError(op, "newBounds", "must have as many sequences as bounds", m.from.count, m.to.count);
  TL_TRY(flat(op, "map", args.map, DType::i32, rows, map));
  m.map = map;
  TL_TRY(flatOr(op, "weights", args.weights, DType::f32, rows, m.weights));
  TL_TRY(flatOr(op, "sizes", args.sizes, DType::f32, rows, m.sizes));
  TL_TRY(flatOr(op, "kept", args.kept, DType::u8, rows, m.kept));
  TL_TRY(flat(op, "newSizes", args.newSizes, DType::f32, newRows, m.newSizes));
  TL_TRY(flat(op, "totals", args.totals, DType::f32, newRows, m.totals));
  return launch(op, context, mergeMembers, dim3(unsigned(newRows)), dim3(kThreads), 0, m, context.problems);
}

Status chainSource(const ChainSourceArgs& args, DeviceContext& context) {
  constexpr const char* op = "chainSource";
  Sequences original, now;
  int32_t *source, *map, *out;
  const int64_t count = args.source.count();
  TL_TRY(flat(op, "source", args.source, DType::i32, count, source));
  TL_TRY(flat(op, "map", args.map, DType::i32, args.map.count(), map));
  TL_TRY(flat(op, "out", args.out, DType::i32, count, out));
  TL_TRY(openSequences(op, "original", args.original, count, original));
  TL_TRY(openSequences(op, "bounds", args.bounds, args.map.count(), now));
  if (original.count != now.count) return shapeError(op, "bounds", "must have as many sequences as the original", original.count, now.count);
  return launch(op, context, followMap, gridOf(count), dim3(kThreads), 0, source, map, original, now, count, out, context.problems);
}

Status unmergeRows(const UnmergeRowsArgs& args, DeviceContext& context) {
  constexpr const char* op = "unmergeRows";
  Rows x, out;
  Sequences original, now;
  int32_t* source;
  TL_TRY(floatRows(op, "x", args.x, x));
  TL_TRY(floatRows(op, "out", args.out, out));
  TL_TRY(flat(op, "source", args.source, DType::i32, out.rows, source));
  TL_TRY(openSequences(op, "original", args.original, out.rows, original));
  TL_TRY(openSequences(op, "bounds", args.bounds, x.rows, now));
  if (out.width != x.width) return shapeError(op, "out", "must have the width of x", x.width, out.width);
  if (original.count != now.count) return shapeError(op, "bounds", "must have as many sequences as the original", original.count, now.count);
  return launch(op, context, copyBack, dim3(unsigned(out.rows)), dim3(kThreads), 0, x, source, original, now, out, context.problems);
}

Status meanHeads(const MeanHeadsArgs& args, DeviceContext& context) {
  constexpr const char* op = "meanHeads";
  const View& x = args.x;
  Rows out;
  TL_TRY(floatRows(op, "out", args.out, out));
  if (x.dtype != DType::f32 || x.rank != 3 || (x.dims[2] > 1 && x.strides[2] != 1)) return argumentError(op, "x", "must be f32 [rows, heads, headDim]", x.rank);
  if (out.rows != x.dims[0] || out.width != x.dims[2] || x.dims[1] < 1) return shapeError(op, "out", "must be [rows, headDim]", x.dims[0], out.rows);
  return launch(op, context, averageHeads, gridOf(out.rows * out.width), dim3(kThreads), 0, x.as<const float>(), x.strides[0], x.strides[1], x.dims[1], out);
}

Status logSizes(const LogSizesArgs& args, DeviceContext& context) {
  const int64_t n = args.sizes.count();
  float *sizes, *out;
  TL_TRY(flat("logSizes", "sizes", args.sizes, DType::f32, n, sizes));
  TL_TRY(flat("logSizes", "out", args.out, DType::f32, n, out));
  return launch("logSizes", context, logarithms, gridOf(n), dim3(kThreads), 0, sizes, n, out);
}

}  // namespace tl::cuda
