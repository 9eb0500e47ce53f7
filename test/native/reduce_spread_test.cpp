// Far tokens and unique ones on every target, against the plain method in double: on whole numbers, where distances are exact and ties
// common, to the last choice; else each choice is the farthest but for rounding.
#include "reduce_support.h"

namespace tl::test {
namespace {

struct Chosen {
  Guarded<uint8_t> kept;
  Guarded<int32_t> order, work;
  Guarded<float> unit, distances;
  Chosen(int64_t rows, int64_t width) : kept(rows), order(rows), work(3 * rows), unit(rows * width), distances(rows) {}
  bool intact() const { return kept.intact() && order.intact() && work.intact() && unit.intact() && distances.intact(); }
};

struct SpreadCase {
  double start, first;
  bool euclidean, sum;
};

FarthestRowsArgs argsOf(Chosen& to, Guarded<float>& x, int64_t width, Guarded<float>& scores, Guarded<int32_t>& bounds, Guarded<int32_t>& counts, const SpreadCase& one) {
  return {view(x.data(), {x.size() / width, width}), row(scores), row(bounds), row(counts), bytes(to.kept), row(to.order), row(to.unit), row(to.distances), row(to.work),
          one.start, one.first, double(one.euclidean), double(one.sum)};
}

// The order in which tokens of one sequence are chosen. Each step takes from `got` what was chosen before; `slack` is rounding.
void checkOrder(const float* x, int64_t width, int64_t tokens, int64_t count, const float* scores, const int32_t* got, const SpreadCase& one, double slack) {
  std::vector<double> matrix;
  for (int64_t i = 0; i < tokens; ++i)
    for (int64_t j = 0; j < tokens; ++j) {
      const float *a = x + i * width, *b = x + j * width;
      matrix.push_back(!one.euclidean ? 1 - cosineOf(a, b, width) : one.sum ? std::sqrt(squareOf(a, b, width)) : squareOf(a, b, width));
    }
  const auto far = [&](int64_t a, int64_t b) { return matrix[size_t(a * tokens + b)]; };
  std::vector<double> nearest(static_cast<size_t>(tokens), double(kInfinity)), all(static_cast<size_t>(tokens), 0);
  for (int64_t step = 0; step < count; ++step) {
    std::vector<double> value(size_t(tokens), -double(kInfinity));
    for (int64_t i = 0; i < tokens; ++i) {
      if (std::find(got, got + step, int32_t(i)) != got + step) continue;
      double alone = double(kInfinity);
      for (int64_t j = 0; j < tokens && step == 0 && one.start == 0; ++j)
        if (j != i) alone = std::min(alone, one.euclidean && one.sum ? far(i, j) * far(i, j) : far(i, j));
      if (step > 0) value[size_t(i)] = one.sum ? all[size_t(i)] : nearest[size_t(i)];
      else value[size_t(i)] = one.start == 0 ? alone : one.start == 1 ? double(scores[i]) : i == int64_t(one.first) ? 1 : 0;
    }
    const int64_t wanted = std::max_element(value.begin(), value.end()) - value.begin();
    if (slack == 0) {
      ASSERT_EQ(got[step], wanted) << "step " << step;
    } else {
      ASSERT_GE(value[size_t(got[step])], value[size_t(wanted)] - slack * (one.sum ? double(step + 1) : 1)) << "step " << step;
    }
    for (int64_t i = 0; i < tokens; ++i) nearest[size_t(i)] = std::min(nearest[size_t(i)], far(i, got[step])), all[size_t(i)] += far(i, got[step]);
  }
}

TEST(ReduceSpreadThreads, FarthestRows) {
  const std::vector<int64_t> lengths = {40, 0, 1, 2, 130, 17};
  const int64_t rows = std::accumulate(lengths.begin(), lengths.end(), int64_t(0));
  for (const KernelTable* table : tables())
    for (const int64_t width : {int64_t(1), int64_t(3), int64_t(16), int64_t(33), int64_t(129)})
      for (const SpreadCase& one : {SpreadCase{0, 0, false, false}, SpreadCase{0, 0, true, false}, SpreadCase{1, 0, true, false}, SpreadCase{2, 1, false, false}, SpreadCase{2, 0, false, true}, SpreadCase{1, 0, true, true}}) {
        SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", width " << width << ", start " << one.start << ", euclidean " << one.euclidean << ", sum " << one.sum);
        Guarded<float> x(rows * width, 1), scores(rows);
        Guarded<int32_t> bounds = boundsOf(lengths), counts = {25, 3, 1, 2, 60, 99};
        const bool exact = one.euclidean && !one.sum;
        if (exact) fillWhole(x, uint32_t(width));
        else fill(x, uint32_t(width));
        fillWhole(scores, 7, 3);
        Chosen got(rows, width), again(rows, width);
        TL_EXPECT_OK(run(*table, Op::farthestRows, argsOf(got, x, width, scores, bounds, counts, one)));
        EXPECT_TRUE(got.intact());
        for (size_t s = 0; s < lengths.size(); ++s) {
          const int64_t begin = bounds[int64_t(s)], count = std::min<int64_t>(counts[int64_t(s)], lengths[s]);
          const int32_t* order = got.order.data() + begin;
          SCOPED_TRACE(testing::Message() << "sequence " << s);
          SpreadCase own = one;
          own.first = std::min(one.first, double(lengths[s] - 1));
          checkOrder(x.data() + begin * width, width, lengths[s], count, scores.data() + begin, order, own, exact ? 0 : 1e-5);
          for (int64_t i = 0; i < lengths[s]; ++i) ASSERT_EQ(got.kept[begin + i], std::find(order, order + count, int32_t(i)) != order + count) << i;
          for (int64_t i = count; i < lengths[s]; ++i) ASSERT_EQ(order[i], -1);
        }
        TL_EXPECT_OK(run(*table, Op::farthestRows, argsOf(again, x, width, scores, bounds, counts, one), 2));
        EXPECT_EQ(again.order.values(), got.order.values());
      }
}

// One long sequence: large enough that threads share it.
TEST(ReduceSpreadThreads, SharesOneSequence) {
  for (const KernelTable* table : tables()) {
    const int64_t rows = 700, width = 48, keep = 90;
    Guarded<float> x(rows * width), scores(rows);
    Guarded<int32_t> bounds = boundsOf({rows}), counts = {int32_t(keep)};
    fillWhole(x, 5, 3);
    for (const double start : {0.0, 2.0}) {
      Chosen got(rows, width), again(rows, width);
      const SpreadCase one{start, 3, true, false};
      TL_EXPECT_OK(run(*table, Op::farthestRows, argsOf(got, x, width, scores, bounds, counts, one)));
      checkOrder(x.data(), width, rows, keep, scores.data(), got.order.data(), one, 0);
      TL_EXPECT_OK(run(*table, Op::farthestRows, argsOf(again, x, width, scores, bounds, counts, one), 2));
      EXPECT_EQ(again.order.values(), got.order.values());
    }
  }
}

TEST(ReduceSpread, TokensThatAreNoNumbersComeLast) {
  for (const KernelTable* table : tables())
    for (const SpreadCase& one : {SpreadCase{2, 0, true, false}, SpreadCase{2, 0, false, false}, SpreadCase{1, 0, true, true}, SpreadCase{1, 0, false, false}}) {
      const int64_t rows = 21, width = 9;
      Guarded<float> x(rows * width), scores(rows);
      Guarded<int32_t> bounds = boundsOf({rows}), counts = {int32_t(rows)};
      fill(x, 2), fill(scores, 3);
      x[4 * width + 8] = x[20 * width] = kNaN;
      scores[0] = kNaN;  // a score that is no number is no largest one
      Chosen got(rows, width);
      TL_EXPECT_OK(run(*table, Op::farthestRows, argsOf(got, x, width, scores, bounds, counts, one)));
      for (int64_t i = 0; i < rows; ++i) EXPECT_EQ(got.kept[i], 1);
      std::vector<int32_t> order = got.order.values();
      EXPECT_EQ(order[0], one.start == 1 ? falling(rows, scores.data())[0] : 0);
      EXPECT_EQ((std::vector<int32_t>{order[size_t(rows) - 2], order[size_t(rows) - 1]}), (std::vector<int32_t>{4, 20}));
      std::sort(order.begin(), order.end());
      for (int64_t i = 0; i < rows; ++i) EXPECT_EQ(order[size_t(i)], i);  // nobody twice
    }
}

TEST(ReduceSpreadThreads, UniqueRows) {
  const std::vector<int64_t> lengths = {40, 0, 1, 19};
  const int64_t rows = std::accumulate(lengths.begin(), lengths.end(), int64_t(0));
  for (const KernelTable* table : tables())
    for (const int64_t width : {int64_t(1), int64_t(3), int64_t(8), int64_t(17), int64_t(65)}) {
      SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", width " << width);
      const double threshold = 0.35;
      Guarded<float> x(rows * width, 1), unit(rows * width);
      Guarded<int32_t> bounds = boundsOf(lengths), counts(4), work(rows);
      Guarded<uint8_t> unique(rows), again(rows);
      fill(x, uint32_t(width));
      for (int64_t i = 5; i < rows; i += 5) std::copy_n(x.data() + (i - 3) * width, width, x.data() + i * width);  // copies resemble
      std::fill_n(x.data() + 7 * width, width, 0.0f);  // zeros resemble nobody
      UniqueRowsArgs args{view(x.data(), {rows, width}), row(bounds), bytes(unique), row(counts), row(unit), row(work), threshold};
      TL_EXPECT_OK(run(*table, Op::uniqueRows, args));
      EXPECT_TRUE(unique.intact() && counts.intact() && unit.intact() && work.intact());
      for (size_t s = 0; s < lengths.size(); ++s) {
        int32_t count = 0;
        for (int64_t i = bounds[int64_t(s)]; i < bounds[int64_t(s) + 1]; ++i) {
          bool resembles = false, unsure = false;
          for (int64_t j = bounds[int64_t(s)]; j < i; ++j) {
            const double cosine = cosineOf(x.data() + i * width, x.data() + j * width, width);
            if (unique[j] && cosine > threshold) resembles = true;
            if (unique[j] && std::fabs(cosine - threshold) < 1e-6) unsure = true;
          }
          ASSERT_TRUE(unsure || unique[i] == !resembles) << i;
          count += unique[i];
        }
        EXPECT_EQ(counts[int64_t(s)], count);
      }
      args.unique = bytes(again);
      TL_EXPECT_OK(run(*table, Op::uniqueRows, args, 2));
      EXPECT_EQ(again.values(), unique.values());
    }
}

}  // namespace
}  // namespace tl::test
