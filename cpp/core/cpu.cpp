#include "cpu.h"

#include <algorithm>
#include <cstdio>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#define TL_X86 1
#include <immintrin.h>
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace tl {
namespace {

#if TL_X86
struct Registers { uint32_t a, b, c, d; };

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r{};
#if defined(_MSC_VER)
  int out[4];
  __cpuidex(out, int(leaf), int(subleaf));
  r = {uint32_t(out[0]), uint32_t(out[1]), uint32_t(out[2]), uint32_t(out[3])};
#else
  if (__get_cpuid_max(leaf & 0x80000000, nullptr) >= leaf) __cpuid_count(leaf, subleaf, r.a, r.b, r.c, r.d);
#endif
  return r;
}

uint64_t enabledState() {
#if defined(_MSC_VER) && !defined(__clang__)
  return _xgetbv(0);
#else
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t(high) << 32) | low;
#endif
}

struct Features { bool avx2, avx512, bf16; };

Features detect() {
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0), sevenOne = cpuid(7, 1);
  const auto bit = [](uint32_t word, int index) { return ((word >> index) & 1) != 0; };
  if (!bit(one.c, 27)) return {};  // OSXSAVE
  const uint64_t state = enabledState();
  Features f{};
  f.avx2 = (state & 6) == 6 && bit(one.c, 28) && bit(one.c, 12) && bit(one.c, 29) && bit(seven.b, 5) &&  // AVX FMA F16C AVX2
           bit(seven.b, 3) && bit(seven.b, 8) && bit(one.c, 23);                                    // BMI BMI2 POPCNT
  f.avx512 = f.avx2 && (state & 0xe6) == 0xe6 && bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) && bit(seven.b, 31) &&
             bit(seven.c, 11);  // F DQ BW VL VNNI
  f.bf16 = f.avx512 && bit(sevenOne.a, 5);
  return f;
}
#endif

#if defined(__aarch64__)
// SDOT and UDOT, of ARMv8.2 and later.
bool hasDotProducts() {
#if defined(__APPLE__)
  return true;  // from the first processor of a Mac on
#elif defined(__linux__)
  constexpr unsigned long kDotProducts = 1ul << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & kDotProducts) != 0;
#else
  return false;
#endif
}
#endif

// CPU quota of the control group, rounded up; 0 where there is none.
int quotaCores() {
#if defined(__linux__)
  if (FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    long long quota = 0, period = 0;
    const int fields = std::fscanf(file, "%lld %lld", &quota, &period);
    std::fclose(file);
    if (fields == 2 && quota > 0 && period > 0) return int(std::max(1LL, (quota + period - 1) / period));
  }
#endif
  return 0;
}

}  // namespace

const char* isaName(Isa isa) {
  switch (isa) {
    case Isa::scalar: return "scalar";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::avx512bf16: return "avx512bf16";
    case Isa::neon: return "neon";
    case Isa::neondot: return "neondot";
    default: return "unknown";
  }
}

bool isaAvailable(Isa isa) {
  if (isa == Isa::scalar) return true;
#if TL_X86
  static const Features features = detect();
  if (isa == Isa::avx2) return features.avx2;
  if (isa == Isa::avx512) return features.avx512;
  if (isa == Isa::avx512bf16) return features.bf16;
#elif defined(__aarch64__)
  if (isa == Isa::neon) return true;  // Advanced SIMD is part of the base architecture
  if (isa == Isa::neondot) return hasDotProducts();
#endif
  return false;
}

Isa bestIsa() {
  for (Isa isa : {Isa::avx512bf16, Isa::avx512, Isa::avx2, Isa::neondot, Isa::neon})
    if (isaAvailable(isa)) return isa;
  return Isa::scalar;
}

#if TL_X86
constexpr uint32_t kFlushToZero = 0x8000;
FlushedSubnormals::FlushedSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | kFlushToZero); }
FlushedSubnormals::~FlushedSubnormals() { _mm_setcsr((_mm_getcsr() & ~kFlushToZero) | (before_ & kFlushToZero)); }
#else
FlushedSubnormals::FlushedSubnormals() : before_(0) {}
FlushedSubnormals::~FlushedSubnormals() = default;
#endif

int usableCores() {
  int cores = int(std::max(1u, std::thread::hardware_concurrency()));
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cores = std::max(1, CPU_COUNT(&set));
#endif
  if (const int quota = quotaCores()) cores = std::min(cores, quota);
  return cores;
}

}  // namespace tl
