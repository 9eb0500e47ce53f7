#include "program.h"

#include <cmath>

#include "../core/checked.h"
#include "../kernels/quantized_rows.h"

namespace tl {
namespace {

constexpr double kMagic = 0x746C6F6F6D;  // "tloom"
constexpr double kVersion = 2;
constexpr int64_t kMost = int64_t(1) << 53;

class Reader {
 public:
  Reader(const double* words, size_t count) : words_(words), count_(count) {}
  bool integer(int64_t low, int64_t high, int64_t& value) {
    double word;
    if (!number(word) || !(word >= double(low)) || !(word <= double(high)) || word != std::trunc(word)) return false;
    value = int64_t(word);
    return true;
  }
  bool small(int64_t low, int64_t high, int32_t& value) {
    int64_t wide;
    if (!integer(low, high, wide)) return false;
    value = int32_t(wide);
    return true;
  }
  bool number(double& value) {
    if (at_ >= count_) return false;
    value = words_[at_++];
    return true;
  }
  bool affine(int32_t symbols, Affine& value) {
    return small(-1, symbols - 1, value.symbol) && integer(0, kMost, value.multiply) && integer(0, kMost, value.add);
  }
  size_t left() const { return count_ - at_; }
  size_t position() const { return at_; }

 private:
  const double* words_;
  size_t count_, at_ = 0;
};

Status malformed(const Reader& reader, const char* what) {
  return {Code::format, "program", what, "malformed program", 0, int64_t(reader.position())};
}

bool evaluate(const Affine& plan, const int64_t* symbols, int64_t& value) {
  return checkedMulAdd(plan.multiply, plan.symbol >= 0 ? symbols[plan.symbol] : 0, plan.add, value);
}

// Bytes from a view's first to past its last element; false where that does not fit in 64 bits.
bool extentBytes(const View& view, int64_t& bytes) {
  if (view.dtype == DType::q8) {  // whole rows only
    int64_t rows = 1;
    for (int i = 0; i + 1 < view.rank; ++i)
      if (!checkedMulAdd(rows, view.dims[i], 0, rows)) return false;
    if (view.lastDim() > kMost) return false;
    return checkedMulAdd(rows, quantizedRowBytes(view.lastDim()), 0, bytes);
  }
  int64_t last = 0;
  for (int i = 0; i < view.rank; ++i) {
    if (view.dims[i] == 0) { bytes = 0; return true; }
    if (!checkedMulAdd(view.dims[i] - 1, view.strides[i], last, last)) return false;
  }
  return checkedMulAdd(last, 1, 1, last) && checkedMulAdd(last, int64_t(elementBytes(view.dtype)), 0, bytes);
}

}  // namespace

Status Program::decode(const double* words, size_t count, std::vector<Operand> constants, Program& program) {
  Reader in(words, count);
  double magic, version;
  if (!in.number(magic) || magic != kMagic || !in.number(version) || version != kVersion) return malformed(in, "magic");
  int32_t constantCount, bindingCount, instructionCount;
  if (!in.small(0, 1024, program.symbols_) || !in.small(0, 1 << 20, constantCount) || !in.small(0, 1 << 16, bindingCount) ||
      !in.small(0, 1 << 16, program.scalars_) || !in.integer(0, kMost, program.arenaBytes_) || !in.small(0, 1 << 24, instructionCount))
    return malformed(in, "header");
  CachePlan& cache = program.cache_;
  for (int32_t* binding : {&cache.binding, &cache.positions, &cache.path, &cache.count, &cache.kept})
    if (!in.small(-1, bindingCount - 1, *binding)) return malformed(in, "cache");
  if (!in.small(-1, program.symbols_ - 1, cache.newTokens) || !in.small(-1, program.symbols_ - 1, cache.keptStride) || !in.small(0, 1, cache.dense)) return malformed(in, "cache");
  if (size_t(constantCount) != constants.size()) return malformed(in, "constants");
  if (in.left() < size_t(bindingCount) || in.left() < size_t(instructionCount)) return malformed(in, "counts");
  program.constants_ = std::move(constants);
  for (int32_t i = 0; i < bindingCount; ++i) {
    int32_t type;
    if (!in.small(int(DType::f32), int(DType::cache), type)) return malformed(in, "binding");
    program.bindings_.push_back(DType(type));
  }
  program.written_.assign(program.bindings_.size(), false);
  const auto isType = [&](int32_t binding, DType type) { return binding < 0 || (cache.binding >= 0 && program.bindings_[size_t(binding)] == type); };
  if (!isType(cache.binding, DType::cache) || !isType(cache.positions, DType::i32) || !isType(cache.path, DType::i32) || !isType(cache.count, DType::i32) || !isType(cache.kept, DType::u8))
    return malformed(in, "cache");
  if ((cache.path >= 0) != (cache.count >= 0) || (cache.path >= 0 && (cache.newTokens < 0 || cache.positions < 0)) || (cache.kept >= 0) != (cache.keptStride >= 0) ||
      (cache.kept >= 0 && cache.newTokens >= 0))
    return malformed(in, "cache");
  program.instructions_.reserve(size_t(instructionCount));
  program.views_.reserve(size_t(instructionCount) * 4);
  for (int32_t i = 0; i < instructionCount; ++i) {
    int32_t op;
    if (!in.small(0, int(Op::count) - 1, op)) return malformed(in, "op");
    program.instructions_.push_back({Op(op), uint32_t(program.views_.size()), uint32_t(program.parameters_.size())});
    for (int32_t v = 0; v < kOps[op].views; ++v) {
      ViewPlan view;
      int32_t kind;
      if (!in.small(0, 3, kind)) return malformed(in, "view kind");
      view.kind = ViewKind(kind);
      if (view.kind != ViewKind::absent) {
        const int32_t most = view.kind == ViewKind::constant ? constantCount - 1 : view.kind == ViewKind::binding ? bindingCount - 1 : 0;
        int32_t type;
        if (!in.small(0, most, view.index) || !in.affine(program.symbols_, view.offset) || !in.small(int(DType::f32), int(DType::cache), type) ||
            !in.small(0, kMaxRank, view.rank))
          return malformed(in, "view");
        view.dtype = DType(type);
        const DType held = view.kind == ViewKind::constant ? program.constants_[size_t(view.index)].dtype
                         : view.kind == ViewKind::binding  ? program.bindings_[size_t(view.index)] : view.dtype;
        if (held != view.dtype) return malformed(in, "view dtype");
        if (view.kind == ViewKind::arena && (view.dtype == DType::packed || view.dtype == DType::cache)) return malformed(in, "view dtype");
        if (view.kind == ViewKind::binding && v >= countNames(kOps[op].inputs)) program.written_[size_t(view.index)] = true;
        for (int32_t d = 0; d < view.rank; ++d)
          if (!in.affine(program.symbols_, view.dims[d]) || !in.integer(0, kMost, view.strides[d])) return malformed(in, "dim");
      }
      program.views_.push_back(view);
    }
    for (int32_t p = 0; p < kOps[op].doubles; ++p) {
      ParameterPlan parameter;
      int32_t kind;
      if (!in.small(0, 2, kind)) return malformed(in, "parameter kind");
      parameter.kind = ParameterPlan::Kind(kind);
      const bool good = parameter.kind == ParameterPlan::Kind::number ? in.number(parameter.value)
                      : in.small(0, (parameter.kind == ParameterPlan::Kind::symbol ? program.symbols_ : program.scalars_) - 1, parameter.index);
      if (!good) return malformed(in, "parameter");
      program.parameters_.push_back(parameter);
    }
  }
  return in.left() == 0 ? Status{} : malformed(in, "end");
}

Status Program::resolve(const ViewPlan& plan, const Memory& run, View& view) const {
  view = View{};
  if (plan.kind == ViewKind::absent) return {};
  view.dtype = plan.dtype;
  view.rank = plan.rank;
  int64_t offset;
  bool good = evaluate(plan.offset, run.symbols, offset);
  for (int i = 0; good && i < plan.rank; ++i) {
    good = evaluate(plan.dims[i], run.symbols, view.dims[i]);
    view.strides[i] = plan.strides[i];
  }
  if (!good) return {Code::shape, "program", "dim", "a size does not fit in 64 bits"};
  const Operand* operand = plan.kind == ViewKind::constant ? &run.constants[plan.index]
                         : plan.kind == ViewKind::binding  ? &run.bindings[plan.index] : nullptr;
  if (operand && !operand->data && operand->dtype == DType::none) {  // a binding left out: an optional operand
    view = View{};
    return {};
  }
  if (plan.dtype == DType::packed || plan.dtype == DType::cache) {
    view.data = operand->data;
    return {};
  }
  int64_t bytes = 0, end = 0;
  const int64_t start = plan.kind == ViewKind::arena ? offset : offset * int64_t(elementBytes(plan.dtype));
  const int64_t held = operand ? operand->bytes : arenaBytes_;
  if (offset > kMost || !extentBytes(view, bytes) || !checkedMulAdd(bytes, 1, start, end) || (bytes > 0 && end > held))
    return {Code::shape, "program", plan.kind == ViewKind::arena ? "arena" : plan.kind == ViewKind::constant ? "constant" : "binding",
            "a view reaches past its memory", held, end};
  view.data = (operand ? static_cast<std::byte*>(operand->data) : run.arena) + (bytes > 0 ? start : 0);
  return {};
}

template <typename Call> Status Program::runWith(const Memory& run, Call&& call) const {
  alignas(16) std::byte args[sizeof(View) * 32 + sizeof(double) * 48];
  for (const Instruction& instruction : instructions_) {
    if (run.cancel && __atomic_load_n(run.cancel, __ATOMIC_RELAXED) != 0) return {Code::cancelled, "program", "", "cancelled"};
    const OpInfo& info = kOps[size_t(instruction.op)];
    auto* views = reinterpret_cast<View*>(args);
    for (int32_t i = 0; i < info.views; ++i) TL_TRY(resolve(views_[instruction.firstView + uint32_t(i)], run, views[i]));
    auto* doubles = reinterpret_cast<double*>(args + sizeof(View) * size_t(info.views));
    for (int32_t i = 0; i < info.doubles; ++i) {
      const ParameterPlan& plan = parameters_[instruction.firstParameter + uint32_t(i)];
      doubles[i] = plan.kind == ParameterPlan::Kind::number ? plan.value
                 : plan.kind == ParameterPlan::Kind::symbol ? double(run.symbols[plan.index]) : run.scalars[plan.index];
    }
    TL_TRY(call(instruction.op, args));
  }
  return {};
}

Status Program::run(const Run& run) const {
  Context context{run.pool};
  return runWith({constants_.data(), run.symbols, run.bindings, run.scalars, run.arena, run.cancel},
                 [&](Op op, const void* args) -> Status {
                   TL_TRY(run.table.kernels[size_t(op)](args, context));
                   return run.pool.takeFailure(kOps[size_t(op)].name);
                 });
}

Status Program::runOn(const DeviceRun& run) const {
  for (const Instruction& instruction : instructions_)  // before anything is written
    if (!run.kernels[size_t(instruction.op)]) return argumentError(kOps[size_t(instruction.op)].name, "device", "this op does not run on CUDA yet, see docs/devices.md");
  return runWith({run.constants, run.symbols, run.bindings, run.scalars, run.arena, run.cancel},
                 [&](Op op, const void* args) { return run.kernels[size_t(op)](args, *run.context); });
}

namespace {
Buffer& arenaBuffer() {
  static Buffer* buffer = new Buffer();  // never destroyed: see ThreadPool::shared
  return *buffer;
}
}  // namespace

std::byte* SharedArena::ensure(int64_t bytes) {
  Buffer& buffer = arenaBuffer();
  if (!buffer || int64_t(buffer.bytes()) < bytes) {
    buffer = Buffer();  // free before asking: the peak is the larger of the two, not their sum
    buffer = Buffer(size_t(bytes), Owner::arena);
  }
  return buffer.as();
}

void SharedArena::trim() { arenaBuffer() = Buffer(); }

}  // namespace tl
