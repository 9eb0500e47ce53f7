// Threads that share the work of one run. parallelFor splits [0, count) into parts which the caller and the helpers take
// from a common counter: who computes a chunk never changes its result. Helpers spin briefly between the parallel parts of
// a run (a barrier costs about a microsecond) and sleep otherwise. Several runs, from any thread, may use the pool at once:
// they take turns, first come first served (Turn).
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "memory.h"
#include "status.h"

namespace tl {

constexpr size_t kScratchBytes = size_t(4) << 20;  // one block a thread, for kernels' tiles; what a kernel does not touch costs nothing

class ThreadPool {
 public:
  // One pool a process, made at first use with usableCores() - 1 helpers (more where a run asks for more).
  static ThreadPool& shared();
  ~ThreadPool();

  // Holds the pool for one run of `threads` threads (caller included). Fails (false) only for lack of memory.
  class Turn {
   public:
    Turn(ThreadPool& pool, int threads);
    ~Turn();
    bool ok() const { return ok_; }

   private:
    ThreadPool& pool_;
    bool ok_ = false;
  };

  // Only within a Turn. body(context, begin, end, thread): part [begin, end) of at least `chunk`, thread in 0 … threads - 1.
  using Body = void (*)(void* context, int64_t begin, int64_t end, int thread);
  void parallelFor(int64_t count, int64_t chunk, Body body, void* context);
  template <typename Function> void parallelFor(int64_t count, int64_t chunk, Function&& function) {
    parallelFor(count, chunk,
                [](void* context, int64_t begin, int64_t end, int thread) {
                  (*static_cast<std::remove_reference_t<Function>*>(context))(begin, end, thread);
                },
                const_cast<void*>(static_cast<const void*>(&function)));
  }
  int threads() const { return threads_; }
  // What a body threw since the last call: nothing may be thrown through kernels, so whoever runs them asks behind each part.
  Status takeFailure(const char* op, const char* argument = "") {
    if (failure_.load(std::memory_order_relaxed) == Code::ok) return {};
    return {failure_.exchange(Code::ok), op, argument, "a thread's part failed"};
  }
  std::byte* scratch(int thread) const { return scratch_[size_t(thread)].as(); }

 private:
  struct alignas(64) Job {
    Body body = nullptr;
    void* context = nullptr;
    int64_t count = 0, chunk = 1, shares = 1;  // at least `chunk` at a time, at most one of so many shares of what is left
  };
  ThreadPool() = default;
  bool grow(int threads);
  void work(int thread);
  void call(const Job& job, int64_t begin, int64_t end, int thread);
  void help(int thread, uint64_t seen);
  bool join(int thread, uint64_t& seen);

  Job job_;
  alignas(64) std::atomic<int64_t> next_{0};
  // Job number << 32 | helpers invited << 16 | open << 15 | helpers that joined. One word, so that a late helper can never
  // join a job that has ended or is another's. The caller waits for those that joined, not for those that sleep or whose
  // core is busy with something else: a loaded machine is slow, not stuck.
  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<uint32_t> finished_{0};  // helpers that joined and are done
  std::atomic<Code> failure_{Code::ok};
  std::atomic<bool> stop_{false};
  std::atomic<int> sleepers_{0};
  std::mutex sleepMutex_;
  std::condition_variable wake_;
  std::vector<std::thread> helpers_;
  std::vector<Buffer> scratch_;
  int threads_ = 1;
  std::mutex turnMutex_;
  std::condition_variable turnChanged_;
  uint64_t ticket_ = 0, serving_ = 0;
};

}  // namespace tl
