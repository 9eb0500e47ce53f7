// The calls of the CUDA runtime that cuda/ makes, for the host. Device memory is host memory. Work of a stream is done in order:
// in schedule 0 at once, in schedules 1 and 2 as late as a synchronisation allows, so that whatever is read too early,
// overwritten too early or given back too early shows. What a copy from pageable memory reads is read at once, as by the
// driver; from pinned memory it is read when the copy is done. A graph is the list of its nodes.
#pragma once
#include <cstdlib>
#include <memory>
#include <tuple>
#include <utility>

#include "cuda_host.h"

namespace cuda_host {

struct Stream;
struct Event;
struct Graph;
struct Executable;
struct Node;

// How a kernel is called whose parameters are known by their addresses alone.
struct Kernel {
  std::shared_ptr<void> (*pack)(void** parameters);
  const char* (*run)(const void* entry, const void* packed, dim3 grid, dim3 block, size_t sharedBytes);
};
void knowKernel(const void* entry, const Kernel& kernel);

template <typename... Parameters> struct KernelOf {
  using Packed = std::pair<void (*)(Parameters...), std::tuple<Parameters...>>;
  template <size_t... i> static std::shared_ptr<void> packed(void** parameters, std::index_sequence<i...>) {
    return std::make_shared<Packed>(nullptr, std::tuple<Parameters...>(*static_cast<std::remove_cvref_t<Parameters>*>(parameters[i])...));
  }
  static std::shared_ptr<void> pack(void** parameters) { return packed(parameters, std::index_sequence_for<Parameters...>()); }
  static const char* run(const void* entry, const void* held, dim3 grid, dim3 block, size_t sharedBytes) {
    Packed call = *static_cast<const Packed*>(held);
    call.first = reinterpret_cast<void (*)(Parameters...)>(const_cast<void*>(entry));
    return cuda_host::run(grid, block, sharedBytes, [](const void* p) { std::apply(static_cast<const Packed*>(p)->first, static_cast<const Packed*>(p)->second); }, &call);
  }
};
template <typename... Parameters> void know(void (*kernel)(Parameters...)) {
  knowKernel(reinterpret_cast<const void*>(kernel), {KernelOf<Parameters...>::pack, KernelOf<Parameters...>::run});
}

}  // namespace cuda_host

using cudaError_t = int;
using cudaStream_t = cuda_host::Stream*;
using cudaEvent_t = cuda_host::Event*;
using cudaGraph_t = cuda_host::Graph*;
using cudaGraphExec_t = cuda_host::Executable*;
using cudaGraphNode_t = cuda_host::Node*;

constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorLaunchFailure = 719, cudaErrorGraphExecUpdateFailure = 910;
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2;

struct cudaKernelNodeParams {
  void* func;
  dim3 gridDim, blockDim;
  unsigned sharedMemBytes;
  void** kernelParams;
  void** extra;
};

cudaError_t cudaMalloc(void** out, size_t bytes);
cudaError_t cudaMallocManaged(void** out, size_t bytes);
cudaError_t cudaMallocHost(void** out, size_t bytes);
cudaError_t cudaFree(void* data);
cudaError_t cudaFreeHost(void* data);
cudaError_t cudaFuncSetAttribute(const void* entry, cudaFuncAttribute attribute, int value);
cudaError_t cudaLaunchKernel(const void* entry, dim3 grid, dim3 block, void** parameters, size_t sharedBytes, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned flags);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after, size_t count, const cudaKernelNodeParams* parameters);
cudaError_t cudaGraphAddMemcpyNode1D(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after, size_t count, void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long flags = 0);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable);
cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t executable, cudaGraphNode_t node, const cudaKernelNodeParams* parameters);
cudaError_t cudaGraphExecMemcpyNodeSetParams1D(cudaGraphExec_t executable, cudaGraphNode_t node, void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream);
// The error that was met last, once.
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
