// From scores to places and from places to new rows, on every target against plain loops in double: who stays, who goes where, weighted
// means and the way back, at tails of every vector length, with ties and NaN, by one thread and two.
#include "reduce_support.h"

namespace tl::test {
namespace {

TEST(ReduceRows, CountTokens) {
  for (const KernelTable* table : tables())
    for (int rounding = 0; rounding < 3; ++rounding)
      for (const double rate : {0.0, 0.1, 0.25, 0.5, 0.7, 1.0, 1.5})
        for (const double add : {-3.0, 0.0, 2.0}) {
          Guarded<int32_t> bounds = boundsOf({0, 1, 2, 3, 10, 257}), counts(6);
          TL_EXPECT_OK(run(*table, Op::countTokens, CountTokensArgs{row(bounds), row(counts), rate, add, 1, double(rounding)}));
          EXPECT_TRUE(counts.intact());
          for (int64_t s = 0; s < 6; ++s) {
            const double length = bounds[s + 1] - bounds[s], first = std::min(1.0, length), share = rate * (length - first);
            const double rounded = rounding == 0 ? std::trunc(share) : rounding == 1 ? std::nearbyint(share) : std::ceil(share);
            EXPECT_EQ(counts[s], int32_t(std::clamp(first + rounded + add, 0.0, length))) << length << ", " << rate << ", " << rounding;
          }
        }
}

// Scores with many ties, both zeros, infinities and NaN.
void fillScores(Guarded<float>& scores, uint32_t seed) {
  const float values[] = {0.0f, -0.0f, 1, 1, 2, -1, 0.5f, kInfinity, -kInfinity, kNaN, 1e-40f, -1e-40f};
  std::mt19937 random(seed);
  for (int64_t i = 0; i < scores.size(); ++i) scores[i] = values[random() % 12];
}

TEST(ReduceRowsThreads, KeepTokensIsStable) {
  for (const KernelTable* table : tables())
    for (const int64_t n : oddSizes())
      for (const int64_t first : {int64_t(0), int64_t(1), int64_t(3)})
        for (const double share : {0.0, 0.3, 0.8, 1.0, 2.0}) {
          SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", " << n << " tokens, first " << first << ", share " << share);
          const std::vector<int64_t> lengths = {n, 0, 5, n};
          const int64_t rows = 2 * n + 5;
          Guarded<float> scores(rows, 1);
          Guarded<int32_t> bounds = boundsOf(lengths), counts = {int32_t(share * double(n)), 1, 3, int32_t(share * double(n) / 2)};
          Guarded<uint8_t> kept(rows), again(rows);
          fillScores(scores, uint32_t(n));
          TL_EXPECT_OK(run(*table, Op::keepTokens, KeepTokensArgs{row(scores), row(bounds), row(counts), bytes(kept), double(first)}));
          EXPECT_TRUE(kept.intact());
          for (int64_t s = 0; s < 4; ++s) {
            const int64_t length = lengths[size_t(s)], always = std::min(first, length), count = std::min<int64_t>(counts[s], length);
            const float* own = scores.data() + bounds[s];
            std::vector<uint8_t> wanted(size_t(length), 0);
            std::fill_n(wanted.begin(), always, uint8_t(1));
            int64_t left = count - always;
            for (const int64_t at : falling(length, own))
              if (left > 0 && !wanted[size_t(at)]) wanted[size_t(at)] = 1, --left;
            ASSERT_EQ(std::vector<uint8_t>(kept.data() + bounds[s], kept.data() + bounds[s + 1]), wanted) << "sequence " << s;
          }
          TL_EXPECT_OK(run(*table, Op::keepTokens, KeepTokensArgs{row(scores), row(bounds), row(counts), bytes(again), double(first)}, 2));
          EXPECT_EQ(again.values(), kept.values());
        }
}

TEST(ReduceRows, KeptMap) {
  for (const KernelTable* table : tables())
    for (const int64_t gather : {0, 1, 3, 100}) {
      const std::vector<int64_t> lengths = {23, 0, 1, 8};
      Guarded<int32_t> bounds = boundsOf(lengths), map(34), newBounds(5);  // two rows more than are in use
      Guarded<uint8_t> kept(34);
      for (int64_t i = 0; i < 34; ++i) kept[i] = i % 4 == 1;
      TL_EXPECT_OK(run(*table, Op::keptMap, KeptMapArgs{bytes(kept), row(bounds), row(map), row(newBounds), double(gather)}));
      EXPECT_TRUE(map.intact() && newBounds.intact());
      for (int64_t s = 0; s < 4; ++s) {
        std::vector<int64_t> others;
        int64_t stay = 0;
        for (int64_t i = bounds[s]; i < bounds[s + 1]; ++i) {
          if (!kept[i]) { others.push_back(i); continue; }
          EXPECT_EQ(map[i], stay++);
        }
        const int64_t count = int64_t(others.size()), runs = std::min(gather, count);
        for (int64_t run = 0, at = 0; run < runs; ++run)  // those that go, cut into runs, the longer ones first
          for (int64_t i = 0; i < count / runs + (run < count % runs ? 1 : 0); ++i) EXPECT_EQ(map[others[size_t(at++)]], stay + run) << "gather " << gather;
        for (const int64_t i : others) EXPECT_TRUE(runs > 0 || map[i] == -1);
        EXPECT_EQ(newBounds[s + 1] - newBounds[s], stay + runs);
      }
      EXPECT_TRUE(map[32] == -1 && map[33] == -1);
    }
}

TEST(ReduceRows, SegmentMap) {
  for (const KernelTable* table : tables())
    for (const bool start : {false, true}) {
      Guarded<int32_t> bounds = boundsOf({6, 0, 1, 4}), map(11), newBounds(5);
      Guarded<uint8_t> boundary = {0, 1, 0, 1, 1, 0, 1, 1, 0, 0, 1};
      TL_EXPECT_OK(run(*table, Op::segmentMap, SegmentMapArgs{bytes(boundary), row(bounds), row(map), row(newBounds), double(start)}));
      EXPECT_EQ(map.values(), start ? (std::vector<int32_t>{0, 1, 1, 2, 3, 3, 0, 0, 0, 0, 1}) : (std::vector<int32_t>{0, 0, 1, 1, 2, 3, 0, 0, 1, 1, 1}));
      EXPECT_EQ(newBounds.values(), start ? (std::vector<int32_t>{0, 4, 4, 5, 7}) : (std::vector<int32_t>{0, 4, 4, 5, 7}));
    }
}

// ---- New rows

enum Kind { mean, sum, maximum, first, last, kinds };

struct Merged {
  Guarded<float> out, sizes, totals;
  Guarded<int32_t> members;
  Merged(int64_t rows, int64_t width) : out(rows * width, 1), sizes(rows), totals(rows), members(2 * rows) {}
  bool intact() const { return out.intact() && sizes.intact() && totals.intact() && members.intact(); }
};

double combined(int kind, const std::vector<int64_t>& members, const float* x, int64_t width, int64_t column, const float* weights, bool copied) {
  if (members.empty()) return 0;
  const auto at = [&](int64_t i) { return double(x[i * width + column]); };
  double total = 0, all = 0, plain = 0, most = at(members[0]);
  for (const int64_t i : members) {
    const double weight = weights ? double(weights[i]) : 1;
    total += weight, all += weight * at(i), plain += at(i);
    if (!(most >= at(i)) && !std::isnan(most)) most = at(i);  // a NaN stays
  }
  if (kind == first || copied) return at(members[0]);
  if (kind == last) return at(members.back());
  if (kind == maximum) return most;
  if (kind == sum) return all;
  return members.size() == 1 ? at(members[0]) : total == 0 ? plain / double(members.size()) : all / total;
}

TEST(ReduceRowsThreads, MergeRows) {
  const std::vector<int64_t> lengths = {31, 0, 12}, newLengths = {9, 2, 5};
  const int64_t rows = 45, newRows = 17;  // more than are in use, on both sides
  for (const KernelTable* table : tables())
    for (const int64_t width : oddSizes())
      for (int kind = 0; kind < kinds; ++kind)
        for (int variant = 0; variant < 3; ++variant) {
          SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", width " << width << ", kind " << kind << ", variant " << variant);
          Guarded<float> x(rows * width, 1), weights(rows), sizes(rows);
          Guarded<int32_t> bounds = boundsOf(lengths), newBounds = boundsOf(newLengths), map(rows);
          Guarded<uint8_t> kept(rows);
          fill(x, uint32_t(width)), fill(weights, 2, 0.1f, 2), fillWhole(sizes, 3);
          std::mt19937 random(uint32_t(width + kind));
          for (int64_t i = 0; i < rows; ++i) map[i] = int32_t(random() % 6) - 1 + (i < 31 ? int32_t(random() % 4) : 0), kept[i] = random() % 4 == 0;
          for (int64_t i = 31; i < rows; ++i) map[i] = std::min(map[i], 3);  // the last new row has no member
          if (kind == maximum) x[5 * width] = x[9 * width + width - 1] = kNaN;
          if (variant == 1) for (int64_t i = 0; i < rows; ++i) if (map[i] == 2) weights[i] = 0;  // a mean of no weight is plain
          Merged got(newRows, width), again(newRows, width);
          const View noWeights{};
          MergeRowsArgs args{view(x.data(), {rows, width}), row(map), variant == 0 ? noWeights : row(weights), variant == 0 ? noWeights : row(sizes), variant == 2 ? bytes(kept) : noWeights,
                             row(bounds), row(newBounds), view(got.out.data(), {newRows, width}), row(got.sizes), row(got.totals), row(got.members), double(kind)};
          TL_EXPECT_OK(run(*table, Op::mergeRows, args));
          EXPECT_TRUE(got.intact());
          for (int64_t s = 0; s < 3; ++s)
            for (int64_t to = newBounds[s]; to < newBounds[s + 1]; ++to) {
              std::vector<int64_t> members;
              double size = 0;
              for (int64_t i = bounds[s]; i < bounds[s + 1]; ++i)
                if (map[i] == to - newBounds[s]) members.push_back(i), size += variant == 0 ? 1 : double(sizes[i]);
              ASSERT_EQ(double(got.sizes[to]), size);
              const bool copied = variant == 2 && !members.empty() && kept[members[0]];
              const bool exact = copied || kind >= maximum || members.size() == 1;
              for (int64_t j = 0; j < width; ++j) {
                const double wanted = combined(kind, members, x.data(), width, j, variant == 0 ? nullptr : weights.data(), copied);
                if (kind == sum && !copied) ASSERT_TRUE(close(double(got.out[to * width + j]), wanted, 2e-6, 8)) << to << ", " << j;
                else ASSERT_TRUE(close(double(got.out[to * width + j]), wanted, exact ? 0 : 2e-6, 8)) << to << ", " << j;
              }
            }
          args.out = view(again.out.data(), {newRows, width});
          TL_EXPECT_OK(run(*table, Op::mergeRows, args, 2));
          EXPECT_EQ(std::memcmp(again.out.data(), got.out.data(), size_t(newRows * width) * 4), 0);
        }
}

TEST(ReduceRowsThreads, MapsChainAndRowsComeBack) {
  for (const KernelTable* table : tables())
    for (const int64_t width : oddSizes()) {
      Guarded<int32_t> original = boundsOf({7, 0, 4}), bounds = boundsOf({4, 0, 2}), source = {0, 3, -1, 1, 2, 2, 0, 1, -1, 0, 1, 5}, map = {2, -1, 0, 1, 1, 0}, chained(12);
      TL_EXPECT_OK(run(*table, Op::chainSource, ChainSourceArgs{row(source), row(original), row(map), row(bounds), row(chained)}));
      EXPECT_EQ(chained.values(), (std::vector<int32_t>{2, 1, -1, -1, 0, 0, 2, 0, -1, 1, 0, -1}));
      Guarded<float> x(6 * width, 1), out(12 * width, 1), again(12 * width);
      fill(x, uint32_t(width));
      x[width] = kNaN;
      source[11] = -1;
      TL_EXPECT_OK(run(*table, Op::unmergeRows, UnmergeRowsArgs{view(x.data(), {6, width}), row(bounds), row(source), row(original), view(out.data(), {12, width})}));
      EXPECT_TRUE(out.intact() && chained.intact());
      const std::vector<float> zeros(size_t(width), 0);
      for (int64_t i = 0; i < 12; ++i) {
        const float* wanted = i >= 11 || source[i] < 0 ? zeros.data() : x.data() + ((i < 7 ? 0 : 4) + source[i]) * width;
        EXPECT_EQ(std::memcmp(out.data() + i * width, wanted, size_t(width) * 4), 0) << i;
      }
      TL_EXPECT_OK(run(*table, Op::unmergeRows, UnmergeRowsArgs{view(x.data(), {6, width}), row(bounds), row(source), row(original), view(again.data(), {12, width})}, 2));
      EXPECT_EQ(std::memcmp(again.data(), out.data(), size_t(12 * width) * 4), 0);
      source[0] = 4;
      EXPECT_EQ(run(*table, Op::unmergeRows, UnmergeRowsArgs{view(x.data(), {6, width}), row(bounds), row(source), row(original), view(out.data(), {12, width})}).code, Code::argument);
      EXPECT_EQ(run(*table, Op::chainSource, ChainSourceArgs{row(source), row(original), row(map), row(bounds), row(chained)}).code, Code::argument);
    }
}

TEST(ReduceRowsThreads, MeansOfHeadsAndLogarithmsOfSizes) {
  for (const KernelTable* table : tables())
    for (const int64_t headDim : oddSizes())
      for (const int64_t heads : {1, 3, 6}) {
        const int64_t n = 41;
        Guarded<float> x(n * heads * headDim, 1), out(n * headDim, 1), again(n * headDim);
        fill(x, uint32_t(headDim));
        TL_EXPECT_OK(run(*table, Op::meanHeads, MeanHeadsArgs{view(x.data(), {n, heads, headDim}), view(out.data(), {n, headDim})}));
        EXPECT_TRUE(out.intact());
        for (int64_t i = 0; i < n; ++i)
          for (int64_t j = 0; j < headDim; ++j) {
            double sum = 0;
            for (int64_t head = 0; head < heads; ++head) sum += double(x[(i * heads + head) * headDim + j]);
            ASSERT_TRUE(close(double(out[i * headDim + j]), sum / double(heads), 1e-6)) << i << ", " << j;
          }
        TL_EXPECT_OK(run(*table, Op::meanHeads, MeanHeadsArgs{view(x.data(), {n, heads, headDim}), view(again.data(), {n, headDim})}, 2));
        EXPECT_EQ(std::memcmp(again.data(), out.data(), size_t(n * headDim) * 4), 0);
        Guarded<float> sizes = {1, 2, 3.5f, 1e6f, 0, kNaN}, logs(6);
        TL_EXPECT_OK(run(*table, Op::logSizes, LogSizesArgs{row(sizes), row(logs)}));
        for (int64_t i = 0; i < 6; ++i) EXPECT_TRUE(close(double(logs[i]), std::log(double(sizes[i])), 1e-7)) << sizes[i];
      }
}

TEST(ReduceRows, RefusesWhatDoesNotFit) {
  const KernelTable& table = *kernelTable(Isa::scalar);
  Guarded<float> x(12), out(12), sizes(6), totals(6), scores(6);
  Guarded<int32_t> bounds = boundsOf({6}), newBounds = boundsOf({3}), more = boundsOf({1, 2}), map = {0, 1, 2, 3, -1, 0}, members(12), counts(2);
  Guarded<uint8_t> kept(6);
  MergeRowsArgs args{view(x.data(), {6, 2}), row(map), {}, {}, {}, row(bounds), row(newBounds), view(out.data(), {6, 2}), row(sizes), row(totals), row(members), 0};
  EXPECT_EQ(run(table, Op::mergeRows, args).code, Code::argument);  // the map leads outside
  args.newBounds = row(more);
  EXPECT_EQ(run(table, Op::mergeRows, args).code, Code::shape);
  args.kind = 5;
  EXPECT_EQ(run(table, Op::mergeRows, args).code, Code::argument);
  Guarded<int32_t> past = {0, 7};
  EXPECT_EQ(run(table, Op::keepTokens, KeepTokensArgs{row(scores), row(past), row(counts), bytes(kept), 0}).code, Code::argument);
  EXPECT_EQ(run(table, Op::keptMap, KeptMapArgs{bytes(kept), row(past), row(map), row(counts), 0}).code, Code::argument);
}

}  // namespace
}  // namespace tl::test
