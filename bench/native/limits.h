// What the machine itself can do, to compare kernels with: multiply-adds of one core, and bytes that cores read from memory.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace limits {

inline double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

#if defined(__x86_64__)
#define TL_CHAIN(reg, number) "vfmadd213ps %%" reg #number ", %%" reg #number ", %%" reg #number "\n"
#define TL_TEN(reg) TL_CHAIN(reg, 0) TL_CHAIN(reg, 1) TL_CHAIN(reg, 2) TL_CHAIN(reg, 3) TL_CHAIN(reg, 4) TL_CHAIN(reg, 5) TL_CHAIN(reg, 6) TL_CHAIN(reg, 7) TL_CHAIN(reg, 8) TL_CHAIN(reg, 9)
#define TL_CLOBBERS "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9"
// Subnormal numbers left in the registers would cost a hundred times as much.
#define TL_ZERO(number) "vpxor %%xmm" #number ", %%xmm" #number ", %%xmm" #number "\n"
inline void clearTen() {
  __asm__ volatile(TL_ZERO(0) TL_ZERO(1) TL_ZERO(2) TL_ZERO(3) TL_ZERO(4) TL_ZERO(5) TL_ZERO(6) TL_ZERO(7) TL_ZERO(8) TL_ZERO(9) ::: TL_CLOBBERS);
}
inline void spin256(int64_t n) { for (int64_t i = 0; i < n; ++i) __asm__ volatile(TL_TEN("ymm") ::: TL_CLOBBERS); }
inline void spin512(int64_t n) { for (int64_t i = 0; i < n; ++i) __asm__ volatile(TL_TEN("zmm") ::: TL_CLOBBERS); }

// FLOP/s of one core: independent fused multiply-adds of f32 on the widest vectors. 0 where there are none.
inline double multiplyAddPeak() {
  const bool wide = __builtin_cpu_supports("avx512f");
  if (!wide && !__builtin_cpu_supports("fma")) return 0;
  const int64_t n = 1000000;
  double best = 0;
  for (int run = 0; run < 15; ++run) {
    const double start = seconds();
    clearTen();
    wide ? spin512(n) : spin256(n);
    const double rate = double(n) * 10 * 2 * (wide ? 16 : 8) / (seconds() - start);
    if (rate > best) best = rate;
  }
  return best;
}
#else
inline double multiplyAddPeak() { return 0; }
#endif

constexpr int64_t kReadBytes = int64_t(512) << 20;  // no cache holds it

// One word of every cache line, in `streams` places at once: one core needs several to get the most.
inline uint64_t readOnce(const uint64_t* words, int64_t bytes, int64_t streams) {
  const int64_t length = bytes / int64_t(sizeof(uint64_t)) / streams;
  uint64_t sum[8] = {};
  for (int64_t i = 0; i < length; i += 8)
    for (int64_t stream = 0; stream < streams; ++stream) sum[stream] += words[stream * length + i];
  uint64_t all = 0;
  for (const uint64_t part : sum) all += part;
  return all;
}

// Bytes a second that `threads` cores read together, the best of several rounds with 1, 2, 4 and 8 streams. They read the same
// `bytes` each round: of those that are not many times the last cache, a part comes from there.
inline double readBandwidth(int threads, int64_t bytes = kReadBytes) {
  const int64_t share = (bytes / threads + 511) / 512 * 512;  // eight streams of whole lines
  std::atomic<int> ready{0};
  std::vector<double> began(size_t(threads), 0), ended(size_t(threads), 0);
  std::vector<std::thread> pool;
  constexpr int kRounds = 24;  // six of each
  double best = 0;
  const auto meet = [&](int times) {  // all are there: the n-th meeting
    ready.fetch_add(1);
    while (ready.load() < threads * times) continue;
  };
  const auto work = [&](int thread) {
    auto* words = static_cast<uint64_t*>(std::aligned_alloc(size_t(2) << 20, (size_t(share) + (size_t(2) << 20) - 1) >> 21 << 21));
    if (!words) std::abort();
#if defined(__linux__)
    madvise(words, size_t(share), MADV_HUGEPAGE);
#endif
    std::memset(words, 1, size_t(share));
    volatile uint64_t sink = 0;
    for (int round = 0; round < kRounds; ++round) {
      meet(2 * round + 1);
      began[size_t(thread)] = seconds();
      sink = sink + readOnce(words, share, int64_t(1) << (round / 6));
      ended[size_t(thread)] = seconds();
      meet(2 * round + 2);
      if (thread != 0) continue;
      double first = began[0], last = ended[0];
      for (int i = 1; i < threads; ++i) {
        if (began[size_t(i)] < first) first = began[size_t(i)];
        if (ended[size_t(i)] > last) last = ended[size_t(i)];
      }
      const double rate = double(threads) * double(share) / (last - first);
      if (rate > best) best = rate;
    }
    std::free(words);
  };
  for (int thread = 1; thread < threads; ++thread) pool.emplace_back(work, thread);
  work(0);
  for (std::thread& thread : pool) thread.join();
  return best;
}

}  // namespace limits
