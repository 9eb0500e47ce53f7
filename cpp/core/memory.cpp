#include "memory.h"

#include <cstdlib>
#include <new>

namespace tl {
namespace {

std::atomic<int64_t> held[int(Owner::count)];
std::atomic<int64_t> allocations{0};
std::atomic<int64_t> failAt{0};
std::atomic<bool> failLater{false};

bool mustFail() {
  const int64_t index = allocations.fetch_add(1, std::memory_order_relaxed) + 1, at = failAt.load(std::memory_order_relaxed);
  return at > 0 && (index == at || (index > at && failLater.load(std::memory_order_relaxed)));
}

}  // namespace

void* allocateAligned(size_t bytes, Owner owner) {
  if (mustFail()) return nullptr;
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (rounded < bytes) return nullptr;
  void* data = ::operator new(rounded ? rounded : kAlignment, std::align_val_t(kAlignment), std::nothrow);
  if (data) held[int(owner)].fetch_add(int64_t(bytes), std::memory_order_relaxed);
  return data;
}

void releaseAligned(void* data, size_t bytes, Owner owner) {
  held[int(owner)].fetch_sub(int64_t(bytes), std::memory_order_relaxed);
  ::operator delete(data, std::align_val_t(kAlignment));
}

int64_t bytesHeld(Owner owner) { return held[int(owner)].load(std::memory_order_relaxed); }

void failAllocation(int64_t n, bool andAllLater) {
  failLater.store(andAllLater, std::memory_order_relaxed);
  failAt.store(n > 0 ? allocations.load(std::memory_order_relaxed) + n : 0, std::memory_order_relaxed);
}

int64_t allocationsSoFar() { return allocations.load(std::memory_order_relaxed); }

}  // namespace tl
