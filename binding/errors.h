// How failures reach JavaScript: objects with status, op, argument, message, expected, got, which lib/native.ts turns into
// typed errors. Every entry point runs inside guarded(), so that no C++ exception crosses into C.
#pragma once
#include <napi.h>

#include <exception>
#include <new>

#include "../cpp/core/fault.h"
#include "../cpp/core/status.h"

namespace tl::binding {

inline const char* codeName(Code code) {
  switch (code) {
    case Code::ok: return "ok";
    case Code::argument: return "argument";
    case Code::shape: return "shape";
    case Code::memory: return "memory";
    case Code::cancelled: return "cancelled";
    case Code::numeric: return "numeric";
    case Code::format: return "format";
    case Code::io: return "io";
    default: return "internal";
  }
}

inline Napi::Object failure(Napi::Env env, const char* status, const Status& what) {
  Napi::Object error = Napi::Error::New(env, what.message).Value();
  error.Set("status", status);
  error.Set("op", what.op);
  error.Set("argument", what.argument);
  error.Set("expected", double(what.expected));
  error.Set("got", double(what.got));
  return error;
}
inline Napi::Object failure(Napi::Env env, const Status& what) { return failure(env, codeName(what.code), what); }

inline Napi::Value raise(Napi::Env env, const Status& what) {
  napi_throw(env, failure(env, what));
  return env.Undefined();
}
inline Napi::Value raise(Napi::Env env, const char* status, const char* op, const char* argument) {
  napi_throw(env, failure(env, status, {Code::internal, op, argument, status}));
  return env.Undefined();
}

template <typename Function> Napi::Value guarded(Napi::Env env, const char* op, Function&& function) {
  try {
    faultPoint(op);
    return function();
  } catch (const std::bad_alloc&) {
    return raise(env, {Code::memory, op, "", "out of memory"});
  } catch (...) {
    return raise(env, {Code::internal, op, "", "unexpected C++ exception"});
  }
}

}  // namespace tl::binding
