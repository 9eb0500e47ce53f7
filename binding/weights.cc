// loadWeight, loadVector, createConstant, createProgram.
#include <cstring>

#include "../cpp/exec/weights.h"
#include "arguments.h"
#include "exports.h"
#include "work.h"

namespace tl::binding {
namespace {

constexpr int64_t kMostRows = int64_t(1) << 40;

StoredRows storedRows(Arguments& arguments, Napi::Value value) {
  StoredRows rows;
  if (!value.IsObject()) {
    arguments.set("part", "expected an object");
    return rows;
  }
  const Napi::Object part = value.As<Napi::Object>();
  const auto number = [&](const char* name, double most) -> int64_t {
    const Napi::Value field = part.Get(name);
    const double found = field.IsNumber() ? field.As<Napi::Number>().DoubleValue() : NAN;
    if (!(found >= 0) || !(found <= most) || found != std::trunc(found)) {
      arguments.set(name, "expected an integer in range");
      return 0;
    }
    return int64_t(found);
  };
  rows.path = arguments.text(part.Get("path"), "path");
  rows.offset = number("offset", 9007199254740991.0);
  rows.rows = number("rows", double(kMostRows));
  rows.storage = Storage(number("storage", double(int(Storage::count) - 1)));
  return rows;
}

class LoadWeight : public Work {
 public:
  std::vector<StoredRows> parts;
  int64_t columns = 0;
  int threads = 1;
  using Work::cancel;

 protected:
  Status execute() override {
    weight_ = std::make_shared<Weight>();
    ThreadPool::Turn turn(ThreadPool::shared(), threads);
    if (!turn.ok()) return {Code::memory, "load", "threads", "out of memory"};
    return loadPacked(parts, columns, activeTable(), ThreadPool::shared(), cancel, weight_->packed);
  }
  Napi::Value result(Napi::Env env) override {
    Napi::Object info = Napi::Object::New(env);
    info.Set("bytes", double(weight_->bytes()));
    info.Set("handle", wrap(env, std::move(weight_)));
    return info;
  }

 private:
  std::shared_ptr<Weight> weight_;
};

class LoadVector : public Work {
 public:
  StoredRows part;
  int64_t count = 0;

 protected:
  Status execute() override {
    values_.resize(size_t(count));
    return loadFloats(part, count, activeTable(), values_.data());
  }
  Napi::Value result(Napi::Env env) override {
    Napi::Float32Array array = Napi::Float32Array::New(env, size_t(count));
    if (array.IsEmpty()) return Napi::Value();
    std::memcpy(array.Data(), values_.data(), values_.size() * sizeof(float));
    return array;
  }

 private:
  std::vector<float> values_;
};

}  // namespace

Napi::Value loadWeight(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), "loadWeight", [&]() -> Napi::Value {
    Arguments arguments(info, "loadWeight");
    auto work = std::make_unique<LoadWeight>();
    if (!info[0].IsArray()) arguments.set("parts", "expected an array");
    else {
      const Napi::Array parts = info[0].As<Napi::Array>();
      for (uint32_t i = 0; i < parts.Length(); ++i) work->parts.push_back(storedRows(arguments, parts.Get(i)));
      if (work->parts.empty()) arguments.set("parts", "expected at least one part");
    }
    work->columns = arguments.integer(1, "columns", 1, kMostRows);
    work->threads = int(arguments.integer(2, "threads", 1, 128));
    const Operand cancel = arguments.memory(info[3], "cancel");
    if (arguments.ok() && (cancel.dtype != DType::i32 || cancel.bytes < 4)) arguments.set("cancel", "expected an Int32Array");
    if (!arguments.ok()) return arguments.fail();
    work->cancel = static_cast<int32_t*>(cancel.data);
    work->keep(info[3]);
    return Work::start(info.Env(), std::move(work), "tokenloom.loadWeight");
  });
}

Napi::Value loadVector(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), "loadVector", [&]() -> Napi::Value {
    Arguments arguments(info, "loadVector");
    auto work = std::make_unique<LoadVector>();
    work->part = storedRows(arguments, info[0]);
    work->count = arguments.integer(1, "count", 1, int64_t(1) << 31);
    if (!arguments.ok()) return arguments.fail();
    return Work::start(info.Env(), std::move(work), "tokenloom.loadVector");
  });
}

Napi::Value createConstant(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), "createConstant", [&]() -> Napi::Value {
    Arguments arguments(info, "createConstant");
    const Operand values = arguments.memory(info[0], "values");
    const DType dtype = DType(arguments.integer(1, "dtype", int(DType::f32), int(DType::i64)));
    if (arguments.ok() && !fits(dtype, values.dtype)) arguments.set("dtype", "does not match the typed array");
    if (!arguments.ok()) return arguments.fail();
    auto constant = std::make_shared<Constant>();
    constant->dtype = dtype;
    constant->buffer = Buffer(size_t(values.bytes), Owner::weight);
    if (!constant->buffer) return raise(info.Env(), {Code::memory, "createConstant", "values", "out of memory"});
    std::memcpy(constant->buffer.as(), values.data, size_t(values.bytes));
    return wrap(info.Env(), std::move(constant));
  });
}

Napi::Value createProgram(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), "createProgram", [&]() -> Napi::Value {
    Arguments arguments(info, "createProgram");
    if (!info[0].IsTypedArray() || info[0].As<Napi::TypedArray>().TypedArrayType() != napi_float64_array) arguments.set("words", "expected a Float64Array");
    if (!info[1].IsArray()) arguments.set("constants", "expected an array");
    if (!arguments.ok()) return arguments.fail();
    auto program = std::make_shared<ProgramObject>();
    std::vector<Operand> operands;
    const Napi::Array constants = info[1].As<Napi::Array>();
    for (uint32_t i = 0; i < constants.Length() && arguments.ok(); ++i) {
      const Napi::Value value = constants.Get(i);
      const Handle* handle = handleOf(value);
      if (handle && handle->kind == Kind::weight) {
        auto weight = arguments.object<Weight>(value, "constants");
        if (!weight) break;
        operands.push_back({DType::packed, &weight->packed, 0});
        program->constants.push_back(std::move(weight));
      } else if (auto constant = arguments.object<Constant>(value, "constants")) {
        operands.push_back({constant->dtype, constant->buffer.as(), constant->bytes()});
        program->constants.push_back(std::move(constant));
      }
    }
    if (!arguments.ok()) return arguments.fail();
    const Napi::Float64Array words = info[0].As<Napi::Float64Array>();
    if (const Status status = Program::decode(words.Data(), words.ElementLength(), std::move(operands), program->program)) return raise(info.Env(), status);
    return wrap(info.Env(), std::move(program));
  });
}

}  // namespace tl::binding
