#include "fault.h"

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <stdexcept>

#include "memory.h"

namespace tl {
namespace {
std::mutex mutex;
char armed[64];
Thrown thrown = Thrown::nothing;
}  // namespace

void throwAt(const char* place, Thrown what) {
  std::lock_guard<std::mutex> lock(mutex);
  std::strncpy(armed, place, sizeof armed - 1);
  thrown = what;
}

void faultPoint(const char* place) {
  Thrown what = Thrown::nothing;
  {
    std::lock_guard<std::mutex> lock(mutex);
    if (thrown == Thrown::nothing || std::strcmp(place, armed) != 0) return;
    std::swap(what, thrown);
  }
  if (what == Thrown::exception) throw std::runtime_error("on purpose");
  if (what == Thrown::badAlloc) throw std::bad_alloc();
  throw 7;
}

}  // namespace tl

// Every allocation of the addon's own C++ may fail; aligned memory has the same hook in memory.cpp.
void* operator new(std::size_t bytes) {
  void* data = tl::allocationMustFail() ? nullptr : std::malloc(bytes ? bytes : 1);
  if (!data) throw std::bad_alloc();
  return data;
}
void* operator new[](std::size_t bytes) { return operator new(bytes); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return tl::allocationMustFail() ? nullptr : std::malloc(bytes ? bytes : 1); }
void* operator new[](std::size_t bytes, const std::nothrow_t& none) noexcept { return operator new(bytes, none); }
void operator delete(void* data) noexcept { std::free(data); }
void operator delete[](void* data) noexcept { std::free(data); }
void operator delete(void* data, std::size_t) noexcept { std::free(data); }
void operator delete[](void* data, std::size_t) noexcept { std::free(data); }
