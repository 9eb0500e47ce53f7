// Collects the kernels of one target: compiled once per target.
#include "../simd/target.h"

// No kernel uses BF16 dot products yet: until one does, that target runs avx512's code instead of a second copy of it.
// neondot differs from neon where packed weights are read: the rest is neon's.
#if defined(TL_TARGET_AVX512BF16)
#define TL_KERNELS avx512
#elif defined(TL_TARGET_NEONDOT)
#define TL_KERNELS neon
#else
#define TL_KERNELS TL_TARGET
#endif

namespace tl::TL_KERNELS {
#define TL_OP(name, Args, inputs, outputs, parameters) Status name(const Args& args, Context& context);
#include "ops.def"
#undef TL_OP
extern const PackingKernels packingKernels;
}  // namespace tl::TL_KERNELS

#if defined(TL_TARGET_NEONDOT)
namespace tl::neondot {
Status embedding(const EmbeddingArgs& args, Context& context);
Status gatherRows(const GatherRowsArgs& args, Context& context);
Status matmul(const MatmulArgs& args, Context& context);
extern const PackingKernels packingKernels;
}  // namespace tl::neondot

namespace tl::neon_with_dot_products {
using namespace neon;
using neondot::embedding, neondot::gatherRows, neondot::matmul, neondot::packingKernels;  // before neon's of the same names
}  // namespace tl::neon_with_dot_products
#undef TL_KERNELS
#define TL_KERNELS neon_with_dot_products
#endif

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
