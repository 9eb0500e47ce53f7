// Staging: see core/staging.cuh.
#include "core/staging.cuh"

#include <algorithm>
#include <cstring>

#include "core/memory.cuh"

namespace tl::cuda {

Staging::~Staging() {
  for (Slot& slot : slots_) {
    if (slot.event) (void)cudaEventDestroy(slot.event);
    MemoryPool::shared().release(slot.data);
  }
}

void Staging::pay(Slot& slot) {
  for (const Owed& owed : slot.owed) std::memcpy(owed.to, owed.from, owed.bytes);
  slot.owed.clear();
}

Status Staging::take(size_t& bytes, cudaStream_t stream, std::byte** out) {
  constexpr size_t kAlignment = 256;
  if (slots_[slot_].used == kSlotBytes) {
    // What is only written down has to be under way before anything can wait for it.
    TL_TRY(recorder_.flush(stream));
    TL_TRY(fromRuntime("copy", cudaEventRecord(slots_[slot_].event, stream)));
    slot_ = (slot_ + 1) % kSlots;
    Slot& next = slots_[slot_];
    if (next.used > 0) {
      TL_TRY(fromRuntime("copy", cudaEventSynchronize(next.event)));
      pay(next);
      next.used = 0;
    }
  }
  Slot& slot = slots_[slot_];
  if (!slot.data) {
    TL_TRY(MemoryPool::shared().allocate("staging", kSlotBytes, DeviceMemory::pinned, reinterpret_cast<void**>(&slot.data)));
    if (!slot.event) TL_TRY(fromRuntime("copy", cudaEventCreateWithFlags(&slot.event, cudaEventDisableTiming)));
  }
  *out = slot.data + slot.used;
  bytes = std::min(bytes, kSlotBytes - slot.used);
  slot.used = std::min(kSlotBytes, (slot.used + bytes + kAlignment - 1) / kAlignment * kAlignment);
  return {};
}

// work(pinned, at, piece) for each piece [at, at + piece) of a copy.
template <typename Work> Status Staging::inPieces(size_t bytes, cudaStream_t stream, Work work) {
  for (size_t at = 0; at < bytes;) {
    size_t piece = bytes - at;
    std::byte* pinned = nullptr;
    TL_TRY(take(piece, stream, &pinned));
    TL_TRY(work(pinned, at, piece));
    at += piece;
  }
  return {};
}

Status Staging::in(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  return inPieces(bytes, stream, [&](std::byte* pinned, size_t at, size_t piece) {
    std::memcpy(pinned, static_cast<const std::byte*>(from) + at, piece);
    return recorder_.copy(static_cast<std::byte*>(to) + at, pinned, piece, cudaMemcpyHostToDevice, stream);
  });
}

Status Staging::out(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  return inPieces(bytes, stream, [&](std::byte* pinned, size_t at, size_t piece) -> Status {
    TL_TRY(recorder_.copy(pinned, static_cast<const std::byte*>(from) + at, piece, cudaMemcpyDeviceToHost, stream));
    slots_[slot_].owed.push_back({static_cast<std::byte*>(to) + at, pinned, piece});
    return {};
  });
}

bool Staging::owes(const void* data, size_t bytes) const {
  const auto* begin = static_cast<const std::byte*>(data);
  for (const Slot& slot : slots_)
    for (const Owed& owed : slot.owed) {
      const auto* to = static_cast<const std::byte*>(owed.to);
      if (to < begin + bytes && begin < to + owed.bytes) return true;
    }
  return false;
}

void Staging::settle() {
  // In the order of the calls: the slot behind the current one is the oldest.
  for (int i = 1; i <= kSlots; ++i) pay(slots_[(slot_ + i) % kSlots]);
  forget();
}

void Staging::forget() {
  for (Slot& slot : slots_) slot.used = 0, slot.owed.clear();
  slot_ = 0;
}

}  // namespace tl::cuda
