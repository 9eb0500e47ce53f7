#include "work.h"

namespace tl::binding {

Environment& environmentOf(Napi::Env env) { return *env.GetInstanceData<Environment>(); }

void Environment::cancelAll() {
  for (Work* work : running)
    if (work->cancel) __atomic_store_n(work->cancel, 1, __ATOMIC_RELAXED);
}

void Work::keep(Napi::Value value) {
  napi_ref reference;
  if (napi_create_reference(value.Env(), value, 1, &reference) == napi_ok) kept_.push_back(reference);
}

Napi::Value Work::start(Napi::Env env, std::unique_ptr<Work> work, const char* name) {
  napi_value promise, resource;
  if (napi_create_promise(env, &work->deferred_, &promise) != napi_ok) return env.Undefined();
  napi_create_string_utf8(env, name, NAPI_AUTO_LENGTH, &resource);
  if (napi_create_async_work(env, nullptr, resource, onExecute, onComplete, work.get(), &work->work_) != napi_ok ||
      napi_queue_async_work(env, work->work_) != napi_ok) {
    napi_reject_deferred(env, work->deferred_, failure(env, {Code::internal, name, "", "cannot start asynchronous work"}));
    work->finished();
    for (napi_ref reference : work->kept_) napi_delete_reference(env, reference);
    if (work->work_) napi_delete_async_work(env, work->work_);
    return Napi::Value(env, promise);
  }
  environmentOf(env).running.insert(work.release());
  return Napi::Value(env, promise);
}

void Work::onExecute(napi_env, void* data) {
  auto* work = static_cast<Work*>(data);
  try {
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
  for (napi_ref reference : work->kept_) napi_delete_reference(env, reference);
  // An environment on its way out refuses JavaScript: then nobody waits for the promise any more.
  if (!work->status_) {
    const Napi::Value value = work->result(env);
    if (!value.IsEmpty()) napi_resolve_deferred(env, work->deferred_, value);
  } else {
    Napi::Object error = failure(env, work->status_);
    if (!error.IsEmpty() && work->item >= 0) error.Set("item", double(work->item));
    if (!error.IsEmpty()) napi_reject_deferred(env, work->deferred_, error);
  }
  napi_delete_async_work(env, work->work_);
}

}  // namespace tl::binding
