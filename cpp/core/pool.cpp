#include "pool.h"

#include <algorithm>
#include <chrono>

#include "cpu.h"
#include "fault.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace tl {
namespace {

inline void relax() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// How long an idle helper watches for the next parallel part before it sleeps: longer than the gaps within a step.
constexpr auto kSpin = std::chrono::microseconds(200);
constexpr int kMostThreads = 128;
constexpr uint64_t kOpen = 1 << 15;

}  // namespace

ThreadPool& ThreadPool::shared() {
  // Never destroyed: worker environments may still be leaving while static destructors run.
  static ThreadPool* pool = new ThreadPool();
  return *pool;
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(sleepMutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (std::thread& helper : helpers_) helper.join();
}

bool ThreadPool::grow(int threads) {
  try {
    while (int(scratch_.size()) < threads) {
      Buffer block(kScratchBytes, Owner::scratch);
      if (!block) return false;
      scratch_.push_back(std::move(block));
    }
    while (int(helpers_.size()) < threads - 1) {
      const int thread = int(helpers_.size()) + 1;
      helpers_.emplace_back([this, thread, seen = state_.load() >> 32] { help(thread, seen); });
    }
  } catch (const std::exception&) {  // bad_alloc, or the system has no thread left
    return int(scratch_.size()) >= 1;
  }
  return true;
}

ThreadPool::Turn::Turn(ThreadPool& pool, int threads) : pool_(pool) {
  std::unique_lock<std::mutex> lock(pool.turnMutex_);
  const uint64_t mine = pool.ticket_++;
  pool.turnChanged_.wait(lock, [&] { return pool.serving_ == mine; });
  ok_ = pool.grow(std::clamp(threads, 1, kMostThreads));
  if (!ok_) return;
  pool.threads_ = std::clamp(threads, 1, int(pool.helpers_.size()) + 1);
}

ThreadPool::Turn::~Turn() {
  {
    std::lock_guard<std::mutex> lock(pool_.turnMutex_);
    pool_.serving_++;
  }
  pool_.turnChanged_.notify_all();
}

void ThreadPool::call(const Job& job, int64_t begin, int64_t end, int thread) {
  try {
    faultPoint("poolJob");
    job.body(job.context, begin, end, thread);
  } catch (const std::bad_alloc&) {
    failure_.store(Code::memory);
  } catch (...) {
    failure_.store(Code::internal);
  }
}

void ThreadPool::work(int thread) {
  const Job job = job_;
  int64_t begin = next_.load(std::memory_order_relaxed);
  while (begin < job.count) {
    // Large parts first, small ones at the end: few are taken, and all threads end at about the same time.
    const int64_t left = job.count - begin, end = begin + std::min(left, std::max(job.chunk, left / job.shares));
    if (!next_.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
    call(job, begin, end, thread);
    begin = next_.load(std::memory_order_relaxed);
  }
}

void ThreadPool::parallelFor(int64_t count, int64_t chunk, Body body, void* context) {
  if (count <= 0) return;
  chunk = std::max<int64_t>(chunk, 1);
  const int64_t helpers = std::min<int64_t>(threads_ - 1, (count - 1) / chunk);
  if (helpers == 0) {
    call({body, context, count, chunk, 1}, 0, count, 0);
    return;
  }
  job_ = {body, context, count, chunk, 3 * int64_t(helpers + 1)};
  next_.store(0, std::memory_order_relaxed);
  finished_.store(0, std::memory_order_relaxed);
  const uint64_t number = (state_.load(std::memory_order_relaxed) >> 32) + 1;
  state_.store(number << 32 | uint64_t(helpers) << 16 | kOpen, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    std::lock_guard<std::mutex> lock(sleepMutex_);
    wake_.notify_all();
  }
  work(0);
  const uint64_t joined = state_.fetch_and(~kOpen, std::memory_order_acq_rel) & (kOpen - 1);
  for (int turn = 0; finished_.load(std::memory_order_acquire) != joined; ++turn) {
    if (turn < 4096) relax();
    else std::this_thread::yield();  // the cores are shared with somebody: let the helper run
  }
}

bool ThreadPool::join(int thread, uint64_t& seen) {
  uint64_t state = state_.load(std::memory_order_acquire);
  seen = state >> 32;
  while ((state & kOpen) && (state >> 32) == seen && uint64_t(thread) <= ((state >> 16) & 0xffff))
    if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel, std::memory_order_acquire)) return true;
  return false;
}

void ThreadPool::help(int thread, uint64_t seen) {
  const auto changed = [&](std::memory_order order) { return (state_.load(order) >> 32) != seen; };
  for (;;) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    for (int turn = 0; !changed(std::memory_order_acquire); ++turn) {
      relax();
      if ((turn & 255) != 255 || std::chrono::steady_clock::now() < until) continue;
      std::unique_lock<std::mutex> lock(sleepMutex_);
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, [&] { return stop_.load() || changed(std::memory_order_seq_cst); });
      sleepers_.fetch_sub(1, std::memory_order_relaxed);
      if (stop_.load()) return;
    }
    if (!join(thread, seen)) continue;
    work(thread);
    finished_.fetch_add(1, std::memory_order_release);
  }
}

}  // namespace tl
