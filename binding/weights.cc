// loadWeights, loadVectors, packWeight, announceMemory, createConstant, createProgram.
#include <cstring>

#include "../cpp/exec/weights.h"
#include "arguments.h"
#include "exports.h"
#include "work.h"

namespace tl::binding {
namespace {

constexpr int64_t kMostRows = int64_t(1) << 40;

StoredRows storedRows(Arguments& arguments, Napi::Value part) {
  StoredRows rows;
  rows.path = arguments.text(arguments.field(part, "path"), "path");
  rows.offset = arguments.integer(arguments.field(part, "offset"), "offset", 0, int64_t(1) << 53);
  rows.rows = arguments.integer(arguments.field(part, "rows"), "rows", 0, kMostRows);
  rows.storage = Storage(arguments.integer(arguments.field(part, "storage"), "storage", 0, int64_t(Storage::count) - 1));
  return rows;
}

// Several at once: a call for each would wait for its turn of the event loop twice.
class LoadWeights : public Work {
 public:
  struct Item {
    std::vector<StoredRows> parts;
    int64_t columns = 0;
  };
  std::vector<Item> items;
  int threads = 1;
  using Work::cancel;

 protected:
  Status execute() override {
    ThreadPool::Turn turn(ThreadPool::shared(), threads);
    if (!turn.ok()) return {Code::memory, "load", "threads", "out of memory"};
    for (item = 0; item < int32_t(items.size()); ++item) {
      weights_.push_back(std::make_shared<Weight>());
      const Item& wanted = items[size_t(item)];
      TL_TRY(loadPacked(wanted.parts, wanted.columns, activeTable(), ThreadPool::shared(), cancel, weights_.back()->packed));
      TL_TRY(ThreadPool::shared().takeFailure("load"));
    }
    return {};
  }
  Napi::Value result(Napi::Env env) override {
    Napi::Array results = Napi::Array::New(env, weights_.size());
    for (size_t i = 0; i < weights_.size(); ++i) {
      Napi::Object info = Napi::Object::New(env);
      info.Set("bytes", double(weights_[i]->bytes()));
      info.Set("handle", wrap(env, std::move(weights_[i])));
      results.Set(uint32_t(i), info);
    }
    return results;
  }

 private:
  std::vector<std::shared_ptr<Weight>> weights_;
};

class LoadVectors : public Work {
 public:
  std::vector<StoredRows> parts;
  std::vector<int64_t> counts;

 protected:
  Status execute() override {
    for (item = 0; item < int32_t(parts.size()); ++item) {
      values_.emplace_back(size_t(counts[size_t(item)]));
      TL_TRY(loadFloats(parts[size_t(item)], counts[size_t(item)], activeTable(), values_.back().data()));
    }
    return {};
  }
  Napi::Value result(Napi::Env env) override {
    Napi::Array results = Napi::Array::New(env, values_.size());
    for (size_t i = 0; i < values_.size(); ++i) {
      Napi::Float32Array array = Napi::Float32Array::New(env, values_[i].size());
      if (array.IsEmpty()) return Napi::Value();
      std::memcpy(array.Data(), values_[i].data(), values_[i].size() * sizeof(float));
      results.Set(uint32_t(i), array);
    }
    return results;
  }

 private:
  std::vector<std::vector<float>> values_;
};

class PackWeight : public Work {
 public:
  Operand values, rowScale;
  int64_t rows = 0, columns = 0;
  Storage storage = Storage::f32;
  int threads = 1;
  using Work::cancel;

 protected:
  Status execute() override {
    ThreadPool::Turn turn(ThreadPool::shared(), threads);
    if (!turn.ok()) return {Code::memory, "pack", "threads", "out of memory"};
    TL_TRY(packFloats(static_cast<const float*>(values.data), rows, columns, static_cast<const float*>(rowScale.data), storage, activeTable(),
                      ThreadPool::shared(), cancel, weight_->packed, relativeError_));
    return ThreadPool::shared().takeFailure("pack");
  }
  Napi::Value result(Napi::Env env) override {
    Napi::Object info = Napi::Object::New(env);
    info.Set("bytes", double(weight_->bytes()));
    info.Set("relativeError", relativeError_);
    info.Set("handle", wrap(env, std::move(weight_)));
    return info;
  }

 private:
  std::shared_ptr<Weight> weight_ = std::make_shared<Weight>();
  double relativeError_ = 0;
};

}  // namespace

Napi::Value packWeight(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), "packWeight", [&]() -> Napi::Value {
    Arguments arguments(info, "packWeight");
    auto work = std::make_unique<PackWeight>();
    work->values = arguments.memory(info[0], "values");
    work->columns = arguments.integer(1, "columns", 1, kMostRows);
    if (!info[2].IsNull()) work->rowScale = arguments.memory(info[2], "rowScale");
    work->storage = Storage(arguments.integer(3, "storage", 0, int64_t(Storage::count) - 1));
    work->threads = int(arguments.integer(4, "threads", 1, 128));
    const Operand cancel = arguments.memory(info[5], "cancel");
    work->rows = work->values.bytes / 4 / work->columns;
    if (arguments.ok() && (work->values.dtype != DType::f32 || work->rows < 1 || work->rows * work->columns * 4 != work->values.bytes)) arguments.set("values", "expected whole rows of f32");
    if (arguments.ok() && work->rowScale.data && (work->rowScale.dtype != DType::f32 || work->rowScale.bytes != work->rows * 4)) arguments.set("rowScale", "expected one f32 a row");
    if (arguments.ok() && (cancel.dtype != DType::i32 || cancel.bytes < 4)) arguments.set("cancel", "expected an Int32Array");
    if (!arguments.ok()) return arguments.fail();
    work->cancel = static_cast<int32_t*>(cancel.data);
    for (const size_t kept : {0, 2, 5}) work->keep(info[kept]);
    return Work::start(info.Env(), std::move(work), "tokenloom.packWeight");
  });
}

Napi::Value loadWeights(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), "loadWeights", [&]() -> Napi::Value {
    Arguments arguments(info, "loadWeights");
    auto work = std::make_unique<LoadWeights>();
    const Napi::Array items = arguments.array(info[0], "items");
    for (uint32_t i = 0; i < items.Length() && arguments.ok(); ++i) {
      LoadWeights::Item& item = work->items.emplace_back();
      item.columns = arguments.integer(arguments.field(items.Get(i), "columns"), "columns", 1, kMostRows);
      const Napi::Value parts = arguments.field(items.Get(i), "parts");
      if (!parts.IsArray() || parts.As<Napi::Array>().Length() == 0) {
        arguments.set("parts", "expected an array of at least one part");
        break;
      }
      for (uint32_t j = 0; j < parts.As<Napi::Array>().Length(); ++j) item.parts.push_back(storedRows(arguments, parts.As<Napi::Array>().Get(j)));
    }
    work->threads = int(arguments.integer(1, "threads", 1, 128));
    const Operand cancel = arguments.memory(info[2], "cancel");
    if (arguments.ok() && (cancel.dtype != DType::i32 || cancel.bytes < 4)) arguments.set("cancel", "expected an Int32Array");
    if (!arguments.ok()) return arguments.fail();
    work->cancel = static_cast<int32_t*>(cancel.data);
    work->keep(info[2]);
    return Work::start(info.Env(), std::move(work), "tokenloom.loadWeights");
  });
}

Napi::Value loadVectors(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), "loadVectors", [&]() -> Napi::Value {
    Arguments arguments(info, "loadVectors");
    auto work = std::make_unique<LoadVectors>();
    const Napi::Array vectors = arguments.array(info[0], "vectors");
    for (uint32_t i = 0; i < vectors.Length() && arguments.ok(); ++i) {
      work->parts.push_back(storedRows(arguments, arguments.field(vectors.Get(i), "part")));
      work->counts.push_back(arguments.integer(arguments.field(vectors.Get(i), "count"), "count", 1, int64_t(1) << 31));
    }
    if (!arguments.ok()) return arguments.fail();
    return Work::start(info.Env(), std::move(work), "tokenloom.loadVectors");
  });
}

Napi::Value announceMemory(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), "announceMemory", [&]() -> Napi::Value {
    Arguments arguments(info, "announceMemory");
    const int64_t bytes = arguments.integer(0, "bytes", -(int64_t(1) << 53), int64_t(1) << 53);
    if (!arguments.ok()) return arguments.fail();
    int64_t total;
    napi_adjust_external_memory(info.Env(), bytes, &total);
    return info.Env().Undefined();
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
        program->residents.push_back(&weight->resident);
        program->constants.push_back(std::move(weight));
      } else if (auto constant = arguments.object<Constant>(value, "constants")) {
        operands.push_back({constant->dtype, constant->buffer.as(), constant->bytes()});
        program->residents.push_back(&constant->resident);
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
