// Unwraps and checks JavaScript arguments. lib/ has already said what is wrong in words; these checks keep memory safe.
#pragma once
#include <napi.h>

#include <cmath>
#include <string>

#include "errors.h"
#include "handles.h"

namespace tl::binding {

// A call's arguments with the first error found. After `ok()` is false, throw with raise(env, call.error).
class Arguments {
 public:
  Arguments(const Napi::CallbackInfo& info, const char* op) : info_(info), op_(op) {}
  bool ok() const { return !error_; }
  Napi::Value fail() const {
    if (disposed_) return raise(info_.Env(), "disposed", op_, error_.argument);
    return raise(info_.Env(), error_);
  }

  int64_t integer(size_t index, const char* name, int64_t low, int64_t high) { return integer(info_[index], name, low, high); }
  int64_t integer(Napi::Value value, const char* name, int64_t low, int64_t high) {
    const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : NAN;
    if (!(number >= double(low)) || !(number <= double(high)) || number != std::trunc(number)) {
      set(name, "expected an integer in range");
      return low;
    }
    return int64_t(number);
  }

  Device* cudaDevice() {
    std::string why;
    Device* found = Device::cuda(why);
    if (!found) set("device", "there is no CUDA device: see tokenloom info --devices");
    return found;
  }

  Napi::Array array(Napi::Value value, const char* name) {
    if (value.IsArray()) return value.As<Napi::Array>();
    set(name, "expected an array");
    return Napi::Array::New(info_.Env());
  }

  Napi::Value field(Napi::Value object, const char* name) {
    if (object.IsObject()) return object.As<Napi::Object>().Get(name);
    set(name, "expected an object with this field");
    return info_.Env().Undefined();
  }

  template <typename T> std::shared_ptr<T> object(Napi::Value value, const char* name) {
    Handle* handle = handleOf(value);
    if (!handle || handle->kind != T::kind) {
      set(name, "expected a handle of the right kind");
      return nullptr;
    }
    if (!handle->object) {
      disposed_ = true;
      set(name, "was released");
      return nullptr;
    }
    return std::static_pointer_cast<T>(handle->object);
  }

  // Typed array → where its bytes are. SharedArrayBuffer and detached buffers are refused.
  Operand memory(Napi::Value value, const char* name) {
    if (!value.IsTypedArray()) {
      set(name, "expected a typed array");
      return {};
    }
    const Napi::TypedArray array = value.As<Napi::TypedArray>();
    napi_value buffer;
    bool plain = false, detached = true;
    size_t offset = 0, length = 0;
    void* data = nullptr;
    napi_typedarray_type type;
    napi_env env = info_.Env();
    if (napi_get_typedarray_info(env, value, &type, &length, &data, &buffer, &offset) != napi_ok ||
        napi_is_arraybuffer(env, buffer, &plain) != napi_ok || !plain || napi_is_detached_arraybuffer(env, buffer, &detached) != napi_ok || detached) {
      set(name, "expected a typed array over an attached ArrayBuffer");
      return {};
    }
    Operand operand;
    operand.data = data;
    operand.bytes = int64_t(array.ByteLength());
    switch (type) {
      case napi_float32_array: operand.dtype = DType::f32; break;
      case napi_int32_array: operand.dtype = DType::i32; break;
      case napi_uint16_array: operand.dtype = DType::f16; break;  // or bf16: the program says which
      case napi_int8_array: operand.dtype = DType::i8; break;
      case napi_uint8_array: operand.dtype = DType::u8; break;
      case napi_bigint64_array: operand.dtype = DType::i64; break;
      default: set(name, "element type not supported");
    }
    if (reinterpret_cast<uintptr_t>(data) % std::max<size_t>(1, elementBytes(operand.dtype)) != 0) set(name, "data is not aligned to its element size");
    return operand;
  }

  std::string text(Napi::Value value, const char* name) {
    if (!value.IsString()) {
      set(name, "expected a string");
      return {};
    }
    return value.As<Napi::String>().Utf8Value();
  }

  void set(const char* argument, const char* message) {
    if (!error_) error_ = argumentError(op_, argument, message);
  }

 private:
  const Napi::CallbackInfo& info_;
  const char* op_;
  Status error_;
  bool disposed_ = false;
};

inline bool fits(DType wanted, DType given) { return wanted == given || (wanted == DType::bf16 && given == DType::f16) || (wanted == DType::q8 && given == DType::u8); }

}  // namespace tl::binding
