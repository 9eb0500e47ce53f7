// MemoryPool: blocks of one size lie in one chunk of the driver's. Sizes go up in eighths of a power of two, so that at most an
// eighth of a block is not used.
#include "core/memory.cuh"

#include <algorithm>
#include <bit>
#include <memory>

#include "core/runtime.cuh"

namespace tl::cuda {
namespace {

constexpr size_t kLeastBlock = 256, kMostShared = size_t(256) << 10, kBlocksInChunk = 16;

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kExact = true;  // each block by itself, so that a row past its end is seen
#else
constexpr bool kExact = false;
#endif

size_t blockBytes(size_t bytes) {
  if (kExact) return std::max<size_t>(bytes, 1);
  if (bytes <= kLeastBlock) return kLeastBlock;
  const size_t step = std::bit_floor(bytes) / 8;
  return (bytes + step - 1) / step * step;
}

uint64_t classOf(size_t block, DeviceMemory kind) { return uint64_t(block) << 2 | uint64_t(kind); }

void* driverAllocate(size_t bytes, DeviceMemory kind) {
  void* data = nullptr;
  const cudaError_t error = kind == DeviceMemory::device ? cudaMalloc(&data, bytes) : kind == DeviceMemory::managed ? cudaMallocManaged(&data, bytes) : cudaMallocHost(&data, bytes);
  if (error == cudaSuccess) return data;
  (void)cudaGetLastError();
  return nullptr;
}

}  // namespace

MemoryPool& MemoryPool::shared() {
  static MemoryPool* made = new MemoryPool();
  return *made;
}

Status MemoryPool::allocate(const char* what, size_t bytes, DeviceMemory kind, void** out) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const size_t block = blockBytes(bytes);
  std::vector<void*>& free = free_[classOf(block, kind)];
  if (free.empty()) TL_TRY(grow(what, block, kind));
  *out = free.back();
  free.pop_back();
  ++owners_[*out]->live;
  return {};
}

Status MemoryPool::grow(const char* what, size_t block, DeviceMemory kind) {
  for (size_t blocks : {block > kMostShared || kExact ? size_t(1) : kBlocksInChunk, size_t(1)}) {
    const size_t bytes = blocks * block;
    if (!fits(bytes, kind)) trimLocked();
    void* base = fits(bytes, kind) ? driverAllocate(bytes, kind) : nullptr;
    if (!base && fits(bytes, kind)) {
      trimLocked();
      base = driverAllocate(bytes, kind);
    }
    if (!base) continue;
    chunks_.push_back(std::make_unique<Chunk>(Chunk{base, bytes, block, kind, 0}));
    if (kind != DeviceMemory::pinned) taken_ += int64_t(bytes);
    std::vector<void*>& free = free_[classOf(block, kind)];
    for (size_t i = blocks; i-- > 0;) {
      void* data = static_cast<std::byte*>(base) + i * block;
      owners_[data] = chunks_.back().get();
      free.push_back(data);
    }
    return {};
  }
  return {Code::memory, "cuda", what, limit_ && kind != DeviceMemory::pinned ? "the limit of TOKENLOOM_DEVICE_MEMORY is reached" : "the device has no more memory",
          limit_ ? std::max<int64_t>(0, limit_ - taken_) : 0, int64_t(block)};
}

void MemoryPool::release(void* data) {
  if (!data) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  Chunk& chunk = *owners_.at(data);
  --chunk.live;
  free_[classOf(chunk.block, chunk.kind)].push_back(data);
  if (kExact) trimLocked();
}

void MemoryPool::trim() {
  const std::lock_guard<std::mutex> lock(mutex_);
  trimLocked();
}

void MemoryPool::trimLocked() {
  std::erase_if(chunks_, [&](const std::unique_ptr<Chunk>& chunk) {
    if (chunk->live > 0) return false;
    const auto within = [&](void* data) { return data >= chunk->base && data < static_cast<std::byte*>(chunk->base) + chunk->bytes; };
    std::erase_if(free_[classOf(chunk->block, chunk->kind)], within);
    for (size_t at = 0; at < chunk->bytes; at += chunk->block) owners_.erase(static_cast<std::byte*>(chunk->base) + at);
    if (chunk->kind != DeviceMemory::pinned) taken_ -= int64_t(chunk->bytes);
    (void)(chunk->kind == DeviceMemory::pinned ? cudaFreeHost(chunk->base) : cudaFree(chunk->base));
    return true;
  });
}

int64_t MemoryPool::bytesTaken() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return taken_;
}

}  // namespace tl::cuda
