// From scores to places, and from places to new rows.
//   countTokens, keepTokens, keptMap, segmentMap   who stays, and where everybody goes
//   mergeRows                                      new rows out of their members: weighted means, sums, maxima, copies
//   chainSource, unmergeRows                       where original tokens are, and back to them
//   meanHeads, logSizes                            what matching looks at; what proportional attention adds (arXiv 2210.09461)
#include "../simd/target.h"
#include "keep_inl.h"
#include "reduce_inl.h"

namespace tl::TL_TARGET {

Status countTokens(const CountTokensArgs& args, Context&) {
  constexpr const char* op = "countTokens";
  Sequences sequences;
  int32_t* counts;
  TL_TRY(sequences.open(op, "bounds", args.bounds, std::numeric_limits<int32_t>::max()));
  TL_TRY(flat(op, "counts", args.counts, DType::i32, sequences.count, counts));
  for (int64_t s = 0; s < sequences.count; ++s) {
    const int64_t length = sequences.length(s);
    const double first = std::min(args.first, double(length)), share = args.rate * (double(length) - first), whole = std::floor(share), part = share - whole;
    const bool up = args.rounding == 2 ? part > 0 : args.rounding == 1 && (part > 0.5 || (part == 0.5 && std::fmod(whole, 2) != 0));
    const double count = first + whole + double(up) + args.add;
    counts[s] = int32_t(count > 0 ? std::min(count, double(length)) : 0);
  }
  return {};
}

Status keepTokens(const KeepTokensArgs& args, Context& context) {
  constexpr const char* op = "keepTokens";
  const int64_t rows = args.scores.count(), first = int64_t(std::clamp(args.first, 0.0, 0x1p40));
  Sequences sequences;
  float* scores;
  int32_t* counts;
  uint8_t* kept;
  TL_TRY(flat(op, "scores", args.scores, DType::f32, rows, scores));
  TL_TRY(sequences.open(op, "bounds", args.bounds, rows));
  TL_TRY(flat(op, "counts", args.counts, DType::i32, sequences.count, counts));
  TL_TRY(flat(op, "kept", args.kept, DType::u8, rows, kept));
  std::fill(kept, kept + rows, uint8_t(0));
  forRows(context, sequences.count, 4 * sequences.rows() / std::max<int64_t>(sequences.count, 1), [&](int64_t begin, int64_t end, int) {
    for (int64_t s = begin; s < end; ++s) {
      const Contest row{scores + sequences.begin(s), kept + sequences.begin(s), sequences.length(s)};
      const int64_t always = std::min(first, row.tokens);
      std::fill(row.kept, row.kept + always, uint8_t(1));
      keepBest(1, [&](int64_t) { return row; }, std::min<int64_t>(counts[s], row.tokens) - always);
    }
  });
  return {};
}

namespace {

// map and newBounds of one op: place(s, its tokens' map) answers how many new rows a sequence has.
template <typename Place> Status placeAll(const char* op, const View& bounds, int64_t rows, const View& mapView, const View& newBoundsView, Place&& place) {
  Sequences sequences;
  int32_t *map, *newBounds;
  TL_TRY(sequences.open(op, "bounds", bounds, rows));
  TL_TRY(flat(op, "map", mapView, DType::i32, rows, map));
  TL_TRY(flat(op, "newBounds", newBoundsView, DType::i32, sequences.count + 1, newBounds));
  std::fill(map + sequences.rows(), map + rows, -1);
  newBounds[0] = 0;
  for (int64_t s = 0; s < sequences.count; ++s) newBounds[s + 1] = newBounds[s] + int32_t(place(sequences.begin(s), sequences.length(s), map + sequences.begin(s)));
  return {};
}

}  // namespace

Status keptMap(const KeptMapArgs& args, Context&) {
  constexpr const char* op = "keptMap";
  uint8_t* kept;
  TL_TRY(flat(op, "kept", args.kept, DType::u8, args.kept.count(), kept));
  const int64_t most = int64_t(std::clamp(args.gather, 0.0, 0x1p30));
  return placeAll(op, args.bounds, args.kept.count(), args.map, args.newBounds, [&](int64_t begin, int64_t length, int32_t* map) {
    const uint8_t* marks = kept + begin;
    const int64_t others = std::count(marks, marks + length, uint8_t(0)), stay = length - others, runs = std::min(most, others);
    int64_t next = 0, other = 0;
    for (int64_t i = 0; i < length; ++i) {
      if (marks[i]) {
        map[i] = int32_t(next++);
        continue;
      }
      // The first others % runs runs are one longer.
      const int64_t each = runs > 0 ? others / runs : 0, longer = runs > 0 ? others % runs : 0, at = other++;
      const int64_t run = runs == 0 ? 0 : at < longer * (each + 1) ? at / (each + 1) : longer + (at - longer * (each + 1)) / each;
      map[i] = runs == 0 ? -1 : int32_t(stay + run);
    }
    return stay + runs;
  });
}

Status segmentMap(const SegmentMapArgs& args, Context&) {
  constexpr const char* op = "segmentMap";
  uint8_t* boundary;
  TL_TRY(flat(op, "boundary", args.boundary, DType::u8, args.boundary.count(), boundary));
  return placeAll(op, args.bounds, args.boundary.count(), args.map, args.newBounds, [&](int64_t begin, int64_t length, int32_t* map) {
    int64_t segment = 0;
    for (int64_t i = 0; i < length; ++i) {
      const bool opens = i > 0 && boundary[begin + i - (args.start != 0 ? 0 : 1)] != 0;
      segment += opens;
      map[i] = int32_t(segment);
    }
    return length > 0 ? segment + 1 : 0;
  });
}

namespace {

enum MergeKind { mean, sum, maximum, first, last };

struct Merge {
  FloatRows x, out;
  Sequences from, to;
  const int32_t* map;
  const float *weights, *sizes;
  const uint8_t* kept;
  float *newSizes, *totals;
  int32_t *members, *firstMember;  // of each new row: how many, 0 where it is a copy of the first one
  MergeKind kind;

  // What each new row is made of. False where the map leads outside.
  bool count(int64_t s) const {
    const int64_t begin = to.begin(s), end = to.begin(s + 1);
    for (int64_t i = from.begin(s); i < from.begin(s + 1); ++i) {
      if (map[i] < 0) continue;
      const int64_t row = begin + map[i];
      if (row >= end) return false;
      newSizes[row] += sizes ? sizes[i] : 1.0f;
      totals[row] += weights ? weights[i] : 1.0f;
      const bool opens = firstMember[row] < 0;
      if (opens) firstMember[row] = int32_t(i);
      if (!(opens && kept && kept[i]) && (opens || members[row] > 0)) ++members[row];
    }
    return true;
  }
  // Columns [column, column + width) of a sequence's new rows.
  void make(int64_t s, int64_t column, int64_t width) const {
    const int64_t begin = to.begin(s), end = to.begin(s + 1);
    for (int64_t i = from.begin(s); i < from.begin(s + 1); ++i) if (map[i] >= 0) add(i, begin + map[i], column, width);
    for (int64_t row = begin; row < end && kind == mean; ++row) {
      if (members[row] < 2) continue;
      const F32 total = broadcast(totals[row] != 0 ? totals[row] : float(members[row]));
      float* values = out.row(row) + column;
      mapRow(values, values, width, [=](F32 v) { return div(v, total); });
    }
  }
  void add(int64_t i, int64_t row, int64_t column, int64_t width) const {
    const float* member = x.row(i) + column;
    float* values = out.row(row) + column;
    const bool opens = firstMember[row] == i, copied = members[row] == 0 || kind == first;
    if (!opens && copied) return;
    if (copied || kind == last || (opens && (kind == maximum || (kind == mean && members[row] == 1)))) {
      std::memcpy(values, member, size_t(width) * sizeof(float));
    } else if (kind == maximum) {
      mapRow(member, values, values, width, [](F32 v, F32 most) { return largerOf(v, most); });
    } else {
      const F32 weight = broadcast(weights && !(kind == mean && totals[row] == 0) ? weights[i] : 1.0f);
      if (opens) mapRow(member, values, width, [=](F32 v) { return mulAdd(v, weight, zero()); });
      else mapRow(member, values, values, width, [=](F32 v, F32 all) { return mulAdd(v, weight, all); });
    }
  }
};

template <typename T> Status optional(const char* op, const char* name, const View& view, DType type, int64_t count, const T*& data) {
  T* found = nullptr;
  if (view.present()) TL_TRY(flat(op, name, view, type, count, found));
  data = found;
  return {};
}

}  // namespace

Status mergeRows(const MergeRowsArgs& args, Context& context) {
  constexpr const char* op = "mergeRows";
  if (!(args.kind >= 0 && args.kind <= 4)) return argumentError(op, "kind", "must be 0 … 4", int64_t(args.kind));
  Merge of{};
  of.kind = MergeKind(int(args.kind));
  TL_TRY(floatRows(op, "x", args.x, of.x));
  TL_TRY(floatRows(op, "out", args.out, of.out));
  if (of.out.width != of.x.width) return shapeError(op, "out", "must have the width of x", of.x.width, of.out.width);
  const int64_t rows = of.x.rows, newRows = of.out.rows;
  TL_TRY(of.from.open(op, "bounds", args.bounds, rows));
  TL_TRY(of.to.open(op, "newBounds", args.newBounds, newRows));
  if (of.from.count != of.to.count) return shapeError(op, "newBounds", "must have as many sequences as bounds", of.from.count, of.to.count);
  TL_TRY(optional(op, "map", args.map, DType::i32, rows, of.map));
  TL_TRY(optional(op, "weights", args.weights, DType::f32, rows, of.weights));
  TL_TRY(optional(op, "sizes", args.sizes, DType::f32, rows, of.sizes));
  TL_TRY(optional(op, "kept", args.kept, DType::u8, rows, of.kept));
  TL_TRY(flat(op, "newSizes", args.newSizes, DType::f32, newRows, of.newSizes));
  TL_TRY(flat(op, "totals", args.totals, DType::f32, newRows, of.totals));
  TL_TRY(flat(op, "members", args.members, DType::i32, 2 * newRows, of.members));
  of.firstMember = of.members + newRows;
  std::fill(of.newSizes, of.newSizes + newRows, 0.0f);
  std::fill(of.totals, of.totals + newRows, 0.0f);
  std::fill(of.members, of.members + newRows, 0);
  std::fill(of.firstMember, of.firstMember + newRows, -1);
  for (int64_t s = 0; s < of.from.count; ++s)
    if (!of.count(s)) return argumentError(op, "map", "leads outside the new rows", s);
  for (int64_t i = 0; i < newRows; ++i)
    if (of.firstMember[i] < 0) std::memset(of.out.row(i), 0, size_t(of.out.width) * sizeof(float));
  constexpr int64_t kSlice = 128;
  const int64_t slices = ceilDiv(of.x.width, kSlice);
  forRows(context, of.from.count * slices, kSlice * rows / std::max<int64_t>(of.from.count, 1), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) of.make(i / slices, i % slices * kSlice, std::min(kSlice, of.x.width - i % slices * kSlice));
  });
  return {};
}

Status chainSource(const ChainSourceArgs& args, Context&) {
  constexpr const char* op = "chainSource";
  Sequences original, now;
  int32_t *source, *map, *out;
  TL_TRY(flat(op, "source", args.source, DType::i32, args.source.count(), source));
  TL_TRY(flat(op, "map", args.map, DType::i32, args.map.count(), map));
  TL_TRY(flat(op, "out", args.out, DType::i32, args.source.count(), out));
  TL_TRY(original.open(op, "original", args.original, args.source.count()));
  TL_TRY(now.open(op, "bounds", args.bounds, args.map.count()));
  if (original.count != now.count) return shapeError(op, "bounds", "must have as many sequences as the original", original.count, now.count);
  for (int64_t s = 0; s < original.count; ++s)
    for (int64_t i = original.begin(s); i < original.begin(s + 1); ++i) {
      const int32_t row = source[i];
      if (row >= now.length(s)) return argumentError(op, "source", "names a row that is not there", row);
      out[i] = row < 0 ? -1 : map[now.begin(s) + row];
    }
  std::fill(out + original.rows(), out + args.source.count(), -1);
  return {};
}

Status unmergeRows(const UnmergeRowsArgs& args, Context& context) {
  constexpr const char* op = "unmergeRows";
  FloatRows x, out;
  Sequences original, now;
  int32_t* source;
  TL_TRY(floatRows(op, "x", args.x, x));
  TL_TRY(floatRows(op, "out", args.out, out));
  TL_TRY(flat(op, "source", args.source, DType::i32, out.rows, source));
  TL_TRY(original.open(op, "original", args.original, out.rows));
  TL_TRY(now.open(op, "bounds", args.bounds, x.rows));
  if (out.width != x.width) return shapeError(op, "out", "must have the width of x", x.width, out.width);
  if (original.count != now.count) return shapeError(op, "bounds", "must have as many sequences as the original", original.count, now.count);
  for (int64_t s = 0; s < original.count; ++s)
    for (int64_t i = original.begin(s); i < original.begin(s + 1); ++i)
      if (source[i] >= now.length(s)) return argumentError(op, "source", "names a row that is not there", source[i]);
  const size_t bytes = size_t(x.width) * sizeof(float);
  for (int64_t s = 0; s < original.count; ++s)
    forRows(context, original.length(s), x.width, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = original.begin(s) + begin; i < original.begin(s) + end; ++i) {
        if (source[i] < 0) std::memset(out.row(i), 0, bytes);
        else std::memcpy(out.row(i), x.row(now.begin(s) + source[i]), bytes);
      }
    });
  for (int64_t i = original.rows(); i < out.rows; ++i) std::memset(out.row(i), 0, bytes);
  return {};
}

Status meanHeads(const MeanHeadsArgs& args, Context& context) {
  constexpr const char* op = "meanHeads";
  const View& x = args.x;
  FloatRows out;
  TL_TRY(floatRows(op, "out", args.out, out));
  if (x.dtype != DType::f32 || x.rank != 3 || (x.dims[2] > 1 && x.strides[2] != 1)) return argumentError(op, "x", "must be f32 [rows, heads, headDim]", x.rank);
  const int64_t heads = x.dims[1];
  if (out.rows != x.dims[0] || out.width != x.dims[2] || heads < 1) return shapeError(op, "out", "must be [rows, headDim]", x.dims[0], out.rows);
  const F32 share = broadcast(float(heads));
  forRows(context, out.rows, heads * out.width, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const float* heads0 = x.as<float>() + i * x.strides[0];
      for (int64_t column = 0; column < out.width; column += kLanes) {
        F32 all = zero();
        for (int64_t head = 0; head < heads; ++head) all = add(all, loadUpTo(heads0 + head * x.strides[1] + column, out.width - column));
        storeUpTo(out.row(i) + column, div(all, share), out.width - column);
      }
    }
  });
  return {};
}

Status logSizes(const LogSizesArgs& args, Context&) {
  constexpr const char* op = "logSizes";
  const int64_t n = args.sizes.count();
  float *sizes, *out;
  TL_TRY(flat(op, "sizes", args.sizes, DType::f32, n, sizes));
  TL_TRY(flat(op, "out", args.out, DType::f32, n, out));
  for (int64_t i = 0; i < n; ++i) out[i] = sizes[i] == 1 ? 0 : float(std::log(double(sizes[i])));
  return {};
}

}  // namespace tl::TL_TARGET
