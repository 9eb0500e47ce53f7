// The runtime behind runtime.h. One device: whatever is done is done by the thread that waits for it, one piece at a time.
#include "runtime.h"

#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace cuda_host {

using Work = std::function<const char*()>;  // null, or what went wrong

struct Stream {
  std::deque<Work> queue;
  uint64_t queued = 0, done = 0;
};
struct Event {
  Stream* stream = nullptr;
  uint64_t at = 0;
};
struct Node {
  const void* entry = nullptr;  // null: a copy
  Work work;
};
struct Graph {
  std::vector<std::unique_ptr<Node>> nodes;
};
struct Executable {
  std::vector<const Node*> order;
  std::unordered_map<const Node*, Work> works;
};

namespace {

struct Device {
  std::recursive_mutex mutex;
  std::unordered_map<const void*, Kernel> kernels;
  std::map<uintptr_t, size_t> pinned;
  Stream standard;
  cudaError_t last = cudaSuccess;
  std::string why;
};
Device& device() {
  static Device* made = new Device();  // never destroyed: threads may end later
  return *made;
}
using Lock = std::lock_guard<std::recursive_mutex>;

bool late() {
  const char* text = std::getenv("TOKENLOOM_CUDA_HOST_SCHEDULE");
  return text && (*text == '1' || *text == '2');
}

cudaError_t failed(cudaError_t error, const char* why) {
  std::fprintf(stderr, "cuda_host: %s\n", why);
  device().why = why;
  return device().last = error;
}

Stream& streamOf(cudaStream_t stream) { return stream ? *stream : device().standard; }

// Does what was queued before `until`. After an error the rest is dropped: nothing may build on it.
cudaError_t drain(Stream& stream, uint64_t until) {
  cudaError_t error = cudaSuccess;
  while (!stream.queue.empty() && stream.done < until) {
    Work work = std::move(stream.queue.front());
    stream.queue.pop_front();
    ++stream.done;
    const char* what = error ? nullptr : work();
    if (what) error = failed(cudaErrorLaunchFailure, what);
  }
  return error;
}

cudaError_t enqueue(cudaStream_t to, Work work) {
  Stream& stream = streamOf(to);
  stream.queue.push_back(std::move(work));
  ++stream.queued;
  return late() ? cudaSuccess : drain(stream, stream.queued);
}

bool isPinned(const void* data) {
  const auto& pinned = device().pinned;
  const auto after = pinned.upper_bound(uintptr_t(data));
  if (after == pinned.begin()) return false;
  const auto& [begin, bytes] = *std::prev(after);
  return uintptr_t(data) < begin + bytes;
}

Work copyOf(void* to, const void* from, size_t bytes) {
  return [=]() -> const char* {
    if (bytes) std::memmove(to, from, bytes);
    return nullptr;
  };
}

bool kernelWork(const cudaKernelNodeParams& p, Work& work) {
  const auto known = device().kernels.find(p.func);
  if (known == device().kernels.end()) return false;
  const Kernel kernel = known->second;
  work = [kernel, entry = p.func, packed = kernel.pack(p.kernelParams), grid = p.gridDim, block = p.blockDim, bytes = p.sharedMemBytes] {
    return kernel.run(entry, packed.get(), grid, block, bytes);
  };
  return true;
}

cudaError_t allocate(void** out, size_t bytes) {
  *out = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return *out ? cudaSuccess : cudaErrorMemoryAllocation;
}

// As the device does: nothing is freed that work under way may use.
void drainAll();
std::vector<Stream*>& streams() {
  static auto* all = new std::vector<Stream*>{&device().standard};
  return *all;
}
void drainAll() {
  for (Stream* stream : streams()) drain(*stream, stream->queued);
}

cudaError_t addNode(cudaGraphNode_t* out, cudaGraph_t graph, const cudaGraphNode_t* after, size_t count, const void* entry, Work work) {
  // A chain is all that cuda/ makes: each node behind the one before.
  if (count != (graph->nodes.empty() ? 0 : 1) || (count == 1 && *after != graph->nodes.back().get())) return failed(cudaErrorInvalidValue, "a graph of the emulation is a chain");
  graph->nodes.push_back(std::make_unique<Node>(Node{entry, std::move(work)}));
  *out = graph->nodes.back().get();
  return cudaSuccess;
}

}  // namespace

void knowKernel(const void* entry, const Kernel& kernel) {
  Lock lock(device().mutex);
  device().kernels.emplace(entry, kernel);
}

}  // namespace cuda_host

using namespace cuda_host;

cudaError_t cudaMalloc(void** out, size_t bytes) { return allocate(out, bytes); }
cudaError_t cudaMallocManaged(void** out, size_t bytes) { return allocate(out, bytes); }
cudaError_t cudaMallocHost(void** out, size_t bytes) {
  Lock lock(device().mutex);
  const cudaError_t error = allocate(out, bytes);
  if (!error) device().pinned[uintptr_t(*out)] = bytes;
  return error;
}
cudaError_t cudaFree(void* data) {
  Lock lock(device().mutex);
  drainAll();
  std::free(data);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* data) {
  Lock lock(device().mutex);
  drainAll();
  device().pinned.erase(uintptr_t(data));
  std::free(data);
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) { return value <= (99 << 10) ? cudaSuccess : cudaErrorInvalidValue; }

cudaError_t cudaLaunchKernel(const void* entry, dim3 grid, dim3 block, void** parameters, size_t sharedBytes, cudaStream_t stream) {
  Lock lock(device().mutex);
  Work work;
  if (!kernelWork({const_cast<void*>(entry), grid, block, unsigned(sharedBytes), parameters, nullptr}, work)) return failed(cudaErrorInvalidValue, "an unknown kernel");
  return enqueue(stream, std::move(work));
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t to_) {
  Lock lock(device().mutex);
  if (kind == cudaMemcpyHostToDevice && !isPinned(from)) {
    const auto* begin = static_cast<const std::byte*>(from);
    return enqueue(to_, [to, read = std::vector<std::byte>(begin, begin + bytes)]() -> const char* {
      if (!read.empty()) std::memcpy(to, read.data(), read.size());
      return nullptr;
    });
  }
  if (const cudaError_t error = enqueue(to_, copyOf(to, from, bytes))) return error;
  Stream& stream = streamOf(to_);
  return kind == cudaMemcpyDeviceToHost && !isPinned(to) ? drain(stream, stream.queued) : cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  Lock lock(device().mutex);
  streams().push_back(*stream = new Stream());
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  Lock lock(device().mutex);
  const cudaError_t error = drain(*stream, stream->queued);
  std::erase(streams(), stream);
  delete stream;
  return error;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  Lock lock(device().mutex);
  return drain(streamOf(stream), streamOf(stream).queued);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return *event = new Event(), cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  Lock lock(device().mutex);
  *event = {&streamOf(stream), streamOf(stream).queued};
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  Lock lock(device().mutex);
  return event->stream ? drain(*event->stream, event->at) : cudaSuccess;
}

cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned) { return *graph = new Graph(), cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after, size_t count, const cudaKernelNodeParams* parameters) {
  Lock lock(device().mutex);
  Work work;
  if (!kernelWork(*parameters, work)) return failed(cudaErrorInvalidValue, "an unknown kernel");
  return addNode(node, graph, after, count, parameters->func, std::move(work));
}
cudaError_t cudaGraphAddMemcpyNode1D(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after, size_t count, void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  Lock lock(device().mutex);
  return addNode(node, graph, after, count, nullptr, copyOf(to, from, bytes));
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  Lock lock(device().mutex);
  *executable = new Executable();
  for (const auto& node : graph->nodes) {
    (*executable)->order.push_back(node.get());
    (*executable)->works.emplace(node.get(), node->work);
  }
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) { return delete executable, cudaSuccess; }
cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t executable, cudaGraphNode_t node, const cudaKernelNodeParams* parameters) {
  Lock lock(device().mutex);
  if (node->entry != parameters->func) return cudaErrorGraphExecUpdateFailure;
  return kernelWork(*parameters, executable->works.at(node)) ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaGraphExecMemcpyNodeSetParams1D(cudaGraphExec_t executable, cudaGraphNode_t node, void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  Lock lock(device().mutex);
  if (node->entry) return cudaErrorGraphExecUpdateFailure;
  executable->works.at(node) = copyOf(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  Lock lock(device().mutex);
  // As it is now: what is changed later belongs to the next launch.
  std::vector<Work> works;
  for (const Node* node : executable->order) works.push_back(executable->works.at(node));
  return enqueue(stream, [works = std::move(works)]() -> const char* {
    for (const Work& work : works)
      if (const char* what = work()) return what;
    return nullptr;
  });
}

cudaError_t cudaGetLastError() {
  Lock lock(device().mutex);
  return std::exchange(device().last, cudaSuccess);
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorLaunchFailure: return "the emulation refused a kernel, see stderr";
    default: return "the emulation refused a call, see stderr";
  }
}
