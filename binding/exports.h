// The native surface, typed in lib/native.ts.
#pragma once
#include <napi.h>

namespace tl::binding {

Napi::Value loadWeights(const Napi::CallbackInfo& info);
Napi::Value loadVectors(const Napi::CallbackInfo& info);
Napi::Value packWeight(const Napi::CallbackInfo& info);
Napi::Value announceMemory(const Napi::CallbackInfo& info);
Napi::Value createConstant(const Napi::CallbackInfo& info);
Napi::Value createProgram(const Napi::CallbackInfo& info);
Napi::Value createPool(const Napi::CallbackInfo& info);
Napi::Value createCache(const Napi::CallbackInfo& info);
Napi::Value forkCache(const Napi::CallbackInfo& info);
Napi::Value truncateCache(const Napi::CallbackInfo& info);
Napi::Value dropCache(const Napi::CallbackInfo& info);
Napi::Value createDeviceTensor(const Napi::CallbackInfo& info);
Napi::Value copyDeviceTensor(const Napi::CallbackInfo& info);
Napi::Value cacheLengths(const Napi::CallbackInfo& info);
Napi::Value cacheStatistics(const Napi::CallbackInfo& info);
Napi::Value observeCache(const Napi::CallbackInfo& info);
Napi::Value readCache(const Napi::CallbackInfo& info);
Napi::Value cachePages(const Napi::CallbackInfo& info);
Napi::Value requantizeCache(const Napi::CallbackInfo& info);
Napi::Value cacheLayerBytes(const Napi::CallbackInfo& info);
Napi::Value saveCacheLayer(const Napi::CallbackInfo& info);
Napi::Value loadCacheLayer(const Napi::CallbackInfo& info);
Napi::Value run(const Napi::CallbackInfo& info);

}  // namespace tl::binding
