// One table of kernels a target, chosen once at load.
#pragma once
#include <string_view>

#include "../core/cpu.h"
#include "../core/pool.h"
#include "../core/status.h"
#include "args.h"
#include "packed_weight.h"

namespace tl {

// What a kernel may use besides its operands. No allocation in a kernel: ThreadPool::scratch, kScratchBytes a thread.
struct Context {
  ThreadPool& pool;
};

using Kernel = Status (*)(const void* args, Context& context);

enum class Op : int32_t {
#define TL_OP(name, Args, inputs, outputs, parameters) name,
#include "ops.def"
#undef TL_OP
  count
};

struct OpInfo {
  const char* name;
  const char* inputs;
  const char* outputs;
  const char* parameters;
  int32_t views, doubles;
};

constexpr int32_t countNames(std::string_view list) {
  int32_t n = list.empty() ? 0 : 1;
  for (char c : list) n += c == ',';
  return n;
}

inline constexpr OpInfo kOps[] = {
#define TL_OP(name, Args, inputs, outputs, parameters) \
  {#name, inputs, outputs, parameters, countNames(inputs) + countNames(outputs), countNames(parameters)},
#include "ops.def"
#undef TL_OP
};

#define TL_OP(name, Args, inputs, outputs, parameters)                                              \
  static_assert(sizeof(Args) == sizeof(View) * size_t(countNames(inputs) + countNames(outputs)) +   \
                                    sizeof(double) * size_t(countNames(parameters)),                \
                #name ": fields of " #Args " and ops.def differ");
#include "ops.def"
#undef TL_OP

struct KernelTable {
  Isa isa;
  Kernel kernels[size_t(Op::count)];
  PackingKernels packing;
};

// The table of `isa`, or null where it was not compiled in or cannot run here.
const KernelTable* kernelTable(Isa isa);
// The table in use: TOKENLOOM_ISA where set and available, else the best. Fixed at first call.
const KernelTable& activeTable();
// False where TOKENLOOM_ISA names a target that this build or machine lacks.
bool requestedIsaIsValid();

}  // namespace tl
