// Activations by the numbers of cpp/kernels/args.h.
#pragma once
#include "core/device.cuh"

namespace tl::cuda {

__device__ __forceinline__ float activate(int kind, float x) {
  switch (kind) {
    case 0: return x / (1.0f + expf(-x));
    case 1: return x / (1.0f + expf(x * fmaf(x * x, 0.044715f, 1.0f) * -1.5957691216057308f));
    case 2: return fmaf(0.5f * x, erff(x * 0.70710678118654752f), 0.5f * x);
    case 3: return x > 0 || x != x ? x : 0.0f;
    case 4: return 1.0f / (1.0f + expf(-x));
    case 5: return tanhf(x);
    default: return x / (1.0f + expf(-1.702f * x));
  }
}

inline Status checkActivation(const char* op, double kind) {
  return kind >= 0 && kind <= 6 && kind == double(int(kind)) ? Status{} : argumentError(op, "kind", "is no activation");
}

}  // namespace tl::cuda
