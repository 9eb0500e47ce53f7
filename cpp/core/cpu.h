// Which instruction sets this processor and operating system offer, by CPUID and XGETBV (no compiler builtins: they are
// unreliable under some cross compilers).
#pragma once
#include <cstdint>

namespace tl {

enum class Isa : int32_t { scalar = 0, avx2, avx512, avx512bf16, neon, count };

const char* isaName(Isa isa);
bool isaAvailable(Isa isa);  // compiled in and runnable here
Isa bestIsa();
// Cores this process may use (affinity and cgroup quota counted).
int usableCores();

}  // namespace tl
