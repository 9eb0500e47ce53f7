// What a device's library (cuda/) and the addon agree on: one C table of functions, found by one name. The library is built
// and shipped by itself; kPluginVersion and opsFingerprint() refuse one of another build.
#pragma once
#include <cstdint>

#include "../cache/kv.h"
#include "../core/status.h"
#include "../kernels/args.h"
#include "../kernels/packed_weight.h"
#include "../kernels/table.h"

namespace tl {

constexpr uint32_t kPluginVersion = 3;  // one more whenever what is below changes, or a layout that both sides know: pages (kv.h), packed weights

constexpr uint64_t opsFingerprint() {  // FNV-1a over names, operands and parameters of every op
  uint64_t hash = 0xcbf29ce484222325;
  for (const OpInfo& op : kOps)
    for (const char* text : {op.name, op.inputs, op.outputs, op.parameters})
      for (const char* c = text;; ++c) {
        hash = (hash ^ uint8_t(*c)) * 0x100000001b3;
        if (!*c) break;
      }
  return hash;
}

// View::data of dtype packed: a weight as cpp/kernels packed it, its bytes on the device.
struct DeviceWeight {
  int64_t rows, columns, groupBytes;
  PackFormat format;
  int32_t blockSize, groupRows;
  bool hasMinimum, wideScale;
  uint8_t byteBias;  // int8 bytes are kept as w ^ byteBias
  const std::byte* data;
};

// View::data of dtype cache: a cache whose pages the device can reach. Arrays are the host's, [layers · kvHeads].
struct DeviceCache {
  KvShape shape;
  bool mixed;
  int64_t newTokens;
  KvPage* const* const* pages;
  const int64_t* lengths;
  const int64_t* capacities;
  float* const* scores;  // null where not observing
};

enum class DeviceMemory : int32_t { device = 0, managed, pinned };

struct DeviceInfo {
  char name[128];        // "NVIDIA H100 80GB HBM3", or what stands in for one
  int32_t major, minor;  // compute capability
  int64_t memoryBytes;
};

// One stream, its scratch and its graphs. All calls with one context come from one thread at a time, those with several at once.
struct DeviceContext;
using DeviceKernel = Status (*)(const void* args, DeviceContext& context);

struct DeviceStatistics {
  int64_t bytesTaken;   // from the driver, device and managed memory, held by somebody or not
  int64_t byteLimit;    // of these, 0 = none
  int64_t graphsMade, graphLaunches, graphChanges;
};

struct DevicePlugin {
  uint32_t version;
  uint64_t fingerprint;
  const DeviceKernel* kernels;  // [Op::count], null where there is no twin yet
  // Null, or why no device can be used, in words. Most bytes of its memory to take, 0 = what it has.
  const char* (*open)(DeviceInfo& info, int64_t byteLimit);
  DeviceContext* (*createContext)();  // null where memory is short
  void (*destroyContext)(DeviceContext* context);
  // Blocks come from a pool and go back to it, see cuda/core/memory.cuh; trim() gives what nobody holds to the driver.
  Status (*allocate)(const char* what, size_t bytes, DeviceMemory kind, void** data);
  void (*release)(void* data);
  void (*trim)();
  void (*statistics)(DeviceStatistics& statistics);
  // A run: begin, copies and kernels, finish. Runs with one number (not 0) that do the same become one graph launch. Host memory may
  // change as soon as copyIn returns; copyOut has written when finish returns, which waits for this stream alone. Where
  // the run is not `good`, what is not under way yet is forgotten.
  void (*begin)(DeviceContext& context, uint64_t program);
  Status (*copyIn)(DeviceContext& context, void* to, const void* from, size_t bytes);
  Status (*copyOut)(DeviceContext& context, void* to, const void* from, size_t bytes);
  Status (*finish)(DeviceContext& context, bool good);
};

using DevicePluginEntry = const DevicePlugin* (*)(uint32_t version, uint64_t fingerprint);
inline constexpr const char* kDevicePluginEntry = "tokenloom_device_plugin";

}  // namespace tl
