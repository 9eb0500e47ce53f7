// Rows against rows on every target: products, the closest row, bipartite matching and density peaks against plain loops in
// double, at tails of every vector length, with ties and NaN, by one thread and two.
#include "reduce_support.h"

namespace tl::test {
namespace {

const std::vector<int64_t> kCounts = {1, 2, 7, 15, 16, 17, 31, 33, 50, 97};

TEST(ReduceMatchThreads, RowProducts) {
  for (const KernelTable* table : tables())
    for (const int64_t width : oddSizes())
      for (const int64_t m : {int64_t(1), int64_t(17), int64_t(45)})
        for (const bool cosine : {false, true}) {
          SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", width " << width << ", m " << m << ", cosine " << cosine);
          const int64_t batch = 2, n = 13;
          Guarded<float> x(batch * n * width, 1), y(m * width, 3), across(m * width), bias(m), out(batch * n * m, 1), second(batch * n * m), panels = panelsFor(m, 1, width);
          fill(x, 1), fill(y, 2), fill(bias, 3);
          std::fill_n(x.data(), width, 0.0f);  // a row of zeros has cosine 0
          for (int64_t i = 0; i < m; ++i) for (int64_t j = 0; j < width; ++j) across[j * m + i] = y[i * width + j];
          const View own = cosine ? View{} : row(bias);
          RowProductsArgs args{view(x.data(), {batch, n, width}), view(y.data(), {1, m, width}), own, view(out.data(), {batch, n, m}), row(panels), double(cosine), 0};
          TL_EXPECT_OK(run(*table, Op::rowProducts, args));
          EXPECT_TRUE(out.intact() && panels.intact());
          for (int64_t i = 0; i < batch * n; ++i)
            for (int64_t j = 0; j < m; ++j) {
              const float *a = x.data() + i * width, *b = y.data() + j * width;
              const double wanted = cosine ? cosineOf(a, b, width) : dotOf(a, b, width) + double(bias[j]);
              ASSERT_TRUE(close(double(out[i * m + j]), wanted, cosine ? 2e-6 : 1e-5, cosine ? 1 : double(width) * 4)) << i << ", " << j;
            }
          args.out = view(second.data(), {batch, n, m});
          TL_EXPECT_OK(run(*table, Op::rowProducts, args, 2));
          EXPECT_EQ(std::memcmp(out.data(), second.data(), size_t(out.size()) * 4), 0);
          if (cosine) continue;
          args.y = view(across.data(), {1, width, m}), args.transposed = 1;
          TL_EXPECT_OK(run(*table, Op::rowProducts, args, 2));
          EXPECT_EQ(std::memcmp(out.data(), second.data(), size_t(out.size()) * 4), 0);
        }
}

// The closest of whole numbers, where equal ones are common: the first of them. Cosines are compared where rounding cannot tell.
TEST(ReduceMatchThreads, ClosestRows) {
  for (const KernelTable* table : tables())
    for (const int64_t width : {int64_t(1), int64_t(4), int64_t(15), int64_t(33), int64_t(129)})
      for (const int64_t m : kCounts)
        for (const bool squared : {false, true}) {
          SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", width " << width << ", m " << m << ", squared " << squared);
          const int64_t batch = 2, n = 19;
          Guarded<float> x(batch * n * width, 1), y(batch * m * width), best(batch * n), panels = panelsFor(batch * m, batch, width);
          Guarded<int32_t> index(batch * n), second(batch * n);
          fillWhole(x, uint32_t(m)), fillWhole(y, uint32_t(width), 1);
          x[3 * width] = kNaN;
          if (m > 4) y[4 * width] = kNaN;
          ClosestRowsArgs args{view(x.data(), {batch, n, width}), view(y.data(), {batch, m, width}), row(index), row(best), row(panels), double(squared)};
          TL_EXPECT_OK(run(*table, Op::closestRows, args));
          EXPECT_TRUE(index.intact() && best.intact() && panels.intact());
          for (int64_t i = 0; i < batch * n; ++i) {
            const float* a = x.data() + i * width;
            int64_t wanted = 0;
            double most = -double(kInfinity);
            for (int64_t j = 0; j < m; ++j) {
              const float* b = y.data() + (i / n * m + j) * width;
              const double near = squared ? -squareOf(a, b, width) : cosineOf(a, b, width);
              if (near > most + (squared ? 0 : 1e-7)) most = near, wanted = j;
            }
            const float* got = y.data() + (i / n * m + index[i]) * width;
            const bool exact = squared || std::isinf(most);
            ASSERT_TRUE(exact ? index[i] == wanted : std::fabs(cosineOf(a, got, width) - most) < 1e-6) << i;
            if (std::isinf(most)) continue;  // nothing compares
            ASSERT_TRUE(close(double(best[i]), most, 1e-6)) << i;
            for (int64_t j = 0; j < index[i]; ++j) ASSERT_NE(std::memcmp(y.data() + (i / n * m + j) * width, got, size_t(width) * 4), 0) << "an equal row comes first";
          }
          args.index = row(second);
          TL_EXPECT_OK(run(*table, Op::closestRows, args, 2));
          EXPECT_EQ(second.values(), index.values());
        }
}

// ---- Bipartite matching

struct Match {
  Guarded<int32_t> map, newBounds, partner, members;
  Guarded<float> best;
  Match(int64_t rows, int64_t sequences) : map(rows), newBounds(sequences + 1), partner(rows), members(rows), best(rows) {}
};

struct MatchCase {
  double merge = 0;
  bool classToken = false, distillToken = false, squared = false;
};

BipartiteMatchArgs argsOf(Match& match, Guarded<float>& metric, int64_t width, Guarded<int32_t>& bounds, Guarded<float>& panels, const View& destinations, const MatchCase& one) {
  return {view(metric.data(), {metric.size() / width, width}), destinations, row(bounds), row(match.map), row(match.newBounds), row(match.best), row(match.partner),
          row(match.members), row(panels), one.merge, double(one.classToken), double(one.distillToken), double(one.squared)};
}

// One sequence of `length` rows from `begin` on: partners in double, places by the scores that the kernel found.
void checkMatch(Match& got, const float* metric, int64_t width, int64_t begin, int64_t length, int64_t sequence, const uint8_t* marks, const MatchCase& one) {
  std::vector<int64_t> sources, destinations;
  for (int64_t i = 0; i < length; ++i) ((marks ? marks[begin + i] != 0 : i % 2 == 1) ? destinations : sources).push_back(begin + i);
  const int64_t from = int64_t(sources.size()), to = int64_t(destinations.size());
  std::vector<float> scores;
  for (int64_t i = 0; i < from; ++i) {
    const float* a = metric + sources[size_t(i)] * width;
    double most = -double(kInfinity);
    for (int64_t j = one.distillToken && to > 1 ? 1 : 0; j < to; ++j) {
      const float* b = metric + destinations[size_t(j)] * width;
      const double near = one.squared ? -squareOf(a, b, width) : cosineOf(a, b, width);
      if (near > most) most = near;
    }
    const int32_t partner = got.partner[sources[size_t(i)]];
    scores.push_back(one.classToken && sources[size_t(i)] == begin ? kNaN : got.best[sources[size_t(i)]]);
    if (to == 0 || (one.distillToken && to == 1)) continue;
    ASSERT_TRUE(partner >= 0 && partner < to);
    if (std::isinf(most)) continue;  // nothing compares
    const float* chosen = metric + destinations[size_t(partner)] * width;
    ASSERT_NEAR(one.squared ? -squareOf(a, chosen, width) : cosineOf(a, chosen, width), most, one.squared ? 0 : 2e-6) << i;
    ASSERT_TRUE(close(double(got.best[sources[size_t(i)]]), most, 2e-6)) << i;
    for (int64_t j = one.distillToken ? 1 : 0; j < partner; ++j) ASSERT_NE(std::memcmp(metric + destinations[size_t(j)] * width, chosen, size_t(width) * 4), 0) << "an equal row comes first";
  }
  const int64_t spared = int64_t(one.classToken) + int64_t(one.distillToken), most = marks ? from : std::max<int64_t>(0, (length - spared) / 2);
  const bool aside = one.classToken && from > 0 && sources[0] == begin;
  const int64_t merged = to == 0 ? 0 : std::min({int64_t(one.merge), most, from - int64_t(aside)});
  std::vector<bool> joins(size_t(from), false);
  const std::vector<int64_t> order = falling(from, scores.data());
  int64_t taken = 0;
  for (size_t i = 0; i < order.size() && taken < merged; ++i)
    if (!(aside && order[i] == 0)) joins[size_t(order[i])] = true, ++taken;
  // Rows of the result: kept sources, then destinations; with a distillation token source 0, destination 0, then the others.
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < from; ++i) if (!joins[size_t(i)]) rows.push_back(sources[size_t(i)]);
  for (const int64_t j : destinations) rows.push_back(j);
  if (one.distillToken && to > 0) {
    rows.erase(std::find(rows.begin(), rows.end(), destinations[0]));
    rows.insert(rows.begin() + (from > taken ? 1 : 0), destinations[0]);
  }
  EXPECT_EQ(got.newBounds[sequence + 1] - got.newBounds[sequence], int64_t(rows.size()));
  for (int64_t i = 0; i < from; ++i) {
    const int64_t home = joins[size_t(i)] ? destinations[size_t(got.partner[sources[size_t(i)]])] : sources[size_t(i)];
    ASSERT_EQ(got.map[sources[size_t(i)]], std::find(rows.begin(), rows.end(), home) - rows.begin()) << "source " << i;
  }
  for (const int64_t j : destinations) ASSERT_EQ(got.map[j], std::find(rows.begin(), rows.end(), j) - rows.begin()) << "destination " << j;
}

void checkMatches(const KernelTable& table, Guarded<float>& metric, int64_t width, const std::vector<int64_t>& lengths, Guarded<uint8_t>* marks, const MatchCase& one) {
  const int64_t rows = metric.size() / width, sequences = int64_t(lengths.size());
  Guarded<int32_t> bounds = boundsOf(lengths);
  Guarded<float> panels = panelsFor(rows, sequences, width);
  Match got(rows, sequences), again(rows, sequences);
  const View destinations = marks ? bytes(*marks) : View{};
  TL_EXPECT_OK(run(table, Op::bipartiteMatch, argsOf(got, metric, width, bounds, panels, destinations, one)));
  EXPECT_TRUE(got.map.intact() && got.newBounds.intact() && got.best.intact() && got.partner.intact() && got.members.intact() && panels.intact());
  for (int64_t s = 0; s < sequences; ++s) checkMatch(got, metric.data(), width, bounds[s], lengths[size_t(s)], s, marks ? marks->data() : nullptr, one);
  TL_EXPECT_OK(run(table, Op::bipartiteMatch, argsOf(again, metric, width, bounds, panels, destinations, one), 2));
  EXPECT_EQ(again.map.values(), got.map.values());
  EXPECT_EQ(std::memcmp(again.best.data(), got.best.data(), size_t(rows) * 4), 0);
}

TEST(ReduceMatchThreads, BipartiteMatch) {
  const std::vector<int64_t> lengths = {0, 1, 2, 3, 33, 66, 5, 97};
  const int64_t rows = std::accumulate(lengths.begin(), lengths.end(), int64_t(0));
  for (const KernelTable* table : tables())
    for (const int64_t width : {int64_t(1), int64_t(8), int64_t(17), int64_t(64), int64_t(129)})
      for (const MatchCase& one : {MatchCase{0}, MatchCase{13}, MatchCase{1e9}, MatchCase{13, true}, MatchCase{1e9, true, true}, MatchCase{4, false, true}, MatchCase{13, false, false, true}})
        for (const bool whole : {false, true}) {
          SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", width " << width << ", merge " << one.merge << ", class " << one.classToken << ", distill " << one.distillToken << ", whole " << whole);
          Guarded<float> metric(rows * width, 1);
          if (whole) fillWhole(metric, uint32_t(width), 1);
          else fill(metric, uint32_t(width));
          std::fill_n(metric.data() + 20 * width, width, 0.0f);  // a token of zeros
          if (!one.squared || whole) checkMatches(*table, metric, width, lengths, nullptr, one);
          Guarded<uint8_t> marks(rows);
          for (int64_t i = 0; i < rows; ++i) marks[i] = i % 3 == 0;
          if (!one.distillToken && (!one.squared || whole)) checkMatches(*table, metric, width, lengths, &marks, one);
        }
}

TEST(ReduceMatch, TokensThatAreNoNumbersMatchNobody) {
  for (const KernelTable* table : tables()) {
    const int64_t width = 20, n = 40;
    Guarded<float> metric(n * width);
    fill(metric, 1);
    metric[2 * width + 5] = kNaN;  // a source: the last to join
    metric[7 * width + 19] = kNaN;  // a destination: nobody's partner
    checkMatches(*table, metric, width, {n}, nullptr, {5});
    Guarded<int32_t> bounds = boundsOf({n});
    Guarded<float> panels = panelsFor(n, 1, width);
    Match got(n, 1);
    TL_EXPECT_OK(run(*table, Op::bipartiteMatch, argsOf(got, metric, width, bounds, panels, {}, {19})));
    EXPECT_EQ(got.map[2], 0);  // 19 of 20 sources join: this one stays, as the first row
    for (int64_t i = 0; i < n; i += 2) EXPECT_NE(got.partner[i], 3) << i;
  }
}

// ---- Density peaks

TEST(ReduceMatchThreads, DensityPeaks) {
  const std::vector<int64_t> lengths = {33, 1, 0, 64, 17, 3};
  const int64_t rows = std::accumulate(lengths.begin(), lengths.end(), int64_t(0));
  for (const KernelTable* table : tables())
    for (const int64_t width : {int64_t(1), int64_t(7), int64_t(16), int64_t(65)})
      for (const int64_t k : {int64_t(1), int64_t(5), int64_t(40)}) {
        SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", width " << width << ", k " << k);
        Guarded<float> x(rows * width, 1), density(rows), score(rows), nearest(rows * k), panels = panelsFor(rows, int64_t(lengths.size()), width), again(rows);
        Guarded<int32_t> bounds = boundsOf(lengths);
        fillWhole(x, uint32_t(width + k), 1);
        DensityPeaksArgs args{view(x.data(), {rows, width}), row(bounds), row(density), row(score), view(nearest.data(), {rows, k}), row(panels)};
        TL_EXPECT_OK(run(*table, Op::densityPeaks, args));
        EXPECT_TRUE(density.intact() && score.intact() && nearest.intact() && panels.intact());
        for (size_t s = 0; s < lengths.size(); ++s) {
          const int64_t begin = bounds[int64_t(s)], end = bounds[int64_t(s) + 1];
          const auto square = [&](int64_t i, int64_t j) { return squareOf(x.data() + i * width, x.data() + j * width, width) / double(width); };
          double largest = 0;
          for (int64_t i = begin; i < end; ++i) for (int64_t j = begin; j < i; ++j) largest = std::max(largest, square(i, j));
          for (int64_t i = begin; i < end; ++i) {
            std::vector<double> squares;
            double denser = double(kInfinity);
            for (int64_t j = begin; j < end; ++j) {
              squares.push_back(square(i, j));
              if (density[j] > density[i] || (density[j] == density[i] && j < i)) denser = std::min(denser, squares.back());
            }
            std::sort(squares.begin(), squares.end());
            const size_t count = std::min<size_t>(size_t(k), squares.size());
            const double mean = std::accumulate(squares.begin(), squares.begin() + long(count), 0.0) / double(count);
            ASSERT_TRUE(close(double(density[i]), std::exp(-mean), 2e-6, 0)) << i;
            ASSERT_TRUE(close(double(score[i]), std::sqrt(std::isinf(denser) ? largest : denser) * double(density[i]), 2e-6)) << i;
          }
        }
        args.score = row(again);
        TL_EXPECT_OK(run(*table, Op::densityPeaks, args, 2));
        EXPECT_EQ(std::memcmp(again.data(), score.data(), size_t(rows) * 4), 0);
      }
}

TEST(ReduceMatch, RefusesWhatDoesNotFit) {
  const KernelTable& table = *kernelTable(Isa::scalar);
  Guarded<float> x(24), out(64), panels(400);
  Guarded<int32_t> index(8), falls = {0, 4, 2, 6}, far = {0, 9}, late = {1, 6};
  const View wrong = view(x.data(), {1, 4, 6});
  EXPECT_EQ(run(table, Op::rowProducts, RowProductsArgs{view(x.data(), {1, 6, 4}), wrong, {}, view(out.data(), {1, 6, 4}), row(panels), 0, 0}).code, Code::shape);
  EXPECT_EQ(run(table, Op::closestRows, ClosestRowsArgs{view(x.data(), {1, 6, 4}), view(x.data(), {1, 0, 4}), row(index), row(out), row(panels), 0}).code, Code::shape);
  for (Guarded<int32_t>* bounds : {&falls, &far, &late}) {
    Match match(6, 3);
    EXPECT_EQ(run(table, Op::bipartiteMatch, argsOf(match, x, 4, *bounds, panels, {}, {1})).code, Code::argument);
    EXPECT_EQ(run(table, Op::densityPeaks, DensityPeaksArgs{view(x.data(), {6, 4}), row(*bounds), row(out), row(out), view(out.data(), {6, 5}), row(panels)}).code, Code::argument);
  }
}

}  // namespace
}  // namespace tl::test
