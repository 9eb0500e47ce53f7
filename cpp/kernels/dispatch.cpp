// Chooses one target's table at load. Compiled once, with baseline flags.
#include <cstdlib>
#include <cstring>

#include "table.h"

namespace tl {

#define TL_HAVE(target) namespace target { const KernelTable& table(); }
TL_HAVE(scalar)
#if defined(TL_HAVE_AVX2)
TL_HAVE(avx2)
#endif
#if defined(TL_HAVE_AVX512)
TL_HAVE(avx512)
#endif
#if defined(TL_HAVE_AVX512BF16)
TL_HAVE(avx512bf16)
#endif
#if defined(TL_HAVE_NEON)
TL_HAVE(neon)
#endif
#if defined(TL_HAVE_NEONDOT)
TL_HAVE(neondot)
#endif
#undef TL_HAVE

namespace {

#if defined(TL_EMULATE_X86)
constexpr bool kEmulated = true;  // test build: intrinsics are plain C, any machine runs them
#else
constexpr bool kEmulated = false;
#endif

Isa requested(bool& valid) {
  valid = true;
  const char* name = std::getenv("TOKENLOOM_ISA");
  if (!name || !*name) return Isa::count;
  for (int i = 0; i < int(Isa::count); ++i)
    if (std::strcmp(name, isaName(Isa(i))) == 0 && kernelTable(Isa(i))) return Isa(i);
  valid = false;
  return Isa::count;
}

}  // namespace

const KernelTable* kernelTable(Isa isa) {
  if (!kEmulated && !isaAvailable(isa)) return nullptr;
  switch (isa) {
    case Isa::scalar: return &scalar::table();
#if defined(TL_HAVE_AVX2)
    case Isa::avx2: return &avx2::table();
#endif
#if defined(TL_HAVE_AVX512)
    case Isa::avx512: return &avx512::table();
#endif
#if defined(TL_HAVE_AVX512BF16)
    case Isa::avx512bf16: return &avx512bf16::table();
#endif
#if defined(TL_HAVE_NEON)
    case Isa::neon: return &neon::table();
#endif
#if defined(TL_HAVE_NEONDOT)
    case Isa::neondot: return &neondot::table();
#endif
    default: return nullptr;
  }
}

const KernelTable& activeTable() {
  static const KernelTable& chosen = [&]() -> const KernelTable& {
    bool valid;
    const Isa wanted = requested(valid);
    if (wanted != Isa::count) return *kernelTable(wanted);
    for (Isa isa : {Isa::avx512bf16, Isa::avx512, Isa::avx2, Isa::neondot, Isa::neon})
      if (isaAvailable(isa))
        if (const KernelTable* table = kernelTable(isa)) return *table;
    return scalar::table();
  }();
  return chosen;
}

bool requestedIsaIsValid() {
  bool valid;
  requested(valid);
  return valid;
}

}  // namespace tl
