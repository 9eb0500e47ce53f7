#include "device.h"

#include <dlfcn.h>

#include <cstdlib>

namespace tl {
namespace {

std::string libraryPath() {
  if (const char* given = std::getenv("TOKENLOOM_CUDA_LIBRARY"); given && *given) return given;
  Dl_info self;
  if (!dladdr(reinterpret_cast<const void*>(&libraryPath), &self) || !self.dli_fname) return "tokenloom_cuda.so";
  const std::string path = self.dli_fname;
  const size_t slash = path.rfind('/');
  return (slash == std::string::npos ? std::string() : path.substr(0, slash + 1)) + "tokenloom_cuda.so";
}

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

DeviceBlock::DeviceBlock(Device& device, size_t bytes, DeviceMemory kind)
    : device_(device), data_(static_cast<std::byte*>(device.plugin().allocate(bytes, kind))), bytes_(data_ ? bytes : 0), kind_(kind) {
  device_.held_.fetch_add(int64_t(bytes_), std::memory_order_relaxed);
}

DeviceBlock::~DeviceBlock() {
  if (data_) device_.plugin().release(data_, kind_);
  device_.held_.fetch_sub(int64_t(bytes_), std::memory_order_relaxed);
}

Device* Device::cuda(std::string& why) {
  static std::string reason;
  static Device* opened = []() -> Device* {
    const std::string path = libraryPath();
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      reason = std::string("its library was not loaded: ") + dlerror();
      return nullptr;
    }
    const auto entry = reinterpret_cast<DevicePluginEntry>(dlsym(library, kDevicePluginEntry));
    const DevicePlugin* plugin = entry ? entry(kPluginVersion, opsFingerprint()) : nullptr;
    if (!plugin) {
      reason = path + (entry ? " was built from other sources than this addon" : " is no library of tokenloom");
      return nullptr;
    }
    auto* device = new Device();  // never destroyed, like the thread pool
    device->plugin_ = plugin;
    if (const char* problem = plugin->open(device->info_)) reason = problem;
    else if (!(device->context_ = plugin->createContext())) reason = "no stream could be made";
    if (device->context_) return device;
    delete device;
    return nullptr;
  }();
  why = opened ? "" : reason;
  return opened;
}

void* Device::allocatePage(size_t bytes) {
  std::string why;
  Device* device = cuda(why);
  void* data = device ? device->plugin().allocate(bytes, DeviceMemory::managed) : nullptr;
  if (data) device->held_.fetch_add(int64_t(bytes), std::memory_order_relaxed);
  return data;
}

void Device::releasePage(void* data, size_t bytes) {
  std::string why;
  Device* device = cuda(why);
  device->plugin().release(data, DeviceMemory::managed);
  device->held_.fetch_sub(int64_t(bytes), std::memory_order_relaxed);
}

Status Device::copyIn(void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return {};
  in_.fetch_add(bytes, std::memory_order_relaxed);
  return plugin_->copyIn(*context_, to, from, size_t(bytes));
}

Status Device::makeResident(const Operand& operand, Resident& resident) {
  if (resident.block) return {};
  const bool packed = operand.dtype == DType::packed;
  const auto* weight = static_cast<const PackedWeight*>(operand.data);
  const int64_t bytes = packed ? int64_t(weight->buffer.bytes()) : operand.bytes;
  auto block = std::make_unique<DeviceBlock>(*this, size_t(bytes), DeviceMemory::device);
  if (!block->data()) return {Code::memory, "cuda", "weights", "out of device memory", bytes, 0};
  TL_TRY(copyIn(block->data(), packed ? weight->buffer.as() : operand.data, bytes));
  if (packed)
    resident.weight = {weight->rows, weight->columns, weight->groupBytes, weight->format, weight->blockSize, weight->groupRows, weight->hasMinimum, weight->wideScale,
                       byteBias(weight->isa), block->data()};
  resident.block = std::move(block);
  return {};
}

Status Device::place(const Operand& operand, Resident* resident, DeviceCache* cache, Operand& placed) {
  placed = operand;
  if (operand.dtype == DType::cache) {
    placed.data = cache;
  } else if (resident) {
    TL_TRY(makeResident(operand, *resident));
    placed.data = operand.dtype == DType::packed ? static_cast<void*>(&resident->weight) : resident->block->data();
  }
  return {};
}

Status Device::run(const Run& run) {
  std::vector<Operand> constants(run.residents.size()), bindings(run.bindings.size());
  std::unique_ptr<CacheViews> views = run.step ? std::make_unique<CacheViews>(*run.step) : nullptr;
  for (size_t i = 0; i < constants.size(); ++i) TL_TRY(place(run.program.constants()[i], run.residents[i], nullptr, constants[i]));
  std::vector<std::unique_ptr<DeviceBlock>> blocks(bindings.size());
  for (size_t i = 0; i < bindings.size(); ++i) {
    const Operand& operand = run.bindings[i];
    TL_TRY(place(operand, run.boundResidents[i], views ? &views->cache : nullptr, bindings[i]));
    if (operand.dtype == DType::none || operand.dtype == DType::cache || run.boundResidents[i]) continue;
    blocks[i] = std::make_unique<DeviceBlock>(*this, size_t(operand.bytes), DeviceMemory::device);
    if (!blocks[i]->data()) return {Code::memory, "cuda", "bindings", "out of device memory", operand.bytes, 0};
    TL_TRY(copyIn(blocks[i]->data(), operand.data, operand.bytes));
    bindings[i].data = blocks[i]->data();
  }
  const int64_t arenaBytes = run.program.arenaBytes();
  if (!arena_ || int64_t(arena_->bytes()) < arenaBytes) {
    arena_.reset();
    arena_ = std::make_unique<DeviceBlock>(*this, size_t(arenaBytes), DeviceMemory::device);
    if (!arena_->data()) {
      arena_.reset();
      return {Code::memory, "cuda", "arena", "out of device memory", arenaBytes, 0};
    }
  }
  Status status = run.program.runOn({plugin_->kernels, context_, constants.data(), run.symbols, bindings.data(), run.scalars, arena_->data(), run.cancel});
  for (size_t i = 0; i < bindings.size() && !status; ++i) {
    if (!blocks[i] || !run.program.writes(int32_t(i))) continue;
    out_.fetch_add(run.bindings[i].bytes, std::memory_order_relaxed);
    status = plugin_->copyOut(*context_, run.bindings[i].data, blocks[i]->data(), size_t(run.bindings[i].bytes));
  }
  const Status finished = plugin_->synchronize(*context_);  // also after an error: blocks must not go while in use
  return status ? status : finished;
}

}  // namespace tl
