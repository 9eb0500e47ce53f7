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

View viewOf(KvStep& step) {
  View view;
  view.data = &step;
  view.dtype = DType::cache;
  return view;
}

// Appends tokens [begin, end) that nobody looks from.
void append(Isa isa, KvCache& cache, Sequence& s, int64_t begin, int64_t end) {
  if (begin == end) return;
  ASSERT_FALSE(cache.reserve(end - begin));
  KvStep kv{&cache, end - begin};
  ASSERT_FALSE(run(isa, Op::cacheAppend, CacheAppendArgs{tokens(s.key, begin, end), tokens(s.value, begin, end), viewOf(kv), double(s.c.layer)}, 1));
  ASSERT_FALSE(cache.commit(end - begin));
}

// Appends and attends tokens [begin, end); out rows begin … end are written.
void step(Isa isa, KvCache& cache, Sequence& s, int64_t begin, int64_t end, Tensor& out, int threads) {
  if (begin == end) return;
  ASSERT_FALSE(cache.reserve(end - begin));
  KvStep kv{&cache, end - begin};
  const View cacheView = viewOf(kv);
  ASSERT_FALSE(run(isa, Op::cacheAppend, CacheAppendArgs{tokens(s.key, begin, end), tokens(s.value, begin, end), cacheView, double(s.c.layer)}, threads));
  const CachedAttentionArgs args{tokens(s.query, begin, end), cacheView, {}, tokens(out, begin, end), {}, {}, double(s.c.layer), s.scale(), s.c.window, s.c.softcap, s.c.sinks, 0};
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

const Case kQuantizedCases[] = {
    {9, 3, 64, 300, 70, DType::i8},  {9, 3, 64, 300, 70, DType::i4},   {4, 4, 128, 130, 67, DType::i8}, {4, 4, 128, 130, 67, DType::i4}, {8, 1, 80, 200, 5, DType::i8},
    {8, 1, 80, 200, 5, DType::i4},   {7, 1, 64, 250, 20, DType::i8},   {6, 2, 32, 90, 40, DType::i4},   {6, 2, 33, 31, 34, DType::i4},  {5, 1, 64, 250, 20, DType::i4, 40, 0, 4},
    {3, 3, 64, 500, 60, DType::i8, 40}, {2, 2, 256, 100, 30, DType::i4, 0, 50},
};

// In slow builds shortened, but one with more than a chunk of keys (512).
std::vector<Case> shapes() {
  std::vector<Case> all(std::begin(kCases), std::end(kCases));
  all.insert(all.end(), std::begin(kQuantizedCases), std::end(kQuantizedCases));
  for (Case& c : all) c.past = shortened(c.past);
  all.push_back({2, 1, 16, 600, 3});
  return all;
}

// The formula's keys and values become those that a quantised cache keeps of them.
void takeWhatIsKept(const KvCache& cache, Sequence& s) {
  for (int64_t token = 0; token < cache.length(int32_t(s.c.layer), 0); ++token)
    for (int32_t head = 0; head < s.c.kvHeads; ++head) {
      const KvPage& page = *cache.pages(int32_t(s.c.layer), head)[token / kPageTokens];
      readToken(page, cache.layout(page.element), token % kPageTokens, s.key.row(token * s.c.kvHeads + head), s.value.row(token * s.c.kvHeads + head));
    }
  s.c.element = DType::f32;
}

TEST(CachedAttention, IsTheFormula) {
  for (Isa isa : targets())
    for (const Case& c : shapes()) {
      Sequence s(c);
      auto cache = makeCache(c);
      Tensor out({c.past + c.queries, c.heads, c.headDim}, 4);
      const int64_t checked = std::max<int64_t>(0, c.past + c.queries - 40);
      append(isa, *cache, s, 0, std::min(checked, c.past));
      step(isa, *cache, s, std::min(checked, c.past), c.past, out, 1);
      step(isa, *cache, s, c.past, c.past + c.queries, out, 2);
      if (::testing::Test::HasFatalFailure()) return;
      EXPECT_TRUE(out.guardsIntact());
      if (isQuantized(c.element)) takeWhatIsKept(*cache, s);
      expectFormula(isa, s, out, checked);
      if (::testing::Test::HasFatalFailure()) return;
    }
}

// The same tokens in steps of any size, with any number of threads: the same bits.
TEST(CachedAttention, DoesNotDependOnStepsOrThreads) {
  for (Isa isa : targets())
    for (const Case& c : shapes()) {
      Sequence s(c);
      const int64_t all = c.past + c.queries;
      Tensor want({all, c.heads, c.headDim});
      auto whole = makeCache(c);
      step(isa, *whole, s, 0, all, want, 1);
      std::mt19937 random(7);
      for (int threads : kSlow ? std::vector<int>{3} : std::vector<int>{1, 2, 3}) {
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

// A random tree in order of depth: parents of nodes, −1 for the root.
std::vector<int> randomTree(std::mt19937& random, int nodes) {
  std::vector<int> parents{-1}, depths{0};
  for (int i = 1; i < nodes; ++i) {
    int parent = int(random() % parents.size());
    while (depths[size_t(parent)] + 1 < depths.back()) parent = int(random() % parents.size());
    parents.push_back(parent);
    depths.push_back(depths[size_t(parent)] + 1);
  }
  return parents;
}

// Every node of a tree gets the bits that decoding its path token by token gives.
TEST(CachedAttention, TreeIsItsPaths) {
  struct TreeCase { Case c; int nodes; };
  const TreeCase cases[] = {
      {{9, 3, 64, 100, 60}, 60},         {{9, 3, 64, 1000, 8}, 8},     {{4, 2, 32, 510, 70, DType::f32}, 70}, {{2, 1, 80, 0, 20, DType::bf16}, 20},
      {{4, 1, 16, 250, 40, DType::f16, 90}, 40}, {{3, 3, 48, 127, 33, DType::f16, 0, 30}, 33}, {{2, 2, 64, 64, 1}, 1}, {{2, 1, 16, 700, 30, DType::f16, 50, 0, 4}, 30},
      {{4, 2, 64, 200, 16, DType::i8}, 16}, {{4, 2, 40, 120, 16, DType::i4}, 16}, {{6, 2, 64, 200, 16, DType::i4}, 16},
  };
  std::mt19937 random(3);
  for (Isa isa : targets())
    for (const TreeCase& test : cases)
      for (int threads : kSlow ? std::vector<int>{2} : std::vector<int>{1, 2}) {
        Case c = test.c;
        c.past = shortened(c.past);
        Sequence s(c, unsigned(random()));
        const std::vector<int> parents = randomTree(random, test.nodes);
        const int words = (test.nodes + 31) / 32 + (test.nodes % 2);
        std::vector<int32_t> bits(size_t(test.nodes * words));
        for (int i = 0; i < test.nodes; ++i)
          for (int node = i; node >= 0; node = parents[size_t(node)]) bits[size_t(i * words + node / 32)] |= int32_t(uint32_t(1) << (node % 32));
        auto cache = makeCache(c);
        Tensor out({c.past + c.queries, c.heads, c.headDim}, 4);
        append(isa, *cache, s, 0, c.past);
        std::unique_ptr<KvCache> trunk;
        ASSERT_FALSE(cache->fork(trunk, c.past));
        ASSERT_FALSE(cache->reserve(test.nodes));
        KvStep kv{cache.get(), test.nodes};
        View cacheView, tree;
        cacheView.data = &kv;
        cacheView.dtype = DType::cache;
        tree.data = bits.data();
        tree.dtype = DType::i32;
        tree.rank = 2;
        tree.dims[0] = test.nodes;
        tree.dims[1] = tree.strides[0] = words;
        tree.strides[1] = 1;
        const int64_t end = c.past + test.nodes;
        ASSERT_FALSE(run(isa, Op::cacheAppend, CacheAppendArgs{tokens(s.key, c.past, end), tokens(s.value, c.past, end), cacheView, 0}, threads));
        const CachedAttentionArgs args{tokens(s.query, c.past, end), cacheView, tree, tokens(out, c.past, end), {}, {}, 0, s.scale(), c.window, c.softcap, c.sinks, 0};
        ASSERT_FALSE(run(isa, Op::cachedAttention, args, threads));
        for (int i = 0; i < test.nodes; i += kSlow ? 3 : 1) {
          std::vector<int> path;
          for (int node = i; node >= 0; node = parents[size_t(node)]) path.insert(path.begin(), node);
          const int64_t depth = int64_t(path.size());
          Sequence line(Case{c.heads, c.kvHeads, c.headDim, c.past, depth, c.element, c.window, c.softcap, c.sinks});
          for (int64_t k = 0; k < depth; ++k) {
            const int64_t from = c.past + path[size_t(k)], to = c.past + k;
            const auto copy = [&](Tensor& target, Tensor& source, int64_t heads) {
              for (int64_t h = 0; h < heads; ++h) std::memcpy(target.row(to * heads + h), source.row(from * heads + h), size_t(c.headDim) * 4);
            };
            copy(line.query, s.query, c.heads);
            copy(line.key, s.key, c.kvHeads);
            copy(line.value, s.value, c.kvHeads);
          }
          std::unique_ptr<KvCache> own;
          ASSERT_FALSE(trunk->fork(own, c.past));
          Tensor want({c.past + depth, c.heads, c.headDim});
          step(isa, *own, line, c.past, c.past + depth, want, 1);
          for (int64_t h = 0; h < c.heads; ++h)
            ASSERT_EQ(std::memcmp(out.row((c.past + i) * c.heads + h), want.row((c.past + depth - 1) * c.heads + h), size_t(c.headDim) * 4), 0)
                << isaName(isa) << " node " << i << " of " << test.nodes << " after " << c.past << " head " << h;
        }
        EXPECT_TRUE(out.guardsIntact());
      }
}

TEST(CachedAttention, RefusesDamagedTrees) {
  Sequence s({2, 1, 16, 0, 3});
  auto cache = makeCache(s.c);
  ASSERT_FALSE(cache->reserve(3));
  Tensor out({3, 2, 16});
  KvStep kv{cache.get(), 3};
  View view, tree;
  view.data = &kv;
  view.dtype = DType::cache;
  tree.dtype = DType::i32;
  tree.rank = 2;
  tree.dims[0] = 3;
  tree.dims[1] = tree.strides[0] = tree.strides[1] = 1;
  const std::vector<int32_t> damaged[] = {{1, 3, 3}, {1, 7, 7}, {3, 3, 5}, {0, 3, 7}, {1, 3, 4}};
  for (const auto& words : damaged) {
    tree.data = const_cast<int32_t*>(words.data());
    const CachedAttentionArgs args{s.query.view(), view, tree, out.view(), {}, {}, 0, 1, 0, 0, 0, 0};
    EXPECT_EQ(run(Isa::scalar, Op::cachedAttention, args).code, Code::argument) << words[0] << words[1] << words[2];
  }
}

// Weights summed over the last queries, against softmax in float64.
TEST(CachedAttention, ColumnSumsAreTheFormula) {
  for (Isa isa : targets())
    for (const Case& c : {Case{6, 2, 32, 300, 40, DType::f32}, Case{9, 3, 64, 0, 150}, Case{4, 4, 16, 600, 1, DType::f32}, Case{2, 1, 8, 5000, 200, DType::f32}})
      for (int64_t columnQueries : {int64_t(1), int64_t(16), c.queries}) {
        Sequence s(c);
        const int64_t all = c.past + c.queries;
        auto cache = makeCache(c);
        Tensor out({all, c.heads, c.headDim}), lse({c.queries, c.heads}), sums({c.heads, all + 5});
        append(isa, *cache, s, 0, c.past);
        ASSERT_FALSE(cache->reserve(c.queries));
        KvStep kv{cache.get(), c.queries};
        View view;
        view.data = &kv;
        view.dtype = DType::cache;
        ASSERT_FALSE(run(isa, Op::cacheAppend, CacheAppendArgs{tokens(s.key, c.past, all), tokens(s.value, c.past, all), view, 0}, 1));
        const CachedAttentionArgs args{tokens(s.query, c.past, all), view, {}, tokens(out, c.past, all), lse.view(), sums.view(), 0, s.scale(), 0, 0, 0, double(columnQueries)};
        ASSERT_FALSE(run(isa, Op::cachedAttention, args, 2));
        for (int64_t h = 0; h < c.heads; ++h) {
          std::vector<double> want(static_cast<size_t>(all));
          for (int64_t i = std::max(c.past, all - columnQueries); i < all; ++i) {
            std::vector<double> p(static_cast<size_t>(i + 1));
            double total = 0;
            for (int64_t j = 0; j <= i; ++j) {
              double dot = 0;
              for (int64_t d = 0; d < c.headDim; ++d)
                dot += double(s.query.row(i * c.heads + h)[d]) * rounded(c.element, s.key.row(j * c.kvHeads + h / (c.heads / c.kvHeads))[d]);
              total += p[size_t(j)] = std::exp(dot * s.scale());
            }
            for (int64_t j = 0; j <= i; ++j) want[size_t(j)] += p[size_t(j)] / total;
          }
          for (int64_t j = 0; j < all; ++j) ASSERT_NEAR(sums.row(h)[j], want[size_t(j)], 1e-5 + 1e-4 * want[size_t(j)]) << isaName(isa) << " head " << h << " key " << j;
        }
      }
}

// Tiles of rows add their weights up in turn, whoever computes them; a query of NaN shows in the keys that it sees alone.
TEST(CachedAttention, ColumnSumsDependOnNoThread) {
  for (Isa isa : targets()) {
    Sequence s({6, 2, 16, 0, 700, DType::f32});
    for (int64_t h = 0; h < 6; ++h) s.query.row(650 * 6 + h)[3] = std::numeric_limits<float>::quiet_NaN();
    auto cache = makeCache(s.c);
    Tensor out({700, 6, 16}), lse({700, 6}), first({6, 700}), sums({6, 700});
    ASSERT_FALSE(cache->reserve(700));
    KvStep kv{cache.get(), 700};
    View view;
    view.data = &kv;
    view.dtype = DType::cache;
    ASSERT_FALSE(run(isa, Op::cacheAppend, CacheAppendArgs{tokens(s.key, 0, 700), tokens(s.value, 0, 700), view, 0}, 1));
    for (int threads : {1, 2, 5}) {
      Tensor& to = threads == 1 ? first : sums;
      ASSERT_FALSE(run(isa, Op::cachedAttention, CachedAttentionArgs{s.query.view(), view, {}, out.view(), lse.view(), to.view(), 0, s.scale(), 0, 0, 0, 700}, threads));
      for (int64_t h = 0; h < 6; ++h)
        for (int64_t j = 0; j < 700; ++j) {
          EXPECT_EQ(std::isnan(to.row(h)[j]), j <= 650) << isaName(isa) << " key " << j;
          if (j > 650) {
            EXPECT_EQ(to.row(h)[j], first.row(h)[j]) << isaName(isa) << " key " << j;
          }
        }
    }
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
  CachedAttentionArgs args{s.query.view(), view, {}, out.view(), {}, {}, 0, 1, 0, 0, 0, 0};
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
