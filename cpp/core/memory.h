// Aligned, counted memory. Every byte of tensors, arenas, weights and cache pages comes from here, so that one counter
// tells who holds what, and one hook can make the n-th allocation fail (tests only).
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace tl {

constexpr size_t kAlignment = 64;

enum class Owner : int32_t { tensor = 0, arena, weight, cache, scratch, count };

// Returns null where memory is short. Not zeroed.
void* allocateAligned(size_t bytes, Owner owner);
void releaseAligned(void* data, size_t bytes, Owner owner);
int64_t bytesHeld(Owner owner);
// Counts memory that came from elsewhere, such as a device's, as an owner's; negative where it goes back.
void countBytes(Owner owner, int64_t bytes);
// Fails the n-th allocation from now (n = 1 is the next); `andAllLater` keeps failing. n = 0 switches off.
void failAllocation(int64_t n, bool andAllLater);
int64_t allocationsSoFar();
// Counts one allocation; true where it is the one to fail.
bool allocationMustFail();

// Owning, movable block.
class Buffer {
 public:
  Buffer() = default;
  Buffer(size_t bytes, Owner owner) : data_(allocateAligned(bytes, owner)), bytes_(data_ ? bytes : 0), owner_(owner) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept { Buffer(std::move(other)).swap(*this); return *this; }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { if (data_) releaseAligned(data_, bytes_, owner_); }
  void swap(Buffer& other) noexcept { std::swap(data_, other.data_); std::swap(bytes_, other.bytes_); std::swap(owner_, other.owner_); }
  template <typename T = std::byte> T* as() const { return static_cast<T*>(data_); }
  size_t bytes() const { return bytes_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  Owner owner_ = Owner::tensor;
};

}  // namespace tl
