// Native objects as JavaScript sees them: externals with a type tag, a kind and shared ownership. A run keeps what it uses
// alive, so releasing a handle during the run is safe; the bytes go when the last user is gone.
#pragma once
#include <napi.h>

#include <atomic>
#include <memory>

#include "../cpp/cache/kv.h"
#include "../cpp/exec/device.h"
#include "../cpp/exec/program.h"

namespace tl::binding {

enum class Kind : int32_t { weight = 1, constant, program, pool, cache, deviceTensor };

struct Weight {
  static constexpr Kind kind = Kind::weight;
  PackedWeight packed;
  Resident resident;
  int64_t bytes() const { return int64_t(packed.buffer.bytes()); }
};

struct Constant {
  static constexpr Kind kind = Kind::constant;
  DType dtype;
  Buffer buffer;
  Resident resident;
  int64_t bytes() const { return int64_t(buffer.bytes()); }
};

struct ProgramObject {
  static constexpr Kind kind = Kind::program;
  Program program;
  std::vector<std::shared_ptr<void>> constants;  // what its views point into
  std::vector<Resident*> residents;
  ProgramObject() { live().fetch_add(1); }
  ~ProgramObject() { live().fetch_sub(1); }
  static std::atomic<int64_t>& live() { static std::atomic<int64_t> count{0}; return count; }
  int64_t bytes() const { return program.bytes(); }
};

struct Pool {
  static constexpr Kind kind = Kind::pool;
  std::shared_ptr<KvPool> pool;
  int64_t bytes() const { return 0; }
};

struct Cache {
  static constexpr Kind kind = Kind::cache;
  std::unique_ptr<KvCache> cache;
  std::atomic<bool> busy{false};
  int64_t bytes() const { return 0; }
};

// Elements in a device's memory.
struct DeviceTensor {
  static constexpr Kind kind = Kind::deviceTensor;
  DType dtype;
  std::unique_ptr<DeviceBlock> block;
  int64_t bytes() const { return block->bytes(); }
};

struct Handle {
  Kind kind;
  std::shared_ptr<void> object;  // null after release
  int64_t bytes = 0;             // told to V8
  static std::atomic<int64_t>& live() { static std::atomic<int64_t> count{0}; return count; }
};

inline constexpr napi_type_tag kHandleTag = {0x746f6b656e6c6f6f, 0x6d68616e646c6531};

inline void releaseHandle(napi_env env, Handle& handle) {
  if (!handle.object) return;
  handle.object.reset();
  int64_t total;
  if (handle.bytes) napi_adjust_external_memory(env, -handle.bytes, &total);
  handle.bytes = 0;
  Handle::live().fetch_sub(1);
}

template <typename T> Napi::Value wrap(Napi::Env env, std::shared_ptr<T> object) {
  auto* handle = new Handle{T::kind, object, object->bytes()};
  napi_value external;
  const auto finalize = [](napi_env environment, void* data, void*) {
    auto* held = static_cast<Handle*>(data);
    releaseHandle(environment, *held);
    delete held;
  };
  if (napi_create_external(env, handle, finalize, nullptr, &external) != napi_ok) {
    delete handle;
    return Napi::Value();
  }
  Handle::live().fetch_add(1);
  napi_type_tag_object(env, external, &kHandleTag);
  int64_t total;
  if (handle->bytes) napi_adjust_external_memory(env, handle->bytes, &total);
  return Napi::Value(env, external);
}

inline Handle* handleOf(Napi::Value value) {
  bool tagged = false;
  void* data = nullptr;
  if (!value.IsExternal() || napi_check_object_type_tag(value.Env(), value, &kHandleTag, &tagged) != napi_ok || !tagged ||
      napi_get_value_external(value.Env(), value, &data) != napi_ok)
    return nullptr;
  return static_cast<Handle*>(data);
}

}  // namespace tl::binding
