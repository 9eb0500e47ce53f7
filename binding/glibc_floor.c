// Lets an addon that was linked on a new machine load on an old one: on glibc 2.28 and later, whatever glibc it was built with.
// The linker binds a function to the newest version its libc.so has; --wrap (see CMakeLists.txt) leads the calls, those of the
// static libstdc++ too, through here to the version that has been there from the start. Their behaviour is the same: glibc 2.29
// only took the error reporting of SVID out of exp, log and log2, and 2.34 moved pthread and dl into libc.
#define _GNU_SOURCE
#include <features.h>
#ifdef __GLIBC__
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/random.h>

#if defined(__x86_64__)
#define FIRST "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define FIRST "GLIBC_2.17"
#else
#error "which version of glibc was the first for this processor?"
#endif

#define OLD(result, name, parameters, arguments)                          \
  result old_##name parameters;                                           \
  __asm__(".symver old_" #name "," #name "@" FIRST);                      \
  __attribute__((visibility("hidden"))) result __wrap_##name parameters;  \
  result __wrap_##name parameters { return old_##name arguments; }

OLD(double, exp, (double x), (x))
OLD(double, log, (double x), (x))
OLD(double, log2, (double x), (x))
OLD(double, pow, (double x, double y), (x, y))
OLD(int, pthread_create, (pthread_t * thread, const pthread_attr_t* options, void* (*run)(void*), void* data), (thread, options, run, data))
OLD(int, pthread_join, (pthread_t thread, void** result), (thread, result))
OLD(int, pthread_detach, (pthread_t thread), (thread))
OLD(int, pthread_once, (pthread_once_t * once, void (*run)(void)), (once, run))
OLD(int, pthread_key_create, (pthread_key_t * key, void (*destroy)(void*)), (key, destroy))
OLD(int, __pthread_key_create, (pthread_key_t * key, void (*destroy)(void*)), (key, destroy))
OLD(int, pthread_key_delete, (pthread_key_t key), (key))
OLD(int, pthread_setspecific, (pthread_key_t key, const void* value), (key, value))
OLD(void*, pthread_getspecific, (pthread_key_t key), (key))
OLD(void*, dlopen, (const char* file, int mode), (file, mode))
OLD(void*, dlsym, (void* library, const char* name), (library, name))
OLD(char*, dlerror, (void), ())
OLD(int, dladdr, (const void* address, Dl_info* found), (address, found))

// Of 2.36; std::random_device asks for it.
__attribute__((visibility("hidden"))) uint32_t __wrap_arc4random(void);
uint32_t __wrap_arc4random(void) {
  uint32_t value = 0;
  while (getrandom(&value, sizeof value, 0) != (long)sizeof value) {}
  return value;
}

// Of 2.32: whether shared_ptr may count without atomics. Never.
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
#endif
