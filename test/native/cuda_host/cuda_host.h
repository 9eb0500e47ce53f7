// CUDA's execution model on the host, so that kernels of cuda/ compile as C++ and run without a GPU. A thread is a fiber, the
// blocks of a grid run one after another, and whatever several threads do together (barriers, votes, shuffles, matrix
// loads and products) is a meeting point: a fiber leaves what it brings and sleeps until all have come.
//
//   TOKENLOOM_CUDA_HOST_SCHEDULE   0 lock-step: every thread to its next meeting, in turn
//                                  1 the first warp as far as it can go, then the second …   2 the last warp first
//
// Refused, with file, line and thread: a meeting that some threads of the block or warp never reach, two different ones at a
// time, misaligned 16-byte copies, threads that end with copies open. Dynamic shared memory is a heap block of exactly
// the size asked for, full of NaN at the start of each block. Asynchronous copies happen when they are waited for, not before;
// in schedule 2 at once: the device may do either.
// Under ThreadSanitizer only barriers order memory between threads, as on the device; a shuffle does not.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct uint3 { unsigned x, y, z; };
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
namespace cuda_host {

// Written at each switch of fibers.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

struct Site {
  const char* file;
  int line;
};
#define TL_SITE ::cuda_host::Site site = {__builtin_FILE(), __builtin_LINE()}
#define TL_AT site

using Body = void (*)(const void* arguments);
// Runs a grid. Null, or what went wrong, in words that stay valid until the next launch.
const char* run(dim3 grid, dim3 block, size_t sharedBytes, Body body, const void* arguments);

void* sharedMemory();
void blockBarrier(Site site);
void warpBarrier(Site site);
void shuffle(Site site, void* value, unsigned bytes, int sourceLane);
unsigned ballot(Site site, bool value);
void copyAsync(Site site, void* to, const void* from, bool valid);
void commitCopies();
void waitCopies(int open);
void loadMatrix(Site site, uint32_t (&out)[4], const void* row, bool transposed);
void multiplyHalf(Site site, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool bfloat);
void multiplyBytes(Site site, int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void multiplyBytesShort(Site site, int32_t (&d)[4], const uint32_t (&a)[2], uint32_t b);

}  // namespace cuda_host

using cuda_host::blockDim;
using cuda_host::blockIdx;
using cuda_host::gridDim;
using cuda_host::threadIdx;

inline void __syncthreads(TL_SITE) { cuda_host::blockBarrier(site); }
inline void __syncwarp(TL_SITE) { cuda_host::warpBarrier(site); }

// What CUDA has without a header.
template <typename T> constexpr T min(T a, T b) { return b < a ? b : a; }
template <typename T> constexpr T max(T a, T b) { return a < b ? b : a; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __int_as_float(int v) { float f; __builtin_memcpy(&f, &v, 4); return f; }
inline int __float_as_int(float v) { int i; __builtin_memcpy(&i, &v, 4); return i; }
inline unsigned __float_as_uint(float v) { unsigned i; __builtin_memcpy(&i, &v, 4); return i; }
inline float __uint_as_float(unsigned v) { float f; __builtin_memcpy(&f, &v, 4); return f; }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(unsigned(v)); }
inline int __float2int_rn(float v) { return int(std::nearbyint(v)); }
inline int atomicAdd(int* to, int value) { return __atomic_fetch_add(to, value, __ATOMIC_RELAXED); }
inline unsigned atomicAdd(unsigned* to, unsigned value) { return __atomic_fetch_add(to, value, __ATOMIC_RELAXED); }
inline unsigned long long atomicAdd(unsigned long long* to, unsigned long long value) { return __atomic_fetch_add(to, value, __ATOMIC_RELAXED); }
inline int atomicExch(int* to, int value) { return __atomic_exchange_n(to, value, __ATOMIC_RELAXED); }
inline int atomicOr(int* to, int value) { return __atomic_fetch_or(to, value, __ATOMIC_RELAXED); }
inline int atomicMax(int* to, int value) {
  int old = __atomic_load_n(to, __ATOMIC_RELAXED);
  while (old < value && !__atomic_compare_exchange_n(to, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
  return old;
}
inline int atomicMin(int* to, int value) {
  int old = __atomic_load_n(to, __ATOMIC_RELAXED);
  while (old > value && !__atomic_compare_exchange_n(to, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
  return old;
}
