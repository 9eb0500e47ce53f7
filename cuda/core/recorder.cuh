// What a run does on its stream, kept so that runs which do the same again and again, such as decoding steps, become one launch of
// a CUDA graph. The first runs of a program launch one by one. Where two in a row did the same, kernel by kernel, the
// next is written down first: a graph is made of it, or that of last time is told what differs (sizes, scalars), and launched.
// Whatever does not fit (other kernels, a wait in the middle, a refusal of the driver) is launched one by one as before, so
// a graph never does anything but what was written down.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "runtime.cuh"

namespace tl::cuda {

// A kernel and its arguments, or a copy.
struct Step {
  const char* op;
  const void* entry;  // null: a copy
  dim3 grid, block;
  unsigned sharedBytes;
  uint32_t firstArgument, arguments;
  void* to;
  const void* from;
  size_t bytes;
  cudaMemcpyKind kind;
};

// Steps in order with their arguments.
class Steps {
 public:
  void clear() { steps_.clear(), offsets_.clear(), data_.clear(); }
  void addKernel(const char* op, const void* entry, dim3 grid, dim3 block, size_t sharedBytes, void** arguments, const size_t* sizes, int count);
  void addCopy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
  size_t count() const { return steps_.size(); }
  const Step& operator[](size_t i) const { return steps_[i]; }
  // The addresses of a kernel's arguments, valid until the next call.
  void** argumentsOf(const Step& step);
  bool sameStep(size_t i, const Steps& other) const;
  Status launch(size_t i, cudaStream_t stream);

 private:
  std::vector<Step> steps_;
  std::vector<uint32_t> offsets_;  // of each argument in data_, and one behind the last
  std::vector<std::byte> data_;
  std::vector<void*> addresses_;
};

class Recorder {
 public:
  Recorder() = default;
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;
  ~Recorder();

  // A run of the program `key` begins; 0: one that is never to become a graph.
  void begin(uint64_t key);
  Status kernel(const char* op, const void* entry, dim3 grid, dim3 block, size_t sharedBytes, void** arguments, const size_t* sizes, int count, cudaStream_t stream);
  Status copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
  // The host has to see what was done so far: launches what is written down. The rest of the run goes one by one.
  Status flush(cudaStream_t stream);
  // Launches what is written down, as a graph where that can be.
  Status finish(cudaStream_t stream);
  void discard() { steps_.clear(), entry_ = nullptr; }

 private:
  struct Entry {
    uint64_t key, signature = 0, used = 0;
    int repeats = 0;         // runs in a row with this signature
    bool refused = false;    // by the driver, or since the run waits in its middle
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    std::vector<cudaGraphNode_t> nodes;
    Steps steps;             // what the executable does
    explicit Entry(uint64_t key) : key(key) {}
    ~Entry();
    void drop();
  };
  Entry* entryOf(uint64_t key);
  bool recording() const { return entry_ && entry_->repeats > 0 && !entry_->refused; }
  void sign(const void* what, size_t count);
  bool makeGraph();
  bool updateGraph();

  std::vector<std::unique_ptr<Entry>> entries_;
  Entry* entry_ = nullptr;
  Steps steps_;
  uint64_t signature_ = 0, clock_ = 0;
};

// Of all streams so far.
struct GraphCounts {
  int64_t made, launched, changed;  // changed: nodes told of other arguments
};
GraphCounts graphCounts();

}  // namespace tl::cuda
