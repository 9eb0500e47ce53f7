// The library's one table: every twin by its op's number, and the calls that the addon makes.
#include <algorithm>
#include <cstring>

#include "core/device.cuh"
#include "core/memory.cuh"

namespace tl::cuda {

// Declared by twins.def; a listed twin that no file defines is a link error.
template <Op> struct ArgsOf;
#define TL_OP(name, Args, inputs, outputs, parameters) \
  template <> struct ArgsOf<Op::name> { using Type = Args; };
#include "../cpp/kernels/ops.def"
#undef TL_OP

#define TL_TWIN(name) Status name(const ArgsOf<Op::name>::Type& args, DeviceContext& context);
#define TL_NO_TWIN(name, reason)
#include "twins.def"
#undef TL_TWIN
#undef TL_NO_TWIN

namespace {

constexpr int timesListed(Op op) {
  int count = 0;
#define TL_TWIN(name) count += op == Op::name;
#define TL_NO_TWIN(name, reason) count += op == Op::name;
#include "twins.def"
#undef TL_TWIN
#undef TL_NO_TWIN
  return count;
}
#define TL_OP(name, Args, inputs, outputs, parameters) static_assert(timesListed(Op::name) == 1, #name " is not once in twins.def");
#include "../cpp/kernels/ops.def"
#undef TL_OP

struct Kernels {
  DeviceKernel by[size_t(Op::count)] = {};
};

const Kernels& kernels() {
  static const Kernels made = [] {
    Kernels table;
#define TL_TWIN(name)                                                                                     \
  table.by[size_t(Op::name)] = [](const void* args, DeviceContext& context) -> Status {                   \
    context.beginOp();                                                                                    \
    return name(*static_cast<const ArgsOf<Op::name>::Type*>(args), context);                              \
  };
#define TL_NO_TWIN(name, reason)
#include "twins.def"
#undef TL_TWIN
#undef TL_NO_TWIN
    return table;
  }();
  return made;
}

#if defined(__CUDACC__)
const char* open(DeviceInfo& info, int64_t byteLimit) {
  MemoryPool::shared().setLimit(byteLimit);
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    (void)cudaGetLastError();
    return cudaGetErrorString(error);
  }
  if (count == 0) return "there is no CUDA device";
  cudaDeviceProp properties;
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, 0); error != cudaSuccess) return cudaGetErrorString(error);
  std::memcpy(info.name, properties.name, std::min(std::strlen(properties.name), sizeof info.name - 1));
  info.major = properties.major;
  info.minor = properties.minor;
  info.memoryBytes = int64_t(properties.totalGlobalMem);
  if (properties.major < 8) return "the GPU is older than compute capability 8.0";
  if (!properties.concurrentManagedAccess) return "its driver does not let host and device use managed memory at the same time";
  return nullptr;
}
#else
const char* open(DeviceInfo& info, int64_t byteLimit) {
  MemoryPool::shared().setLimit(byteLimit);
  std::strncpy(info.name, "host emulation, no GPU: for tests", sizeof info.name - 1);
  info.major = 8;
  info.minor = 0;
  info.memoryBytes = 0;
  return nullptr;
}
#endif

Status allocate(const char* what, size_t bytes, DeviceMemory kind, void** data) { return MemoryPool::shared().allocate(what, bytes, kind, data); }
void release(void* data) { MemoryPool::shared().release(data); }
void trim() { MemoryPool::shared().trim(); }
void statistics(DeviceStatistics& s) {
  const GraphCounts graphs = graphCounts();
  s = {MemoryPool::shared().bytesTaken(), MemoryPool::shared().limit(), graphs.made, graphs.launched, graphs.changed};
}

}  // namespace
}  // namespace tl::cuda

extern "C" __attribute__((visibility("default"))) const tl::DevicePlugin* tokenloom_device_plugin(uint32_t version, uint64_t fingerprint) {
  using namespace tl;
  static const DevicePlugin plugin = {kPluginVersion, opsFingerprint(), cuda::kernels().by, cuda::open, cuda::createContext, cuda::destroyContext,
                                      cuda::allocate, cuda::release, cuda::trim, cuda::statistics, cuda::begin, cuda::copyIn, cuda::copyOut, cuda::finish};
  return version == kPluginVersion && fingerprint == opsFingerprint() ? &plugin : nullptr;
}
