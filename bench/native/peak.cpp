// The multiply-add peak of one core: prints {"f32": FLOP/s} of independent fused multiply-adds on the widest vectors.
#include <chrono>
#include <cstdio>

#if defined(__x86_64__)
#define CHAIN(reg, mem) "vfmadd213ps %%" reg #mem ", %%" reg #mem ", %%" reg #mem "\n"
#define TEN(reg) CHAIN(reg, 0) CHAIN(reg, 1) CHAIN(reg, 2) CHAIN(reg, 3) CHAIN(reg, 4) CHAIN(reg, 5) CHAIN(reg, 6) CHAIN(reg, 7) CHAIN(reg, 8) CHAIN(reg, 9)
static void spin256(long n) { for (long i = 0; i < n; ++i) __asm__ volatile(TEN("ymm") ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9"); }
static void spin512(long n) { for (long i = 0; i < n; ++i) __asm__ volatile(TEN("zmm") ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9"); }
#endif

int main() {
#if defined(__x86_64__)
  const bool wide = __builtin_cpu_supports("avx512f");
  if (!wide && !__builtin_cpu_supports("fma")) return 1;
  const long n = 1000000;
  double best = 0;
  for (int run = 0; run < 15; ++run) {
    const auto start = std::chrono::steady_clock::now();
    wide ? spin512(n) : spin256(n);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const double rate = double(n) * 10 * 2 * (wide ? 16 : 8) / seconds;
    if (rate > best) best = rate;
  }
  std::printf("{\"f32\": %.0f}\n", best);
  return 0;
#else
  return 1;
#endif
}
