// cacheAppend and cachedAttention against the formula in float64, and bit for bit against themselves under other splits.
#include "attention_support.h"

namespace tl::test {
namespace {

struct Case {
  int64_t heads, kvHeads, headDim, past, queries;
  DType element = DType::f16;
  double window = 0, softcap = 0, sinks = 0;
  int layers = 1, layer = 0;
};

struct Sequence {
  Case c;
  Tensor query, key, value;  // of all past + queries tokens: fused [tokens, (heads + 2 kvHeads) · headDim] columns would do too
  explicit Sequence(const Case& shape, unsigned seed = 1) : c(shape) {
    std::mt19937 random(seed);
    const int64_t tokens = c.past + c.queries;
    query = Tensor({tokens, c.heads, c.headDim}, 3);
    key = Tensor({tokens, c.kvHeads, c.headDim}, 5);
    value = Tensor({tokens, c.kvHeads, c.headDim}, 2);
    query.fill(random, 2);
    key.fill(random, 2);
    value.fill(random);
  }
  double scale() const { return 1 / std::sqrt(double(c.headDim)); }
};

View tokens(Tensor& tensor, int64_t begin, int64_t end) {
  View view = tensor.view();
  view.data = view.as<float>() + begin * view.strides[0];
  view.dims[0] = end - begin;
  return view;
}

std::unique_ptr<KvCache> makeCache(const Case& c) {
  std::shared_ptr<KvPool> pool;
  EXPECT_FALSE(KvPool::create({c.layers, int32_t(c.kvHeads), int32_t(c.headDim), c.element}, 0, pool));
  return std::make_unique<KvCache>(pool);
}

// Appends and attends tokens [begin, end); out rows begin … end are written.
void step(Isa isa, KvCache& cache, Sequence& s, int64_t begin, int64_t end, Tensor& out, int threads) {
  ASSERT_FALSE(cache.reserve(end - begin));
  KvStep kv{&cache, end - begin};
  View cacheView;
  cacheView.data = &kv;
  cacheView.dtype = DType::cache;
  const CacheAppendArgs append{tokens(s.key, begin, end), tokens(s.value, begin, end), cacheView, double(s.c.layer)};
  ASSERT_FALSE(run(isa, Op::cacheAppend, append, threads));
  const CachedAttentionArgs args{tokens(s.query, begin, end), cacheView, tokens(out, begin, end), double(s.c.layer), s.scale(), s.c.window, s.c.softcap, s.c.sinks};
  ASSERT_FALSE(run(isa, Op::cachedAttention, args, threads));
  ASSERT_FALSE(cache.commit(end - begin));
}

void expectFormula(Isa isa, const Sequence& s, const Tensor& out, int64_t begin) {
  const Case& c = s.c;
  for (int64_t i = begin; i < c.past + c.queries; ++i)
    for (int64_t h = 0; h < c.heads; ++h) {
      const int64_t g = h / (c.heads / c.kvHeads);
      const float* q = s.query.row(i * c.heads + h);
      const Reference want = referenceRow(
          i + 1, c.headDim, [&](int64_t j) { return c.window == 0 || i - j < c.window || j < c.sinks; },
          [&](int64_t j) {
            double dot = 0;
            for (int64_t d = 0; d < c.headDim; ++d) dot += double(q[d]) * rounded(c.element, s.key.row(j * c.kvHeads + g)[d]);
            dot *= s.scale();
            return c.softcap > 0 ? c.softcap * std::tanh(dot / c.softcap) : dot;
          },
          [&](int64_t j, int64_t d) { return double(rounded(c.element, s.value.row(j * c.kvHeads + g)[d])); });
      for (int64_t d = 0; d < c.headDim; ++d)
        ASSERT_NEAR(out.row(i * c.heads + h)[d], want.out[size_t(d)], 2e-5 + 1e-4 * std::fabs(want.out[size_t(d)]))
            << isaName(isa) << " query " << i << " head " << h << " dim " << d;
    }
}

const Case kCases[] = {
    {9, 3, 64, 0, 1},
    {9, 3, 64, 700, 1},
    {9, 3, 64, 300, 70},
    {9, 3, 64, 0, 200, DType::f32},
    {4, 4, 128, 130, 67, DType::bf16},
    {8, 1, 80, 600, 5},
    {2, 1, 1, 40, 40, DType::f32},
    {6, 2, 33, 31, 34},
    {3, 3, 64, 500, 60, DType::f16, 40},
    {4, 2, 64, 900, 20, DType::f16, 100, 0, 4},
    {4, 2, 96, 20, 300, DType::f32, 33, 20, 7},
    {2, 2, 256, 100, 30, DType::f16, 0, 50},
    {2, 1, 512, 40, 20, DType::f32},
    {4, 2, 32, 257, 9, DType::f16, 0, 0, 0, 3, 2},
};

TEST(CachedAttention, IsTheFormula) {
  for (Isa isa : targets())
    for (const Case& c : kCases) {
      Sequence s(c);
      auto cache = makeCache(c);
      Tensor out({c.past + c.queries, c.heads, c.headDim}, 4);
      if (c.past > 0) step(isa, *cache, s, 0, c.past, out, 1);
      step(isa, *cache, s, c.past, c.past + c.queries, out, 2);
      if (::testing::Test::HasFatalFailure()) return;
      EXPECT_TRUE(out.guardsIntact());
      expectFormula(isa, s, out, std::max<int64_t>(0, c.past + c.queries - 40));
      if (::testing::Test::HasFatalFailure()) return;
    }
}

// The same tokens in steps of any size, with any number of threads: the same bits.
TEST(CachedAttention, DoesNotDependOnStepsOrThreads) {
  for (Isa isa : targets())
    for (const Case& c : kCases) {
      Sequence s(c);
      const int64_t all = c.past + c.queries;
      Tensor want({all, c.heads, c.headDim});
      auto whole = makeCache(c);
      step(isa, *whole, s, 0, all, want, 1);
      std::mt19937 random(7);
      for (int threads : {1, 2, 3}) {
        auto cache = makeCache(c);
        Tensor out({all, c.heads, c.headDim});
        for (int64_t at = 0; at < all;) {
          const int64_t most = at > all - 40 ? 3 : 150;
          const int64_t n = std::min<int64_t>(all - at, 1 + int64_t(random() % uint64_t(most)));
          step(isa, *cache, s, at, at + n, out, threads);
          if (::testing::Test::HasFatalFailure()) return;
          at += n;
        }
        ASSERT_EQ(std::memcmp(out.data.data(), want.data.data(), out.data.size() * sizeof(float)), 0) << isaName(isa) << " threads " << threads << " headDim " << c.headDim;
      }
    }
}

TEST(CachedAttention, NaNSpoilsOnlyWhoSeesIt) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (Isa isa : targets())
    for (double window : {0.0, 20.0}) {
      Sequence s({6, 2, 64, 0, 150, DType::f16, window});
      Tensor want({150, 6, 64}), out({150, 6, 64});
      auto clean = makeCache(s.c);
      step(isa, *clean, s, 0, 150, want, 1);
      for (int64_t g = 0; g < 2; ++g) s.key.row(77 * 2 + g)[5] = s.value.row(77 * 2 + g)[9] = nan;
      auto cache = makeCache(s.c);
      step(isa, *cache, s, 0, 150, out, 2);
      for (int64_t i = 0; i < 150; ++i)
        for (int64_t h = 0; h < 6; ++h) {
          const bool sees = i >= 77 && (window == 0 || i - 77 < window);
          for (int64_t d = 0; d < 64; ++d) {
            if (sees) { ASSERT_TRUE(std::isnan(out.row(i * 6 + h)[d])) << i; }
            else { ASSERT_EQ(out.row(i * 6 + h)[d], want.row(i * 6 + h)[d]) << isaName(isa) << " query " << i << " window " << window; }
          }
        }
    }
}

TEST(CachedAttention, LargeLogitsDoNotOverflow) {
  for (Isa isa : targets()) {
    Sequence s({2, 1, 16, 20, 20, DType::f32});
    for (int64_t i = 0; i < s.query.rows(); ++i)
      for (int64_t d = 0; d < 16; ++d) s.query.row(i)[d] = std::round(s.query.row(i)[d] * 256);
    for (int64_t i = 0; i < s.key.rows(); ++i)
      for (int64_t d = 0; d < 16; ++d) s.key.row(i)[d] = std::round(s.key.row(i)[d] * 4);
    auto cache = makeCache(s.c);
    Tensor out({40, 2, 16});
    step(isa, *cache, s, 0, 40, out, 1);
    expectFormula(isa, s, out, 0);
  }
}

TEST(CachedAttention, RefusesWhatDoesNotFit) {
  Sequence s({4, 2, 32, 0, 8});
  auto cache = makeCache(s.c);
  Tensor out({8, 4, 32});
  KvStep kv{cache.get(), 8};
  View view;
  view.data = &kv;
  view.dtype = DType::cache;
  CachedAttentionArgs args{s.query.view(), view, out.view(), 0, 1, 0, 0, 0};
  EXPECT_EQ(run(Isa::scalar, Op::cachedAttention, args).code, Code::argument);  // nothing reserved
  ASSERT_FALSE(cache->reserve(8));
  args.layer = 1;
  EXPECT_EQ(run(Isa::scalar, Op::cachedAttention, args).code, Code::argument);
  args.layer = 0;
  args.query.dims[0] = 7;
  EXPECT_EQ(run(Isa::scalar, Op::cachedAttention, args).code, Code::shape);
  args.query = s.query.view();
  args.query.dims[1] = 3;
  args.out.dims[1] = 3;
  EXPECT_EQ(run(Isa::scalar, Op::cachedAttention, args).code, Code::shape);
}

}  // namespace
}  // namespace tl::test
