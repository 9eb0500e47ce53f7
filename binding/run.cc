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
  using Work::cancel;

 protected:
  Status execute() override {
    ThreadPool& pool = ThreadPool::shared();
    ThreadPool::Turn turn(pool, threads);
    if (!turn.ok()) return {Code::memory, "run", "threads", "out of memory for scratch"};
    std::byte* arena = SharedArena::ensure(program->program.arenaBytes());
    if (!arena) return {Code::memory, "run", "arena", "out of memory for the arena", program->program.arenaBytes(), 0};
    // All or nothing: the cache grows before the first op and counts the new tokens only after the last one.
    if (cache) TL_TRY(cache->cache->reserve(step.newTokens));
    const Status status = program->program.run({activeTable(), pool, symbols.data(), bindings.data(), scalars.data(), arena, cancel});
    if (!cache) return status;
    if (!status) return cache->cache->commit(step.newTokens);
    cache->cache->trim();  // the pages that the step was given
    return status;
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
    work->threads = int(arguments.integer(4, "threads", 1, 128));
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
        work->held.push_back(std::move(weight));
      } else {
        Operand operand = arguments.memory(value, "bindings");
        if (arguments.ok() && !fits(wanted, operand.dtype)) arguments.set("bindings", "element type differs from the program's");
        operand.dtype = wanted;
        work->bindings.push_back(operand);
        work->keep(value);
      }
    }
    if (arguments.ok() && (program.cacheBinding() >= 0) != bool(work->cache)) arguments.set("bindings", "the program needs a cache");
    if (!arguments.ok()) {
      work->cache.reset();
      return arguments.fail();
    }
    if (work->cache) {
      if (work->cache->busy.exchange(true)) {
        work->cache.reset();
        return raise(env, "busy", "run", "This cache");
      }
      work->step = {work->cache->cache.get(), work->symbols[size_t(program.newTokensSymbol())]};
    }
    work->cancel = static_cast<int32_t*>(cancel.data);
    work->keep(info[5]);
    return Work::start(env, std::move(work), "tokenloom.run");
  });
}

}  // namespace tl::binding
