// createPool, createCache, forkCache, truncateCache, cacheStatistics.
#include "arguments.h"
#include "exports.h"

namespace tl::binding {
namespace {

// A cache that no run is using: calls from JavaScript and runs exclude each other.
std::shared_ptr<Cache> idleCache(Arguments& arguments, Napi::Value value, bool& busy) {
  auto cache = arguments.object<Cache>(value, "cache");
  busy = cache && cache->busy.load();
  return cache;
}

}  // namespace

Napi::Value createPool(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), "createPool", [&]() -> Napi::Value {
    Arguments arguments(info, "createPool");
    KvShape shape;
    shape.layers = int32_t(arguments.integer(0, "layers", 1, 1 << 16));
    shape.kvHeads = int32_t(arguments.integer(1, "kvHeads", 1, 1 << 16));
    shape.headDim = int32_t(arguments.integer(2, "headDim", 1, 1 << 16));
    shape.element = DType(arguments.integer(3, "element", int(DType::f32), int(DType::bf16)));
    const int64_t limit = arguments.integer(4, "byteLimit", 0, int64_t(1) << 53);
    if (!arguments.ok()) return arguments.fail();
    auto pool = std::make_shared<Pool>();
    if (const Status status = KvPool::create(shape, limit, pool->pool)) return raise(info.Env(), status);
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
  return guarded(info.Env(), "forkCache", [&]() -> Napi::Value {
    Arguments arguments(info, "forkCache");
    bool busy;
    const auto cache = idleCache(arguments, info[0], busy);
    if (!arguments.ok()) return arguments.fail();
    if (busy) return raise(info.Env(), "busy", "forkCache", "This cache");
    auto copy = std::make_shared<Cache>();
    if (const Status status = cache->cache->fork(copy->cache)) return raise(info.Env(), status);
    return wrap(info.Env(), std::move(copy));
  });
}

Napi::Value truncateCache(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), "truncateCache", [&]() -> Napi::Value {
    Arguments arguments(info, "truncateCache");
    bool busy;
    const auto cache = idleCache(arguments, info[0], busy);
    const int64_t tokens = arguments.integer(1, "tokens", 0, int64_t(1) << 53);
    if (!arguments.ok()) return arguments.fail();
    if (busy) return raise(info.Env(), "busy", "truncateCache", "This cache");
    cache->cache->truncate(tokens);
    return info.Env().Undefined();
  });
}

Napi::Value cacheStatistics(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), "cacheStatistics", [&]() -> Napi::Value {
    Arguments arguments(info, "cacheStatistics");
    bool busy;
    const auto cache = idleCache(arguments, info[0], busy);
    if (!arguments.ok()) return arguments.fail();
    if (busy) return raise(info.Env(), "busy", "cacheStatistics", "This cache");
    const KvCache& held = *cache->cache;
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("tokens", double(held.length()));
    result.Set("bytesHeld", double(held.bytesHeld()));
    result.Set("bytesShared", double(held.bytesShared()));
    return result;
  });
}

}  // namespace tl::binding
