#include "work.h"

namespace tl::binding {

Environment& environmentOf(Napi::Env env) { return *env.GetInstanceData<Environment>(); }

void Environment::cancelAll() {
  for (Work* work : running)
    if (work->cancel) __atomic_store_n(work->cancel, 1, __ATOMIC_RELAXED);
}

Work::~Work() {
  for (napi_ref reference : kept_) napi_delete_reference(env_, reference);
  if (work_) napi_delete_async_work(env_, work_);
}

void Work::keep(Napi::Value value) {
  env_ = value.Env();
  kept_.push_back(nullptr);  // may throw: before there is a reference to lose
  if (napi_create_reference(env_, value, 1, &kept_.back()) != napi_ok) kept_.pop_back();
}

Napi::Value Work::start(Napi::Env env, std::unique_ptr<Work> work, const char* name) {
  napi_value promise, resource;
  work->env_ = env;
  std::set<Work*>& running = environmentOf(env).running;
  bool started = false;
  if (napi_create_promise(env, &work->deferred_, &promise) != napi_ok) {
    work->finished();
    return env.Undefined();
  }
  Status why = {Code::internal, name, "", "cannot start asynchronous work"};
  try {
    running.insert(work.get());
    napi_create_string_utf8(env, name, NAPI_AUTO_LENGTH, &resource);
    started = napi_create_async_work(env, nullptr, resource, onExecute, onComplete, work.get(), &work->work_) == napi_ok && napi_queue_async_work(env, work->work_) == napi_ok;
  } catch (const std::bad_alloc&) {
    why = {Code::memory, name, "", "out of memory"};
  }
  if (started) {
    work.release();
  } else {
    running.erase(work.get());
    napi_reject_deferred(env, work->deferred_, failure(env, why));
    work->finished();
  }
  return Napi::Value(env, promise);
}

void Work::onExecute(napi_env, void* data) {
  auto* work = static_cast<Work*>(data);
  try {
    faultPoint("execute");
    work->status_ = work->execute();
  } catch (const std::bad_alloc&) {
    work->status_ = {Code::memory, "run", "", "out of memory"};
  } catch (...) {
    work->status_ = {Code::internal, "run", "", "unexpected C++ exception"};
  }
}

void Work::onComplete(napi_env raw, napi_status status, void* data) {
  std::unique_ptr<Work> work(static_cast<Work*>(data));
  Napi::Env env(raw);
  Napi::HandleScope scope(env);
  environmentOf(env).running.erase(work.get());
  if (status == napi_cancelled) work->status_ = {Code::cancelled, "run", "", "cancelled"};
  work->finished();
  Napi::Value value;
  try {
    faultPoint("complete");
    if (!work->status_) value = work->result(env);
  } catch (const std::bad_alloc&) {
    work->item = -1;
    work->status_ = {Code::memory, "run", "", "out of memory"};
  } catch (...) {
    work->item = -1;
    work->status_ = {Code::internal, "run", "", "unexpected C++ exception"};
  }
  // An environment on its way out refuses JavaScript: then nobody waits for the promise any more.
  if (!work->status_) {
    if (!value.IsEmpty()) napi_resolve_deferred(env, work->deferred_, value);
    return;
  }
  Napi::Object error = failure(env, work->status_);
  if (!error.IsEmpty() && work->item >= 0) error.Set("item", double(work->item));
  if (!error.IsEmpty()) napi_reject_deferred(env, work->deferred_, error);
}

}  // namespace tl::binding
