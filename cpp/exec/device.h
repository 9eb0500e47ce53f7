// Runs programs on a device whose library (plugin.h) is opened at run time. What a run reads is copied in, what it writes is
// copied out, and both are counted; weights and constants are copied once and stay.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <string>

#include "plugin.h"
#include "program.h"

namespace tl {

class Device;

// Memory of a device, given back with its owner.
class DeviceBlock {
 public:
  DeviceBlock(Device& device, size_t bytes, DeviceMemory kind);
  ~DeviceBlock();
  DeviceBlock(const DeviceBlock&) = delete;
  DeviceBlock& operator=(const DeviceBlock&) = delete;
  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  Device& device_;
  std::byte* data_;
  size_t bytes_;
  DeviceMemory kind_;
};

// What weights and constants of the host keep of themselves on the device, from the first run on.
struct Resident {
  std::unique_ptr<DeviceBlock> block;
  DeviceWeight weight{};
};

class Device {
 public:
  // The CUDA device, opened at the first call; null, and why, where there is none. Its library is the one that
  // TOKENLOOM_CUDA_LIBRARY names, else tokenloom_cuda.so beside this code. Thread safe; never closed.
  static Device* cuda(std::string& why);

  const DeviceInfo& info() const { return info_; }
  const DevicePlugin& plugin() const { return *plugin_; }
  int64_t bytesHeld() const { return held_.load(std::memory_order_relaxed); }
  int64_t bytesIn() const { return in_.load(std::memory_order_relaxed); }
  int64_t bytesOut() const { return out_.load(std::memory_order_relaxed); }
  bool has(Op op) const { return plugin_->kernels[size_t(op)] != nullptr; }

  // Pages of caches that this device's kernels use: memory that host and device both reach.
  static void* allocatePage(size_t bytes);
  static void releasePage(void* data, size_t bytes);

  struct Run {
    const Program& program;
    const std::vector<Operand>& bindings;
    const std::vector<Resident*>& residents;        // of the program's constants
    const std::vector<Resident*>& boundResidents;   // of the bindings: null but for weights
    const KvStep* step;                             // null without a cache
    const int64_t* symbols;
    const double* scalars;
    const int32_t* cancel;
  };
  // Only within a ThreadPool::Turn: device runs take turns like others.
  Status run(const Run& run);

 private:
  friend class DeviceBlock;
  Device() = default;
  Status copyIn(void* to, const void* from, int64_t bytes);
  Status makeResident(const Operand& operand, Resident& resident);
  Status place(const Operand& operand, Resident* resident, DeviceCache* cache, Operand& placed);

  const DevicePlugin* plugin_ = nullptr;
  DeviceContext* context_ = nullptr;
  DeviceInfo info_{};
  std::unique_ptr<DeviceBlock> arena_;
  std::atomic<int64_t> held_{0}, in_{0}, out_{0};
};

}  // namespace tl
