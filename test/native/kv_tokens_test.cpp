// Tokens of the cache: quantised, moved, kept, shared, saved; checked against a plain list of what was written.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "../../cpp/cache/kv.h"

namespace tl {
namespace {

constexpr DType kElements[] = {DType::f32, DType::f16, DType::bf16, DType::i8, DType::i4};

struct Row {
  std::vector<float> key, value;
  int32_t position;
  float score;
};
using Heads = std::vector<std::vector<Row>>;  // [layer · kvHeads + head][token]

struct Model {
  KvShape shape;
  std::shared_ptr<KvPool> pool;
  std::unique_ptr<KvCache> cache;
  std::mt19937 random{5};
  Heads heads;
  explicit Model(DType element, int32_t headDim = 40, int64_t limit = 0) : shape{2, 3, headDim, element} {
    EXPECT_FALSE(KvPool::create(shape, limit, pool));
    cache = std::make_unique<KvCache>(pool);
    cache->observe();
    heads.resize(6);
  }
  std::vector<float> numbers() {
    std::normal_distribution<float> normal;
    std::vector<float> x(static_cast<size_t>(shape.headDim));
    for (float& value : x) value = normal(random);
    return x;
  }
  // Writes n rows behind each head's length; `heads` learns what lies there: rows after rounding.
  std::vector<std::vector<Row>> write(int64_t n, int32_t firstPosition) {
    EXPECT_FALSE(cache->reserve(n));
    std::vector<std::vector<Row>> rows(6);
    for (int32_t i = 0; i < 6; ++i)
      for (int64_t t = 0; t < n; ++t) {
        const int64_t token = cache->length(i / 3, i % 3) + t;
        KvPage& page = *cache->pages(i / 3, i % 3)[token / kPageTokens];
        Row row{numbers(), numbers(), firstPosition + int32_t(t), float(random() % 1000)};
        writeToken(page, cache->layout(page.element), token % kPageTokens, row.key.data(), row.value.data());
        cache->scores(i / 3, i % 3)[token] = row.score;
        readToken(page, cache->layout(page.element), token % kPageTokens, row.key.data(), row.value.data());
        rows[size_t(i)].push_back(row);
      }
    return rows;
  }
  void append(int64_t n) {
    const int32_t next = int32_t(cache->nextPosition());
    const auto rows = write(n, next);
    ASSERT_FALSE(cache->commit(n));
    for (size_t i = 0; i < 6; ++i) heads[i].insert(heads[i].end(), rows[i].begin(), rows[i].end());
  }
};

void expectRows(const KvCache& cache, const Heads& heads, bool withScores = true) {
  const size_t headDim = size_t(cache.shape().headDim);
  for (int32_t i = 0; i < 6; ++i) {
    ASSERT_EQ(cache.length(i / 3, i % 3), int64_t(heads[size_t(i)].size()));
    for (int64_t t = 0; t < cache.length(i / 3, i % 3); ++t) {
      const KvPage& page = *cache.pages(i / 3, i % 3)[t / kPageTokens];
      std::vector<float> key(headDim), value(headDim);
      readToken(page, cache.layout(page.element), t % kPageTokens, key.data(), value.data());
      const Row& want = heads[size_t(i)][size_t(t)];
      ASSERT_EQ(key, want.key) << "head " << i << " token " << t;
      ASSERT_EQ(value, want.value) << "head " << i << " token " << t;
      ASSERT_EQ(cache.position(i / 3, i % 3, t), want.position);
      if (withScores) {
        ASSERT_EQ(cache.scores(i / 3, i % 3)[t], want.score);
      }
    }
  }
}

// x times the Hadamard matrix of the largest power of two that divides its length, block by block, in f64.
std::vector<float> rotated(const std::vector<float>& x) {
  const size_t width = x.size() & -x.size();
  std::vector<float> out(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    double sum = 0;
    for (size_t j = 0; j < width; ++j) sum += (__builtin_popcountll(i % width & j) % 2 ? -1.0 : 1.0) * x[i / width * width + j];
    out[i] = float(sum / std::sqrt(double(width)));
  }
  return out;
}

// Each value's place, of groups of `most` in int4: within half a step of it, and f16's rounding of steps and minima.
void expectQuantised(const std::vector<float>& x, const std::vector<float>& got, DType element) {
  const size_t most = element == DType::i4 ? 16 : x.size();
  for (size_t d = 0; d < x.size(); ++d) {
    const size_t begin = d / most * most, end = std::min(begin + most, x.size());
    double low = x[begin], high = low, peak = 0;
    for (size_t e = begin; e < end; ++e) {
      low = std::min(low, double(x[e]));
      high = std::max(high, double(x[e]));
      peak = std::max(peak, std::fabs(double(x[e])));
    }
    const double step = element == DType::i4 ? (high - low) / 15 : peak / 127;
    EXPECT_NEAR(got[d], x[d], step / 2 + (element == DType::i4 ? (peak + 15 * step) / 2048 : 0) + 1e-5) << x.size();
  }
}

TEST(KvTokens, RotationIsTheHadamardMatrix) {
  for (size_t headDim : {1, 7, 40, 64, 96, 128}) {
    std::vector<float> x(headDim);
    for (size_t i = 0; i < headDim; ++i) x[i] = std::sin(3.0f * float(i)) * 4;
    std::vector<float> got = x;
    rotateKey(got.data(), int64_t(headDim));
    const std::vector<float> want = rotated(x);
    for (size_t i = 0; i < headDim; ++i) EXPECT_NEAR(got[i], want[i], 1e-5);
    rotateKey(got.data(), int64_t(headDim));
    for (size_t i = 0; i < headDim; ++i) EXPECT_NEAR(got[i], x[i], 1e-5);
  }
}

TEST(KvTokens, AGroupWithoutANumberSaysSo) {
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const float x[] = {1, 2, bad, 4};
    uint8_t q[4];
    f16 scale, minimum;
    quantizePageGroup(x, 4, q, scale, minimum);
    EXPECT_TRUE(std::isnan(toFloat(minimum)));
    for (uint8_t code : q) EXPECT_LE(code, 15);
  }
}

TEST(KvTokens, QuantisedIsTheFormula) {
  for (int32_t headDim : {1, 7, 32, 40, 64, 65}) {
    for (DType element : {DType::i8, DType::i4}) {
      Model model(element, headDim);
      ASSERT_FALSE(model.cache->reserve(1));
      KvPage& page = *model.cache->pages(0, 0)[0];
      const KvLayout layout = model.cache->layout(element);
      const std::vector<float> key = model.numbers(), value = model.numbers(), level(key.size(), 3.0f);
      std::vector<float> gotKey(key.size()), gotValue(key.size());
      writeToken(page, layout, 5, key.data(), value.data());
      readToken(page, layout, 5, gotKey.data(), gotValue.data());
      expectQuantised(value, gotValue, element);
      // A key of int4 is close after rotation.
      if (element == DType::i4) expectQuantised(rotated(key), rotated(gotKey), element);
      else expectQuantised(key, gotKey, element);
      writeToken(page, layout, 5, key.data(), level.data());
      readToken(page, layout, 5, nullptr, gotValue.data());
      for (float x : gotValue) EXPECT_NEAR(x, 3, 1e-6);
    }
  }
}

TEST(KvTokens, CommitsTheRowsOfAPath) {
  for (DType element : kElements) {
    Model model(element);
    model.append(60);
    const auto rows = model.write(20, 100);
    int32_t positions[20];
    for (int i = 0; i < 20; ++i) positions[i] = 100 + i;
    const int32_t path[] = {0, 3, 4, 9, 19};
    ASSERT_FALSE(model.cache->commitRows(20, path, 5, positions));
    for (size_t i = 0; i < 6; ++i)
      for (int32_t row : path) model.heads[i].push_back(rows[i][size_t(row)]);
    expectRows(*model.cache, model.heads);
    EXPECT_EQ(model.cache->capacity(0, 0), 96);
    model.write(4, 200);
    for (const std::vector<int32_t>& wrong : {std::vector<int32_t>{0, 0}, {1, 4}, {-1, 2}, {2, 1}})
      EXPECT_EQ(model.cache->commitRows(4, wrong.data(), 2, positions).code, Code::argument);
    expectRows(*model.cache, model.heads);
  }
}

TEST(KvTokens, KeepsWhatIsAskedAndFreesTheRest) {
  for (DType element : kElements)
    for (int round = 0; round < 6; ++round) {
      Model model(element);
      model.append(150 + 13 * round);
      const Heads before = model.heads;
      std::unique_ptr<KvCache> fork;
      if (round % 2) {
        ASSERT_FALSE(model.cache->fork(fork, 1000));
      }
      const int64_t stride = 400;
      std::vector<uint8_t> kept(size_t(6 * stride));
      for (size_t i = 0; i < 6; ++i) {
        std::vector<Row> rest;
        for (size_t t = 0; t < model.heads[i].size(); ++t) {
          const bool keep = t < 40 || (i != 2 && model.random() % 3 == 0);  // the first page stays as it is
          kept[i * size_t(stride) + t] = keep;
          if (keep) rest.push_back(model.heads[i][t]);
        }
        model.heads[i] = rest;
      }
      ASSERT_FALSE(model.cache->prepareKeep(kept.data(), stride, false));
      for (int32_t i = 0; i < 6; ++i) model.cache->keepHead(i / 3, i % 3, kept.data() + i * stride);
      model.cache->finishKeep();
      expectRows(*model.cache, model.heads);
      if (fork) {
        expectRows(*fork, before);
        // The first page of each head, and the second of the head that kept its first 40 tokens only.
        EXPECT_EQ(model.cache->bytesShared(), 7 * model.cache->layout(element).pageBytes());
      }
      model.append(50);  // goes on
      expectRows(*model.cache, model.heads);
      fork.reset();
      int64_t pages = 0;
      for (const auto& head : model.heads) pages += (int64_t(head.size()) + 31) / 32;
      EXPECT_EQ(model.pool->bytesHeld(), pages * model.cache->layout(element).pageBytes());
    }
}

TEST(KvTokens, KeepingIsAllOrNothing) {
  Model model(DType::f16, 16);
  model.append(100);
  std::unique_ptr<KvCache> fork;
  ASSERT_FALSE(model.cache->fork(fork, 1000));
  std::vector<uint8_t> kept(600, 1);
  for (size_t i = 0; i < 600; i += 100) kept[i + 1] = 0;
  failAllocation(5, true);
  EXPECT_EQ(model.cache->prepareKeep(kept.data(), 100, false).code, Code::memory);
  failAllocation(0, false);
  expectRows(*model.cache, model.heads);
  EXPECT_EQ(model.pool->bytesHeld(), model.cache->bytesHeld());
  EXPECT_EQ(model.cache->prepareKeep(kept.data(), 99, false).code, Code::argument);
}

TEST(KvTokens, RequantisesOldPages) {
  Model model(DType::f16);
  model.append(150);
  ASSERT_FALSE(model.cache->requantize(50, DType::i8));
  EXPECT_TRUE(model.cache->mixed());
  for (int32_t i = 0; i < 6; ++i)
    for (int64_t t = 0; t < 150; ++t) {
      const KvPage& page = *model.cache->pages(i / 3, i % 3)[t / 32];
      EXPECT_EQ(page.element, t < 96 ? DType::i8 : DType::f16);
      std::vector<float> key(40), value(40);
      readToken(page, model.cache->layout(page.element), t % 32, key.data(), value.data());
      Row& row = model.heads[size_t(i)][size_t(t)];
      for (size_t d = 0; d < 40; ++d) ASSERT_NEAR(key[d], row.key[d], t < 96 ? 0.02 : 0);
      row.key = key;
      row.value = value;
    }
  expectRows(*model.cache, model.heads);
  // Kept tokens move from page to page of either type.
  std::vector<uint8_t> kept(900);
  for (size_t i = 0; i < 6; ++i)
    for (size_t t = 0; t < 150; ++t) kept[i * 150 + t] = t % 3 == 0;
  ASSERT_FALSE(model.cache->prepareKeep(kept.data(), 150, false));
  for (int32_t i = 0; i < 6; ++i) model.cache->keepHead(i / 3, i % 3, kept.data() + i * 150);
  model.cache->finishKeep();
  for (int32_t i = 0; i < 6; ++i)
    for (int64_t t = 0; t < 50; ++t) {
      const KvPage& page = *model.cache->pages(i / 3, i % 3)[t / 32];
      std::vector<float> key(40);
      readToken(page, model.cache->layout(page.element), t % 32, key.data(), nullptr);
      for (size_t d = 0; d < 40; ++d) ASSERT_NEAR(key[d], model.heads[size_t(i)][size_t(3 * t)].key[d], 0.02);
    }
  failAllocation(3, true);
  EXPECT_EQ(model.cache->requantize(0, DType::i4).code, Code::memory);
  failAllocation(0, false);
  EXPECT_EQ(model.pool->bytesHeld(), model.cache->bytesHeld());
}

TEST(KvTokens, SavesAndRestores) {
  for (DType element : kElements) {
    Model model(element);
    model.append(77);
    std::vector<std::byte> bytes[2];
    auto restored = std::make_unique<KvCache>(model.pool);
    restored->observe();
    for (int32_t layer = 0; layer < 2; ++layer) {
      bytes[layer].resize(size_t(model.cache->layerBytes(layer)));
      model.cache->saveLayer(layer, bytes[layer].data());
      ASSERT_FALSE(restored->loadLayer(layer, bytes[layer].data(), int64_t(bytes[layer].size())));
    }
    expectRows(*restored, model.heads);
    EXPECT_EQ(restored->loadLayer(0, bytes[0].data(), int64_t(bytes[0].size())).code, Code::argument);  // not empty
    for (size_t cut : {size_t(0), size_t(7), size_t(9), size_t(100), bytes[0].size() - 1}) {
      KvCache other(model.pool);
      other.observe();
      EXPECT_EQ(other.loadLayer(0, bytes[0].data(), int64_t(cut)).code, Code::argument) << cut;
    }
    for (size_t at : {size_t(0), size_t(3), size_t(8)}) {
      auto damaged = bytes[0];
      damaged[at] ^= std::byte(0x7e);
      KvCache other(model.pool);
      other.observe();
      EXPECT_NE(other.loadLayer(0, damaged.data(), int64_t(damaged.size())).code, Code::ok) << at;
    }
  }
}

}  // namespace
}  // namespace tl
