// The paged cache: room all or nothing, lengths, sharing, copy on write, limits, and no byte of an earlier session.
#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "../../cpp/cache/kv.h"

namespace tl {
namespace {

constexpr KvShape kShape{2, 3, 16, DType::f32};
constexpr KvLayout kLayout{kShape.element, kShape.headDim};
constexpr int64_t kAllTokens = int64_t(1) << 40;  // all of them
const int64_t kPageBytes = kLayout.pageBytes();

std::shared_ptr<KvPool> makePool(int64_t limit = 0, const KvShape& shape = kShape) {
  std::shared_ptr<KvPool> pool;
  EXPECT_FALSE(KvPool::create(shape, limit, pool));
  return pool;
}

float* keyOf(KvCache& cache, int layer, int head, int64_t token) {
  return reinterpret_cast<float*>(cache.pages(layer, head)[token / kPageTokens]->keys()) + token % kPageTokens;
}

void append(KvCache& cache, int64_t n, float mark) {
  ASSERT_FALSE(cache.reserve(n));
  for (int layer = 0; layer < 2; ++layer)
    for (int head = 0; head < 3; ++head)
      for (int64_t i = 0; i < n; ++i) *keyOf(cache, layer, head, cache.length(layer, head) + i) = mark + float(i);
  ASSERT_FALSE(cache.commit(n));
}

TEST(KvPool, RefusesWrongShapes) {
  std::shared_ptr<KvPool> pool;
  for (const KvShape& shape : {KvShape{0, 1, 8}, KvShape{1, 0, 8}, KvShape{1, 1, 0}, KvShape{1, 1, -4}, KvShape{1, 1, 8, DType::i32}, KvShape{1 << 30, 1 << 30, 8}})
    EXPECT_EQ(KvPool::create(shape, 0, pool).code, Code::argument);
  EXPECT_EQ(KvPool::create(kShape, -1, pool).code, Code::argument);
  EXPECT_EQ(pool, nullptr);
}

TEST(KvCache, GrowsAndGivesBack) {
  const int64_t before = bytesHeld(Owner::cache);
  {
    auto pool = makePool();
    KvCache cache(pool);
    EXPECT_EQ(cache.length(), 0);
    EXPECT_EQ(cache.nextPosition(), 0);
    append(cache, 33, 1);
    EXPECT_EQ(cache.length(), 33);
    EXPECT_EQ(cache.length(1, 2), 33);
    EXPECT_EQ(cache.capacity(1, 2), 64);
    EXPECT_EQ(cache.bytesHeld(), 2 * 3 * 2 * kPageBytes);
    EXPECT_EQ(pool->bytesHeld(), cache.bytesHeld());
    EXPECT_EQ(bytesHeld(Owner::cache), before + cache.bytesHeld());
    EXPECT_EQ(cache.position(0, 0, 32), 32);
    EXPECT_EQ(cache.nextPosition(), 33);
    cache.dropLast(1);
    EXPECT_EQ(cache.capacity(0, 0), 32);
    EXPECT_EQ(cache.nextPosition(), 32);
    const int32_t positions[] = {40, 41, 42};
    ASSERT_FALSE(cache.reserve(3));
    ASSERT_FALSE(cache.commit(3, positions));
    EXPECT_EQ(cache.position(1, 1, 34), 42);
    EXPECT_EQ(cache.nextPosition(), 43);
    ASSERT_FALSE(cache.reserve(100));
    cache.trim();
    EXPECT_EQ(cache.capacity(0, 0), 64);
    cache.truncate(10);
    EXPECT_EQ(cache.length(), 10);
    EXPECT_EQ(*keyOf(cache, 1, 1, 9), 10);
    cache.clear();
    EXPECT_EQ(pool->bytesHeld(), 0);
  }
  EXPECT_EQ(bytesHeld(Owner::cache), before);
}

TEST(KvCache, RefusesWhatWasNotReserved) {
  KvCache cache(makePool());
  EXPECT_EQ(cache.commit(1).code, Code::argument);
  EXPECT_EQ(cache.reserve(-1).code, Code::argument);
  EXPECT_EQ(cache.commit(-1).code, Code::argument);
  EXPECT_EQ(cache.reserve(int64_t(1) << 62).code, Code::memory);
  EXPECT_EQ(cache.bytesHeld(), 0);
}

TEST(KvCache, AtItsLimitLosesNothing) {
  auto pool = makePool(6 * kPageBytes + kPageBytes * 3);
  KvCache cache(pool);
  append(cache, 32, 5);
  const Status status = cache.reserve(1);
  EXPECT_EQ(status.code, Code::memory);
  EXPECT_EQ(pool->bytesHeld(), 6 * kPageBytes);
  EXPECT_EQ(cache.length(), 32);
  EXPECT_EQ(*keyOf(cache, 1, 2, 31), 36);
}

// Every allocation of a reserve may be the one that fails.
TEST(KvCache, SurvivesEachFailingAllocation) {
  for (int64_t n = 1;; ++n) {
    auto pool = makePool();
    KvCache cache(pool);
    append(cache, 20, 2);
    std::unique_ptr<KvCache> fork;
    ASSERT_FALSE(cache.fork(fork, kAllTokens));
    failAllocation(n, false);
    const Status status = fork->reserve(50);
    failAllocation(0, false);
    EXPECT_EQ(fork->length(), 20);
    for (int64_t i = 0; i < 20; ++i) {
      EXPECT_EQ(*keyOf(cache, 1, 2, i), 2 + float(i));
      EXPECT_EQ(*keyOf(*fork, 1, 2, i), 2 + float(i));
    }
    if (!status) break;
    EXPECT_EQ(status.code, Code::memory);
    EXPECT_FALSE(fork->reserve(50));
    ASSERT_LT(n, 100);
  }
}

TEST(KvCache, ForksShareUntilOneWrites) {
  auto pool = makePool();
  KvCache first(pool);
  append(first, 70, 0);
  const int64_t held = pool->bytesHeld();
  std::unique_ptr<KvCache> second;
  ASSERT_FALSE(first.fork(second, kAllTokens));
  EXPECT_EQ(pool->bytesHeld(), held);
  EXPECT_EQ(second->bytesShared(), held);
  append(*second, 1, 500);  // copies the third page of each head
  EXPECT_EQ(pool->bytesHeld(), held + 6 * kPageBytes);
  EXPECT_EQ(first.bytesShared(), 2 * held / 3);
  append(first, 1, 900);  // its page is its own again: no copy
  EXPECT_EQ(pool->bytesHeld(), held + 6 * kPageBytes);
  EXPECT_EQ(*keyOf(first, 1, 1, 70), 900);
  EXPECT_EQ(*keyOf(*second, 1, 1, 70), 500);
  EXPECT_EQ(*keyOf(*second, 1, 1, 69), 69);
  first.clear();
  EXPECT_EQ(second->bytesShared(), 0);
  EXPECT_EQ(*keyOf(*second, 0, 0, 3), 3);
  second.reset();
  EXPECT_EQ(pool->bytesHeld(), 0);
}

TEST(KvCache, FreshPagesAreZero) {
  auto pool = makePool();
  for (int round = 0; round < 3; ++round) {
    KvCache cache(pool);
    ASSERT_FALSE(cache.reserve(64));
    for (int page = 0; page < 2; ++page) {
      const auto* bytes = reinterpret_cast<const unsigned char*>(cache.pages(1, 1)[page]->keys());
      for (int64_t i = 0; i < 2 * kLayout.halfBytes(); ++i) ASSERT_EQ(bytes[i], 0);
      std::memset(cache.pages(1, 1)[page]->keys(), 0xab, size_t(2 * kLayout.halfBytes()));
    }
  }
}

TEST(KvPool, IsThreadSafe) {
  auto pool = makePool(400 * kPageBytes);
  KvCache prefix(pool);
  append(prefix, 40, 1);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&prefix, t] {
      for (int i = 0; i < 200; ++i) {
        std::unique_ptr<KvCache> own;
        if (prefix.fork(own, kAllTokens)) continue;
        if (!own->reserve(1 + (i * 7 + t) % 90)) {
          *keyOf(*own, 0, 0, 40) = float(t);
          EXPECT_EQ(*keyOf(*own, 0, 0, 39), 40);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(pool->bytesHeld(), prefix.bytesHeld());
}

}  // namespace
}  // namespace tl
