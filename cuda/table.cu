// The library's one table: every twin by its op's number, and the calls that the addon makes.
#include <cstring>

#include "core/device.cuh"

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
const char* open(DeviceInfo& info) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    (void)cudaGetLastError();
    return cudaGetErrorString(error);
  }
  if (count == 0) return "there is no CUDA device";
  cudaDeviceProp properties;
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, 0); error != cudaSuccess) return cudaGetErrorString(error);
  std::strncpy(info.name, properties.name, sizeof info.name - 1);
  info.major = properties.major;
  info.minor = properties.minor;
  info.memoryBytes = int64_t(properties.totalGlobalMem);
  if (properties.major < 8) return "the GPU is older than compute capability 8.0";
  return nullptr;
}
#else
const char* open(DeviceInfo& info) {
  std::strncpy(info.name, "host emulation, no GPU: for tests", sizeof info.name - 1);
  info.major = 8;
  info.minor = 0;
  info.memoryBytes = 0;
  return nullptr;
}
#endif

}  // namespace
}  // namespace tl::cuda

extern "C" __attribute__((visibility("default"))) const tl::DevicePlugin* tokenloom_device_plugin(uint32_t version, uint64_t fingerprint) {
  using namespace tl;
  static const DevicePlugin plugin = {kPluginVersion, opsFingerprint(), cuda::kernels().by, cuda::open, cuda::createContext, cuda::destroyContext,
                                      cuda::allocate, cuda::release, cuda::copyIn, cuda::copyOut, cuda::synchronize};
  return version == kPluginVersion && fingerprint == opsFingerprint() ? &plugin : nullptr;
}
