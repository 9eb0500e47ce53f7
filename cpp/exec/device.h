// Runs programs on a device whose library (plugin.h) is opened at run time. What a run reads is copied in, what it writes is
// copied out, and both are counted; weights and constants are copied once and stay. A run has a stream of its own while it
// lasts, so several threads' runs go side by side.
#pragma once
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "plugin.h"
#include "program.h"

namespace tl {

class Device;

// Memory of a device, given back with its owner.
class DeviceBlock {
 public:
  // `what` tells an error's reader what it was for.
  static Status make(Device& device, const char* what, int64_t bytes, std::unique_ptr<DeviceBlock>& block);
  ~DeviceBlock();
  DeviceBlock(const DeviceBlock&) = delete;
  DeviceBlock& operator=(const DeviceBlock&) = delete;
  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  DeviceBlock(Device& device, std::byte* data, int64_t bytes) : device_(device), data_(data), bytes_(bytes) {}
  Device& device_;
  std::byte* data_;
  int64_t bytes_;
};

// What weights and constants of the host keep of themselves on the device, from the first run on.
struct Resident {
  std::unique_ptr<DeviceBlock> block;
  DeviceWeight weight{};
  // What kernels are given for an operand of this type.
  void* data(DType dtype) { return dtype == DType::packed ? static_cast<void*>(&weight) : block->data(); }
};

class Device {
 public:
  // The CUDA device, opened at the first call; null, and why, where there is none. Its library is the one that
  // TOKENLOOM_CUDA_LIBRARY names, else tokenloom_cuda.so beside this code; TOKENLOOM_DEVICE_MEMORY bounds the bytes that it takes.
  // Thread safe; never closed.
  static Device* cuda(std::string& why);
  // The same where somebody has asked for it already, else null.
  static Device* opened() { return opened_.load(std::memory_order_acquire); }

  const DeviceInfo& info() const { return info_; }
  const DevicePlugin& plugin() const { return *plugin_; }
  int64_t bytesHeld() const { return held_.load(std::memory_order_relaxed); }
  int64_t bytesIn() const { return in_.load(std::memory_order_relaxed); }
  int64_t bytesOut() const { return out_.load(std::memory_order_relaxed); }
  int streams();
  bool has(Op op) const { return plugin_->kernels[size_t(op)] != nullptr; }
  // Gives back what no run and no weight needs.
  void trim();

  // Pages of caches that this device's kernels use: memory that host and device both reach.
  static void* allocatePage(size_t bytes);
  static void releasePage(void* data, size_t bytes);

  struct Run {
    const Program& program;
    const std::vector<Operand>& bindings;
    const std::vector<Resident*>& residents;        // of the program's constants
    const std::vector<Resident*>& boundResidents;   // of the bindings: null but for weights
    const std::vector<bool>& there;                 // bindings whose memory is this device's
    const KvStep* step;                             // null without a cache
    const int64_t* symbols;
    const double* scalars;
    const int32_t* cancel;
  };
  // From any thread; waits where all streams are taken.
  Status run(const Run& run);
  // Copies one way or the other and waits. From any thread.
  Status copy(DeviceBlock& block, void* host, int64_t bytes, bool toDevice);

 private:
  friend class DeviceBlock;
  struct Lane {
    DeviceContext* context = nullptr;
    std::unique_ptr<DeviceBlock> arena;
    const void* user = nullptr;  // the cache that it served last: a session finds its graphs again
    bool busy = false;
  };
  class LaneHold;
  Device() = default;
  Status takeLane(const void* user, Lane*& lane);
  void giveLane(Lane& lane);
  Status copyIn(Lane& lane, void* to, const void* from, int64_t bytes);
  Status copyOut(Lane& lane, void* to, const void* from, int64_t bytes);
  Status makeResident(Lane& lane, const Operand& operand, Resident& resident);
  Status makeResidents(Lane& lane, const Run& run);
  Status ensureArena(Lane& lane, int64_t bytes);
  Status bind(Lane& lane, const Run& run, DeviceCache* cache, std::vector<Operand>& bindings, std::vector<std::unique_ptr<DeviceBlock>>& blocks);
  Status execute(Lane& lane, const Run& run, std::vector<std::unique_ptr<DeviceBlock>>& blocks);

  static std::atomic<Device*> opened_;
  const DevicePlugin* plugin_ = nullptr;
  DeviceInfo info_{};
  std::mutex laneMutex_, residentMutex_;
  std::condition_variable laneFree_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::atomic<int64_t> held_{0}, in_{0}, out_{0};
};

}  // namespace tl
