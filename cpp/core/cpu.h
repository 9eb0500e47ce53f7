// Which instruction sets this processor and operating system offer, by CPUID and XGETBV (no compiler builtins: they are
// unreliable under some cross compilers), on ARM by what the operating system tells.
#pragma once
#include <cstdint>

namespace tl {

enum class Isa : int32_t { scalar = 0, avx2, avx512, avx512bf16, neon, neondot, count };

const char* isaName(Isa isa);
bool isaAvailable(Isa isa);  // compiled in and runnable here
Isa bestIsa();
// While it lives, results of this thread that are too small for a normal float are zero (x86): weights of far keys become such, and
// an Intel core takes a hundred times as long for them. Operands that small keep their value.
class FlushedSubnormals {
 public:
  FlushedSubnormals();
  ~FlushedSubnormals();
  FlushedSubnormals(const FlushedSubnormals&) = delete;
  FlushedSubnormals& operator=(const FlushedSubnormals&) = delete;

 private:
  [[maybe_unused]] uint32_t before_;
};
// Cores this process may use (affinity and cgroup quota counted).
int usableCores();

}  // namespace tl
