// Streams, copies and waiting: what the plug-in does around ops.
#include "core/context.cuh"

#include "core/memory.cuh"

namespace tl::cuda {

DeviceContext* createContext() {
  auto* context = new DeviceContext();
  void* problems = nullptr;
  if (MemoryPool::shared().allocate("stream", sizeof(int) * size_t(Problems::count), DeviceMemory::pinned, &problems)) {
    delete context;
    return nullptr;
  }
  context->problems = static_cast<int*>(problems);
  for (int i = 0; i < int(Problems::count); ++i) context->problems[i] = 0;
  if (fromRuntime("stream", cudaStreamCreateWithFlags(&context->stream, cudaStreamNonBlocking))) {
    delete context;
    return nullptr;
  }
  return context;
}

void destroyContext(DeviceContext* context) { delete context; }

Status copyIn(DeviceContext& context, void* to, const void* from, size_t bytes) { return context.staging.in(to, from, bytes, context.stream); }
Status copyOut(DeviceContext& context, void* to, const void* from, size_t bytes) { return context.staging.out(to, from, bytes, context.stream); }

void begin(DeviceContext& context, uint64_t program) { context.recorder.begin(program); }

namespace {
Status wait(DeviceContext& context, Status status) {
  const Status waited = fromRuntime("synchronize", cudaStreamSynchronize(context.stream));
  if (!status) status = waited;
  if (status) context.staging.forget();
  else context.staging.settle();
  return status;
}
}  // namespace

Status synchronize(DeviceContext& context) { return wait(context, context.recorder.flush(context.stream)); }

Status finish(DeviceContext& context, bool good) {
  Status status;
  if (good) status = context.recorder.finish(context.stream);
  else context.recorder.discard();
  // Waited for after an error too: memory must not go while the device uses it.
  status = wait(context, status);
  const bool index = context.problems[int(Problems::index)], number = context.problems[int(Problems::notANumber)];
  for (int i = 0; i < int(Problems::count); ++i) context.problems[i] = 0;
  if (status || !good) return status;
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
  void* data = nullptr;
  TL_TRY(cuda::MemoryPool::shared().allocate(op, size, DeviceMemory::device, &data));
  blocks_.push_back({data, size});
  used_ = wanted;
  *out = data;
  return {};
}

Status DeviceContext::upload(const char* op, const void* from, size_t bytes, void** out) {
  TL_TRY(scratch(op, bytes, out));
  return cuda::copyIn(*this, *out, from, bytes);
}

Status DeviceContext::hostReads(const void* data, size_t bytes) { return staging.owes(data, bytes) ? cuda::synchronize(*this) : Status{}; }

DeviceContext::~DeviceContext() {
  if (stream) (void)cudaStreamDestroy(stream);
  cuda::MemoryPool::shared().release(problems);
  for (const Block& block : blocks_) cuda::MemoryPool::shared().release(block.data);
}

}  // namespace tl
