// Pools and caches: made, forked, cut, inspected; saved, restored and requantised off the event loop.
#include <functional>

#include "arguments.h"
#include "exports.h"
#include "work.h"

namespace tl::binding {
namespace {

// Calls body(arguments, cache) on a cache that no run is using: calls from JavaScript and runs exclude each other.
template <typename Body> Napi::Value onIdleCache(const Napi::CallbackInfo& info, const char* name, Body body) {
  return guarded(info.Env(), name, [&]() -> Napi::Value {
    Arguments arguments(info, name);
    const auto cache = arguments.object<Cache>(info[0], "cache");
    if (!arguments.ok()) return arguments.fail();
    if (cache->busy.load()) return raise(info.Env(), "busy", name, "This cache");
    return body(arguments, *cache->cache);
  });
}

// Work on a cache that excludes runs.
class CacheWork : public Work {
 public:
  std::shared_ptr<Cache> cache;
  std::function<Status(KvCache&)> body;

 protected:
  Status execute() override { return body(*cache->cache); }
  void finished() override { cache->busy.store(false); }
};

Napi::Value startOn(const Napi::CallbackInfo& info, std::shared_ptr<Cache> cache, const char* name, std::function<Status(KvCache&)> body, Napi::Value kept) {
  auto work = std::make_unique<CacheWork>();
  work->cache = std::move(cache);
  work->body = std::move(body);
  if (!kept.IsEmpty()) work->keep(kept);
  // Last, since nothing gives it back where one of the others throws.
  if (work->cache->busy.exchange(true)) return raise(info.Env(), "busy", name, "This cache");
  return Work::start(info.Env(), std::move(work), name);
}

}  // namespace

Napi::Value createPool(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), "createPool", [&]() -> Napi::Value {
    Arguments arguments(info, "createPool");
    KvShape shape;
    shape.layers = int32_t(arguments.integer(0, "layers", 1, 1 << 16));
    shape.kvHeads = int32_t(arguments.integer(1, "kvHeads", 1, 1 << 16));
    shape.headDim = int32_t(arguments.integer(2, "headDim", 1, 1 << 16));
    shape.element = DType(arguments.integer(3, "element", int(DType::f32), int(DType::i4)));
    const int64_t limit = arguments.integer(4, "byteLimit", 0, int64_t(1) << 53);
    PageMemory memory;
    if (arguments.integer(5, "device", 0, 1) == 1 && arguments.cudaDevice()) memory = {Device::allocatePage, Device::releasePage, "cuda"};
    if (!arguments.ok()) return arguments.fail();
    auto pool = std::make_shared<Pool>();
    if (const Status status = KvPool::create(shape, limit, pool->pool, memory)) return raise(info.Env(), status);
    return wrap(info.Env(), std::move(pool));
  });
}

Napi::Value createCache(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), "createCache", [&]() -> Napi::Value {
    Arguments arguments(info, "createCache");
    const auto pool = arguments.object<Pool>(info[0], "pool");
    if (!arguments.ok()) return arguments.fail();
    auto cache = std::make_shared<Cache>();
    cache->cache = std::make_unique<KvCache>(pool->pool);
    return wrap(info.Env(), std::move(cache));
  });
}

Napi::Value forkCache(const Napi::CallbackInfo& info) {
  return onIdleCache(info, "forkCache", [&](Arguments& arguments, KvCache& cache) -> Napi::Value {
    const int64_t tokens = arguments.integer(1, "tokens", 0, int64_t(1) << 53);
    if (!arguments.ok()) return arguments.fail();
    auto copy = std::make_shared<Cache>();
    if (const Status status = cache.fork(copy->cache, tokens)) return raise(info.Env(), status);
    return wrap(info.Env(), std::move(copy));
  });
}

Napi::Value truncateCache(const Napi::CallbackInfo& info) {
  return onIdleCache(info, "truncateCache", [&](Arguments& arguments, KvCache& cache) -> Napi::Value {
    const int64_t tokens = arguments.integer(1, "tokens", 0, int64_t(1) << 53);
    if (!arguments.ok()) return arguments.fail();
    cache.truncate(tokens);
    return info.Env().Undefined();
  });
}

Napi::Value dropCache(const Napi::CallbackInfo& info) {
  return onIdleCache(info, "dropCache", [&](Arguments& arguments, KvCache& cache) -> Napi::Value {
    const int64_t tokens = arguments.integer(1, "tokens", 0, int64_t(1) << 53);
    if (!arguments.ok()) return arguments.fail();
    cache.dropLast(tokens);
    return info.Env().Undefined();
  });
}

static Napi::Value lengthsOf(Napi::Env env, const KvCache& cache) {
  const KvShape& shape = cache.shape();
  Napi::Int32Array lengths = Napi::Int32Array::New(env, size_t(shape.layers) * size_t(shape.kvHeads));
  for (size_t i = 0; i < lengths.ElementLength(); ++i) lengths[i] = int32_t(cache.length(int32_t(i) / shape.kvHeads, int32_t(i) % shape.kvHeads));
  return lengths;
}

Napi::Value cacheLengths(const Napi::CallbackInfo& info) {
  return onIdleCache(info, "cacheLengths", [&](Arguments&, KvCache& cache) { return lengthsOf(info.Env(), cache); });
}

Napi::Value cacheStatistics(const Napi::CallbackInfo& info) {
  return onIdleCache(info, "cacheStatistics", [&](Arguments&, KvCache& cache) -> Napi::Value {
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("tokens", double(cache.length()));
    result.Set("bytesHeld", double(cache.bytesHeld()));
    result.Set("bytesShared", double(cache.bytesShared()));
    result.Set("nextPosition", double(cache.nextPosition()));
    result.Set("lengths", lengthsOf(info.Env(), cache));
    return result;
  });
}

Napi::Value observeCache(const Napi::CallbackInfo& info) {
  return onIdleCache(info, "observeCache", [&](Arguments&, KvCache& cache) -> Napi::Value {
    if (const Status status = cache.observe()) return raise(info.Env(), status);
    return info.Env().Undefined();
  });
}

// readCache(cache, layer, head, keys | null, values | null, positions): what a head holds, as f32.
Napi::Value readCache(const Napi::CallbackInfo& info) {
  return onIdleCache(info, "readCache", [&](Arguments& arguments, KvCache& cache) -> Napi::Value {
    const KvShape& shape = cache.shape();
    const int32_t layer = int32_t(arguments.integer(1, "layer", 0, shape.layers - 1)), head = int32_t(arguments.integer(2, "head", 0, shape.kvHeads - 1));
    if (!arguments.ok()) return arguments.fail();
    const int64_t length = cache.length(layer, head), headDim = shape.headDim;
    const auto memory = [&](size_t index, const char* name, DType type, int64_t elements) -> void* {
      if (info[index].IsNull()) return nullptr;
      const Operand operand = arguments.memory(info[index], name);
      if (arguments.ok() && (operand.dtype != type || operand.bytes < elements * 4)) arguments.set(name, "is of another type or too short");
      return operand.data;
    };
    auto* keys = static_cast<float*>(memory(3, "keys", DType::f32, length * headDim));
    auto* values = static_cast<float*>(memory(4, "values", DType::f32, length * headDim));
    auto* positions = static_cast<int32_t*>(memory(5, "positions", DType::i32, length));
    if (!arguments.ok()) return arguments.fail();
    for (int64_t i = 0; i < length; ++i) {
      const KvPage& page = *cache.pages(layer, head)[i / kPageTokens];
      readToken(page, cache.layout(page.element), i % kPageTokens, keys ? keys + i * headDim : nullptr, values ? values + i * headDim : nullptr);
      if (positions) positions[i] = page.positions[i % kPageTokens];
    }
    return info.Env().Undefined();
  });
}

// cachePages(cache, layer, head): element type and references of each page, in turn.
Napi::Value cachePages(const Napi::CallbackInfo& info) {
  return onIdleCache(info, "cachePages", [&](Arguments& arguments, KvCache& cache) -> Napi::Value {
    const int32_t layer = int32_t(arguments.integer(1, "layer", 0, cache.shape().layers - 1)), head = int32_t(arguments.integer(2, "head", 0, cache.shape().kvHeads - 1));
    if (!arguments.ok()) return arguments.fail();
    const size_t count = size_t(cache.capacity(layer, head) / kPageTokens);
    Napi::Int32Array pages = Napi::Int32Array::New(info.Env(), 2 * count);
    for (size_t i = 0; i < count; ++i) {
      const KvPage& page = *cache.pages(layer, head)[i];
      pages[2 * i] = int32_t(page.element);
      pages[2 * i + 1] = page.references.load(std::memory_order_relaxed);
    }
    return pages;
  });
}

Napi::Value requantizeCache(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), "requantizeCache", [&]() -> Napi::Value {
    Arguments arguments(info, "requantizeCache");
    auto cache = arguments.object<Cache>(info[0], "cache");
    const int64_t recent = arguments.integer(1, "recent", 0, int64_t(1) << 53);
    const DType element = DType(arguments.integer(2, "element", int(DType::f32), int(DType::i4)));
    if (arguments.ok() && !isCacheElement(element)) arguments.set("element", "is not an element type of caches");
    if (!arguments.ok()) return arguments.fail();
    return startOn(info, std::move(cache), "requantizeCache", [=](KvCache& held) { return held.requantize(recent, element); }, Napi::Value());
  });
}

Napi::Value cacheLayerBytes(const Napi::CallbackInfo& info) {
  return onIdleCache(info, "cacheLayerBytes", [&](Arguments& arguments, KvCache& cache) -> Napi::Value {
    const int32_t layer = int32_t(arguments.integer(1, "layer", 0, cache.shape().layers - 1));
    if (!arguments.ok()) return arguments.fail();
    return Napi::Number::New(info.Env(), double(cache.layerBytes(layer)));
  });
}

// saveCacheLayer / loadCacheLayer(cache, layer, bytes: Uint8Array)
static Napi::Value moveLayer(const Napi::CallbackInfo& info, const char* name, bool save) {
  return guarded(info.Env(), name, [&]() -> Napi::Value {
    Arguments arguments(info, name);
    auto cache = arguments.object<Cache>(info[0], "cache");
    const Operand memory = arguments.memory(info[2], "bytes");
    if (!arguments.ok()) return arguments.fail();
    const int32_t layer = int32_t(arguments.integer(1, "layer", 0, cache->cache->shape().layers - 1));
    if (!arguments.ok()) return arguments.fail();
    auto* bytes = static_cast<std::byte*>(memory.data);
    return startOn(info, std::move(cache), name, [=, size = memory.bytes](KvCache& held) -> Status {
      if (!save) return held.loadLayer(layer, bytes, size);
      if (held.layerBytes(layer) > size) return argumentError("saveCacheLayer", "bytes", "is too short", size);
      held.saveLayer(layer, bytes);
      return {};
    }, info[2]);
  });
}

Napi::Value saveCacheLayer(const Napi::CallbackInfo& info) { return moveLayer(info, "saveCacheLayer", true); }
Napi::Value loadCacheLayer(const Napi::CallbackInfo& info) { return moveLayer(info, "loadCacheLayer", false); }

}  // namespace tl::binding
