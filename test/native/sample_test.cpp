// sample, topK, logProb and softmax on every target against double precision and plain sorting.
#include <algorithm>
#include <numeric>

#include "../../cpp/core/random.h"
#include "slow.h"
#include "support.h"

namespace tl::test {
namespace {

struct Options {
  double temperature = 1, topK = 0, topP = 1, minP = 0, repeatPenalty = 1;
};

struct Drawn {
  Status status;
  int32_t token = -1;
  float logProb = 0;
};

Drawn draw(const KernelTable& table, Guarded<float>& logits, const Options& o, double position = 0, Guarded<int32_t>* history = nullptr, double seed = 11) {
  Drawn drawn;
  const std::vector<float> before = logits.values();
  drawn.status = run(table, Op::sample, SampleArgs{view(logits.data(), {1, logits.size()}), history ? row(*history) : View{}, view(&drawn.token, {1}), view(&drawn.logProb, {1}),
                                                   o.temperature, o.topK, o.topP, o.minP, o.repeatPenalty, seed, 5, position});
  EXPECT_EQ(std::memcmp(before.data(), logits.data(), before.size() * 4), 0) << "logits were changed";
  EXPECT_TRUE(logits.intact());
  return drawn;
}

double logSumExpOf(const float* x, int64_t n) {
  const double largest = double(*std::max_element(x, x + n));
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(double(x[i]) - largest);
  return largest + std::log(sum);
}

std::vector<int32_t> sortedIndices(const float* x, int64_t n) {
  std::vector<int32_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return x[a] > x[b]; });
  return order;
}

// The probability of every token after the chain, by sorting all of them.
std::vector<double> distributionOf(std::vector<float> logits, const Options& o, const std::vector<int32_t>& history = {}) {
  std::vector<int32_t> unique = history;
  std::sort(unique.begin(), unique.end());
  unique.erase(std::unique(unique.begin(), unique.end()), unique.end());
  for (const int32_t id : unique) {
    float& logit = logits[size_t(id)];
    logit = float(logit > 0 ? double(logit) / o.repeatPenalty : double(logit) * o.repeatPenalty);
  }
  std::vector<int32_t> order = sortedIndices(logits.data(), int64_t(logits.size()));
  if (o.topK > 0 && o.topK < double(order.size())) order.resize(size_t(o.topK));
  const double largest = double(logits[size_t(order[0])]);
  const auto weight = [&](int32_t id, double temperature) { return std::exp((double(logits[size_t(id)]) - largest) / temperature); };
  if (o.topP < 1) {
    double total = 0, mass = 0;
    for (const int32_t id : order) total += weight(id, 1);
    size_t kept = 0;
    while (kept < order.size() && mass < o.topP * total) mass += weight(order[kept++], 1);
    order.resize(std::max<size_t>(kept, 1));
  }
  if (o.minP > 0)
    while (order.size() > 1 && weight(order.back(), 1) < o.minP) order.pop_back();
  if (o.temperature == 0) order.resize(1);
  std::vector<double> probability(logits.size(), 0.0);
  double total = 0;
  for (const int32_t id : order) total += o.temperature == 0 ? 1 : weight(id, o.temperature);
  for (const int32_t id : order) probability[size_t(id)] = (o.temperature == 0 ? 1 : weight(id, o.temperature)) / total;
  return probability;
}

Guarded<float> logitsOf(int64_t n, uint32_t seed, double deviation = 2) {
  Guarded<float> logits(n, 1);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, float(deviation));
  for (int64_t i = 0; i < n; ++i) logits[i] = normal(random);
  return logits;
}

TEST(Sample, GreedyTakesTheLowestOfEquals) {
  for (const KernelTable* table : tables())
    for (const int64_t n : oddSizes()) {
      SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", vocabulary " << n);
      Guarded<float> logits = logitsOf(n, uint32_t(n));
      for (const int64_t at : {int64_t(0), n / 2, n - 1}) {
        const float before = logits[at];
        logits[at] = 50;
        if (at + 1 < n) logits[n - 1] = 50;
        for (const double topK : {0.0, 1.0}) {
          const Drawn drawn = draw(*table, logits, {.temperature = topK == 1 ? 1.0 : 0.0, .topK = topK});
          TL_EXPECT_OK(drawn.status);
          EXPECT_EQ(drawn.token, at);
          EXPECT_NEAR(drawn.logProb, 50 - logSumExpOf(logits.data(), n), 1e-5);
        }
        logits[at] = before;
      }
    }
}

// Thousands of draws against the exact distribution, for each stage of the chain alone and all together.
TEST(Sample, DrawsTheDistributionOfTheChain) {
  const std::vector<Options> cases = {
      {}, {.temperature = 0.6}, {.temperature = 1.7}, {.topK = 5}, {.topK = 40}, {.topP = 0.7}, {.topP = 0.95, .minP = 0.02}, {.minP = 0.1}, {.temperature = 0.8, .topK = 20, .topP = 0.9, .minP = 0.05},
      {.repeatPenalty = 1.5}, {.temperature = 0.8, .topK = 10, .repeatPenalty = 1.3}, {.topP = 0.5, .repeatPenalty = 0.7}, {.topK = 0.0, .topP = 0}, {.topK = 1500, .topP = 0.8}};
  constexpr int draws = kSlow ? 500 : 3000;
  for (const KernelTable* table : tables())
    for (size_t number = 0; number < cases.size(); ++number)
      for (const int64_t n : {50, 2001}) {
        SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", case " << number << ", vocabulary " << n);
        const Options& o = cases[number];
        Guarded<float> logits = logitsOf(n, uint32_t(number) + 1);
        for (int64_t i = 0; i < n; i += 9) logits[i] = 3;          // ties
        for (int64_t i = 4; i < n; i += 11) logits[i] = -kInfinity;  // masked tokens
        Guarded<int32_t> history = {0, 3, 7, 7, 9, 1};
        const std::vector<double> exact = distributionOf(logits.values(), o, o.repeatPenalty == 1 ? std::vector<int32_t>{} : history.values());
        std::vector<int> counts(static_cast<size_t>(n), 0);
        for (int i = 0; i < draws; ++i) {
          const Drawn drawn = draw(*table, logits, o, i, &history);
          ASSERT_FALSE(drawn.status);
          ASSERT_TRUE(drawn.token >= 0 && drawn.token < n);
          ASSERT_GT(exact[size_t(drawn.token)], 0) << "token " << drawn.token << " was cut off";
          counts[size_t(drawn.token)]++;
        }
        for (int64_t i = 0; i < n; ++i) {
          const double p = exact[size_t(i)], deviation = std::sqrt(p * (1 - p) / draws);
          ASSERT_NEAR(double(counts[size_t(i)]) / draws, p, 6 * deviation + 2.0 / draws) << "token " << i;
        }
      }
}

// The draw inverts the running sum: of candidates in falling order where topK is 1 … 1024, else in the order of tokens.
TEST(Sample, IsTheInverseOfTheRunningSum) {
  for (const KernelTable* table : tables())
    for (const double topK : {0.0, 30.0})
      for (int position = 0; position < 200; ++position) {
        SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", topK " << topK << ", position " << position);
        Guarded<float> logits = logitsOf(777, uint32_t(position));
        const Options o{.temperature = 0.9, .topK = topK};
        const std::vector<double> p = distributionOf(logits.values(), o);
        std::vector<int32_t> order = sortedIndices(logits.data(), 777);
        if (topK == 0) std::iota(order.begin(), order.end(), 0);
        const double u = uniform(11, 5, uint64_t(position));
        const Drawn drawn = draw(*table, logits, o, position);
        double mass = 0;
        for (const int32_t id : order) {
          if (id == drawn.token) {
            EXPECT_GE(u, mass - 1e-5);
            EXPECT_LE(u, mass + p[size_t(id)] + 1e-5);
          }
          mass += p[size_t(id)];
        }
      }
}

TEST(Sample, IsAFunctionOfSeedAndPosition) {
  const KernelTable& best = *tables().back();
  Guarded<float> logits = logitsOf(1000, 3);
  int differs = 0;
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(draw(best, logits, {.topK = 40}, i).token, draw(best, logits, {.topK = 40}, i).token);
    differs += draw(best, logits, {.topK = 40}, i).token != draw(best, logits, {.topK = 40}, i, nullptr, 12).token;
  }
  EXPECT_GT(differs, 20);
}

TEST(Sample, NumericErrors) {
  for (const KernelTable* table : tables())
    for (const int64_t n : {1, 8, 33, 1000})
      for (const double temperature : {0.0, 1.0}) {
        Guarded<float> logits = logitsOf(n, 1);
        logits[n - 1] = kNaN;
        EXPECT_EQ(draw(*table, logits, {.temperature = temperature}).status.code, Code::numeric);
        logits[n - 1] = kInfinity;
        EXPECT_EQ(draw(*table, logits, {.temperature = temperature}).status.code, Code::numeric);
        for (int64_t i = 0; i < n; ++i) logits[i] = -kInfinity;
        EXPECT_EQ(draw(*table, logits, {.temperature = temperature}).status.code, Code::numeric);
        logits[n / 2] = -3e38f;
        const Drawn only = draw(*table, logits, {.temperature = temperature});
        TL_EXPECT_OK(only.status);
        EXPECT_EQ(only.token, n / 2);
        EXPECT_EQ(only.logProb, 0);
      }
}

TEST(Sample, RefusesWrongOptions) {
  const KernelTable& table = *kernelTable(Isa::scalar);
  Guarded<float> logits = logitsOf(10, 1);
  Guarded<int32_t> history = {10}, negative = {-1};
  for (const Options& o : {Options{.temperature = -1}, Options{.temperature = double(kNaN)}, Options{.temperature = double(kInfinity)}, Options{.topK = -1}, Options{.topP = double(kNaN)},
                           Options{.topP = -0.5}, Options{.minP = 1.5}, Options{.repeatPenalty = 0}})
    EXPECT_EQ(draw(table, logits, o).status.code, Code::argument);
  EXPECT_EQ(draw(table, logits, {}, -1).status.code, Code::argument);
  EXPECT_EQ(draw(table, logits, {.repeatPenalty = 2}, 0, &history).status.code, Code::argument);
  EXPECT_EQ(draw(table, logits, {.repeatPenalty = 2}, 0, &negative).status.code, Code::argument);
  std::vector<float> huge(1200000);
  int32_t token;
  EXPECT_EQ(run(table, Op::sample, SampleArgs{view(huge.data(), {1, 1200000}), {}, view(&token, {1}), {}, 1, 0, 1, 0, 1, 1, 1, 1}).code, Code::argument);
}

TEST(Sample, LargeVocabularies) {
  const KernelTable& best = *tables().back();
  Guarded<float> logits = logitsOf(262208, 9, 3);
  Guarded<int32_t> history = {1, 262207};
  for (const Options& o : {Options{}, Options{.topK = 64}, Options{.topP = 0.95}, Options{.topK = 5000, .topP = 0.9, .repeatPenalty = 1.1}}) {
    const std::vector<double> exact = distributionOf(logits.values(), o, o.repeatPenalty == 1 ? std::vector<int32_t>{} : history.values());
    for (int i = 0; i < 5; ++i) {
      const Drawn drawn = draw(best, logits, o, i, &history);
      TL_EXPECT_OK(drawn.status);
      EXPECT_GT(exact[size_t(drawn.token)], 0);
      EXPECT_NEAR(drawn.logProb, double(logits[drawn.token]) - logSumExpOf(logits.data(), logits.size()), 1e-4);
    }
  }
}

// Cuts among equals and at both zeros: what stays is what sorting keeps, ties by index.
TEST(Sample, CutsBetweenEquals) {
  for (const KernelTable* table : tables())
    for (const float level : {0.0f, -0.0f, 1.5f, -2.0f})
      for (const Options& o : {Options{.topK = 1030}, Options{.topP = 0.4}, Options{.topK = 1030, .topP = 0.999}, Options{.topP = 0.999}}) {
        SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", level " << level << ", topK " << o.topK << ", topP " << o.topP);
        Guarded<float> logits(1100, 1);
        for (int64_t i = 0; i < 1100; ++i) logits[i] = i % 2 ? level : -level == level ? -level : level;
        for (int64_t i = 0; i < 1100; i += 10) logits[i] = level - 0.5f;
        for (int64_t i = 5; i < 1100; i += 100) logits[i] = level + 1;
        const std::vector<double> exact = distributionOf(logits.values(), o);
        for (int i = 0; i < 300; ++i) {
          const Drawn drawn = draw(*table, logits, o, i);
          ASSERT_FALSE(drawn.status);
          ASSERT_GT(exact[size_t(drawn.token)], 0) << "token " << drawn.token << " was cut off";
        }
      }
}

// Where bins of one width cannot tell elements apart, or many lie in one bin, the cut is the same.
TEST(Sample, CutsByMassAtTheEdges) {
  const float least = std::numeric_limits<float>::lowest();
  const std::vector<std::vector<float>> levels = {{1}, {1, 1 + 1e-6f}, {3e38f, -3e38f}, {least}, {least, -kInfinity}, {0, -1e-40f, 1e-40f}, {1e8f, 1e8f - 8, 1e8f - 16}, {0, -30, -60}, {-1e30f, -1.0001e30f}};
  for (const KernelTable* table : tables())
    for (size_t number = 0; number < levels.size(); ++number)
      for (const double topP : {0.0, 1e-9, 0.5, 0.95, 1 - 1e-12}) {
        SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", levels " << number << ", topP " << topP);
        Guarded<float> logits(9000, 1);
        for (int64_t i = 0; i < 9000; ++i) logits[i] = levels[number][size_t(i * 7919 % 9000) % levels[number].size()];
        const Options o{.topP = topP};
        const std::vector<double> exact = distributionOf(logits.values(), o);
        for (int i = 0; i < 20; ++i) {
          const Drawn drawn = draw(*table, logits, o, i);
          TL_EXPECT_OK(drawn.status);
          ASSERT_GT(exact[size_t(drawn.token)], 0) << "token " << drawn.token << " was cut off";
        }
      }
}

void checkTopK(const KernelTable& table, Guarded<float>& logits, int64_t n, int64_t k, int threads = 1) {
  const int64_t width = logits.size() / n;
  SCOPED_TRACE(testing::Message() << isaName(table.isa) << ", k " << k << " of " << width);
  Guarded<float> values(n * k, 1), sums(n, 1);
  Guarded<int32_t> indices(n * k, 1);
  TL_EXPECT_OK(run(table, Op::topK, TopKArgs{view(logits.data(), {n, width}), view(values.data(), {n, k}), view(indices.data(), {n, k}), row(sums)}, threads));
  EXPECT_TRUE(values.intact() && indices.intact() && sums.intact());
  for (int64_t i = 0; i < n; ++i) {
    const float* x = logits.data() + i * width;
    const std::vector<int32_t> order = sortedIndices(x, width);
    for (int64_t j = 0; j < k; ++j) {
      ASSERT_EQ(indices[i * k + j], order[size_t(j)]) << "rank " << j;
      ASSERT_EQ(values[i * k + j], x[order[size_t(j)]]);
    }
    const bool masked = std::all_of(x, x + width, [](float v) { return v == -kInfinity; });
    EXPECT_TRUE(close(double(sums[i]), masked ? -double(kInfinity) : logSumExpOf(x, width), 1e-6)) << sums[i];
  }
}

TEST(TopK, IsAStableSort) {
  for (const KernelTable* table : tables()) {
    for (const int64_t width : oddSizes())
      for (const int64_t k : {int64_t(1), (width + 1) / 2, width}) {
        Guarded<float> logits = logitsOf(width, uint32_t(width + k));
        checkTopK(*table, logits, 1, std::min<int64_t>(k, 1024));
      }
    for (const int64_t k : {1, 40, 1024})
      for (int pattern = 0; pattern < 6; ++pattern) {
        SCOPED_TRACE(testing::Message() << "pattern " << pattern);
        Guarded<float> logits = logitsOf(6000, 1);
        for (int64_t i = 0; i < 6000; ++i) {
          if (pattern == 1) logits[i] = float(i);
          if (pattern == 2) logits[i] = -float(i);
          if (pattern == 3) logits[i] = 1;
          if (pattern == 4) logits[i] = i % 500 == 7 ? float(i % 3) : -kInfinity;
          if (pattern == 5) logits[i] = float((i * 7919) % 11);
        }
        checkTopK(*table, logits, 1, k);
      }
    Guarded<float> masked(40);
    std::fill_n(masked.data(), 40, -kInfinity);
    checkTopK(*table, masked, 2, 3);
  }
}

TEST(TopKThreads, RowsAndErrors) {
  for (const KernelTable* table : tables()) {
    Guarded<float> logits = logitsOf(20 * 3001, 4);
    for (int threads = 1; threads <= 4; ++threads) checkTopK(*table, logits, 20, 17, threads);
    logits[7 * 3001 + 5] = kNaN;
    Guarded<float> values(20);
    Guarded<int32_t> indices(20);
    const View in = view(logits.data(), {20, 3001}), out = view(values.data(), {20, 1}), index = view(indices.data(), {20, 1});
    EXPECT_EQ(run(*table, Op::topK, TopKArgs{in, out, index, {}}, 4).code, Code::numeric);
    EXPECT_EQ(run(*table, Op::topK, TopKArgs{in, view(values.data(), {20, 1025}), view(indices.data(), {20, 1025}), {}}).code, Code::argument);
    EXPECT_EQ(run(*table, Op::topK, TopKArgs{view(logits.data(), {20, 4}), view(values.data(), {20, 5}), view(indices.data(), {20, 5}), {}}).code, Code::shape);
    EXPECT_EQ(run(*table, Op::topK, TopKArgs{in, out, view(indices.data(), {10, 1}), {}}).code, Code::shape);
  }
}

TEST(LogProbThreads, IsTheLogarithmOfSoftmax) {
  for (const KernelTable* table : tables())
    for (const int64_t width : {1, 5, 33, 1000, 5001}) {
      SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", width " << width);
      const int64_t n = 9;
      Guarded<float> logits = logitsOf(n * width, uint32_t(width), 5), out(n, 1);
      Guarded<int32_t> chosen(n);
      for (int64_t i = 0; i < n; ++i) chosen[i] = int32_t(i * 13 % width);
      TL_EXPECT_OK(run(*table, Op::logProb, LogProbArgs{view(logits.data(), {n, width}), row(chosen), row(out)}, 3));
      EXPECT_TRUE(out.intact());
      for (int64_t i = 0; i < n; ++i)
        EXPECT_TRUE(close(double(out[i]), double(logits[i * width + chosen[i]]) - logSumExpOf(logits.data() + i * width, width), 5e-7)) << out[i];
      chosen[n - 1] = int32_t(width);
      EXPECT_EQ(run(*table, Op::logProb, LogProbArgs{view(logits.data(), {n, width}), row(chosen), row(out)}).code, Code::argument);
    }
}

TEST(SoftmaxThreads, EveryWidthScaleAndMask) {
  for (const KernelTable* table : tables())
    for (const int64_t width : oddSizes())
      for (const double scale : {1.0, 0.125, -2.0}) {
        SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", width " << width << ", scale " << scale);
        const int64_t rows = 4, stride = width + 3;
        Guarded<float> x(rows * stride, 1), out(rows * stride, 1);
        fill(x, uint32_t(width), -30, 30);
        if (scale > 0) {
          for (int64_t i = 0; i < width; ++i) x[stride + i] = -kInfinity;  // a row of nothing
          if (width > 1) x[2 * stride] = -kInfinity;
        }
        TL_EXPECT_OK(run(*table, Op::softmax, SoftmaxArgs{strided(x.data(), rows, width, stride), strided(out.data(), rows, width, stride), scale}, 2));
        EXPECT_TRUE(out.intact());
        for (int64_t i = 0; i < rows; ++i) {
          std::vector<float> scaled;
          for (int64_t j = 0; j < width; ++j) scaled.push_back(x[i * stride + j] * float(scale));
          const bool nothing = scale > 0 && i == 1;
          for (int64_t j = 0; j < width; ++j) {
            const double wanted = nothing ? 0 : std::exp(double(scaled[size_t(j)]) - logSumExpOf(scaled.data(), width));
            ASSERT_TRUE(close(double(out[i * stride + j]), wanted, 1e-6, 1e-3)) << out[i * stride + j] << " instead of " << wanted;
          }
        }
      }
}

}  // namespace
}  // namespace tl::test
