// The CUDA runtime, or what stands in for it on the host, and its errors as a Status.
#pragma once
#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include "runtime.h"
#endif
#include "../../cpp/core/status.h"

namespace tl::cuda {

inline Status fromRuntime(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return {};
  (void)cudaGetLastError();
  return {error == cudaErrorMemoryAllocation ? Code::memory : Code::internal, op, "", cudaGetErrorString(error)};
}

}  // namespace tl::cuda
