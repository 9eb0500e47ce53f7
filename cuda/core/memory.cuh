// Memory of the device, of both sides (managed) and of the host (pinned), kept for the next who asks: the driver's own calls take
// tens of microseconds, and freeing waits for all that the device has under way. A block may go back only when no work
// uses it any more.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "../../cpp/exec/plugin.h"

namespace tl::cuda {

class MemoryPool {
 public:
  static MemoryPool& shared();  // never destroyed

  // Most bytes that device and managed memory may take together; 0: what the device has.
  void setLimit(int64_t bytes) { limit_ = bytes; }
  int64_t limit() const { return limit_; }
  // Code::memory, with the bytes that were left under the limit (0: no limit) as expected and those asked for as got.
  Status allocate(const char* what, size_t bytes, DeviceMemory kind, void** out);
  void release(void* data);
  // Gives what nobody holds back to the driver.
  void trim();
  // Taken from the driver, held by somebody or not; pinned memory apart.
  int64_t bytesTaken();

 private:
  struct Chunk {
    void* base;
    size_t bytes, block;  // of all its blocks
    DeviceMemory kind;
    int64_t live;
  };
  Status grow(const char* what, size_t block, DeviceMemory kind);
  void trimLocked();
  bool fits(size_t bytes, DeviceMemory kind) const { return limit_ == 0 || kind == DeviceMemory::pinned || taken_ + int64_t(bytes) <= limit_; }

  std::mutex mutex_;
  int64_t limit_ = 0, taken_ = 0;
  std::unordered_map<void*, Chunk*> owners_;                    // by block
  std::unordered_map<uint64_t, std::vector<void*>> free_;       // by kind and block size, the last one given back first
  std::vector<std::unique_ptr<Chunk>> chunks_;
};

}  // namespace tl::cuda
