// All that kernels of cuda/ use of the machine beyond plain CUDA: PTX, dynamic shared memory, launches. nvcc compiles it for
// the device; without __CUDACC__ the same names come from test/native/cuda_host. Rules for kernels that keep both alike:
//   - warp operations have full masks and are reached by all 32 lanes: predicate values, not calls
//   - a shuffle orders no memory: what lanes tell each other through shared memory needs __syncwarp
//   - all shared memory is dynamic, see Shared; tensor cores are used through mma.sync alone
#pragma once
#include <limits>
#include <tuple>

#include "../../cpp/core/checked.h"
#include "../../cpp/core/dtype.h"
#include "../../cpp/core/status.h"
#include "../../cpp/core/view.h"
#include "context.cuh"

namespace tl::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

#if defined(__CUDACC__)
struct Site {};
#define TL_SITE ::tl::cuda::Site = {}
#define TL_AT ::tl::cuda::Site{}
#define TL_CALL __noinline__
#else
#define TL_CALL __attribute__((noinline))
#endif

__device__ inline int laneIndex() { return int(threadIdx.x) % kWarp; }
__device__ inline int warpIndex() { return int(threadIdx.x) / kWarp; }

// ---- Shared memory: pieces one behind the other, each from a multiple of 16 bytes. The host adds up the same pieces.
constexpr size_t sharedPiece(size_t bytes) { return (bytes + 15) / 16 * 16; }
template <typename T> constexpr size_t sharedBytes(int64_t count) { return sharedPiece(size_t(count) * sizeof(T)); }

class Shared {
 public:
#if defined(__CUDACC__)
  __device__ Shared() {
    extern __shared__ __align__(16) unsigned char tlSharedMemory[];
    at_ = tlSharedMemory;
  }
#else
  Shared() : at_(static_cast<unsigned char*>(cuda_host::sharedMemory())) {}
#endif
  template <typename T> __device__ T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(at_);
    at_ += sharedBytes<T>(count);
    return piece;
  }

 private:
  unsigned char* at_;
};

// ---- What lanes of a warp tell each other
template <typename T> __device__ __forceinline__ T shuffleXor(T value, int distance, TL_SITE) {
#if defined(__CUDACC__)
  return __shfl_xor_sync(kAllLanes, value, distance);
#else
  cuda_host::shuffle(TL_AT, &value, sizeof value, laneIndex() ^ distance);
  return value;
#endif
}
template <typename T> __device__ __forceinline__ T shuffleFrom(T value, int lane, TL_SITE) {
#if defined(__CUDACC__)
  return __shfl_sync(kAllLanes, value, lane);
#else
  cuda_host::shuffle(TL_AT, &value, sizeof value, lane);
  return value;
#endif
}
__device__ __forceinline__ unsigned ballot(bool value, TL_SITE) {
#if defined(__CUDACC__)
  return __ballot_sync(kAllLanes, value);
#else
  return cuda_host::ballot(TL_AT, value);
#endif
}
// Over all lanes, in every lane, in a fixed order.
__device__ __forceinline__ float warpSum(float value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += shuffleXor(value, distance);
  return value;
}
__device__ __forceinline__ float warpMax(float value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value = max(value, shuffleXor(value, distance));
  return value;
}
// Over all threads of the block, in every thread, in a fixed order. `scratch`: kWarp + 1 numbers of shared memory, free again
// afterwards. Reached by all threads.
template <typename T, typename Combine> __device__ __forceinline__ T blockReduce(T value, T* scratch, Combine combine) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value = combine(value, shuffleXor(value, distance));
  if (laneIndex() == 0) scratch[warpIndex()] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned w = 1; w < (blockDim.x + kWarp - 1) / kWarp; ++w) value = combine(value, scratch[w]);
    scratch[kWarp] = value;
  }
  __syncthreads();
  value = scratch[kWarp];
  __syncthreads();
  return value;
}
__device__ __forceinline__ float blockSum(float value, float* scratch) {
  return blockReduce(value, scratch, [](float a, float b) { return a + b; });
}
__device__ __forceinline__ float blockMax(float value, float* scratch) {
  return blockReduce(value, scratch, [](float a, float b) { return max(a, b); });
}

// ---- Copies from global to shared memory that run beside arithmetic: 16 bytes, both ends aligned to them; zeros unless `valid`.
__device__ __forceinline__ void copyAsync(void* to, const void* from, bool valid, TL_SITE) {
#if defined(__CUDACC__)
  const unsigned address = unsigned(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(valid ? 16 : 0) : "memory");
#else
  cuda_host::copyAsync(TL_AT, to, from, valid);
#endif
}
__device__ __forceinline__ void commitCopies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  cuda_host::commitCopies();
#endif
}
// Until at most `open` of this thread's groups are under way. Other threads' copies need a barrier besides.
template <int open> __device__ __forceinline__ void waitCopies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(open) : "memory");
#else
  cuda_host::waitCopies(open);
#endif
}

// ---- Tensor cores
// Four 8 × 8 matrices of 16-bit elements from shared memory; lane l gives row l % 8 of matrix l / 8.
template <bool transposed> __device__ __forceinline__ void loadMatrix(uint32_t (&out)[4], const void* row, TL_SITE) {
#if defined(__CUDACC__)
  const unsigned address = unsigned(__cvta_generic_to_shared(row));
  if constexpr (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(address) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(address) : "memory");
#else
  cuda_host::loadMatrix(TL_AT, out, row, transposed);
#endif
}
// d[16][8] += a[16][16] · b[16][8]; T is f16 or bf16, sums are f32.
template <typename T> __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], TL_SITE) {
#if defined(__CUDACC__)
  if constexpr (std::is_same_v<T, bf16>)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  cuda_host::multiplyHalf(TL_AT, d, a, b, std::is_same_v<T, bf16>);
#endif
}
// d[16][8] += a[16][32] · b[32][8] of signed bytes, exact.
__device__ __forceinline__ void multiplyBytes(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], TL_SITE) {
#if defined(__CUDACC__)
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  cuda_host::multiplyBytes(TL_AT, d, a, b);
#endif
}
// The same over 16 columns.
__device__ __forceinline__ void multiplyBytesShort(int32_t (&d)[4], const uint32_t (&a)[2], uint32_t b, TL_SITE) {
#if defined(__CUDACC__)
  asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(b));
#else
  cuda_host::multiplyBytesShort(TL_AT, d, a, b);
#endif
}
// sum + Σ of four products of signed bytes.
__device__ __forceinline__ int32_t dot4(uint32_t a, uint32_t b, int32_t sum) {
#if defined(__CUDACC__)
  return __dp4a(int(a), int(b), sum);
#else
  for (int i = 0; i < 4; ++i) sum += int32_t(int8_t(a >> (8 * i))) * int8_t(b >> (8 * i));
  return sum;
#endif
}

// ---- Numbers
__device__ __forceinline__ float asFloat(float value) { return value; }
__device__ __forceinline__ float asFloat(f16 value) {
#if defined(__CUDACC__)
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(value.bits));
  return out;
#else
  return toFloat(value);
#endif
}
__device__ __forceinline__ float asFloat(bf16 value) { return __uint_as_float(uint32_t(value.bits) << 16); }

template <typename T> __device__ __forceinline__ T fromFloat(float value);
template <> __device__ __forceinline__ float fromFloat<float>(float value) { return value; }
template <> __device__ __forceinline__ f16 fromFloat<f16>(float value) {
#if defined(__CUDACC__)
  f16 out;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
  return out;
#else
  return toF16(value);
#endif
}
template <> __device__ __forceinline__ bf16 fromFloat<bf16>(float value) {
#if defined(__CUDACC__)
  bf16 out;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
  return out;
#else
  return toBf16(value);
#endif
}
template <typename T> __device__ __forceinline__ uint32_t packPair(float low, float high) {
  return uint32_t(fromFloat<T>(low).bits) | uint32_t(fromFloat<T>(high).bits) << 16;
}
// 2^x by the special function unit: relative error 2^-22, 2^-inf = 0.
__device__ __forceinline__ float exp2Fast(float x) {
#if defined(__CUDACC__)
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
#else
  return std::exp2(x);
#endif
}
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
#define TL_INFINITY ::tl::cuda::kInfinity

// An element of a tensor whose type is known at run time only.
__device__ inline float loadElement(const void* data, DType type, int64_t index) {
  switch (type) {
    case DType::f16: return asFloat(static_cast<const f16*>(data)[index]);
    case DType::bf16: return asFloat(static_cast<const bf16*>(data)[index]);
    default: return static_cast<const float*>(data)[index];
  }
}
__device__ inline void storeElement(void* data, DType type, int64_t index, float value) {
  switch (type) {
    case DType::f16: static_cast<f16*>(data)[index] = fromFloat<f16>(value); return;
    case DType::bf16: static_cast<bf16*>(data)[index] = fromFloat<bf16>(value); return;
    default: static_cast<float*>(data)[index] = value; return;
  }
}

// Sets a mark that the host reads once the stream is done.
__device__ inline void reportProblem(int* problems, Problems problem) { atomicOr(problems + int(problem), 1); }
// An index that is within [0, limit), or 0 and a mark.
__device__ inline int64_t checkedIndex(int64_t index, int64_t limit, int* problems) {
  if (index >= 0 && index < limit) return index;
  reportProblem(problems, Problems::index);
  return 0;
}

// ---- Launches. A grid of nothing is no launch.
constexpr size_t kPlainSharedBytes = size_t(48) << 10;  // more has to be asked for

template <typename... Parameters, typename... Arguments>
Status launch(const char* op, DeviceContext& context, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t bytes, Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return {};
#if !defined(__CUDACC__)
  cuda_host::know(kernel);
#endif
  std::tuple<Parameters...> values{std::forward<Arguments>(arguments)...};
  constexpr size_t sizes[] = {sizeof(Parameters)...};
  void* pointers[sizeof...(Parameters)];
  std::apply([&](auto&... value) { int i = 0; ((pointers[i++] = const_cast<void*>(static_cast<const void*>(&value))), ...); }, values);
  const void* entry = reinterpret_cast<const void*>(kernel);
  if (bytes > kPlainSharedBytes && cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)) != cudaSuccess) {
    (void)cudaGetLastError();
    return {Code::shape, op, "", "needs more shared memory than this device has", 0, int64_t(bytes)};
  }
  return context.recorder.kernel(op, entry, grid, block, bytes, pointers, sizes, int(sizeof...(Parameters)), context.stream);
}

}  // namespace tl::cuda
