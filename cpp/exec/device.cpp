#include "device.h"

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

#include <cerrno>
#include <cstdlib>

namespace tl {
namespace {

constexpr size_t kMostLanes = 4;  // as many runs as Node has threads for

// TOKENLOOM_DEVICE_MEMORY, 0 where it is not set; false where it is no number.
bool byteLimit(int64_t& limit) {
  const char* text = std::getenv("TOKENLOOM_DEVICE_MEMORY");
  limit = 0;
  if (!text || !*text) return true;
  char* end = nullptr;
  errno = 0;
  limit = std::strtoll(text, &end, 10);
  return errno == 0 && *end == 0 && limit > 0;
}

#if defined(_WIN32)
DevicePluginEntry libraryEntry(std::string& reason) {
  reason = "there is no CUDA library for Windows yet";
  return nullptr;
}
#else
std::string libraryPath() {
  if (const char* given = std::getenv("TOKENLOOM_CUDA_LIBRARY"); given && *given) return given;
  Dl_info self;
  if (!dladdr(reinterpret_cast<const void*>(&libraryPath), &self) || !self.dli_fname) return "tokenloom_cuda.so";
  const std::string path = self.dli_fname;
  const size_t slash = path.rfind('/');
  return (slash == std::string::npos ? std::string() : path.substr(0, slash + 1)) + "tokenloom_cuda.so";
}

// Where the library begins; null with the reason.
DevicePluginEntry libraryEntry(std::string& reason) {
  const std::string path = libraryPath();
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    reason = std::string("its library was not loaded: ") + dlerror();
    return nullptr;
  }
  const auto entry = reinterpret_cast<DevicePluginEntry>(dlsym(library, kDevicePluginEntry));
  if (!entry) reason = path + " is no library of tokenloom";
  return entry;
}
#endif

// How the CPU keeps int8 weight bytes: see kByteBias in cpp/simd.
uint8_t byteBias(Isa isa) { return isa == Isa::avx512 || isa == Isa::avx512bf16 ? 0x80 : 0; }

// The views of a cache as a device sees it, for as long as one run lasts.
struct CacheViews {
  std::vector<KvPage* const*> pages;
  std::vector<int64_t> lengths, capacities;
  std::vector<float*> scores;
  DeviceCache cache{};

  explicit CacheViews(const KvStep& step) {
    KvCache& held = *step.cache;
    const KvShape& shape = held.shape();
    for (int32_t layer = 0; layer < shape.layers; ++layer)
      for (int32_t head = 0; head < shape.kvHeads; ++head) {
        pages.push_back(held.pages(layer, head));
        lengths.push_back(held.length(layer, head));
        capacities.push_back(held.capacity(layer, head));
        scores.push_back(held.observing() ? held.scores(layer, head) : nullptr);
      }
    cache = {shape, held.mixed(), step.newTokens, pages.data(), lengths.data(), capacities.data(), held.observing() ? scores.data() : nullptr};
  }
};

}  // namespace

Status DeviceBlock::make(Device& device, const char* what, int64_t bytes, std::unique_ptr<DeviceBlock>& block) {
  if (allocationMustFail()) return {Code::memory, "cuda", what, "out of memory", 0, bytes};
  void* data = nullptr;
  TL_TRY(device.plugin().allocate(what, size_t(bytes), DeviceMemory::device, &data));
  device.held_.fetch_add(bytes, std::memory_order_relaxed);
  block.reset(new DeviceBlock(device, static_cast<std::byte*>(data), bytes));
  return {};
}

DeviceBlock::~DeviceBlock() {
  device_.plugin().release(data_);
  device_.held_.fetch_sub(bytes_, std::memory_order_relaxed);
}

std::atomic<Device*> Device::opened_{nullptr};

Device* Device::cuda(std::string& why) {
  static std::string reason;
  static Device* opened = []() -> Device* {
    int64_t limit;
    if (!byteLimit(limit)) {
      reason = "TOKENLOOM_DEVICE_MEMORY is no positive number of bytes";
      return nullptr;
    }
    const DevicePluginEntry entry = libraryEntry(reason);
    if (!entry) return nullptr;
    const DevicePlugin* plugin = entry(kPluginVersion, opsFingerprint());
    if (!plugin) {
      reason = "its library was built from other sources than this addon";
      return nullptr;
    }
    auto* device = new Device();  // never destroyed, like the thread pool
    device->plugin_ = plugin;
    const char* problem = plugin->open(device->info_, limit);
    Lane* lane = nullptr;
    if (!problem && device->takeLane(nullptr, lane)) problem = "no stream could be made";
    if (!problem) {
      device->giveLane(*lane);
      opened_.store(device, std::memory_order_release);
      return device;
    }
    reason = problem;
    delete device;
    return nullptr;
  }();
  why = opened ? "" : reason;
  return opened;
}

void* Device::allocatePage(size_t bytes) {
  std::string why;
  Device* device = cuda(why);
  void* data = nullptr;
  if (!device || allocationMustFail() || device->plugin().allocate("pages", bytes, DeviceMemory::managed, &data)) return nullptr;
  device->held_.fetch_add(int64_t(bytes), std::memory_order_relaxed);
  countBytes(Owner::cache, int64_t(bytes));
  return data;
}

void Device::releasePage(void* data, size_t bytes) {
  std::string why;
  Device* device = cuda(why);
  device->plugin().release(data);
  device->held_.fetch_sub(int64_t(bytes), std::memory_order_relaxed);
  countBytes(Owner::cache, -int64_t(bytes));
}

int Device::streams() {
  const std::lock_guard<std::mutex> lock(laneMutex_);
  return int(lanes_.size());
}

void Device::trim() {
  {
    const std::lock_guard<std::mutex> lock(laneMutex_);
    for (const auto& lane : lanes_)
      if (!lane->busy) lane->arena.reset();
  }
  plugin_->trim();
}

// The stream that served this cache last, else one that is free, else a new one.
Status Device::takeLane(const void* user, Lane*& lane) {
  std::unique_lock<std::mutex> lock(laneMutex_);
  for (;;) {
    const auto preference = [&](const Lane& one) { return one.busy ? 0 : one.user == user ? 3 : !one.user ? 2 : 1; };
    lane = nullptr;
    for (const auto& one : lanes_)
      if (preference(*one) > (lane ? preference(*lane) : 0)) lane = one.get();
    const bool another = user && lane && preference(*lane) == 1;  // rather than take a session's
    if ((!lane || another) && lanes_.size() < kMostLanes) {
      auto made = std::make_unique<Lane>();
      made->context = plugin_->createContext();
      if (made->context) {
        lanes_.push_back(std::move(made));
        lane = lanes_.back().get();
      } else if (lanes_.empty()) {
        return {Code::memory, "cuda", "stream", "no stream could be made"};
      }
    }
    if (lane) break;
    laneFree_.wait(lock);
  }
  lane->busy = true;
  if (user) lane->user = user;
  return {};
}

void Device::giveLane(Lane& lane) {
  {
    const std::lock_guard<std::mutex> lock(laneMutex_);
    lane.busy = false;
  }
  laneFree_.notify_one();
}

class Device::LaneHold {
 public:
  LaneHold(Device& device, Lane& lane) : device_(device), lane_(lane) {}
  ~LaneHold() { device_.giveLane(lane_); }
  LaneHold(const LaneHold&) = delete;
  LaneHold& operator=(const LaneHold&) = delete;

 private:
  Device& device_;
  Lane& lane_;
};

Status Device::copyIn(Lane& lane, void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return {};
  in_.fetch_add(bytes, std::memory_order_relaxed);
  return plugin_->copyIn(*lane.context, to, from, size_t(bytes));
}

Status Device::copyOut(Lane& lane, void* to, const void* from, int64_t bytes) {
  out_.fetch_add(bytes, std::memory_order_relaxed);
  return plugin_->copyOut(*lane.context, to, from, size_t(bytes));
}

Status Device::makeResident(Lane& lane, const Operand& operand, Resident& resident) {
  const bool packed = operand.dtype == DType::packed;
  const auto* weight = static_cast<const PackedWeight*>(operand.data);
  const int64_t bytes = packed ? int64_t(weight->buffer.bytes()) : operand.bytes;
  std::unique_ptr<DeviceBlock> block;
  TL_TRY(DeviceBlock::make(*this, "weights", bytes, block));
  TL_TRY(copyIn(lane, block->data(), packed ? weight->buffer.as() : operand.data, bytes));
  if (packed)
    resident.weight = {weight->rows, weight->columns, weight->groupBytes, weight->format, weight->blockSize, weight->groupRows, weight->hasMinimum, weight->wideScale,
                       byteBias(weight->isa), block->data()};
  resident.block = std::move(block);
  return {};
}

// Copies what is not there yet and waits for it: another stream may use it next.
Status Device::makeResidents(Lane& lane, const Run& run) {
  const std::lock_guard<std::mutex> lock(residentMutex_);
  std::vector<Resident*> fresh;
  Status status;
  plugin_->begin(*lane.context, 0);
  const auto make = [&](const Operand& operand, Resident* resident) {
    if (status || !resident || resident->block) return;
    fresh.push_back(resident);
    status = makeResident(lane, operand, *resident);
  };
  for (size_t i = 0; i < run.residents.size(); ++i) make(run.program.constants()[i], run.residents[i]);
  for (size_t i = 0; i < run.boundResidents.size(); ++i) make(run.bindings[i], run.boundResidents[i]);
  if (fresh.empty()) return {};
  const Status finished = plugin_->finish(*lane.context, true);
  if (finished)
    for (Resident* resident : fresh) resident->block.reset();
  return status ? status : finished;
}

Status Device::ensureArena(Lane& lane, int64_t bytes) {
  if (lane.arena && lane.arena->bytes() >= bytes) return {};
  lane.arena.reset();  // free before asking: the peak is the larger of the two, not their sum
  const Status status = DeviceBlock::make(*this, "arena", bytes, lane.arena);
  if (!status) return {};
  trim();  // what idle streams keep
  return DeviceBlock::make(*this, "arena", bytes, lane.arena);
}

Status Device::bind(Lane& lane, const Run& run, DeviceCache* cache, std::vector<Operand>& bindings, std::vector<std::unique_ptr<DeviceBlock>>& blocks) {
  for (size_t i = 0; i < run.bindings.size(); ++i) {
    Operand operand = run.bindings[i];
    if (operand.dtype == DType::cache) {
      operand.data = cache;
    } else if (Resident* resident = run.boundResidents[i]) {
      operand.data = resident->data(operand.dtype);
    } else if (operand.dtype != DType::none && !run.there[i]) {
      TL_TRY(DeviceBlock::make(*this, "bindings", operand.bytes, blocks[i]));
      TL_TRY(copyIn(lane, blocks[i]->data(), operand.data, operand.bytes));
      operand.data = blocks[i]->data();
    }
    bindings.push_back(operand);
  }
  return {};
}

Status Device::execute(Lane& lane, const Run& run, std::vector<std::unique_ptr<DeviceBlock>>& blocks) {
  std::vector<Operand> constants = run.program.constants(), bindings;
  for (size_t i = 0; i < constants.size(); ++i) constants[i].data = run.residents[i]->data(constants[i].dtype);
  const std::unique_ptr<CacheViews> views = run.step ? std::make_unique<CacheViews>(*run.step) : nullptr;
  TL_TRY(bind(lane, run, views ? &views->cache : nullptr, bindings, blocks));
  TL_TRY(ensureArena(lane, run.program.arenaBytes()));
  TL_TRY(run.program.runOn({plugin_->kernels, lane.context, constants.data(), run.symbols, bindings.data(), run.scalars, lane.arena->data(), run.cancel}));
  for (size_t i = 0; i < bindings.size(); ++i) {
    if (!blocks[i] || !run.program.writes(int32_t(i))) continue;
    TL_TRY(copyOut(lane, run.bindings[i].data, blocks[i]->data(), run.bindings[i].bytes));
  }
  return {};
}

Status Device::copy(DeviceBlock& block, void* host, int64_t bytes, bool toDevice) {
  Lane* lane = nullptr;
  TL_TRY(takeLane(nullptr, lane));
  const LaneHold hold(*this, *lane);
  plugin_->begin(*lane->context, 0);
  const Status status = toDevice ? copyIn(*lane, block.data(), host, bytes) : copyOut(*lane, host, block.data(), bytes);
  const Status finished = plugin_->finish(*lane->context, !status);
  return status ? status : finished;
}

Status Device::run(const Run& run) {
  Lane* lane = nullptr;
  TL_TRY(takeLane(run.step ? run.step->cache : nullptr, lane));
  const LaneHold hold(*this, *lane);
  TL_TRY(makeResidents(*lane, run));
  std::vector<std::unique_ptr<DeviceBlock>> blocks(run.bindings.size());
  plugin_->begin(*lane->context, reinterpret_cast<uintptr_t>(&run.program));
  Status status;
  try {
    status = execute(*lane, run, blocks);
  } catch (const std::bad_alloc&) {
    status = {Code::memory, "cuda", "run", "out of memory"};
  }
  const Status finished = plugin_->finish(*lane->context, !status);  // also after an error: blocks must not go while in use
  // The last one first, so that the next run of this program finds the same ones and its graph fits as it is.
  while (!blocks.empty()) blocks.pop_back();
  return status ? status : finished;
}

}  // namespace tl
