// Exports, and the small calls about the process as a whole.
#include "arguments.h"
#include "exports.h"
#include "work.h"

namespace tl::binding {
namespace {

Napi::Array names(Napi::Env env, const char* list) {
  Napi::Array array = Napi::Array::New(env);
  std::string_view rest(list);
  for (uint32_t i = 0; !rest.empty(); ++i) {
    const size_t comma = rest.find(',');
    array.Set(i, std::string(rest.substr(0, comma)));
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
  }
  return array;
}

Napi::Value info(const Napi::CallbackInfo& call) {
  const Napi::Env env = call.Env();
  Napi::Object result = Napi::Object::New(env);
  result.Set("isa", isaName(activeTable().isa));
  Napi::Array available = Napi::Array::New(env);
  for (int i = 0; i < int(Isa::count); ++i)
    if (kernelTable(Isa(i))) available.Set(available.Length(), isaName(Isa(i)));
  result.Set("available", available);
  result.Set("requestedIsaIsValid", requestedIsaIsValid());
  result.Set("cores", usableCores());
  result.Set("scratchBytes", double(kScratchBytes));
  return result;
}

Napi::Value ops(const Napi::CallbackInfo& call) {
  const Napi::Env env = call.Env();
  Napi::Array list = Napi::Array::New(env);
  for (const OpInfo& op : kOps) {
    Napi::Object entry = Napi::Object::New(env);
    entry.Set("name", op.name);
    entry.Set("inputs", names(env, op.inputs));
    entry.Set("outputs", names(env, op.outputs));
    entry.Set("parameters", names(env, op.parameters));
    list.Set(list.Length(), entry);
  }
  return list;
}

Napi::Value cudaDevice(const Napi::CallbackInfo& call) {
  Napi::Object result = Napi::Object::New(call.Env());
  std::string why;
  Device* device = Device::cuda(why);
  result.Set("available", device != nullptr);
  if (!device) {
    result.Set("reason", why);
    return result;
  }
  const DeviceInfo& info = device->info();
  result.Set("name", info.name);
  result.Set("computeCapability", std::to_string(info.major) + "." + std::to_string(info.minor));
  result.Set("memoryBytes", double(info.memoryBytes));
  result.Set("bytesHeld", double(device->bytesHeld()));
  result.Set("bytesIn", double(device->bytesIn()));
  result.Set("bytesOut", double(device->bytesOut()));
  DeviceStatistics statistics{};
  device->plugin().statistics(statistics);
  result.Set("bytesTaken", double(statistics.bytesTaken));
  result.Set("byteLimit", double(statistics.byteLimit));
  result.Set("streams", device->streams());
  Napi::Object graphs = Napi::Object::New(call.Env());
  graphs.Set("made", double(statistics.graphsMade));
  graphs.Set("launches", double(statistics.graphLaunches));
  graphs.Set("changes", double(statistics.graphChanges));
  result.Set("graphs", graphs);
  Napi::Array list = Napi::Array::New(call.Env());
  for (int op = 0; op < int(Op::count); ++op)
    if (device->has(Op(op))) list.Set(list.Length(), kOps[op].name);
  result.Set("ops", list);
  return result;
}

Napi::Value memory(const Napi::CallbackInfo& call) {
  Napi::Object result = Napi::Object::New(call.Env());
  const std::pair<const char*, Owner> owners[] = {
      {"tensor", Owner::tensor}, {"arena", Owner::arena}, {"weight", Owner::weight}, {"cache", Owner::cache}, {"scratch", Owner::scratch}};
  for (const auto& [name, owner] : owners) result.Set(name, double(bytesHeld(owner)));
  result.Set("handles", double(Handle::live().load()));
  return result;
}

// Only between runs: a run that has begun keeps its turn, so this waits for at most that one.
Napi::Value trim(const Napi::CallbackInfo& call) {
  ThreadPool::Turn turn(ThreadPool::shared(), 1);
  SharedArena::trim();
  if (Device* device = Device::opened()) device->trim();
  return call.Env().Undefined();
}

Napi::Value release(const Napi::CallbackInfo& call) {
  if (Handle* handle = handleOf(call[0])) releaseHandle(call.Env(), *handle);
  return call.Env().Undefined();
}

Napi::Value failNthAllocation(const Napi::CallbackInfo& call) {
  Arguments arguments(call, "failAllocation");
  const int64_t n = arguments.integer(0, "n", 0, int64_t(1) << 40);
  if (!arguments.ok()) return arguments.fail();
  failAllocation(n, call[1].ToBoolean());
  return Napi::Number::New(call.Env(), double(allocationsSoFar()));
}

#if defined(TL_FAULTS)
// throwAt(place, 1 std::exception | 2 std::bad_alloc | 3 int): the next such place throws.
Napi::Value throwAtPlace(const Napi::CallbackInfo& call) {
  throwAt(call[0].ToString().Utf8Value().c_str(), Thrown(call[1].ToNumber().Int32Value()));
  return call.Env().Undefined();
}
#endif

// The small calls above throw as little as the others.
template <Napi::Value (*function)(const Napi::CallbackInfo&)> Napi::Value safe(const Napi::CallbackInfo& call) {
  return guarded(call.Env(), "addon", [&] { return function(call); });
}

Napi::Object initialise(Napi::Env env, Napi::Object exports) {
  // One Environment a context: nothing in the addon is static but the thread pool, the arena and counters.
  auto* environment = new Environment();
  env.SetInstanceData<Environment>(environment);
  napi_add_env_cleanup_hook(env, [](void* data) { static_cast<Environment*>(data)->cancelAll(); }, environment);
  const std::pair<const char*, Napi::Value (*)(const Napi::CallbackInfo&)> functions[] = {
      {"info", safe<info>}, {"ops", safe<ops>}, {"memory", safe<memory>}, {"cudaDevice", safe<cudaDevice>}, {"trim", safe<trim>}, {"release", safe<release>}, {"failAllocation", safe<failNthAllocation>},
#if defined(TL_FAULTS)
      {"throwAt", throwAtPlace},
#endif
      {"loadWeights", loadWeights}, {"loadVectors", loadVectors}, {"packWeight", packWeight}, {"announceMemory", announceMemory}, {"createConstant", createConstant}, {"createProgram", createProgram},
      {"createPool", createPool}, {"createCache", createCache}, {"forkCache", forkCache}, {"truncateCache", truncateCache},
      {"dropCache", dropCache}, {"observeCache", observeCache}, {"readCache", readCache}, {"cachePages", cachePages}, {"requantizeCache", requantizeCache}, {"cacheLayerBytes", cacheLayerBytes},
      {"saveCacheLayer", saveCacheLayer}, {"loadCacheLayer", loadCacheLayer},
      {"createDeviceTensor", createDeviceTensor}, {"copyDeviceTensor", copyDeviceTensor}, {"cacheLengths", cacheLengths}, {"cacheStatistics", cacheStatistics}, {"run", run}};
  for (const auto& [name, function] : functions) exports.Set(name, Napi::Function::New(env, function, name));
  return exports;
}

}  // namespace
}  // namespace tl::binding

static Napi::Object initialiseAddon(Napi::Env env, Napi::Object exports) { return tl::binding::initialise(env, exports); }
NODE_API_MODULE(tokenloom, initialiseAddon)
