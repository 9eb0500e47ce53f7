// Streams, memory and copies: the few calls of the CUDA runtime besides launches.
#include "core/context.cuh"

namespace tl::cuda {

DeviceContext* createContext() {
  auto* context = new DeviceContext();
  context->problems = static_cast<int*>(allocate(sizeof(int) * size_t(Problems::count), DeviceMemory::pinned));
  if (!context->problems) {
    delete context;
    return nullptr;
  }
  for (int i = 0; i < int(Problems::count); ++i) context->problems[i] = 0;
#if defined(__CUDACC__)
  if (cudaStreamCreateWithFlags(&context->stream, cudaStreamNonBlocking) != cudaSuccess) {
    (void)cudaGetLastError();
    delete context;
    return nullptr;
  }
#endif
  return context;
}

void destroyContext(DeviceContext* context) { delete context; }

void* allocate(size_t bytes, DeviceMemory kind) {
  void* data = nullptr;
  const size_t size = bytes ? bytes : 1;
  const cudaError_t error = kind == DeviceMemory::device ? cudaMalloc(&data, size) : kind == DeviceMemory::managed ? cudaMallocManaged(&data, size) : cudaMallocHost(&data, size);
  if (error == cudaSuccess) return data;
  (void)cudaGetLastError();
  return nullptr;
}

void release(void* data, DeviceMemory kind) {
  if (data) (void)(kind == DeviceMemory::pinned ? cudaFreeHost(data) : cudaFree(data));
}

Status copyIn(DeviceContext& context, void* to, const void* from, size_t bytes) {
  return fromRuntime("copy", cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, context.stream));
}
Status copyOut(DeviceContext& context, void* to, const void* from, size_t bytes) {
  return fromRuntime("copy", cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, context.stream));
}
Status synchronize(DeviceContext& context) {
  TL_TRY(fromRuntime("synchronize", cudaStreamSynchronize(context.stream)));
  const bool index = context.problems[int(Problems::index)], number = context.problems[int(Problems::notANumber)];
  for (int i = 0; i < int(Problems::count); ++i) context.problems[i] = 0;
  if (index) return argumentError("cuda", "index", "has a number outside its table");
  return number ? Status{Code::numeric, "cuda", "logits", "has NaN or no finite largest element"} : Status{};
}

}  // namespace tl::cuda

namespace tl {

Status DeviceContext::scratch(const char* op, size_t bytes, void** out) {
  const size_t wanted = (bytes + 255) / 256 * 256;
  for (; block_ < blocks_.size(); ++block_, used_ = 0) {
    if (used_ + wanted > blocks_[block_].bytes) continue;
    *out = static_cast<std::byte*>(blocks_[block_].data) + used_;
    used_ += wanted;
    return {};
  }
  constexpr size_t kLeast = size_t(1) << 20;
  const size_t size = wanted < kLeast ? kLeast : wanted;
  void* data = cuda::allocate(size, DeviceMemory::device);
  if (!data) return {Code::memory, op, "", "out of device memory for scratch", 0, int64_t(size)};
  blocks_.push_back({data, size});
  used_ = wanted;
  *out = data;
  return {};
}

Status DeviceContext::upload(const char* op, const void* from, size_t bytes, void** out) {
  TL_TRY(scratch(op, bytes, out));
  return cuda::copyIn(*this, *out, from, bytes);
}

DeviceContext::~DeviceContext() {
  cuda::release(problems, DeviceMemory::pinned);
  for (const Block& block : blocks_) cuda::release(block.data, DeviceMemory::device);
#if defined(__CUDACC__)
  if (stream) (void)cudaStreamDestroy(stream);
#endif
}

}  // namespace tl
