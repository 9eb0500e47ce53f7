// Kernels over the paged cache against plain loops in double, on every target, for every element type, ragged heads, one and
// three threads (the bits have to be the same).
#include <algorithm>
#include <numeric>

#include "../../cpp/cache/kv.h"
#include "support.h"

namespace tl::test {
namespace {

constexpr DType kElements[] = {DType::f32, DType::f16, DType::bf16, DType::i8, DType::i4};
constexpr int32_t kHeads = 3, kHeadDim = 40;
constexpr int64_t kTokens = 140;

// Two layers; heads hold 140, 77 and 32 tokens.
struct Filled {
  std::shared_ptr<KvPool> pool;
  std::unique_ptr<KvCache> cache;
  KvStep step;
  View view;
  explicit Filled(DType element) {
    EXPECT_FALSE(KvPool::create({2, kHeads, kHeadDim, element}, 0, pool));
    cache = std::make_unique<KvCache>(pool);
    EXPECT_FALSE(cache->observe());
    EXPECT_FALSE(cache->reserve(kTokens));
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    float key[kHeadDim], value[kHeadDim];
    for (int32_t i = 0; i < 2 * kHeads; ++i)
      for (int64_t t = 0; t < kTokens; ++t) {
        for (int d = 0; d < kHeadDim; ++d) {
          key[d] = normal(random);
          value[d] = normal(random);
        }
        KvPage& page = *cache->pages(i / kHeads, i % kHeads)[t / kPageTokens];
        writeToken(page, cache->layout(page.element), t % kPageTokens, key, value);
        cache->scores(i / kHeads, i % kHeads)[t] = float(random() % 64);
      }
    EXPECT_FALSE(cache->commit(kTokens));
    std::vector<uint8_t> kept(2 * kHeads * kTokens, 1);
    for (int64_t layer = 0; layer < 2; ++layer) {
      std::fill_n(kept.begin() + (layer * kHeads + 1) * kTokens, 63, uint8_t(0));
      for (int64_t t = 0; t < kTokens; ++t) kept[size_t((layer * kHeads + 2) * kTokens + t)] = t % 4 == 0 && t < 128;
    }
    EXPECT_FALSE(cache->prepareKeep(kept.data(), kTokens, false));
    for (int32_t i = 0; i < 2 * kHeads; ++i) cache->keepHead(i / kHeads, i % kHeads, kept.data() + i * kTokens);
    cache->finishKeep();
    step = {cache.get(), 0};
    view.data = &step;
    view.dtype = DType::cache;
  }
  std::vector<double> row(int32_t layer, int32_t head, int64_t token, bool values) const {
    float key[kHeadDim], value[kHeadDim];
    const KvPage& page = *cache->pages(layer, head)[token / kPageTokens];
    readToken(page, cache->layout(page.element), token % kPageTokens, key, value);
    return values ? std::vector<double>(value, value + kHeadDim) : std::vector<double>(key, key + kHeadDim);
  }
};

double dot(const std::vector<double>& a, const std::vector<double>& b) { return std::inner_product(a.begin(), a.end(), b.begin(), 0.0); }

// Runs `op` with one and three threads and compares with wanted(head, token); −inf behind each head.
template <typename Args, typename Wanted> void expectScores(Op op, Args args, View Args::*out, const Filled& filled, double tolerance, Wanted wanted) {
  for (const KernelTable* table : tables()) {
    Guarded<float> one(kHeads * kTokens), three(kHeads * kTokens);
    args.*out = view(one.data(), {kHeads, kTokens});
    TL_EXPECT_OK(run(*table, op, args, 1));
    args.*out = view(three.data(), {kHeads, kTokens});
    TL_EXPECT_OK(run(*table, op, args, 3));
    ASSERT_TRUE(one.intact() && three.intact());
    ASSERT_EQ(std::memcmp(one.data(), three.data(), sizeof(float) * kHeads * kTokens), 0) << isaName(table->isa);
    for (int32_t head = 0; head < kHeads; ++head)
      for (int64_t t = 0; t < kTokens; ++t) {
        const double want = t < filled.cache->length(1, head) ? wanted(head, t) : -double(kInfinity);
        ASSERT_TRUE(close(double(one[head * kTokens + t]), want, tolerance)) << isaName(table->isa) << " head " << head << " token " << t << ": " << one[head * kTokens + t] << " for " << want;
      }
  }
}

TEST(CacheScore, NormsKeyDiffAndQueries) {
  for (const DType element : kElements) {
    const Filled filled(element);
    for (const bool values : {false, true})
      for (const double order : {1.0, 2.0})
        expectScores(Op::cacheNorms, CacheNormsArgs{filled.view, {}, 1, double(values), order, -0.5}, &CacheNormsArgs::out, filled, 1e-5, [&](int32_t head, int64_t t) {
          const auto x = filled.row(1, head, t, values);
          return -0.5 * (order == 2 ? std::sqrt(dot(x, x)) : std::accumulate(x.begin(), x.end(), 0.0, [](double sum, double v) { return sum + std::fabs(v); }));
        });
    std::vector<std::vector<double>> means;
    for (int32_t head = 0; head < kHeads; ++head) {
      std::vector<double> mean(kHeadDim, 0.0);
      for (int64_t t = 0; t < filled.cache->length(1, head); ++t) {
        const auto key = filled.row(1, head, t, false);
        for (size_t d = 0; d < mean.size(); ++d) mean[d] += key[d] / std::sqrt(dot(key, key)) / double(filled.cache->length(1, head));
      }
      means.push_back(mean);
    }
    expectScores(Op::cacheKeyDiff, CacheKeyDiffArgs{filled.view, {}, 1}, &CacheKeyDiffArgs::out, filled, 1e-5, [&](int32_t head, int64_t t) {
      const auto key = filled.row(1, head, t, false), &mean = means[size_t(head)];
      return -dot(key, mean) / std::sqrt(dot(key, key) * dot(mean, mean));
    });
    Guarded<float> query(2 * 6 * kHeadDim);
    fill(query, 5);
    expectScores(Op::cacheQueryScores, CacheQueryScoresArgs{view(query.data(), {2, 6, kHeadDim}), filled.view, {}, 1}, &CacheQueryScoresArgs::out, filled, 2e-5, [&](int32_t head, int64_t t) {
      const auto key = filled.row(1, head, t, false);
      double sum = 0;
      for (int h = 2 * head; h < 2 * head + 2; ++h)
        for (int d = 0; d < kHeadDim; ++d) sum += double(query[(6 + h) * kHeadDim + d]) * key[size_t(d)];
      return sum;
    });
  }
}

TEST(CacheScore, ScoresDividedByWhoSawThem) {
  const Filled filled(DType::f16);
  for (const double seen : {0.0, 200.0})
    expectScores(Op::cacheScores, CacheScoresArgs{filled.view, {}, 1, seen}, &CacheScoresArgs::out, filled, 1e-6, [&](int32_t head, int64_t t) {
      return double(filled.cache->scores(1, head)[t]) / (seen > 0 ? seen - filled.cache->position(1, head, t) : 1);
    });
}

TEST(CacheScore, ObserveSumsTheGroup) {
  for (const KernelTable* table : tables())
    for (const int threads : {1, 3})
      for (const bool accumulate : {false, true}) {
        Filled filled(DType::f16);
        ASSERT_FALSE(filled.cache->reserve(5));
        filled.step.newTokens = 5;
        std::vector<std::vector<float>> before;
        for (int32_t head = 0; head < kHeads; ++head) before.emplace_back(filled.cache->scores(1, head), filled.cache->scores(1, head) + filled.cache->length(1, head));
        Guarded<float> sums(6 * (kTokens + 5));
        fill(sums, 9, 0, 1);
        TL_EXPECT_OK(run(*table, Op::cacheObserve, CacheObserveArgs{view(sums.data(), {6, kTokens + 5}), filled.view, 1, 0.25, double(accumulate)}, threads));
        for (int32_t head = 0; head < kHeads; ++head)
          for (int64_t t = 0; t < filled.cache->length(1, head) + 5; ++t) {
            const double old = accumulate && t < filled.cache->length(1, head) ? double(before[size_t(head)][size_t(t)]) : 0;
            ASSERT_NEAR(double(filled.cache->scores(1, head)[t]), old + 0.25 * (double(sums[2 * head * (kTokens + 5) + t]) + double(sums[(2 * head + 1) * (kTokens + 5) + t])), 1e-5) << isaName(table->isa);
          }
      }
}

TEST(CacheScore, RotatesToDensePositions) {
  std::vector<int64_t> frequencies(16);
  for (int i = 0; i < 16; ++i) {
    const double frequency = std::pow(10000.0, -i / 16.0);
    std::memcpy(&frequencies[size_t(i)], &frequency, sizeof frequency);
  }
  for (const KernelTable* table : tables())
    for (const DType element : kElements)
      for (const bool interleaved : {false, true}) {
        Filled filled(element), plain(element);
        TL_EXPECT_OK(run(*table, Op::cacheRotate, CacheRotateArgs{view(frequencies.data(), {16}), filled.view, 1, double(interleaved)}, 3));
        for (int32_t head = 0; head < kHeads; ++head)
          for (int64_t t = 0; t < plain.cache->length(1, head); ++t) {
            const int64_t target = t + kTokens - plain.cache->length(1, head), moved = target - plain.cache->position(1, head, t);
            ASSERT_EQ(filled.cache->position(1, head, t), target);
            auto want = plain.row(1, head, t, false);
            double largest = 0;
            for (const double x : want) largest = std::max(largest, std::fabs(x));
            for (size_t i = 0; i < 16 && moved != 0; ++i) {
              const double angle = double(moved) * std::pow(10000.0, -double(i) / 16);
              double &a = want[interleaved ? 2 * i : i], &b = want[interleaved ? 2 * i + 1 : i + 16];
              const double first = a * std::cos(angle) - b * std::sin(angle);
              b = b * std::cos(angle) + a * std::sin(angle);
              a = first;
            }
            // What writing the rotated key anew may lose: half a step of its type.
            const double step = moved == 0 ? 0 : element == DType::f32 ? 1e-6 : element == DType::f16 ? 1e-3 : element == DType::bf16 ? 8e-3 : element == DType::i8 ? 0.006 : 0.11;
            const auto got = filled.row(1, head, t, false);
            for (size_t d = 0; d < want.size(); ++d) ASSERT_NEAR(got[d], want[d], step * largest * 1.5) << isaName(table->isa) << " type " << int(element) << " head " << head << " token " << t;
            ASSERT_EQ(filled.row(1, head, t, true), plain.row(1, head, t, true)) << "values stay";
          }
      }
}

TEST(CacheScore, RefusesToRotateSharedPages) {
  Filled filled(DType::f16);
  std::unique_ptr<KvCache> copy;
  ASSERT_FALSE(filled.cache->fork(copy, kTokens));
  const auto before = filled.row(1, 2, 5, false);
  int64_t frequency = 0;
  const double one = 1;
  std::memcpy(&frequency, &one, sizeof one);
  EXPECT_TRUE(run(*tables()[0], Op::cacheRotate, CacheRotateArgs{view(&frequency, {1}), filled.view, 1, 0}));
  EXPECT_EQ(filled.row(1, 2, 5, false), before);
}

}  // namespace
}  // namespace tl::test
