// One stream and what ops on it share: scratch memory, copies, and small tables that travel with a launch.
#pragma once
#include <cstdio>
#include <vector>

#include "../../cpp/exec/plugin.h"
#include "recorder.cuh"
#include "staging.cuh"

namespace tl {

struct DeviceContext {
  cudaStream_t stream = nullptr;
  cuda::Recorder recorder;
  cuda::Staging staging{recorder};

  // Device memory until the end of the op; ops of a stream follow one another, so the next one may have it again.
  Status scratch(const char* op, size_t bytes, void** out);
  template <typename T> Status scratch(const char* op, int64_t count, T** out) { return scratch(op, size_t(count) * sizeof(T), reinterpret_cast<void**>(out)); }
  // A copy of host memory on the device until the end of the op.
  Status upload(const char* op, const void* from, size_t bytes, void** out);
  template <typename T> Status upload(const char* op, const std::vector<T>& from, const T** out) {
    return upload(op, from.data(), from.size() * sizeof(T), const_cast<void**>(reinterpret_cast<const void**>(out)));
  }
  // Before host memory is read that an op of this run may have asked to be written.
  Status hostReads(const void* data, size_t bytes);
  // Where a kernel says what the host could not check before: host memory that the device writes, read by synchronize().
  int* problems = nullptr;
  void beginOp() { block_ = 0, used_ = 0; }
  ~DeviceContext();

 private:
  struct Block {
    void* data;
    size_t bytes;
  };
  std::vector<Block> blocks_;
  size_t block_ = 0, used_ = 0;
};

namespace cuda {
// Kernels report by reportProblem(); the first by number wins.
enum class Problems : int { index = 0, notANumber, count };

// What the plug-in's table offers, see cpp/exec/plugin.h.
DeviceContext* createContext();
void destroyContext(DeviceContext* context);
Status copyIn(DeviceContext& context, void* to, const void* from, size_t bytes);
Status copyOut(DeviceContext& context, void* to, const void* from, size_t bytes);
void begin(DeviceContext& context, uint64_t program);
Status finish(DeviceContext& context, bool good);
// Waits in the middle of a run, for an op whose host part looks at what the device wrote.
Status synchronize(DeviceContext& context);
}  // namespace cuda

}  // namespace tl
