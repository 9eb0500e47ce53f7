// Sizes of the stored block types, as GGUF defines them. Compiled once.
#include "packed_weight.h"

namespace tl {
namespace {

struct BlockSize { int64_t elements, bytes; };
constexpr BlockSize kBlocks[] = {
    {1, 4}, {1, 2}, {1, 2},                                          // f32 f16 bf16
    {32, 18}, {32, 20}, {32, 22}, {32, 24}, {32, 34},                // q4_0 q4_1 q5_0 q5_1 q8_0
    {256, 84}, {256, 110}, {256, 144}, {256, 176}, {256, 210},       // q2_k … q6_k
    {32, 18},                                                        // iq4_nl
};
static_assert(sizeof kBlocks / sizeof kBlocks[0] == size_t(Storage::count));

bool known(Storage storage) { return int32_t(storage) >= 0 && storage < Storage::count; }

}  // namespace

int64_t storageBlockElements(Storage storage) { return known(storage) ? kBlocks[size_t(storage)].elements : 0; }
int64_t storageBlockBytes(Storage storage) { return known(storage) ? kBlocks[size_t(storage)].bytes : 0; }

}  // namespace tl
