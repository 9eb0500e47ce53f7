// run: one crossing a step.
#include "arguments.h"
#include "exports.h"
#include "work.h"

namespace tl::binding {
namespace {

class RunProgram : public Work {
 public:
  std::shared_ptr<ProgramObject> program;
  std::vector<int64_t> symbols;
  std::vector<Operand> bindings;
  std::vector<double> scalars;
  std::vector<std::shared_ptr<void>> held;
  std::shared_ptr<Cache> cache;
  KvStep step;
  int threads = 1;
  Device* device = nullptr;  // null: this processor
  std::vector<Resident*> residents;  // of the bindings
  std::vector<bool> there;           // bindings that lie on the device already
  using Work::cancel;

 protected:
  Status execute() override {
    if (cache) {
      TL_TRY(checkSizes());
      // All or nothing: the cache grows before the first op and counts the new tokens only after the last one.
      TL_TRY(cache->cache->reserve(step.newTokens));
    }
    Status status = device ? runOnDevice() : inTurn(&RunProgram::runHere);
    if (!cache) return status;
    if (!status) status = program->program.cache().kept >= 0 ? inTurn(&RunProgram::evict) : commit();
    if (status) cache->cache->trim();  // the pages that the step was given
    return status;
  }

 private:
  Status inTurn(Status (RunProgram::*work)(ThreadPool& pool)) {
    ThreadPool& pool = ThreadPool::shared();
    ThreadPool::Turn turn(pool, threads);
    if (!turn.ok()) return {Code::memory, "run", "threads", "out of memory for scratch"};
    return (this->*work)(pool);
  }

  Status runHere(ThreadPool& pool) {
    std::byte* arena = SharedArena::ensure(program->program.arenaBytes());
    if (!arena) return {Code::memory, "run", "arena", "out of memory for the arena", program->program.arenaBytes(), 0};
    return program->program.run({activeTable(), pool, symbols.data(), bindings.data(), scalars.data(), arena, cancel});
  }

  Status runOnDevice() {
    return device->run({program->program, bindings, program->residents, residents, there, cache ? &step : nullptr, symbols.data(), scalars.data(), cancel});
  }

  const Operand& bound(int32_t binding) const { return bindings[size_t(binding)]; }

  Status checkSizes() const {
    const CachePlan& plan = program->program.cache();
    const int64_t n = step.newTokens;
    const auto tooShort = [&](int32_t binding, int64_t elements) { return binding >= 0 && bound(binding).bytes < elements * int64_t(elementBytes(bound(binding).dtype)); };
    if (tooShort(plan.positions, n) || tooShort(plan.path, n) || tooShort(plan.count, 1)) return argumentError("run", "bindings", "positions or path are shorter than the step", n);
    const KvShape& shape = cache->cache->shape();
    if (plan.kept >= 0 && tooShort(plan.kept, int64_t(shape.layers) * shape.kvHeads * symbols[size_t(plan.keptStride)]))
      return argumentError("run", "bindings", "kept is shorter than the cache", bound(plan.kept).bytes);
    return {};
  }

  // JavaScript may write to its memory at any time: what is checked and used twice is copied.
  template <typename T> std::vector<T> copied(int32_t binding, int64_t count) const {
    const T* from = static_cast<const T*>(bound(binding).data);
    return std::vector<T>(from, from + count);
  }

  Status commit() {
    const CachePlan& plan = program->program.cache();
    try {
      const std::vector<int32_t> positions = plan.positions >= 0 ? copied<int32_t>(plan.positions, step.newTokens) : std::vector<int32_t>();
      if (plan.path < 0) return cache->cache->commit(step.newTokens, plan.positions >= 0 ? positions.data() : nullptr);
      const std::vector<int32_t> path = copied<int32_t>(plan.path, step.newTokens), count = copied<int32_t>(plan.count, 1);
      return cache->cache->commitRows(step.newTokens, path.data(), count[0], positions.data());
    } catch (const std::bad_alloc&) {
      return {Code::memory, "run", "positions", "out of memory"};
    }
  }

  Status evict(ThreadPool& pool) {
    const CachePlan& plan = program->program.cache();
    KvCache& held = *cache->cache;
    const int64_t heads = int64_t(held.shape().layers) * held.shape().kvHeads, stride = symbols[size_t(plan.keptStride)];
    try {
      const std::vector<uint8_t> kept = copied<uint8_t>(plan.kept, heads * stride);
      TL_TRY(held.prepareKeep(kept.data(), stride, plan.dense != 0));
      pool.parallelFor(heads, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) held.keepHead(int32_t(i / held.shape().kvHeads), int32_t(i % held.shape().kvHeads), kept.data() + i * stride);
      });
    } catch (const std::bad_alloc&) {
      return {Code::memory, "run", "kept", "out of memory"};
    }
    held.finishKeep();
    return pool.takeFailure("run", "kept");
  }

  void finished() override {
    if (cache) cache->busy.store(false);
    cache.reset();
    held.clear();
    program.reset();
  }
};

}  // namespace

Napi::Value run(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), "run", [&]() -> Napi::Value {
    const Napi::Env env = info.Env();
    Arguments arguments(info, "run");
    auto work = std::make_unique<RunProgram>();
    work->program = arguments.object<ProgramObject>(info[0], "program");
    const auto doubles = [&](size_t index, const char* name) -> Napi::Float64Array {
      if (info[index].IsTypedArray() && info[index].As<Napi::TypedArray>().TypedArrayType() == napi_float64_array) return info[index].As<Napi::Float64Array>();
      arguments.set(name, "expected a Float64Array");
      return Napi::Float64Array();
    };
    const Napi::Float64Array symbols = doubles(1, "symbols"), scalars = doubles(3, "scalars");
    if (!info[2].IsArray()) arguments.set("bindings", "expected an array");
    // Threads and device in one object: node-addon-api allocates for more than six arguments, where nobody catches what that throws.
    const auto place = [&](const char* name) -> Napi::Value { return info[4].IsObject() ? Napi::Value(info[4].As<Napi::Object>().Get(name)) : env.Undefined(); };
    work->threads = int(arguments.integer(place("threads"), "threads", 1, 128));
    const Operand cancel = arguments.memory(info[5], "cancel");
    if (arguments.ok() && (cancel.dtype != DType::i32 || cancel.bytes < 4)) arguments.set("cancel", "expected an Int32Array");
    if (!arguments.ok()) return arguments.fail();

    const Program& program = work->program->program;
    const Napi::Array bindings = info[2].As<Napi::Array>();
    if (symbols.ElementLength() != size_t(program.symbols())) arguments.set("symbols", "wrong count");
    if (scalars.ElementLength() != size_t(program.scalars())) arguments.set("scalars", "wrong count");
    if (bindings.Length() != program.bindings().size()) arguments.set("bindings", "wrong count");
    if (!arguments.ok()) return arguments.fail();
    for (size_t i = 0; i < symbols.ElementLength(); ++i) {
      if (!(symbols[i] >= 0) || !(symbols[i] <= 9007199254740991.0) || symbols[i] != std::trunc(symbols[i])) arguments.set("symbols", "expected non-negative integers");
      work->symbols.push_back(arguments.ok() ? int64_t(symbols[i]) : 0);
    }
    work->scalars.assign(scalars.Data(), scalars.Data() + scalars.ElementLength());
    for (uint32_t i = 0; i < bindings.Length() && arguments.ok(); ++i) {
      const Napi::Value value = bindings.Get(i);
      const DType wanted = program.bindings()[i];
      if (value.IsNull()) {
        work->bindings.push_back({});
      } else if (wanted == DType::cache) {
        work->cache = arguments.object<Cache>(value, "bindings");
        work->bindings.push_back({DType::cache, &work->step, 0});
      } else if (wanted == DType::packed) {
        auto weight = arguments.object<Weight>(value, "bindings");
        if (!weight) break;
        work->bindings.push_back({DType::packed, &weight->packed, 0});
        work->residents.resize(work->bindings.size());
        work->residents.back() = &weight->resident;
        work->held.push_back(std::move(weight));
      } else if (value.IsExternal()) {
        auto tensor = arguments.object<DeviceTensor>(value, "bindings");
        if (!tensor) break;
        if (!fits(wanted, tensor->dtype)) arguments.set("bindings", "element type differs from the program's");
        work->bindings.push_back({wanted, tensor->block->data(), tensor->block->bytes()});
        work->there.resize(work->bindings.size());
        work->there.back() = true;
        work->held.push_back(std::move(tensor));
      } else {
        Operand operand = arguments.memory(value, "bindings");
        if (arguments.ok() && !fits(wanted, operand.dtype)) arguments.set("bindings", "element type differs from the program's");
        operand.dtype = wanted;
        work->bindings.push_back(operand);
        work->keep(value);
      }
    }
    if (arguments.ok() && (program.cache().binding >= 0) != bool(work->cache)) arguments.set("bindings", "the program needs a cache");
    // 0 here, 1 on the device, 2 where the cache lies. The host reaches pages of the device, not the other way round.
    const bool onDevice = work->cache && work->cache->cache->onDevice();
    const int64_t device = arguments.integer(place("device"), "device", 0, 2);
    if (device == 1 && work->cache && !onDevice) arguments.set("device", "this cache lies in the host's memory, where the device cannot reach it");
    if (device == 1 || (device == 2 && onDevice)) work->device = arguments.cudaDevice();
    if (!work->there.empty() && (!work->device || work->cache)) arguments.set("bindings", "a tensor on the device needs a run there, and one without a cache");
    work->there.resize(work->bindings.size());
    work->residents.resize(work->bindings.size());
    if (!arguments.ok()) return arguments.fail();
    work->cancel = static_cast<int32_t*>(cancel.data);
    work->keep(info[5]);
    if (work->cache) {
      // Last, since nothing gives it back where one of the others throws.
      if (work->cache->busy.exchange(true)) return raise(env, "busy", "run", "This cache");
      const int32_t symbol = program.cache().newTokens;
      work->step = {work->cache->cache.get(), symbol >= 0 ? work->symbols[size_t(symbol)] : 0};
    }
    return Work::start(env, std::move(work), "tokenloom.run");
  });
}

}  // namespace tl::binding
