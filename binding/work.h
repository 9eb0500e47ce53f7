// Work off the event loop that ends in a promise. When the environment goes away (worker terminated, process exit) all its
// work is told to stop, so that leaving does not wait for a long run.
#pragma once
#include <napi.h>

#include <mutex>
#include <set>

#include "errors.h"
#include "handles.h"

namespace tl::binding {

class Work {
 public:
  virtual ~Work();
  // Starts the work; the object deletes itself at its end. Returns the promise.
  static Napi::Value start(Napi::Env env, std::unique_ptr<Work> work, const char* name);
  // Keeps a JavaScript value alive for as long as this object lives.
  void keep(Napi::Value value);

 protected:
  virtual Status execute() = 0;                      // on another thread; no JavaScript here
  virtual Napi::Value result(Napi::Env env) { return env.Undefined(); }
  virtual void finished() {}                         // on the JavaScript thread, whatever happened
  int32_t* cancel = nullptr;                         // JavaScript memory, written by abort and by teardown
  int32_t item = -1;                                 // of several, the one in work: a failure's error tells it

 private:
  friend struct Environment;
  static void onExecute(napi_env env, void* data);
  static void onComplete(napi_env env, napi_status status, void* data);
  napi_env env_ = nullptr;
  napi_async_work work_ = nullptr;
  napi_deferred deferred_ = nullptr;
  std::vector<napi_ref> kept_;
  Status status_;
};

// What one environment (main thread or worker) has under way.
struct Environment {
  std::set<Work*> running;
  void cancelAll();
};
Environment& environmentOf(Napi::Env env);

}  // namespace tl::binding
