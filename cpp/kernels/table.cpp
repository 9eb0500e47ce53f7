// Collects the kernels of one target: compiled once per target.
#include "../simd/target.h"

// No kernel uses BF16 dot products yet: until one does, that target runs avx512's code instead of a second copy of it.
#if defined(TL_TARGET_AVX512BF16)
#define TL_KERNELS avx512
#else
#define TL_KERNELS TL_TARGET
#endif

namespace tl::TL_KERNELS {
#define TL_OP(name, Args, inputs, outputs, parameters) Status name(const Args& args, Context& context);
#include "ops.def"
#undef TL_OP
extern const PackingKernels packingKernels;
}  // namespace tl::TL_KERNELS

namespace tl::TL_TARGET {

namespace {
#define TL_OP(name, Args, inputs, outputs, parameters) \
  Status call_##name(const void* args, Context& context) { return TL_KERNELS::name(*static_cast<const Args*>(args), context); }
#include "ops.def"
#undef TL_OP
}  // namespace

const KernelTable& table() {
  static const KernelTable made = {
      kIsa,
      {
#define TL_OP(name, Args, inputs, outputs, parameters) call_##name,
#include "ops.def"
#undef TL_OP
      },
      TL_KERNELS::packingKernels,
  };
  return made;
}

}  // namespace tl::TL_TARGET
