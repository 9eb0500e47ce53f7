// Runs a compiled program: a flat list of ops over arena offsets, constants and bindings. Knows kernels and devices, knows
// no model and no paper.
//
// A program arrives as doubles (all integers below 2^53, so nothing is lost), written by lib/graph/compile.ts:
//   header    magic, version, symbols, constants, bindings, scalars, arenaBytes, instructions, then what the run does
//             with a cache: see CachePlan, eight words
//   bindings  per binding: dtype
//   then per instruction: op, its views, its parameters
//   view      kind (0 absent, 1 arena, 2 constant, 3 binding), and unless absent: index, offset (3 words), dtype, rank, then
//             per dim: extent (3 words), stride in elements. A dim or offset is symbol (−1 = none), multiply, add.
//             offset counts bytes in the arena and elements elsewhere.
//   parameter kind (0 number, 1 symbol, 2 scalar), value
// Everything is checked when a program is made; extents are checked again at each run, when symbols are known.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "../cache/kv.h"
#include "../core/memory.h"
#include "../kernels/table.h"

namespace tl {

struct DeviceContext;
using DeviceKernel = Status (*)(const void* args, DeviceContext& context);

struct Affine {
  int32_t symbol = -1;
  int64_t multiply = 0, add = 0;
};

enum class ViewKind : int32_t { absent = 0, arena, constant, binding };

struct ViewPlan {
  ViewKind kind = ViewKind::absent;
  int32_t index = 0;
  Affine offset;
  DType dtype = DType::none;
  int32_t rank = 0;
  Affine dims[kMaxRank];
  int64_t strides[kMaxRank] = {};
};

struct ParameterPlan {
  enum class Kind : int32_t { number = 0, symbol, scalar } kind = Kind::number;
  double value = 0;
  int32_t index = 0;
};

// What a run does with its cache: binding indices and symbols, −1 = none. Appended tokens are counted after the last op, at
// `positions` (i32 [newTokens]); of a draft tree only the rows path[0 … count − 1] (i32 [newTokens], i32 [1]), which ops write.
// Or tokens are evicted: those with a zero in `kept` (u8 [layers, kvHeads, keptStride]).
struct CachePlan {
  int32_t binding = -1, newTokens = -1, positions = -1, path = -1, count = -1, kept = -1, keptStride = -1, dense = 0;
};

struct Instruction {
  Op op;
  uint32_t firstView, firstParameter;
};

// A block of memory that views may point into, or a packed weight.
struct Operand {
  DType dtype = DType::none;
  void* data = nullptr;
  int64_t bytes = 0;
};

class Program {
 public:
  // Decodes and checks `words`. `constants` gives type and size of each constant; their memory must outlive the program.
  static Status decode(const double* words, size_t count, std::vector<Operand> constants, Program& program);

  int64_t arenaBytes() const { return arenaBytes_; }
  int32_t symbols() const { return symbols_; }
  int32_t scalars() const { return scalars_; }
  const std::vector<DType>& bindings() const { return bindings_; }
  const CachePlan& cache() const { return cache_; }
  // Of the program itself, so that the garbage collector knows what a dropped one is worth.
  int64_t bytes() const {
    return int64_t(instructions_.capacity() * sizeof(Instruction) + views_.capacity() * sizeof(ViewPlan) + parameters_.capacity() * sizeof(ParameterPlan));
  }

  struct Run {
    const KernelTable& table;
    ThreadPool& pool;
    const int64_t* symbols;
    const Operand* bindings;
    const double* scalars;
    std::byte* arena;
    const int32_t* cancel;  // read atomically between ops; null = cannot be cancelled
  };
  Status run(const Run& run) const;

  // The same with a device's kernels, over memory of that device; see device.h.
  struct DeviceRun {
    const DeviceKernel* kernels;  // [Op::count], null where an op has no twin
    DeviceContext* context;
    const Operand* constants;     // in place of the program's own
    const int64_t* symbols;
    const Operand* bindings;
    const double* scalars;
    std::byte* arena;
    const int32_t* cancel;
  };
  Status runOn(const DeviceRun& run) const;
  const std::vector<Operand>& constants() const { return constants_; }
  // Whether an op has this binding among its outputs.
  bool writes(int32_t binding) const { return written_[size_t(binding)]; }

 private:
  struct Memory {
    const Operand* constants;
    const int64_t* symbols;
    const Operand* bindings;
    const double* scalars;
    std::byte* arena;
    const int32_t* cancel;
  };
  template <typename Call> Status runWith(const Memory& memory, Call&& call) const;
  Status resolve(const ViewPlan& plan, const Memory& memory, View& view) const;

  int32_t symbols_ = 0, scalars_ = 0;
  CachePlan cache_;
  int64_t arenaBytes_ = 0;
  std::vector<DType> bindings_;
  std::vector<bool> written_;
  std::vector<Operand> constants_;
  std::vector<Instruction> instructions_;
  std::vector<ViewPlan> views_;
  std::vector<ParameterPlan> parameters_;
};

// The arena that runs share: they take turns, and nothing in it outlives a run.
class SharedArena {
 public:
  // Both only within a ThreadPool::Turn. Null where memory is short.
  static std::byte* ensure(int64_t bytes);
  static void trim();  // gives the memory back
};

}  // namespace tl
