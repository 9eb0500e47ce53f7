// What the matmuls share: operands after all checks, and how a finished sum leaves.
#pragma once
#include "activation.cuh"
#include "core/rows.cuh"
#include "packed.cuh"

namespace tl::cuda {

struct Matmul {
  Packed weight;
  const std::byte* x;
  int64_t xStride;  // bytes
  int64_t n;
  const float *bias, *residual;
  int64_t residualStride;
  float* out;
  int64_t outStride;
  int activation;  // 0 none, else 1 + kind

  __device__ void finish(int64_t token, int64_t row, float sum) const {
    if (bias) sum += bias[row];
    if (residual) sum += residual[token * residualStride + row];
    out[token * outStride + row] = activation ? activate(activation - 1, sum) : sum;
  }
};

Status matmulInteger(const Matmul& m, DeviceContext& context);
Status matmulFloat(const Matmul& m, DeviceContext& context);

}  // namespace tl::cuda
