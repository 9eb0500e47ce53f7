// The ops on draft trees on every target, against plain sorting and walking; guarded memory, threads, and what they refuse.
#include <algorithm>
#include <numeric>

#include "support.h"

namespace tl::test {
namespace {

std::vector<int32_t> randomParents(int64_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> parents = {-1};
  for (int64_t i = 1; i < n; ++i) parents.push_back(int32_t(random() % uint32_t(i)));
  return parents;
}

template <typename T> Guarded<T> guarded(const std::vector<T>& values) {
  Guarded<T> made(int64_t(values.size()), 1);
  std::copy(values.begin(), values.end(), made.data());
  return made;
}

std::vector<int32_t> largest(const float* x, int64_t n, int64_t k) {
  std::vector<int32_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return x[a] > x[b]; });
  order.resize(size_t(k));
  return order;
}

TEST(DraftThreads, RecycleUpdateKeepsTheLastOfEqualTokens) {
  for (const KernelTable* table : tables())
    for (const int64_t n : {1, 2, 9, 33})
      for (const int threads : {1, 3}) {
        const int64_t vocabulary = 1501, k = 8;
        Guarded<float> logits(n * vocabulary, 1);
        fill(logits, uint32_t(n));
        for (int64_t i = 0; i < logits.size(); i += 3) logits[i] = 4;  // ties
        std::vector<int32_t> tokens;
        for (int64_t i = 0; i < n; ++i) tokens.push_back(int32_t(i * 7 % 5 * 300));
        Guarded<int32_t> in = guarded(tokens), matrix(vocabulary * k, 1);
        std::fill_n(matrix.data(), matrix.size(), -5);
        TL_EXPECT_OK(run(*table, Op::recycleUpdate, RecycleUpdateArgs{row(in), view(logits.data(), {n, vocabulary}), view(matrix.data(), {vocabulary, k})}, threads));
        EXPECT_TRUE(matrix.intact());
        std::vector<int32_t> wanted(size_t(vocabulary * k), -5);
        for (int64_t i = 0; i < n; ++i) {
          const std::vector<int32_t> best = largest(logits.data() + i * vocabulary, vocabulary, k);
          std::copy(best.begin(), best.end(), wanted.begin() + tokens[size_t(i)] * k);
        }
        EXPECT_EQ(matrix.values(), wanted) << isaName(table->isa) << ", " << n << " nodes";
      }
}

TEST(Draft, ExpandAndMaskWalkTheParents) {
  for (const KernelTable* table : tables())
    for (const int64_t n : {1, 2, 31, 32, 33, 64, 65, 1024}) {
      SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", " << n << " nodes");
      const int64_t vocabulary = 50, k = 4, words = (n + 31) / 32;
      Guarded<int32_t> parents = guarded(randomParents(n, uint32_t(n))), ranks(n), matrix(vocabulary * k), root = {17}, tokens(n, 1), depths(n, 1), depthsOfMask(n), positions(n, 1), bits(n * (words + 1), 1);
      for (int64_t i = 0; i < n; ++i) ranks[i] = int32_t(i % k);
      for (int64_t i = 0; i < matrix.size(); ++i) matrix[i] = int32_t(i * 31 % vocabulary);
      TL_EXPECT_OK(run(*table, Op::expandTree, ExpandTreeArgs{view(matrix.data(), {vocabulary, k}), row(root), row(parents), row(ranks), row(tokens), row(depths)}));
      Guarded<uint8_t> mask(n * n, 1);
      const int64_t square[] = {n, n};
      const View maskView = contiguous(mask.data(), DType::u8, 2, square);
      TL_EXPECT_OK(run(*table, Op::treeMask, TreeMaskArgs{row(parents), maskView, view(bits.data(), {n, words + 1}), row(depthsOfMask), row(positions), 70}));
      EXPECT_TRUE(tokens.intact() && depths.intact() && positions.intact() && bits.intact() && mask.intact());
      EXPECT_EQ(depths.values(), depthsOfMask.values());
      for (int64_t i = 0; i < n; ++i) {
        ASSERT_EQ(tokens[i], i == 0 ? 17 : matrix[tokens[parents[i]] * k + ranks[i]]);
        std::vector<uint8_t> seen(size_t(n), 0);
        int32_t depth = -1;
        for (int64_t j = i; j >= 0; j = parents[j], ++depth) seen[size_t(j)] = 1;
        ASSERT_EQ(depths[i], depth);
        ASSERT_EQ(positions[i], 70 + depth);
        for (int64_t j = 0; j < n; ++j) {
          ASSERT_EQ(mask[i * n + j], seen[size_t(j)]);
          ASSERT_EQ((uint32_t(bits[i * (words + 1) + j / 32]) >> (j % 32)) & 1, seen[size_t(j)]);
        }
      }
    }
}

struct Verified {
  Status status;
  std::vector<int32_t> path, accepted;
  std::vector<float> logProb;
  int32_t count = 0;
};

struct Chain {
  double temperature = 0, topK = 0, topP = 1, minP = 0, repeatPenalty = 1, repeatLastTokens = 64, seed = 3, stream = 0, position = 100;
};

Verified verify(const KernelTable& table, Guarded<float>& logits, Guarded<int32_t>& tokens, Guarded<int32_t>& parents, const Chain& c, Guarded<int32_t>* history = nullptr) {
  const int64_t n = tokens.size();
  Guarded<int32_t> path(n, 1), accepted(n, 1), count(1, 1);
  Guarded<float> logProb(n, 1);
  Verified made;
  made.status = run(table, Op::verifyTree, VerifyTreeArgs{view(logits.data(), {n, logits.size() / n}), row(tokens), row(parents), history ? row(*history) : View{}, row(path), row(accepted), row(logProb), row(count),
                                                          c.temperature, c.topK, c.topP, c.minP, c.repeatPenalty, c.repeatLastTokens, c.seed, c.stream, c.position}, 2);
  EXPECT_TRUE(path.intact() && accepted.intact() && logProb.intact() && count.intact());
  made.path = path.values();
  made.accepted = accepted.values();
  made.logProb = logProb.values();
  made.count = count[0];
  return made;
}

// Each accepted node's draw is what `sample` draws with the same position and the tokens of the path as history.
TEST(Draft, VerifyTreeDrawsAsSampleDoes) {
  for (const KernelTable* table : tables())
    for (const int64_t vocabulary : {1, 3, 40, 1500})
      for (const Chain& base : {Chain{}, Chain{.temperature = 1}, Chain{.temperature = 0.8, .topK = 2, .minP = 0.01}, Chain{.temperature = 1.5, .topP = 0.9, .repeatPenalty = 1.3}, Chain{.repeatPenalty = 2, .repeatLastTokens = 2}})
        for (uint32_t seed = 0; seed < 12; ++seed) {
          SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", vocabulary " << vocabulary << ", seed " << seed);
          const int64_t n = 20;
          Chain c = base;
          c.seed = seed;
          Guarded<float> logits(n * vocabulary, 1);
          fill(logits, seed);
          Guarded<int32_t> parents = guarded(randomParents(n, seed)), tokens(n), history = {0, int32_t(vocabulary / 2)};
          std::vector<int32_t> drawn(static_cast<size_t>(n));
          std::vector<float> probability(static_cast<size_t>(n));
          std::vector<bool> good(size_t(n), false);
          int32_t deepest = 0;
          std::vector<int> depth(size_t(n), 0);
          for (int64_t i = 0; i < n; ++i) {
            const int32_t parent = parents[i];
            if (i > 0) {
              depth[size_t(i)] = depth[size_t(parent)] + 1;
              tokens[i] = (seed + i) % 3 == 0 ? int32_t(i % vocabulary) : drawn[size_t(parent)];  // many right ones
            }
            std::vector<int32_t> past;
            for (int64_t node = i; node > 0; node = parents[node]) past.insert(past.begin(), tokens[node]);
            past.insert(past.begin(), history.data(), history.data() + history.size());
            if (past.size() > size_t(c.repeatLastTokens)) past.erase(past.begin(), past.end() - int64_t(c.repeatLastTokens));
            Guarded<int32_t> seen = guarded(past);
            TL_EXPECT_OK(run(*table, Op::sample, SampleArgs{view(logits.data() + i * vocabulary, {1, vocabulary}), row(seen), view(&drawn[size_t(i)], {1}), view(&probability[size_t(i)], {1}),
                                                            c.temperature, c.topK, c.topP, c.minP, c.repeatPenalty, c.seed, c.stream, c.position + depth[size_t(i)]}));
            good[size_t(i)] = i == 0 || (good[size_t(parent)] && tokens[i] == drawn[size_t(parent)]);
            if (good[size_t(i)] && depth[size_t(i)] > depth[size_t(deepest)]) deepest = int32_t(i);
          }
          std::vector<int32_t> path(size_t(n), -1), accepted(size_t(n), -1);
          std::vector<float> logProb(size_t(n), 0.0f);
          for (int32_t node = deepest; node >= 0; node = parents[node]) {
            path[size_t(depth[size_t(node)])] = node;
            accepted[size_t(depth[size_t(node)])] = drawn[size_t(node)];
            logProb[size_t(depth[size_t(node)])] = probability[size_t(node)];
          }
          const Verified got = verify(*table, logits, tokens, parents, c, &history);
          TL_EXPECT_OK(got.status);
          EXPECT_EQ(got.count, depth[size_t(deepest)] + 1);
          EXPECT_EQ(got.path, path);
          EXPECT_EQ(got.accepted, accepted);
          EXPECT_EQ(got.logProb, logProb);
        }
}

// By the definition, in double precision.
TEST(Draft, VerifySamplingFollowsTheDefinition) {
  for (const KernelTable* table : tables())
    for (const int64_t vocabulary : {2, 7, 100, 1300})
      for (const bool sampled : {false, true})
        for (uint32_t seed = 0; seed < 20; ++seed) {
          SCOPED_TRACE(testing::Message() << isaName(table->isa) << ", vocabulary " << vocabulary << ", sampled " << sampled << ", seed " << seed);
          const int64_t n = 12;
          Guarded<float> target(n * vocabulary, 1), draft(n * vocabulary, 1), uniform(n), uniformFinal(1), residual(vocabulary, 1);
          fill(target, seed, 0, 1);
          fill(draft, seed + 100, 0, 1);
          fill(uniform, seed + 200, 0, 0.8f);
          fill(uniformFinal, seed + 300, 0, 1);
          for (int64_t i = 0; i < n * vocabulary; i += 5) target[i] *= float(vocabulary);
          Guarded<int32_t> parents = guarded(randomParents(n, seed)), tokens(n), path(n, 1), accepted(n, 1), count(1, 1);
          for (int64_t i = 0; i < n; ++i) tokens[i] = int32_t((i * 5) % vocabulary);
          TL_EXPECT_OK(run(*table, Op::verifySampling, VerifySamplingArgs{row(tokens), row(parents), view(target.data(), {n, vocabulary}), sampled ? view(draft.data(), {n, vocabulary}) : View{}, row(uniform), row(uniformFinal),
                                                                          row(path), row(accepted), row(count), row(residual)}));
          EXPECT_TRUE(path.intact() && accepted.intact() && count.intact() && residual.intact());
          const auto normalised = [&](std::vector<double> x) {
            const double sum = std::accumulate(x.begin(), x.end(), 0.0);
            for (double& value : x) value = sum > 0 ? value / sum : 0;
            return x;
          };
          const auto rowOf = [&](Guarded<float>& x, int64_t i) { return normalised(std::vector<double>(x.data() + i * vocabulary, x.data() + (i + 1) * vocabulary)); };
          std::vector<double> r = rowOf(target, 0), s = rowOf(draft, 0);
          std::vector<int32_t> wanted = {0}, emitted;
          int64_t node = 0;
          for (int64_t i = 1; i < n; ++i) {
            if (parents[i] != node) continue;
            const size_t x = size_t(tokens[i]);
            if (sampled && s[x] <= 0) continue;
            if (double(uniform[i]) < (sampled ? r[x] / s[x] : r[x])) {
              emitted.push_back(tokens[i]);
              wanted.push_back(int32_t(i));
              node = i;
              r = rowOf(target, i);
              s = rowOf(draft, i);
              continue;
            }
            if (sampled) {
              for (size_t t = 0; t < r.size(); ++t) r[t] = std::max(r[t] - s[t], 0.0);
              s[x] = 0;
              s = normalised(s);
            } else {
              r[x] = 0;
            }
            r = normalised(r);
          }
          double mass = 0;
          size_t last = 0;
          while (last + 1 < r.size() && (mass += r[last]) <= double(uniformFinal[0])) ++last;
          emitted.push_back(int32_t(last));
          ASSERT_EQ(count[0], int32_t(wanted.size()));
          wanted.resize(size_t(n), -1);
          emitted.resize(size_t(n), -1);
          EXPECT_EQ(path.values(), wanted);
          EXPECT_EQ(accepted.values(), emitted);
          for (int64_t t = 0; t < vocabulary; ++t) EXPECT_NEAR(double(residual[t]), r[size_t(t)], 1e-6);
        }
}

TEST(Draft, RefusesWhatIsNoTree) {
  const KernelTable& table = *kernelTable(Isa::scalar);
  Guarded<float> logits(20);
  fill(logits, 1);
  Guarded<int32_t> tokens = {0, 1}, good = {-1, 0}, loop = {-1, 1}, noRoot = {0, 0}, twoRoots = {-1, -1}, history = {10};
  TL_EXPECT_OK(verify(table, logits, tokens, good, {}).status);
  for (Guarded<int32_t>* parents : {&loop, &noRoot, &twoRoots}) EXPECT_EQ(verify(table, logits, tokens, *parents, {}).status.code, Code::argument);
  EXPECT_EQ(verify(table, logits, tokens, good, {.temperature = -1}).status.code, Code::argument);
  EXPECT_EQ(verify(table, logits, tokens, good, {.repeatLastTokens = -1}).status.code, Code::argument);
  EXPECT_EQ(verify(table, logits, tokens, good, {.repeatPenalty = 2}, &history).status.code, Code::argument);
  logits[3] = kNaN;
  EXPECT_EQ(verify(table, logits, tokens, good, {}).status.code, Code::numeric);
  Guarded<int32_t> many(1025), manyTokens(1025), bits(1025 * 33);
  many[0] = -1;
  EXPECT_EQ(run(table, Op::treeMask, TreeMaskArgs{row(many), {}, view(bits.data(), {1025, 33}), {}, {}, 0}).code, Code::argument);
  Guarded<int32_t> matrix = {0, 9}, root = {1}, ranks = {0, 0}, out(2), depths(2);
  EXPECT_EQ(run(table, Op::expandTree, ExpandTreeArgs{view(matrix.data(), {2, 1}), row(root), row(good), row(ranks), row(out), row(depths)}).code, Code::argument);
  ranks[1] = 1;
  EXPECT_EQ(run(table, Op::expandTree, ExpandTreeArgs{view(matrix.data(), {2, 1}), row(root), row(good), row(ranks), row(out), row(depths)}).code, Code::argument);
  Guarded<float> zeros(20), uniform(2), one(1), residual(10);
  Guarded<int32_t> path(2), accepted(2), count(1);
  std::fill_n(zeros.data(), 20, 0.0f);
  EXPECT_EQ(run(table, Op::verifySampling, VerifySamplingArgs{row(tokens), row(good), view(zeros.data(), {2, 10}), {}, row(uniform), row(one), row(path), row(accepted), row(count), row(residual)}).code, Code::numeric);
  tokens[1] = 10;
  EXPECT_EQ(run(table, Op::verifySampling, VerifySamplingArgs{row(tokens), row(good), view(zeros.data(), {2, 10}), {}, row(uniform), row(one), row(path), row(accepted), row(count), row(residual)}).code, Code::argument);
}

}  // namespace
}  // namespace tl::test
