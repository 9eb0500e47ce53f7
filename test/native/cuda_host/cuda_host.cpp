// The fibers behind cuda_host.h. Always compiled without sanitizers: what passes between fibers here is no data of kernels.
#include "cuda_host.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "../../../cpp/core/dtype.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(TL_HOST_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#define TL_TSAN(statement) statement
#else
#define TL_TSAN(statement)
#endif
#if defined(TL_HOST_ASAN)
extern "C" {
void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* save, const void** bottom, size_t* size);
}
#endif

namespace cuda_host {

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace {

constexpr int kLanes = 32;
constexpr int kSlotBytes = 32;
constexpr size_t kStackBytes = size_t(256) << 10;

enum class State : uint8_t { ready, inBlockBarrier, inWarp, ended };

enum class Meeting : uint8_t { none, barrier, shuffle, vote, load, product };

struct Copy {
  void* to;
  const void* from;
  int group;
};

#if defined(__x86_64__)
struct Stack {
  void* pointer = nullptr;
};
// Saves what a call must keep on this stack, and takes the other one's: a switch of a few nanoseconds.
extern "C" void tokenloomSwitchStack(void** save, void* load);
asm(R"(
.text
.local tokenloomSwitchStack
.type tokenloomSwitchStack,@function
tokenloomSwitchStack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size tokenloomSwitchStack,.-tokenloomSwitchStack
)");
#else
struct Stack {
  ucontext_t context;
};
#endif

struct Fiber {
  Stack stack;
  std::byte* memory = nullptr;
  bool started = false;
  State state = State::ended;
  Meeting meeting = Meeting::none;
  Site site{};
  uint3 index{};
  int lane = 0, warp = 0;
  unsigned meetings = 0;  // in its warp: tells which of the two slots is its
  int committed = 0;
  bool open = false;  // copies that no wait has asked for yet
  std::vector<Copy> copies;
  void* tsan = nullptr;
  void* fake = nullptr;
};

struct Warp {
  int ready = 0, lanes = 0;
  unsigned arrived = 0;
  int next = 0;
  alignas(16) unsigned char slots[2][kLanes][kSlotBytes];
  alignas(16) unsigned char result[2][2048];  // of a meeting that makes something: a product's d
  char sync[2];
};

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  Stack scheduler;
  void* schedulerTsan = nullptr;
  void* schedulerFake = nullptr;
  const void* schedulerBottom = nullptr;
  size_t schedulerSize = 0;
  Fiber* current = nullptr;
  Body body = nullptr;
  const void* arguments = nullptr;
  int threads = 0, ended = 0, waiting = 0, next = 0, schedule = 0;
  int barriers = 0;
  char sync[2], start, end;
  std::unique_ptr<std::byte[]> shared;
  size_t sharedBytes = 0;
  std::string error;
};
Machine machine;

// Small copies between fibers, never a call of memcpy: a sanitizer would watch that.
void move(void* to, const void* from, unsigned bytes) {
  auto* t = static_cast<volatile unsigned char*>(to);
  auto* f = static_cast<const volatile unsigned char*>(from);
  for (unsigned i = 0; i < bytes; ++i) t[i] = f[i];
}

void switchToScheduler() {
  Machine& m = machine;
  Fiber& fiber = *m.current;
#if defined(TL_HOST_ASAN)
  __sanitizer_start_switch_fiber(&fiber.fake, m.schedulerBottom, m.schedulerSize);
#endif
  TL_TSAN(__tsan_switch_to_fiber(m.schedulerTsan, 1));
#if defined(__x86_64__)
  tokenloomSwitchStack(&fiber.stack.pointer, m.scheduler.pointer);
#else
  swapcontext(&fiber.stack.context, &m.scheduler.context);
#endif
#if defined(TL_HOST_ASAN)
  __sanitizer_finish_switch_fiber(fiber.fake, &m.schedulerBottom, &m.schedulerSize);  // another thread's, maybe
#endif
}

void switchTo(Fiber& fiber) {
  Machine& m = machine;
  m.current = &fiber;
  threadIdx = fiber.index;
#if defined(TL_HOST_ASAN)
  __sanitizer_start_switch_fiber(&m.schedulerFake, fiber.memory, kStackBytes);
#endif
  TL_TSAN(__tsan_switch_to_fiber(fiber.tsan, 1));
#if defined(__x86_64__)
  tokenloomSwitchStack(&m.scheduler.pointer, fiber.stack.pointer);
#else
  swapcontext(&m.scheduler.context, &fiber.stack.context);
#endif
#if defined(TL_HOST_ASAN)
  __sanitizer_finish_switch_fiber(m.schedulerFake, nullptr, nullptr);
#endif
}

std::string describe(const Fiber& fiber, const char* what) {
  char text[512];
  std::snprintf(text, sizeof text, "%s: thread (%u, %u, %u) of block (%u, %u, %u), %s:%d", what, fiber.index.x, fiber.index.y, fiber.index.z, blockIdx.x, blockIdx.y, blockIdx.z,
                fiber.site.file ? fiber.site.file : "?", fiber.site.line);
  return text;
}

void fail(std::string what) {
  if (machine.error.empty()) machine.error = std::move(what);
}

// A fiber that met an error never goes on: its stack is made anew before the next block.
[[noreturn]] void stopHere(std::string what) {
  fail(std::move(what));
  for (;;) switchToScheduler();
}

void fiberMain() {
  Machine& m = machine;
#if defined(TL_HOST_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &m.schedulerBottom, &m.schedulerSize);
#endif
  for (;;) {
    Fiber& fiber = *m.current;
    TL_TSAN(__tsan_acquire(&m.start));
    m.body(m.arguments);
    TL_TSAN(__tsan_release(&m.end));
    if (fiber.open) stopHere(describe(fiber, "a thread ended with asynchronous copies open"));
    fiber.state = State::ended;
    --m.warps[size_t(fiber.warp)].ready;
    ++m.ended;
    switchToScheduler();
  }
}

void prepare(Fiber& fiber) {
  if (!fiber.memory) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    auto* memory = static_cast<std::byte*>(mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (memory == MAP_FAILED) std::abort();
    mprotect(memory, page, PROT_NONE);
    fiber.memory = memory + page;
  }
  TL_TSAN(if (fiber.tsan) __tsan_destroy_fiber(fiber.tsan));
  TL_TSAN(fiber.tsan = __tsan_create_fiber(0));
#if defined(__x86_64__)
  auto** top = reinterpret_cast<void**>(fiber.memory + kStackBytes - 64);  // 16-byte aligned, as before a call
  *--top = nullptr;                                                        // no return address
  *--top = reinterpret_cast<void*>(&fiberMain);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack.pointer = top;
#else
  getcontext(&fiber.stack.context);
  fiber.stack.context.uc_stack = {fiber.memory, 0, kStackBytes};
  fiber.stack.context.uc_link = nullptr;
  makecontext(&fiber.stack.context, fiberMain, 0);
#endif
  fiber.started = true;
}

Fiber* nextReady() {
  Machine& m = machine;
  if (m.schedule == 0) {
    for (int i = 0; i < m.threads; ++i) {
      const int at = m.next;
      m.next = m.next + 1 == m.threads ? 0 : m.next + 1;
      if (m.fibers[size_t(at)]->state == State::ready) return m.fibers[size_t(at)].get();
    }
    return nullptr;
  }
  const int warps = int(m.warps.size());
  for (int i = 0; i < warps; ++i) {
    const int w = m.schedule == 1 ? i : warps - 1 - i;
    Warp& warp = m.warps[size_t(w)];
    if (warp.ready == 0) continue;
    for (int j = 0; j < warp.lanes; ++j) {
      const int lane = warp.next;
      warp.next = warp.next + 1 == warp.lanes ? 0 : warp.next + 1;
      Fiber& fiber = *m.fibers[size_t(w * kLanes + lane)];
      if (fiber.state == State::ready) return &fiber;
    }
  }
  return nullptr;
}

// No thread can go on: says of one that waits what it waits for, and of one that does not where that one is.
void explainStandstill() {
  Machine& m = machine;
  const Fiber *waits = nullptr, *other = nullptr;
  for (int i = 0; i < m.threads; ++i) {
    const Fiber& fiber = *m.fibers[size_t(i)];
    if (fiber.state != State::ended && !waits) waits = &fiber;
  }
  for (int i = 0; i < m.threads && waits; ++i) {
    const Fiber& fiber = *m.fibers[size_t(i)];
    const bool apart = fiber.state != waits->state || fiber.site.line != waits->site.line;
    if (apart && (waits->state == State::inBlockBarrier || fiber.warp == waits->warp) && !other) other = &fiber;
  }
  std::string what = waits ? describe(*waits, waits->state == State::inBlockBarrier ? "a barrier that not all threads of the block reach" : "a warp operation that not all lanes reach") : "standstill";
  if (other) what += "; " + describe(*other, other->state == State::ended ? "another has ended" : "another waits elsewhere");
  fail(what);
}

void runBlock() {
  Machine& m = machine;
  if (m.sharedBytes) std::memset(m.shared.get(), 0xFF, m.sharedBytes);
  m.ended = m.waiting = m.next = 0;
  for (Warp& warp : m.warps) warp.ready = warp.lanes, warp.arrived = 0, warp.next = 0;
  for (int i = 0; i < m.threads; ++i) {
    Fiber& fiber = *m.fibers[size_t(i)];
    fiber.state = State::ready;
    fiber.meetings = 0;
    fiber.committed = 0;
    fiber.open = false;
    fiber.site = {};
  }
  TL_TSAN(__tsan_release(&m.start));
  while (m.ended < m.threads && m.error.empty()) {
    Fiber* fiber = nextReady();
    if (!fiber) return explainStandstill();
    switchTo(*fiber);
  }
  TL_TSAN(__tsan_acquire(&m.end));
}

int scheduleFromEnvironment() {
  const char* text = std::getenv("TOKENLOOM_CUDA_HOST_SCHEDULE");
  return text && *text >= '0' && *text <= '2' ? *text - '0' : 0;
}

// Meets the other lanes of the warp. `bring` goes into this lane's slot; the last to come runs `make` on all slots.
template <typename Make> unsigned meet(Meeting kind, Site site, const void* bring, unsigned bytes, Make&& make) {
  Machine& m = machine;
  Fiber& fiber = *m.current;
  Warp& warp = m.warps[size_t(fiber.warp)];
  const unsigned parity = fiber.meetings++ & 1;
  if (bytes) move(warp.slots[parity][fiber.lane], bring, bytes);
  fiber.site = site;
  fiber.meeting = kind;
  fiber.state = State::inWarp;
  TL_TSAN(if (kind == Meeting::barrier) __tsan_release(&warp.sync[parity]));
  --warp.ready;
  warp.arrived |= 1u << fiber.lane;
  if (warp.arrived == (warp.lanes == 32 ? ~0u : (1u << warp.lanes) - 1)) {
    for (int lane = 0; lane < warp.lanes; ++lane) {
      Fiber& other = *m.fibers[size_t(fiber.warp * kLanes + lane)];
      if (other.meeting != kind || other.site.line != site.line)
        stopHere(describe(fiber, "two different warp operations meet") + "; " + describe(other, "the other"));
    }
    make(warp, parity);
    for (int lane = 0; lane < warp.lanes; ++lane) m.fibers[size_t(fiber.warp * kLanes + lane)]->state = State::ready;
    warp.ready = warp.lanes;
    warp.arrived = 0;
  } else {
    switchToScheduler();
  }
  TL_TSAN(if (kind == Meeting::barrier) __tsan_acquire(&warp.sync[parity]));
  return parity;
}

}  // namespace

const char* run(dim3 grid, dim3 block, size_t sharedBytes, Body body, const void* arguments) {
  Machine& m = machine;
  m.error.clear();
  m.body = body;
  m.arguments = arguments;
  m.threads = int(block.x * block.y * block.z);
  m.schedule = scheduleFromEnvironment();
  if (m.threads < 1 || m.threads > 1024) fail("a block has 1 to 1024 threads");
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.y > 65535 || grid.z > 65535) fail("a grid's y and z are 1 to 65535, its x is 1 or more");
  if (sharedBytes > (size_t(99) << 10)) fail("more shared memory than the smallest target has (99 KiB)");
  if (!m.error.empty()) return m.error.c_str();
  blockDim = block;
  gridDim = grid;
  TL_TSAN(m.schedulerTsan = __tsan_get_current_fiber());
  m.warps.resize(size_t((m.threads + kLanes - 1) / kLanes));
  for (int w = 0; w < int(m.warps.size()); ++w) m.warps[size_t(w)].lanes = m.threads - w * kLanes < kLanes ? m.threads - w * kLanes : kLanes;
  for (int i = 0; i < m.threads; ++i) {
    if (i >= int(m.fibers.size())) m.fibers.push_back(std::make_unique<Fiber>());
    Fiber& fiber = *m.fibers[size_t(i)];
    if (!fiber.started) prepare(fiber);
    fiber.index = {unsigned(i) % block.x, unsigned(i) / block.x % block.y, unsigned(i) / block.x / block.y};
    fiber.lane = i % kLanes;
    fiber.warp = i / kLanes;
  }
  m.sharedBytes = sharedBytes;
  m.shared.reset(sharedBytes ? new std::byte[sharedBytes] : nullptr);
  for (unsigned z = 0; z < grid.z && m.error.empty(); ++z)
    for (unsigned y = 0; y < grid.y && m.error.empty(); ++y)
      for (unsigned x = 0; x < grid.x && m.error.empty(); ++x) {
        blockIdx = {x, y, z};
        runBlock();
      }
  m.shared.reset();
  if (m.error.empty()) return nullptr;
  for (auto& fiber : m.fibers) fiber->started = false, fiber->copies.clear();
  return m.error.c_str();
}

void* sharedMemory() { return machine.shared.get(); }

void blockBarrier(Site site) {
  Machine& m = machine;
  Fiber& fiber = *m.current;
  [[maybe_unused]] const int parity = m.barriers & 1;
  fiber.site = site;
  fiber.state = State::inBlockBarrier;
  TL_TSAN(__tsan_release(&m.sync[parity]));
  --m.warps[size_t(fiber.warp)].ready;
  if (++m.waiting == m.threads) {
    for (int i = 0; i < m.threads; ++i)
      if (m.fibers[size_t(i)]->site.line != site.line) stopHere(describe(fiber, "two different barriers meet") + "; " + describe(*m.fibers[size_t(i)], "the other"));
    m.waiting = 0;
    ++m.barriers;
    m.next = 0;
    for (int i = 0; i < m.threads; ++i) m.fibers[size_t(i)]->state = State::ready;
    for (Warp& warp : m.warps) warp.ready = warp.lanes;
    // The last one to come does not run on: which warp goes first is the schedule's choice.
  }
  switchToScheduler();
  TL_TSAN(__tsan_acquire(&m.sync[parity]));
}

void warpBarrier(Site site) {
  meet(Meeting::barrier, site, nullptr, 0, [](Warp&, unsigned) {});
}

void shuffle(Site site, void* value, unsigned bytes, int sourceLane) {
  Fiber& fiber = *machine.current;
  const unsigned parity = meet(Meeting::shuffle, site, value, bytes, [](Warp&, unsigned) {});
  const Warp& warp = machine.warps[size_t(fiber.warp)];
  if (sourceLane < 0 || sourceLane >= warp.lanes) stopHere(describe(fiber, "a shuffle reads from a lane that the warp does not have"));
  move(value, warp.slots[parity][sourceLane], bytes);
}

unsigned ballot(Site site, bool value) {
  const unsigned char bring = value;
  const unsigned parity = meet(Meeting::vote, site, &bring, 1, [](Warp& warp, unsigned p) {
    unsigned votes = 0;
    for (int lane = 0; lane < warp.lanes; ++lane) votes |= unsigned(warp.slots[p][lane][0]) << lane;
    move(warp.result[p], &votes, 4);
  });
  unsigned votes;
  move(&votes, machine.warps[size_t(machine.current->warp)].result[parity], 4);
  return votes;
}

namespace {
// By calls of memcpy and memset, which sanitizers watch.
void perform(const Copy& copy) {
  if (copy.from) std::memcpy(copy.to, copy.from, 16);
  else std::memset(copy.to, 0, 16);
}
}  // namespace

void copyAsync(Site site, void* to, const void* from, bool valid) {
  Fiber& fiber = *machine.current;
  fiber.site = site;
  if (reinterpret_cast<uintptr_t>(to) % 16 || (valid && reinterpret_cast<uintptr_t>(from) % 16)) stopHere(describe(fiber, "an asynchronous copy is not aligned to its 16 bytes"));
  const Copy copy{to, valid ? from : nullptr, fiber.committed};
  // The device may copy as soon as it is asked to, or as late as the wait. A missing wait shows where it is late, a
  // missing barrier before the place is filled again where it is early: schedule 2.
  if (machine.schedule == 2) perform(copy);
  else fiber.copies.push_back(copy);
  fiber.open = true;
}

void commitCopies() { ++machine.current->committed; }

void waitCopies(int open) {
  Fiber& fiber = *machine.current;
  size_t kept = 0;
  for (const Copy& copy : fiber.copies) {
    if (copy.group >= fiber.committed - open) fiber.copies[kept++] = copy;
    else perform(copy);
  }
  fiber.copies.resize(kept);
  if (open == 0) fiber.open = false;
}

// Matrix i of the four is rows given by lanes 8i … 8i + 7; lane l gets of each row l / 4, columns 2 (l mod 4) and the next.
void loadMatrix(Site site, uint32_t (&out)[4], const void* row, bool transposed) {
  Fiber& fiber = *machine.current;
  fiber.site = site;
  if (reinterpret_cast<uintptr_t>(row) % 16) stopHere(describe(fiber, "a matrix row is not aligned to its 16 bytes"));
  unsigned char bytes[16];
  std::memcpy(bytes, row, 16);
  const unsigned parity = meet(Meeting::load, site, bytes, 16, [](Warp&, unsigned) {});
  const Warp& warp = machine.warps[size_t(fiber.warp)];
  const int r = fiber.lane / 4, c = fiber.lane % 4 * 2;
  for (int i = 0; i < 4; ++i) {
    uint16_t pair[2];
    for (int j = 0; j < 2; ++j) {
      const int from = transposed ? c + j : r, at = transposed ? r : c + j;
      move(&pair[j], warp.slots[parity][8 * i + from] + 2 * at, 2);
    }
    out[i] = uint32_t(pair[0]) | uint32_t(pair[1]) << 16;
  }
}

namespace {

float halfValue(uint16_t bits, bool bfloat) { return bfloat ? tl::toFloat(tl::bf16{bits}) : tl::toFloat(tl::f16{bits}); }

void readWords(const Warp& warp, unsigned parity, uint32_t (&words)[kLanes][8], int count) {
  for (int lane = 0; lane < kLanes; ++lane) move(words[lane], warp.slots[parity][lane], unsigned(count) * 4);
}

// d[16][8] = a[16][K] · b[K][8], K = 16 (half) or 32 or 16 (bytes), from fragments as PTX lays them out.
void productOfHalves(Warp& warp, unsigned parity, bool bfloat) {
  uint32_t words[kLanes][8];
  readWords(warp, parity, words, 6);
  float a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int j = 0; j < 2; ++j) {
      const auto half = [&](int word) { return halfValue(uint16_t(words[lane][word] >> (16 * j)), bfloat); };
      a[g][2 * t + j] = half(0);
      a[g + 8][2 * t + j] = half(1);
      a[g][2 * t + 8 + j] = half(2);
      a[g + 8][2 * t + 8 + j] = half(3);
      b[2 * t + j][g] = half(4);
      b[2 * t + 8 + j][g] = half(5);
    }
  }
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      d[i][j] = 0;
      for (int k = 0; k < 16; ++k) d[i][j] += a[i][k] * b[k][j];
    }
  move(warp.result[parity], d, sizeof d);
}

void productOfBytes(Warp& warp, unsigned parity, int depth) {
  uint32_t words[kLanes][8];
  const int aWords = depth / 8;
  readWords(warp, parity, words, aWords + depth / 16);
  int8_t a[16][32], b[32][8];
  int32_t d[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int j = 0; j < 4; ++j) {
      const auto byte = [&](int word) { return int8_t(words[lane][word] >> (8 * j)); };
      for (int half = 0; half < depth / 16; ++half) {
        a[g][4 * t + 16 * half + j] = byte(2 * half);
        a[g + 8][4 * t + 16 * half + j] = byte(2 * half + 1);
        b[4 * t + 16 * half + j][g] = byte(aWords + half);
      }
    }
  }
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      d[i][j] = 0;
      for (int k = 0; k < depth; ++k) d[i][j] += int32_t(a[i][k]) * b[k][j];
    }
  move(warp.result[parity], d, sizeof d);
}

template <typename T> void takeProduct(T (&d)[4], unsigned parity) {
  const Fiber& fiber = *machine.current;
  const unsigned char* result = machine.warps[size_t(fiber.warp)].result[parity];
  const int g = fiber.lane / 4, t = fiber.lane % 4;
  for (int i = 0; i < 4; ++i) {
    T sum;
    move(&sum, result + ((g + i / 2 * 8) * 8 + 2 * t + i % 2) * sizeof(T), sizeof(T));
    d[i] += sum;
  }
}

}  // namespace

void multiplyHalf(Site site, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool bfloat) {
  const uint32_t bring[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const unsigned parity = meet(Meeting::product, site, bring, sizeof bring, [bfloat](Warp& warp, unsigned p) { productOfHalves(warp, p, bfloat); });
  takeProduct(d, parity);
}

void multiplyBytes(Site site, int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const uint32_t bring[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const unsigned parity = meet(Meeting::product, site, bring, sizeof bring, [](Warp& warp, unsigned p) { productOfBytes(warp, p, 32); });
  takeProduct(d, parity);
}

void multiplyBytesShort(Site site, int32_t (&d)[4], const uint32_t (&a)[2], uint32_t b) {
  const uint32_t bring[3] = {a[0], a[1], b};
  const unsigned parity = meet(Meeting::product, site, bring, sizeof bring, [](Warp& warp, unsigned p) { productOfBytes(warp, p, 16); });
  takeProduct(d, parity);
}

}  // namespace cuda_host
