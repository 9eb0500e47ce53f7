#include "memory.h"

#include <algorithm>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace tl {
namespace {

std::atomic<int64_t> held[int(Owner::count)];
std::atomic<int64_t> allocations{0};
std::atomic<int64_t> failAt{0};
std::atomic<bool> failLater{false};

void* systemAllocate(size_t bytes, size_t alignment) { return ::operator new(bytes, std::align_val_t(alignment), std::nothrow); }
void systemRelease(void* data, size_t alignment) { ::operator delete(data, std::align_val_t(alignment)); }

// Weights are read from end to end at each step: huge pages save the address translations that small ones cost. Many are
// smaller than one such page, so they share slabs; a slab goes back to the system with its last weight, and what others leave in it is taken again.
constexpr size_t kHugePage = size_t(2) << 20, kSlabBytes = size_t(32) << 20, kLeastInSlab = size_t(64) << 10;

class Slabs {
 public:
  void* allocate(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (Slab& slab : slabs_)
      if (void* data = take(slab, bytes)) return data;
    slabs_.reserve(slabs_.size() + 1);  // may throw: before there is anything to lose
    Slab slab;
    slab.bytes = std::max(kSlabBytes, (bytes + kHugePage - 1) / kHugePage * kHugePage);
    slab.holes.push_back({0, slab.bytes});
    slab.base = static_cast<std::byte*>(systemAllocate(slab.bytes, kHugePage));
    if (!slab.base) return nullptr;
#if defined(__linux__)
    madvise(slab.base, slab.bytes, MADV_HUGEPAGE);  // a wish: refused, the pages are small
#endif
    slabs_.push_back(std::move(slab));
    return take(slabs_.back(), bytes);
  }
  void release(void* data, size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto slab = std::find_if(slabs_.begin(), slabs_.end(), [&](const Slab& s) { return data >= s.base && data < s.base + s.bytes; });
    if (--slab->live > 0) return leave(slab->holes, {size_t(static_cast<std::byte*>(data) - slab->base), bytes});
    systemRelease(slab->base, kHugePage);
    slabs_.erase(slab);
  }

 private:
  struct Hole { size_t at, bytes; };
  struct Slab {
    std::byte* base = nullptr;
    size_t bytes = 0, live = 0;
    std::vector<Hole> holes;  // in the order of their places, no two beside each other
  };
  // From the first hole that is large enough; null where there is none.
  static void* take(Slab& slab, size_t bytes) {
    // Between so many weights there are at most so many holes: leave() needs no memory.
    if (slab.holes.capacity() < slab.live + 2) slab.holes.reserve(2 * (slab.live + 2));
    const auto hole = std::find_if(slab.holes.begin(), slab.holes.end(), [&](const Hole& h) { return h.bytes >= bytes; });
    if (hole == slab.holes.end()) return nullptr;
    void* data = slab.base + hole->at;
    hole->at += bytes;
    hole->bytes -= bytes;
    if (hole->bytes == 0) slab.holes.erase(hole);
    ++slab.live;
    return data;
  }
  static void leave(std::vector<Hole>& holes, Hole left) {
    auto hole = holes.insert(std::find_if(holes.begin(), holes.end(), [&](const Hole& h) { return h.at > left.at; }), left);
    if (const auto next = hole + 1; next != holes.end() && hole->at + hole->bytes == next->at) {
      hole->bytes += next->bytes;
      holes.erase(next);
    }
    if (hole == holes.begin()) return;
    if (const auto before = hole - 1; before->at + before->bytes == hole->at) {
      before->bytes += hole->bytes;
      holes.erase(hole);
    }
  }
  std::mutex mutex_;
  std::vector<Slab> slabs_;
};

Slabs& slabs() {
  static Slabs* made = new Slabs();  // never destroyed: weights may outlive static destructors
  return *made;
}

bool inSlab(size_t rounded, Owner owner) { return owner == Owner::weight && rounded >= kLeastInSlab; }
size_t roundedBytes(size_t bytes) { return std::max(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment); }

}  // namespace

bool allocationMustFail() {
  const int64_t index = allocations.fetch_add(1, std::memory_order_relaxed) + 1, at = failAt.load(std::memory_order_relaxed);
  return at > 0 && (index == at || (index > at && failLater.load(std::memory_order_relaxed)));
}

void* allocateAligned(size_t bytes, Owner owner) {
  if (allocationMustFail()) return nullptr;
  const size_t rounded = roundedBytes(bytes);
  if (rounded < bytes) return nullptr;
  void* data = inSlab(rounded, owner) ? slabs().allocate(rounded) : systemAllocate(rounded, kAlignment);
  if (data) held[int(owner)].fetch_add(int64_t(bytes), std::memory_order_relaxed);
  return data;
}

void releaseAligned(void* data, size_t bytes, Owner owner) {
  held[int(owner)].fetch_sub(int64_t(bytes), std::memory_order_relaxed);
  if (inSlab(roundedBytes(bytes), owner)) slabs().release(data, roundedBytes(bytes));
  else systemRelease(data, kAlignment);
}

void countBytes(Owner owner, int64_t bytes) { held[int(owner)].fetch_add(bytes, std::memory_order_relaxed); }

int64_t bytesHeld(Owner owner) { return held[int(owner)].load(std::memory_order_relaxed); }

void failAllocation(int64_t n, bool andAllLater) {
  failLater.store(andAllLater, std::memory_order_relaxed);
  failAt.store(n > 0 ? allocations.load(std::memory_order_relaxed) + n : 0, std::memory_order_relaxed);
}

int64_t allocationsSoFar() { return allocations.load(std::memory_order_relaxed); }

}  // namespace tl
