// Pinned memory through which a stream's copies pass: the device reads and writes it by itself, so a copy is only asked for and the
// caller's memory is free again at once. A ring of slots; one is used again when the event behind its last copy has come.
#pragma once
#include <vector>

#include "recorder.cuh"

namespace tl::cuda {

class Staging {
 public:
  explicit Staging(Recorder& recorder) : recorder_(recorder) {}
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging();

  // `from` may change as soon as this returns.
  Status in(void* to, const void* from, size_t bytes, cudaStream_t stream);
  // `to` is written by settle(), or before.
  Status out(void* to, const void* from, size_t bytes, cudaStream_t stream);
  // Whether out() still has to write there.
  bool owes(const void* data, size_t bytes) const;
  // Once the stream is done: writes what out() owes, and begins again with the first slot.
  void settle();
  // The same after an error: nothing is written.
  void forget();

 private:
  static constexpr size_t kSlotBytes = size_t(1) << 20;
  static constexpr int kSlots = 4;
  struct Owed {
    void* to;
    const void* from;
    size_t bytes;
  };
  struct Slot {
    std::byte* data = nullptr;
    cudaEvent_t event = nullptr;  // behind its last copy
    size_t used = 0;
    std::vector<Owed> owed;
  };
  // A piece of pinned memory, at most `bytes` large.
  Status take(size_t& bytes, cudaStream_t stream, std::byte** out);
  template <typename Work> Status inPieces(size_t bytes, cudaStream_t stream, Work work);
  static void pay(Slot& slot);

  Recorder& recorder_;
  Slot slots_[kSlots];
  int slot_ = 0;
};

}  // namespace tl::cuda
