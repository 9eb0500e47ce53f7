// core/: conversions, checked arithmetic, random numbers, memory, the thread pool; and the tables of targets.
#include <algorithm>
#include <atomic>
#include <random>
#include <thread>

#include "../../cpp/core/checked.h"
#include "../../cpp/core/cpu.h"
#include "../../cpp/core/memory.h"
#include "../../cpp/core/pool.h"
#include "../../cpp/core/random.h"
#include "../../cpp/core/view.h"
#include "support.h"

namespace tl::test {
namespace {

// ---- dtype.h

// The value of a stored float of `exponentBits` and `mantissaBits`, from the definition of IEEE 754.
double storedValue(uint32_t bits, int exponentBits, int mantissaBits) {
  const int bias = (1 << (exponentBits - 1)) - 1, exponent = int(bits >> mantissaBits) & ((1 << exponentBits) - 1);
  const double mantissa = double(bits & ((1u << mantissaBits) - 1)), sign = bits >> (exponentBits + mantissaBits) ? -1 : 1;
  if (exponent == (1 << exponentBits) - 1) return mantissa != 0 ? double(kNaN) : sign * double(kInfinity);
  return exponent == 0 ? sign * std::ldexp(mantissa, 1 - bias - mantissaBits) : sign * std::ldexp(1 + std::ldexp(mantissa, -mantissaBits), exponent - bias);
}

// The nearest stored value, ties to even; past the largest by half a step: infinity.
double roundedTo(double x, int exponentBits, int mantissaBits) {
  if (x == 0 || std::isinf(x) || std::isnan(x)) return x;
  const int bias = (1 << (exponentBits - 1)) - 1, exponent = std::max(std::ilogb(x), 1 - bias);
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(x, mantissaBits - exponent)), exponent - mantissaBits);
  return std::fabs(rounded) >= std::ldexp(1.0, bias + 1) ? std::copysign(double(kInfinity), x) : rounded;
}

bool sameNumber(double a, double b) { return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b)); }

TEST(DType, AllStoredHalvesAndBrainFloats) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const f16 half{uint16_t(bits)};
    const bf16 brain{uint16_t(bits)};
    ASSERT_TRUE(sameNumber(double(toFloat(half)), storedValue(bits, 5, 10))) << bits;
    ASSERT_TRUE(sameNumber(double(toFloat(brain)), storedValue(bits, 8, 7))) << bits;
    if (std::isnan(toFloat(half))) {
      ASSERT_TRUE(std::isnan(toFloat(toF16(toFloat(half)))));
    } else {
      ASSERT_EQ(toF16(toFloat(half)).bits, bits);
    }
    if (std::isnan(toFloat(brain))) {
      ASSERT_TRUE(std::isnan(toFloat(toBf16(toFloat(brain)))));
    } else {
      ASSERT_EQ(toBf16(toFloat(brain)).bits, bits);
    }
  }
}

TEST(DType, RoundsToNearestEven) {
  for (uint32_t high = 0; high < 65536; ++high)
    for (const uint32_t low : {0x0000u, 0x0001u, 0x0fffu, 0x1000u, 0x1001u, 0x3000u, 0x7fffu, 0x8000u, 0x8001u, 0xefffu, 0xf000u, 0xf001u, 0xffffu}) {
      const uint32_t bits = high << 16 | low;
      float x;
      std::memcpy(&x, &bits, 4);
      ASSERT_TRUE(sameNumber(double(toFloat(toF16(x))), roundedTo(double(x), 5, 10))) << x;
      ASSERT_TRUE(sameNumber(double(toFloat(toBf16(x))), roundedTo(double(x), 8, 7))) << x;
    }
}

// ---- checked.h

TEST(Checked, NeverWraps) {
  constexpr int64_t most = std::numeric_limits<int64_t>::max();
  int64_t value = 0;
  EXPECT_TRUE(checkedMulAdd(6, 7, 8, value));
  EXPECT_EQ(value, 50);
  EXPECT_TRUE(checkedMulAdd(int64_t(1) << 32, int64_t(1) << 30, 0, value));
  EXPECT_EQ(value, int64_t(1) << 62);
  EXPECT_TRUE(checkedMulAdd(0, most, most, value));
  EXPECT_EQ(value, most);
  EXPECT_FALSE(checkedMulAdd(int64_t(1) << 32, int64_t(1) << 31, 0, value));
  EXPECT_FALSE(checkedMulAdd(1, most, 1, value));
  EXPECT_FALSE(checkedMulAdd(-1, 1, 5, value));
  EXPECT_FALSE(checkedMulAdd(1, -1, 5, value));
  EXPECT_FALSE(checkedMulAdd(1, 1, -1, value));
  EXPECT_EQ(ceilDiv(0, 32), 0);
  EXPECT_EQ(ceilDiv(33, 32), 2);
  EXPECT_EQ(roundUp(33, 32), 64);
}

// ---- view.h

TEST(View, RowsAndStrides) {
  float data[24];
  const int64_t dims[] = {2, 3, 4};
  View whole = contiguous(data, DType::f32, 3, dims);
  EXPECT_EQ(whole.count(), 24);
  EXPECT_EQ(whole.rows(), 6);
  EXPECT_EQ(whole.rowStride(), 4);
  EXPECT_TRUE(whole.rowsAreUniform());
  whole.dims[1] = 2;  // a slice: rows of a block at 4, blocks at 12
  EXPECT_FALSE(whole.rowsAreUniform());
  whole.dims[0] = 1;
  EXPECT_TRUE(whole.rowsAreUniform());
  whole.strides[2] = 2;
  EXPECT_FALSE(whole.rowsAreUniform());
}

// ---- random.h

// The known answers published with Random123 for philox4x32-10.
TEST(Random, PhiloxKnownAnswers) {
  const auto expect = [](Random4 got, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    EXPECT_EQ(got.word[0], a);
    EXPECT_EQ(got.word[1], b);
    EXPECT_EQ(got.word[2], c);
    EXPECT_EQ(got.word[3], d);
  };
  expect(philox(0, 0, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8);
  expect(philox(~uint64_t(0), ~uint64_t(0), ~uint64_t(0)), 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd);
  expect(philox(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88), 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1);
}

TEST(Random, UniformIsUniform) {
  int counts[16] = {};
  double sum = 0;
  constexpr int n = 64000;
  for (int i = 0; i < n; ++i) {
    const double u = uniform(42, 3, uint64_t(i));
    ASSERT_TRUE(u >= 0 && u < 1);
    counts[int(u * 16)]++;
    sum += u;
  }
  EXPECT_NEAR(sum / n, 0.5, 0.005);
  for (const int count : counts) EXPECT_NEAR(count, n / 16, 6 * std::sqrt(n / 16.0));
  EXPECT_NE(uniform(1, 0, 0), uniform(2, 0, 0));
  EXPECT_NE(uniform(1, 0, 0), uniform(1, 1, 0));
}

// ---- memory.h

TEST(Memory, CountsByOwner) {
  const int64_t weight = bytesHeld(Owner::weight), cache = bytesHeld(Owner::cache);
  {
    Buffer first(100, Owner::weight), second(1000, Owner::cache);
    ASSERT_TRUE(first && second);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(first.as()) % kAlignment, 0u);
    EXPECT_EQ(bytesHeld(Owner::weight), weight + 100);
    EXPECT_EQ(bytesHeld(Owner::cache), cache + 1000);
    Buffer moved(std::move(first));
    EXPECT_FALSE(first);
    EXPECT_EQ(moved.bytes(), 100u);
    EXPECT_EQ(bytesHeld(Owner::weight), weight + 100);
    moved = Buffer(7, Owner::weight);
    EXPECT_EQ(bytesHeld(Owner::weight), weight + 7);
    Buffer& self = moved;
    moved = std::move(self);
    EXPECT_TRUE(moved);
    Buffer empty(0, Owner::weight);
    EXPECT_TRUE(empty);
  }
  EXPECT_EQ(bytesHeld(Owner::weight), weight);
  EXPECT_EQ(bytesHeld(Owner::cache), cache);
}

TEST(Memory, RefusesAbsurdSizes) {
  const int64_t before = bytesHeld(Owner::tensor);
  EXPECT_FALSE(Buffer(std::numeric_limits<size_t>::max() - 5, Owner::tensor));
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_FALSE(Buffer(size_t(1) << 60, Owner::tensor));
#endif
  EXPECT_EQ(bytesHeld(Owner::tensor), before);
}

TEST(Memory, FailsTheNthAllocation) {
  const auto allocates = [] { return bool(Buffer(8, Owner::tensor)); };
  failAllocation(2, false);
  EXPECT_TRUE(allocates());
  EXPECT_FALSE(allocates());
  EXPECT_TRUE(allocates());
  failAllocation(1, true);
  EXPECT_FALSE(allocates());
  EXPECT_FALSE(allocates());
  failAllocation(0, false);
  EXPECT_TRUE(allocates());
  const int64_t so = allocationsSoFar();
  EXPECT_TRUE(allocates());
  EXPECT_EQ(allocationsSoFar(), so + 1);
}

// Weights share slabs of 32 MB: what one model leaves beside another's weights is where the next one's go, whatever the order.
TEST(Memory, WeightsGoWhereOthersWere) {
  constexpr size_t kSlab = size_t(32) << 20, kPart = size_t(1) << 20;
  const Buffer kept(kPart, Owner::weight);
  std::vector<uint32_t> order = {0, 1, 2, 3, 4};
  std::mt19937 random(1);
  for (int life = 0; life < 200; ++life) {
    std::vector<Buffer> model;
    for (size_t i = 0; i < order.size(); ++i) {
      model.emplace_back(kPart + i * 64, Owner::weight);
      std::memset(model[i].as<>(), int(i), model[i].bytes());
      const auto distance = reinterpret_cast<intptr_t>(model[i].as<>()) - reinterpret_cast<intptr_t>(kept.as<>());
      ASSERT_LT(size_t(std::abs(distance)), kSlab) << "life " << life;
    }
    for (size_t i = 0; i < order.size(); ++i)  // none lies on another
      for (size_t at = 0; at < model[i].bytes(); at += 4096) ASSERT_EQ(model[i].as<uint8_t>()[at], i);
    std::shuffle(order.begin(), order.end(), random);
    for (const uint32_t i : order) Buffer(std::move(model[i]));
  }
}

// ---- pool.h

// Every number of [0, count) is visited once, by a thread of the turn.
void expectCovers(ThreadPool& pool, int64_t count, int64_t chunk) {
  std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
  std::atomic<bool> wrongThread{false};
  pool.parallelFor(count, chunk, [&](int64_t begin, int64_t end, int thread) {
    if (thread < 0 || thread >= pool.threads()) wrongThread = true;
    for (int64_t i = begin; i < end; ++i) visits[size_t(i)].fetch_add(1, std::memory_order_relaxed);
  });
  EXPECT_FALSE(wrongThread);
  for (const auto& visit : visits) ASSERT_EQ(visit.load(), 1);
}

TEST(ThreadPoolThreads, CoversEveryCount) {
  ThreadPool& pool = ThreadPool::shared();
  for (int threads = 1; threads <= 4; ++threads) {
    ThreadPool::Turn turn(pool, threads);
    ASSERT_TRUE(turn.ok());
    EXPECT_LE(pool.threads(), threads);
    for (const int64_t count : {0, 1, 2, 3, 7, 64, 1000})
      for (const int64_t chunk : {0, 1, 3, 64, 5000}) expectCovers(pool, count, chunk);
  }
}

TEST(ThreadPoolThreads, ManySmallJobs) {
  ThreadPool& pool = ThreadPool::shared();
  ThreadPool::Turn turn(pool, 4);
  ASSERT_TRUE(turn.ok());
  int64_t total = 0;
  for (int job = 0; job < 3000; ++job) {
    std::atomic<int64_t> sum{0};
    pool.parallelFor(8, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) sum.fetch_add(i + job, std::memory_order_relaxed);
    });
    ASSERT_EQ(sum.load(), 28 + 8 * job);
    total += sum;
  }
  EXPECT_GT(total, 0);
}

TEST(ThreadPoolThreads, PlainMemoryIsSeenAcrossJobs) {
  ThreadPool& pool = ThreadPool::shared();
  ThreadPool::Turn turn(pool, 4);
  ASSERT_TRUE(turn.ok());
  std::vector<int> values(4096, 0);
  for (int job = 0; job < 200; ++job)
    pool.parallelFor(4096, 100, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) values[size_t(i)]++;
    });
  for (const int value : values) ASSERT_EQ(value, 200);
}

TEST(Cpu, SubnormalResultsAreFlushedForAWhile) {
  const auto half = [](float x) {
    volatile float value = x;
    return value * 0.5f;
  };
  {
    const FlushedSubnormals flushed;
#if defined(__x86_64__)
    EXPECT_EQ(half(std::numeric_limits<float>::min()), 0.0f);
#else
    EXPECT_GT(half(std::numeric_limits<float>::min()), 0.0f);
#endif
  }
  EXPECT_GT(half(std::numeric_limits<float>::min()), 0.0f);
}

TEST(ThreadPoolThreads, ScratchBelongsToOneThread) {
  ThreadPool& pool = ThreadPool::shared();
  ThreadPool::Turn turn(pool, 3);
  ASSERT_TRUE(turn.ok());
  std::atomic<bool> clash{false};
  pool.parallelFor(300, 1, [&](int64_t begin, int64_t, int thread) {
    auto* scratch = reinterpret_cast<int64_t*>(pool.scratch(thread));
    if (reinterpret_cast<uintptr_t>(scratch) % kAlignment != 0) clash = true;
    for (int64_t i = 0; i < 1000; ++i) scratch[i] = begin;
    for (int64_t i = 0; i < 1000; ++i) if (scratch[i] != begin) clash = true;
    scratch[kScratchBytes / 8 - 1] = begin;
  });
  EXPECT_FALSE(clash);
}

TEST(ThreadPoolThreads, RunsTakeTurns) {
  std::atomic<int> inside{0}, rounds{0};
  std::atomic<bool> overlap{false};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&, caller] {
      for (int round = 0; round < 60; ++round) {
        ThreadPool& pool = ThreadPool::shared();
        ThreadPool::Turn turn(pool, 1 + (caller + round) % 4);
        if (!turn.ok()) continue;
        if (inside.fetch_add(1) != 0) overlap = true;
        int sum = 0;
        std::vector<int> parts(16, 0);
        for (int job = 0; job < 5; ++job) {
          pool.parallelFor(16, 1, [&](int64_t begin, int64_t end, int) {
            for (int64_t i = begin; i < end; ++i) parts[size_t(i)] += caller + 1;
          });
          sum += 16 * (caller + 1);
        }
        int got = 0;
        for (const int part : parts) got += part;
        if (got != sum) overlap = true;
        inside.fetch_sub(1);
        rounds.fetch_add(1);
      }
    });
  for (std::thread& caller : callers) caller.join();
  EXPECT_FALSE(overlap);
  EXPECT_EQ(rounds.load(), 240);
}

TEST(ThreadPoolThreads, LivesThroughSleepAndShortMemory) {
  ThreadPool& pool = ThreadPool::shared();
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // helpers are asleep by now
    ThreadPool::Turn turn(pool, 2);
    ASSERT_TRUE(turn.ok());
    expectCovers(pool, 50, 1);
  }
  failAllocation(1, true);
  {
    ThreadPool::Turn turn(pool, 9);  // more scratch than any test before had
    EXPECT_FALSE(turn.ok());
  }
  failAllocation(0, false);
  for (const int threads : {-3, 0, 1, 2}) {
    ThreadPool::Turn turn(pool, threads);
    ASSERT_TRUE(turn.ok());
    EXPECT_GE(pool.threads(), 1);
    expectCovers(pool, 20, 1);
  }
}

// ---- table.h

TEST(Targets, TablesAreWholeAndNamed) {
  ASSERT_NE(kernelTable(Isa::scalar), nullptr);
  EXPECT_EQ(kernelTable(Isa::count), nullptr);
  bool active = false;
  for (const KernelTable* table : tables()) {
    for (const Kernel kernel : table->kernels) EXPECT_NE(kernel, nullptr);
    EXPECT_NE(table->packing.pack, nullptr);
    EXPECT_STRNE(isaName(table->isa), "unknown");
    EXPECT_EQ(kernelTable(table->isa), table);
    active |= table == &activeTable();
    RecordProperty(isaName(table->isa), 1);
  }
  EXPECT_TRUE(active);
  EXPECT_GE(usableCores(), 1);
}

}  // namespace
}  // namespace tl::test
