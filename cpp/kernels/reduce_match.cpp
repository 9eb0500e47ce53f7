// Rows against rows, without a matrix of all pairs where none is asked for.
//   rowProducts     out = x · yᵀ, or cosines, or x · y
//   closestRows     the closest row of y for each row of x
//   bipartiteMatch  sources join their closest destination, the closest pairs first (ToMe, arXiv 2210.09461)
//   densityPeaks    how dense, and how far from what is denser, each token lies (DPC-kNN)
// All sweep the rows of one side, in blocks that stay in L2, under panels of the other side: kLanes rows side by side. A visitor sees
// each tile's sums once; pairs come by ascending panel row, a sum adds its columns in ascending order, whoever computes it.
#include "../simd/target.h"
#include "float_tile_inl.h"
#include "keep_inl.h"
#include "reduce_inl.h"

namespace tl::TL_TARGET {
namespace {

constexpr int64_t kPanelRows = kGroups * kLanes;   // panel rows that a visit brings, at most
constexpr int64_t kChunkColumns = 4096 / kPanelRows;  // panel columns that stay in L1 under a block
constexpr int64_t kBlockBytes = 256 * 1024;        // of swept rows, in L2
constexpr int64_t kMostBlockRows = 96;
constexpr int64_t kBlockSums = kMostBlockRows * kPanelRows;
// A tile of rows must fit beside the sums.
constexpr int64_t kMostColumns = (int64_t(kScratchBytes / sizeof(float)) - kBlockSums - kLanes) / kTileTokens;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

// Rows of one matrix, all of them or those listed.
struct Rows {
  const float* data = nullptr;
  int64_t stride = 0, count = 0;
  const int32_t* index = nullptr;
  const float* row(int64_t i) const { return data + (index ? index[i] : i) * stride; }
};

// One batch entry or sequence: swept rows, and the other side as packed.
struct Pairs {
  Rows swept, other;
  float* panels = nullptr;
};

// Every sequence's panels start behind those of the ones before: so many rows of slack each, as the last group may not be full.
constexpr int64_t kPanelSlack = 16;
float* panelsOf(float* panels, const Sequences& sequences, int64_t s, int64_t columns) { return panels + (sequences.begin(s) + s * kPanelSlack) * columns; }
Status openPanels(const char* op, const View& view, const Sequences& sequences, int64_t columns, float*& panels) {
  if (columns > kMostColumns) return shapeError(op, "panels", "takes rows of at most so many columns", kMostColumns, columns);
  return flat(op, "panels", view, DType::f32, (sequences.rows() + kPanelSlack * sequences.count) * columns, panels);
}

// Takes the sums [rows, kPanelRows] of rows `row` … with `count` panel rows from `first` on.
using Visitor = void (*)(void* state, int64_t entry, int64_t row, int64_t rows, int64_t first, int64_t count, const float* sums);

template <auto visitRow> void visitEach(void* state, int64_t entry, int64_t row, int64_t rows, int64_t first, int64_t count, const float* sums) {
  for (int64_t i = 0; i < rows; ++i) visitRow(state, entry, row + i, first, count, sums + i * kPanelRows);
}

// Group `g` of the other side: kLanes rows side by side, their directions where asked; what is past the end is zero.
void packGroup(const Pairs& pairs, int64_t g, int64_t columns, bool unit) {
  const int64_t first = g * kLanes, count = std::min<int64_t>(kLanes, pairs.other.count - first);
  float* panel = pairs.panels + first * columns;
  F32 norms[kLanes];
  for (int64_t i = 0; i < kLanes && unit; ++i) norms[i] = broadcast(i < count ? normOf(pairs.other.row(first + i), columns) : 1.0f);
  for (int64_t column = 0; column < columns; column += kLanes) {
    const int64_t left = std::min<int64_t>(kLanes, columns - column);
    F32 square[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      square[i] = i < count ? loadUpTo(pairs.other.row(first + i) + column, left) : zero();
      if (unit) square[i] = div(square[i], norms[i]);
    }
    transpose(square);
    for (int64_t i = 0; i < left; ++i) store(panel + (column + i) * kLanes, square[i]);
  }
}

// The same of a matrix whose columns are the rows wanted.
void packColumns(const Rows& matrix, int64_t g, int64_t width, float* panels) {
  const int64_t first = g * kLanes;
  for (int64_t column = 0; column < matrix.count; ++column) store(panels + first * matrix.count + column * kLanes, loadUpTo(matrix.row(column) + first, width - first));
}

struct Sweep {
  int64_t columns;
  Visitor visit;
  void* state;
};

template <typename Term> TL_NOINLINE void addTile(const float* const (&panel)[kGroups], const float* x, int64_t columns, float* sums) {
  tile<Term, float, kGroups, kTileTokens>(panel, x, columns, 0, sums);
}

// Rows [begin, end) of the swept side under all panels. A tile that reaches past the end computes its last row again, and drops it.
// `space` takes the block's sums, then the block itself, side by side in tiles.
template <typename Term> void sweepBlock(const Sweep& sweep, const Pairs& pairs, int64_t entry, int64_t begin, int64_t end, float* space) {
  const int64_t groups = ceilDiv(pairs.other.count, kLanes), tiles = ceilDiv(end - begin, kTileTokens);
  const int64_t chunk = ceilDiv(sweep.columns, std::max<int64_t>(1, ceilDiv(sweep.columns, kChunkColumns)));
  constexpr int64_t kTileSums = kTileTokens * kPanelRows;
  float *sums = space, *block = space + kBlockSums;
  for (int64_t t = 0; t < tiles; ++t) {
    const float* row[kTileTokens];
    for (int64_t i = 0; i < kTileTokens; ++i) row[i] = pairs.swept.row(std::min(begin + t * kTileTokens + i, end - 1));
    packRows(row, kTileTokens, kTileTokens, sweep.columns, 1, block + t * kTileTokens * sweep.columns);
  }
  for (int64_t group = 0; group < groups; group += kGroups) {
    std::memset(sums, 0, size_t(tiles * kTileSums) * sizeof(float));
    for (int64_t column = 0; column < sweep.columns; column += chunk) {
      const float* panel[kGroups];
      for (int64_t g = 0; g < kGroups; ++g) panel[g] = pairs.panels + std::min(group + g, groups - 1) * kLanes * sweep.columns + column * kLanes;
      for (int64_t t = 0; t < tiles; ++t)
        addTile<Term>(panel, block + (t * sweep.columns + column) * kTileTokens, std::min(chunk, sweep.columns - column), sums + t * kTileSums);
    }
    const int64_t first = group * kLanes, count = std::min(kPanelRows, pairs.other.count - first);
    sweep.visit(sweep.state, entry, begin, end - begin, first, count, sums);
  }
}

// One entry's rows. A reference to a function object: sweepAll exists once.
class PairsAt {
 public:
  template <typename Function> PairsAt(const Function& function) : object_(&function), call_([](const void* object, int64_t entry) { return (*static_cast<const Function*>(object))(entry); }) {}
  Pairs operator()(int64_t entry) const { return call_(object_, entry); }

 private:
  const void* object_;
  Pairs (*call_)(const void*, int64_t);
};

// Packs the other sides (unless they are, see rowProducts) and sweeps.
void sweepAll(Context& context, int64_t entries, const PairsAt& pairsAt, bool unit, bool squared, bool packed, const Sweep& sweep) {
  const int64_t fits = std::clamp<int64_t>(kBlockBytes / std::max<int64_t>(sweep.columns * 4, 1), kTileTokens, kMostBlockRows);
  int64_t most = 0, all = 0, groups = 0;
  for (int64_t entry = 0; entry < entries; ++entry) {
    const Pairs pairs = pairsAt(entry);
    most = std::max(most, pairs.swept.count);
    all += pairs.swept.count;
    groups = std::max(groups, ceilDiv(pairs.other.count, kLanes));
  }
  if (!packed)
    context.pool.parallelFor(entries * groups, std::max<int64_t>(1, kChunkElements / (kLanes * std::max<int64_t>(sweep.columns, 1))), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const Pairs pairs = pairsAt(i / groups);
        if (i % groups * kLanes < pairs.other.count) packGroup(pairs, i % groups, sweep.columns, unit);
      }
    });
  const int64_t share = ceilDiv(all, 2 * context.pool.threads()), block = std::min(roundUp(fits, kTileTokens), std::max<int64_t>(roundUp(share, kTileTokens), kTileTokens));
  const int64_t blocks = ceilDiv(most, block);
  context.pool.parallelFor(entries * blocks, 1, [&](int64_t begin, int64_t end, int thread) {
    float* sums = reinterpret_cast<float*>(context.pool.scratch(thread));
    for (int64_t i = begin; i < end; ++i) {
      const Pairs pairs = pairsAt(i / blocks);
      const int64_t from = i % blocks * block, to = std::min(from + block, pairs.swept.count);
      if (from >= to) continue;
      if (squared) sweepBlock<SquaredDifference>(sweep, pairs, i / blocks, from, to, sums);
      else sweepBlock<Dot>(sweep, pairs, i / blocks, from, to, sums);
    }
  });
}

// ---- The closest row

// best and index of rows; `skip` leaves the other side's first row out. Squared distances compete negated.
struct Closest {
  float* best;
  int32_t* index;
  int64_t rows;  // of an entry
  bool squared, skip;
};

TL_INLINE void visitClosest(void* state, int64_t entry, int64_t row, int64_t first, int64_t count, const float* sums) {
  const Closest& of = *static_cast<Closest*>(state);
  const int64_t at = entry * of.rows + row;
  float best = of.best[at];
  int32_t found = -1;
  const float sign = of.squared ? -1.0f : 1.0f;
  const F32 signs = broadcast(sign);
  for (int64_t v = 0; v < count; v += kLanes) {
    uint32_t larger = bitsOfLanes(greaterThan(mul(load(sums + v), signs), broadcast(best))) & lanesUpTo(count - v);
    if (of.skip && first + v == 0) larger &= ~1u;
    for (; larger != 0; larger &= larger - 1) {
      const int64_t lane = v + __builtin_ctz(larger);
      if (sums[lane] * sign <= best) continue;
      best = sums[lane] * sign;
      found = int32_t(first + lane);
    }
  }
  if (found < 0) return;
  of.best[at] = best;
  of.index[at] = found;
}

struct Batched {
  Rows x, y;
  int64_t batch = 0, yBatch = 0, n = 0, m = 0, columns = 0;
  float* panels = nullptr;
  Pairs at(int64_t entry) const {
    const int64_t own = yBatch == 1 ? 0 : entry;
    return {{x.data + entry * n * x.stride, x.stride, n}, {y.data + own * m * y.stride, y.stride, m}, panels + own * roundUp(m, kLanes) * columns};
  }
};

Status openBatched(const char* op, const View& x, const View& y, const View& panels, bool transposed, Batched& of) {
  FloatRows rows;
  if (x.rank != 3 || y.rank != 3) return shapeError(op, "x, y", "must have rank 3", 3, x.rank == 3 ? y.rank : x.rank);
  TL_TRY(floatRows(op, "x", x, rows));
  of.x = {rows.data, rows.stride, rows.rows};
  TL_TRY(floatRows(op, "y", y, rows));
  of.y = {rows.data, rows.stride, rows.rows};
  of.batch = x.dims[0], of.n = x.dims[1], of.columns = x.dims[2];
  of.yBatch = y.dims[0], of.m = y.dims[transposed ? 2 : 1];
  if (of.yBatch != of.batch && of.yBatch != 1) return shapeError(op, "y", "must have the batch of x, or 1", of.batch, of.yBatch);
  if (y.dims[transposed ? 1 : 2] != of.columns) return shapeError(op, "y", "must have the width of x", of.columns, y.dims[transposed ? 1 : 2]);
  return flat(op, "panels", panels, DType::f32, of.yBatch * roundUp(of.m, kLanes) * of.columns, of.panels);
}

struct Stored {
  float* out;
  const float* bias;
  int64_t n, m;
};

void visitStored(void* state, int64_t entry, int64_t row, int64_t first, int64_t count, const float* sums) {
  const Stored& of = *static_cast<Stored*>(state);
  float* out = of.out + (entry * of.n + row) * of.m + first;
  for (int64_t v = 0; v < count; v += kLanes) {
    F32 sum = load(sums + v);
    if (of.bias) sum = add(sum, loadUpTo(of.bias + first + v, count - v));
    storeUpTo(out + v, sum, count - v);
  }
}

}  // namespace

Status rowProducts(const RowProductsArgs& args, Context& context) {
  constexpr const char* op = "rowProducts";
  const bool transposed = args.transposed != 0, cosine = args.cosine != 0;
  Batched of;
  TL_TRY(openBatched(op, args.x, args.y, args.panels, transposed, of));
  Stored stored{nullptr, nullptr, of.n, of.m};
  TL_TRY(flat(op, "out", args.out, DType::f32, of.batch * of.n * of.m, stored.out));
  if (args.bias.present()) {
    TL_TRY(vectorOperand(op, "bias", args.bias, of.m));
    stored.bias = args.bias.as<float>();
  }
  if (transposed) {
    const int64_t groups = ceilDiv(of.m, kLanes);
    context.pool.parallelFor(of.yBatch * groups, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t entry = i / groups;
        packColumns({of.y.data + entry * of.columns * of.y.stride, of.y.stride, of.columns}, i % groups, of.m, of.panels + entry * roundUp(of.m, kLanes) * of.columns);
      }
    });
  }
  // One shared y is packed once, for the first entry; then all rows are one entry's.
  const bool shared = of.yBatch == 1;
  Batched joined = of;
  if (shared) joined.n = of.batch * of.n, joined.batch = 1;
  stored.n = joined.n;
  sweepAll(context, joined.batch, [&](int64_t entry) { return joined.at(entry); }, cosine, false, transposed, {of.columns, visitEach<visitStored>, &stored});
  if (!cosine) return {};
  forRows(context, of.batch * of.n, of.m + of.columns, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const F32 divisor = broadcast(normOf(of.x.row(i), of.columns));
      float* out = stored.out + i * of.m;
      mapRow(out, out, of.m, [=](F32 v) { return div(v, divisor); });
    }
  });
  return {};
}

Status closestRows(const ClosestRowsArgs& args, Context& context) {
  constexpr const char* op = "closestRows";
  Batched of;
  TL_TRY(openBatched(op, args.x, args.y, args.panels, false, of));
  Closest closest{nullptr, nullptr, 0, args.distance != 0, false};
  const int64_t rows = of.batch * of.n;
  TL_TRY(flat(op, "best", args.best, DType::f32, rows, closest.best));
  TL_TRY(flat(op, "index", args.index, DType::i32, rows, closest.index));
  if (of.m < 1 && rows > 0) return shapeError(op, "y", "must have rows", 1, of.m);
  std::fill(closest.best, closest.best + rows, kLowest);
  std::fill(closest.index, closest.index + rows, 0);
  Batched joined = of;
  if (of.yBatch == 1) joined.n = rows, joined.batch = 1;
  closest.rows = joined.n;
  sweepAll(context, joined.batch, [&](int64_t entry) { return joined.at(entry); }, !closest.squared, closest.squared, false, {of.columns, visitEach<visitClosest>, &closest});
  if (closest.squared) return {};
  forRows(context, rows, of.columns, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) closest.best[i] /= normOf(of.x.row(i), of.columns);
  });
  return {};
}

// ---- Bipartite matching

namespace {

// One operand's memory after all checks. Sources and destinations of a sequence are listed in `members`, sources first.
struct Matching {
  Rows metric;
  Sequences sequences;
  const uint8_t* destinations = nullptr;
  int32_t *map, *newBounds, *partner, *members;
  float *best, *panels;
  int64_t columns;
  bool classToken, distillToken;
  double merge;

  int64_t sources(int64_t s) const {
    if (!destinations) return (sequences.length(s) + 1) / 2;
    const uint8_t* marks = destinations + sequences.begin(s);
    return std::count(marks, marks + sequences.length(s), uint8_t(0));
  }
  Pairs pairs(int64_t s) const {
    const int64_t begin = sequences.begin(s), from = sources(s);
    Rows swept = metric, other = metric;
    swept.index = members + begin, swept.count = from;
    other.index = swept.index + from, other.count = sequences.length(s) - from;
    return {swept, other, panelsOf(panels, sequences, s, columns)};
  }
  void list(int64_t s) {
    const int64_t begin = sequences.begin(s), length = sequences.length(s);
    int32_t *source = members + begin, *destination = source + sources(s);
    for (int64_t i = 0; i < length; ++i) {
      const bool joins = destinations ? destinations[begin + i] == 0 : i % 2 == 0;
      *(joins ? source : destination)++ = int32_t(begin + i);
    }
  }
  // Of the sequence's sources, those that join; then everybody's place. `scores` and `merged`: scratch of one element a source.
  void place(int64_t s, float* scores, uint8_t* merged) const {
    const int64_t begin = sequences.begin(s), length = sequences.length(s), from = sources(s), to = length - from;
    const int32_t *source = members + begin, *destination = source + from;
    const int64_t spared = int64_t(classToken) + int64_t(distillToken), most = destinations ? from : std::max<int64_t>(0, (length - spared) / 2);
    const int64_t count = to > 0 ? std::clamp<int64_t>(int64_t(std::clamp(merge, 0.0, 0x1p40)), 0, most) : 0;
    for (int64_t i = 0; i < from; ++i) {
      scores[i] = best[source[i]];
      merged[i] = classToken && source[i] == begin;  // takes no part
    }
    const bool aside = from > 0 && merged[0];
    keepBest(1, [&](int64_t) { return Contest{scores, merged, from}; }, std::min(count, from - int64_t(aside)));
    if (aside) merged[0] = 0;
    // With a distillation token: source 0, destination 0, then the other sources, the other destinations.
    int64_t next = 0, kept = from;
    for (int64_t i = 0; i < from; ++i) kept -= merged[i];
    const auto destinationPlace = [&](int64_t i) { return distillToken ? (i == 0 ? (kept > 0 ? 1 : 0) : kept + i) : kept + i; };
    for (int64_t i = 0; i < from; ++i) {
      if (merged[i]) continue;
      map[source[i]] = int32_t(distillToken && to > 0 && next > 0 ? next + 1 : next);
      ++next;
    }
    for (int64_t i = 0; i < from; ++i)
      if (merged[i]) map[source[i]] = int32_t(destinationPlace(partner[source[i]]));
    for (int64_t i = 0; i < to; ++i) map[destination[i]] = int32_t(destinationPlace(i));
    newBounds[s + 1] = int32_t(kept + to);
  }
};

// best and partner of the tokens themselves: rows are listed, so entries cannot be told by number alone.
struct MatchVisit {
  const Matching& of;
  bool squared;
};

void visitMatch(void* state, int64_t entry, int64_t row, int64_t first, int64_t count, const float* sums) {
  const MatchVisit& visit = *static_cast<MatchVisit*>(state);
  const int64_t at = visit.of.members[visit.of.sequences.begin(entry) + row];
  Closest closest{visit.of.best + at, visit.of.partner + at, 0, visit.squared, visit.of.distillToken};
  visitClosest(&closest, 0, 0, first, count, sums);
}

}  // namespace

Status bipartiteMatch(const BipartiteMatchArgs& args, Context& context) {
  constexpr const char* op = "bipartiteMatch";
  FloatRows metric;
  Matching of{};
  TL_TRY(tokenRows(op, "metric", args.metric, args.bounds, metric, of.sequences));
  of.metric = {metric.data, metric.stride, metric.rows};
  of.columns = metric.width;
  of.classToken = args.classToken != 0, of.distillToken = args.distillToken != 0, of.merge = args.merge;
  if (args.destinations.present()) {
    uint8_t* marks;
    TL_TRY(flat(op, "destinations", args.destinations, DType::u8, metric.rows, marks));
    of.destinations = marks;
  }
  TL_TRY(flat(op, "map", args.map, DType::i32, metric.rows, of.map));
  TL_TRY(flat(op, "newBounds", args.newBounds, DType::i32, of.sequences.count + 1, of.newBounds));
  TL_TRY(flat(op, "best", args.best, DType::f32, metric.rows, of.best));
  TL_TRY(flat(op, "partner", args.partner, DType::i32, metric.rows, of.partner));
  TL_TRY(flat(op, "members", args.members, DType::i32, metric.rows, of.members));
  TL_TRY(openPanels(op, args.panels, of.sequences, of.columns, of.panels));
  std::fill(of.map, of.map + metric.rows, -1);
  std::fill(of.best, of.best + metric.rows, kLowest);
  std::fill(of.partner, of.partner + metric.rows, -1);
  const bool squared = args.distance != 0;
  for (int64_t s = 0; s < of.sequences.count; ++s) {
    of.list(s);
    const int64_t from = of.sources(s), to = of.sequences.length(s) - from, first = of.distillToken && to > 1 ? 1 : 0;  // where nothing compares (NaN): the first one
    for (int64_t i = 0; i < from && to > 0; ++i) of.partner[of.members[of.sequences.begin(s) + i]] = int32_t(first);
    if (5 * from > int64_t(kScratchBytes)) return shapeError(op, "metric", "has too many tokens in one sequence", int64_t(kScratchBytes) / 5, from);
  }
  MatchVisit visit{of, squared};
  sweepAll(context, of.sequences.count, [&](int64_t s) { return of.pairs(s); }, !squared, squared, false, {of.columns, visitEach<visitMatch>, &visit});
  context.pool.parallelFor(of.sequences.count, of.sequences.rows() < kParallelElements / 8 ? of.sequences.count : 1, [&](int64_t begin, int64_t end, int thread) {
    auto* scratch = reinterpret_cast<float*>(context.pool.scratch(thread));
    for (int64_t s = begin; s < end; ++s) {
      const Pairs pairs = of.pairs(s);
      for (int64_t i = 0; i < pairs.swept.count && !squared; ++i) of.best[pairs.swept.index[i]] /= normOf(pairs.swept.row(i), of.columns);
      of.place(s, scratch, reinterpret_cast<uint8_t*>(scratch + pairs.swept.count));
    }
  });
  of.newBounds[0] = 0;
  for (int64_t s = 0; s < of.sequences.count; ++s) of.newBounds[s + 1] += of.newBounds[s];
  return {};
}

// ---- Density peaks

namespace {

struct Peaks {
  Sequences sequences;
  int64_t k, width;
  float *density, *score, *nearest;
};

// Keeps the k smallest of a row in rising order.
void visitNearest(void* state, int64_t entry, int64_t row, int64_t, int64_t count, const float* sums) {
  const Peaks& of = *static_cast<Peaks*>(state);
  float* nearest = of.nearest + (of.sequences.begin(entry) + row) * of.k;
  for (int64_t j = 0; j < count; ++j) {
    const float distance = sums[j];
    if (!(distance < nearest[of.k - 1])) continue;
    int64_t at = of.k - 1;
    for (; at > 0 && nearest[at - 1] > distance; --at) nearest[at] = nearest[at - 1];
    nearest[at] = distance;
  }
}

// score: the smallest square to a denser token; nearest[0]: the largest of all.
void visitDenser(void* state, int64_t entry, int64_t row, int64_t first, int64_t count, const float* sums) {
  const Peaks& of = *static_cast<Peaks*>(state);
  const int64_t begin = of.sequences.begin(entry), at = begin + row;
  float smallest = of.score[at], largest = of.nearest[at * of.k];
  const float own = of.density[at];
  for (int64_t j = 0; j < count; ++j) {
    const float other = of.density[begin + first + j];
    if ((other > own || (other == own && first + j < row)) && sums[j] < smallest) smallest = sums[j];
    if (sums[j] > largest) largest = sums[j];
  }
  of.score[at] = smallest;
  of.nearest[at * of.k] = largest;
}

}  // namespace

Status densityPeaks(const DensityPeaksArgs& args, Context& context) {
  constexpr const char* op = "densityPeaks";
  FloatRows x;
  Peaks of{};
  TL_TRY(tokenRows(op, "x", args.x, args.bounds, x, of.sequences));
  of.width = x.width, of.k = args.nearest.lastDim();
  if (of.k < 1) return shapeError(op, "nearest", "must have columns", 1, of.k);
  float* panels;
  TL_TRY(flat(op, "density", args.density, DType::f32, x.rows, of.density));
  TL_TRY(flat(op, "score", args.score, DType::f32, x.rows, of.score));
  TL_TRY(flat(op, "nearest", args.nearest, DType::f32, x.rows * of.k, of.nearest));
  TL_TRY(openPanels(op, args.panels, of.sequences, x.width, panels));
  constexpr float kFar = std::numeric_limits<float>::infinity();
  std::fill(of.nearest, of.nearest + x.rows * of.k, kFar);
  std::fill(of.score, of.score + x.rows, kFar);
  const auto pairsAt = [&](int64_t s) {
    const Rows rows{x.row(of.sequences.begin(s)), x.stride, of.sequences.length(s)};
    return Pairs{rows, rows, panelsOf(panels, of.sequences, s, x.width)};
  };
  sweepAll(context, of.sequences.count, pairsAt, false, true, false, {x.width, visitEach<visitNearest>, &of});
  for (int64_t s = 0; s < of.sequences.count; ++s) {
    const int64_t k = std::min(of.k, of.sequences.length(s));
    for (int64_t i = of.sequences.begin(s); i < of.sequences.begin(s + 1); ++i) {
      float sum = 0, lanes[kLanes];
      for (int64_t j = 0; j < k; ++j) sum += of.nearest[i * of.k + j] / float(x.width);
      store(lanes, exp(broadcast(-(sum / float(k)))));
      of.density[i] = lanes[0];
      of.nearest[i * of.k] = 0;
    }
  }
  sweepAll(context, of.sequences.count, pairsAt, false, true, true, {x.width, visitEach<visitDenser>, &of});
  for (int64_t s = 0; s < of.sequences.count; ++s) {
    float largest = 0;
    for (int64_t i = of.sequences.begin(s); i < of.sequences.begin(s + 1); ++i) largest = std::max(largest, of.nearest[i * of.k]);
    for (int64_t i = of.sequences.begin(s); i < of.sequences.begin(s + 1); ++i)
      of.score[i] = std::sqrt((of.score[i] == kFar ? largest : of.score[i]) / float(x.width)) * of.density[i];
  }
  std::fill(of.density + of.sequences.rows(), of.density + x.rows, 0.0f);
  std::fill(of.score + of.sequences.rows(), of.score + x.rows, kLowest);
  return {};
}

}  // namespace tl::TL_TARGET
