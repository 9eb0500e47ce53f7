// Recorder: see core/recorder.cuh.
#include "core/recorder.cuh"

#include <atomic>
#include <cstring>
#include <memory>

namespace tl::cuda {
namespace {

constexpr size_t kMostGraphs = 8;   // of one stream
constexpr size_t kFewestSteps = 4;  // fewer are as fast one by one
constexpr size_t kArgumentAlignment = 16;

std::atomic<int64_t> made{0}, launched{0}, changed{0};

cudaKernelNodeParams parametersOf(const Step& step, void** arguments) {
  cudaKernelNodeParams p{};
  p.func = const_cast<void*>(step.entry);
  p.gridDim = step.grid;
  p.blockDim = step.block;
  p.sharedMemBytes = step.sharedBytes;
  p.kernelParams = arguments;
  return p;
}

bool good(cudaError_t error) {
  if (error != cudaSuccess) (void)cudaGetLastError();
  return error == cudaSuccess;
}

bool sameDim(const dim3& a, const dim3& b) { return a.x == b.x && a.y == b.y && a.z == b.z; }

}  // namespace

GraphCounts graphCounts() { return {made.load(), launched.load(), changed.load()}; }

void Steps::addKernel(const char* op, const void* entry, dim3 grid, dim3 block, size_t sharedBytes, void** arguments, const size_t* sizes, int count) {
  steps_.push_back({op, entry, grid, block, unsigned(sharedBytes), uint32_t(offsets_.size()), uint32_t(count), nullptr, nullptr, 0, cudaMemcpyDeviceToDevice});
  for (int i = 0; i < count; ++i) {
    const size_t at = (data_.size() + kArgumentAlignment - 1) / kArgumentAlignment * kArgumentAlignment;
    data_.resize(at + sizes[i]);
    std::memcpy(data_.data() + at, arguments[i], sizes[i]);
    offsets_.push_back(uint32_t(at));
  }
}

void Steps::addCopy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  steps_.push_back({"copy", nullptr, {}, {}, 0, uint32_t(offsets_.size()), 0, to, from, bytes, kind});
}

void** Steps::argumentsOf(const Step& step) {
  addresses_.clear();
  for (uint32_t i = 0; i < step.arguments; ++i) addresses_.push_back(data_.data() + offsets_[step.firstArgument + i]);
  return addresses_.data();
}

// Whether step i is the other's step i to the last byte; both have the same kernels.
bool Steps::sameStep(size_t i, const Steps& other) const {
  const Step &a = steps_[i], &b = other.steps_[i];
  if (!sameDim(a.grid, b.grid) || !sameDim(a.block, b.block) || a.sharedBytes != b.sharedBytes || a.to != b.to || a.from != b.from || a.bytes != b.bytes) return false;
  if (a.arguments == 0) return true;
  const auto bytes = [](const Steps& steps, size_t step) {
    const Step& s = steps.steps_[step];
    const size_t begin = steps.offsets_[s.firstArgument], last = s.firstArgument + s.arguments;
    return std::pair(steps.data_.data() + begin, (last < steps.offsets_.size() ? steps.offsets_[last] : steps.data_.size()) - begin);
  };
  const auto [mine, mineBytes] = bytes(*this, i);
  const auto [others, othersBytes] = bytes(other, i);
  return mineBytes == othersBytes && std::memcmp(mine, others, mineBytes) == 0;
}

Status Steps::launch(size_t i, cudaStream_t stream) {
  const Step& step = steps_[i];
  if (!step.entry) return fromRuntime(step.op, cudaMemcpyAsync(step.to, step.from, step.bytes, step.kind, stream));
  return fromRuntime(step.op, cudaLaunchKernel(step.entry, step.grid, step.block, argumentsOf(step), step.sharedBytes, stream));
}

Recorder::Entry::~Entry() { drop(); }

void Recorder::Entry::drop() {
  if (executable) (void)cudaGraphExecDestroy(executable);
  if (graph) (void)cudaGraphDestroy(graph);
  executable = nullptr;
  graph = nullptr;
  nodes.clear();
}

Recorder::~Recorder() = default;

Recorder::Entry* Recorder::entryOf(uint64_t key) {
  Entry* oldest = nullptr;
  for (const auto& entry : entries_) {
    if (entry->key == key) return entry.get();
    if (!oldest || entry->used < oldest->used) oldest = entry.get();
  }
  if (entries_.size() >= kMostGraphs) std::erase_if(entries_, [&](const auto& entry) { return entry.get() == oldest; });
  entries_.push_back(std::make_unique<Entry>(key));
  return entries_.back().get();
}

void Recorder::begin(uint64_t key) {
  steps_.clear();
  signature_ = 0xcbf29ce484222325;
  entry_ = key ? entryOf(key) : nullptr;
  if (entry_) entry_->used = ++clock_;
}

void Recorder::sign(const void* what, size_t count) {
  for (const uint64_t word : {uint64_t(reinterpret_cast<uintptr_t>(what)), uint64_t(count)}) signature_ = (signature_ ^ word) * 0x100000001b3 + (signature_ >> 29);
}

Status Recorder::kernel(const char* op, const void* entry, dim3 grid, dim3 block, size_t sharedBytes, void** arguments, const size_t* sizes, int count, cudaStream_t stream) {
  sign(entry, size_t(count));
  if (!recording()) return fromRuntime(op, cudaLaunchKernel(entry, grid, block, arguments, sharedBytes, stream));
  steps_.addKernel(op, entry, grid, block, sharedBytes, arguments, sizes, count);
  return {};
}

Status Recorder::copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  if (bytes == 0) return {};
  sign(nullptr, size_t(kind));
  if (!recording()) return fromRuntime("copy", cudaMemcpyAsync(to, from, bytes, kind, stream));
  steps_.addCopy(to, from, bytes, kind);
  return {};
}

Status Recorder::flush(cudaStream_t stream) {
  Status status;
  for (size_t i = 0; i < steps_.count() && !status; ++i) status = steps_.launch(i, stream);
  if (entry_) entry_->refused = true;
  steps_.clear();
  return status;
}

bool Recorder::makeGraph() {
  Entry& e = *entry_;
  e.drop();
  if (!good(cudaGraphCreate(&e.graph, 0))) return false;
  for (size_t i = 0; i < steps_.count(); ++i) {
    const Step& step = steps_[i];
    cudaGraphNode_t node = nullptr;
    const cudaGraphNode_t* before = e.nodes.empty() ? nullptr : &e.nodes.back();
    const size_t count = before ? 1 : 0;
    const cudaKernelNodeParams p = parametersOf(step, steps_.argumentsOf(step));
    if (!good(step.entry ? cudaGraphAddKernelNode(&node, e.graph, before, count, &p) : cudaGraphAddMemcpyNode1D(&node, e.graph, before, count, step.to, step.from, step.bytes, step.kind))) return false;
    e.nodes.push_back(node);
  }
  if (!good(cudaGraphInstantiate(&e.executable, e.graph, 0))) return false;
  made.fetch_add(1, std::memory_order_relaxed);
  return true;
}

bool Recorder::updateGraph() {
  Entry& e = *entry_;
  for (size_t i = 0; i < steps_.count(); ++i) {
    if (steps_.sameStep(i, e.steps)) continue;
    const Step& step = steps_[i];
    const cudaKernelNodeParams p = parametersOf(step, steps_.argumentsOf(step));
    if (!good(step.entry ? cudaGraphExecKernelNodeSetParams(e.executable, e.nodes[i], &p) : cudaGraphExecMemcpyNodeSetParams1D(e.executable, e.nodes[i], step.to, step.from, step.bytes, step.kind))) return false;
    changed.fetch_add(1, std::memory_order_relaxed);
  }
  return true;
}

Status Recorder::finish(cudaStream_t stream) {
  Entry* e = entry_;
  if (!e || e->refused) return discard(), Status{};
  const bool wasRecorded = e->repeats > 0, same = e->signature == signature_;
  Status status;
  if (!wasRecorded || !same) {
    for (size_t i = 0; i < steps_.count() && !status; ++i) status = steps_.launch(i, stream);
    e->drop();
    e->repeats = same ? 1 : 0;
    e->signature = signature_;
  } else if (steps_.count() < kFewestSteps || !(e->executable ? updateGraph() : makeGraph())) {
    e->refused = true;
    e->drop();
    for (size_t i = 0; i < steps_.count() && !status; ++i) status = steps_.launch(i, stream);
  } else {
    std::swap(e->steps, steps_);
    launched.fetch_add(1, std::memory_order_relaxed);
    status = fromRuntime("graph", cudaGraphLaunch(e->executable, stream));
  }
  discard();
  return status;
}

}  // namespace tl::cuda
