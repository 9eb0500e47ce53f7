// Draft trees: see cpp/kernels/draft.cpp. Trees have at most 1,024 nodes, and a walk along them is short: one block for each op.
#include "sampler.cuh"

namespace tl::cuda {
namespace {

constexpr int64_t kMostNodes = 1024;

Status indexOperand(const char* op, const char* name, const View& view, int64_t count) {
  if (view.dtype != DType::i32) return argumentError(op, name, "must be i32", int64_t(view.dtype));
  if (view.count() != count || view.lastDim() != count) return shapeError(op, name, "must have one element a node", count, view.count());
  if (count > 1 && view.strides[view.rank - 1] != 1) return argumentError(op, name, "must be contiguous", view.rank);
  return {};
}

Status checkParents(const char* op, const View& view) {
  const int64_t n = view.count();
  TL_TRY(indexOperand(op, "parents", view, n));
  return n < 1 || n > kMostNodes ? argumentError(op, "parents", "must have 1 … 1024 nodes", n) : Status{};
}

Status matrixOperand(const char* op, const View& matrix) {
  if (matrix.dtype != DType::i32) return argumentError(op, "matrix", "must be i32", int64_t(matrix.dtype));
  if (matrix.rank != 2 || !matrix.rowsAreUniform()) return argumentError(op, "matrix", "must be [vocabulary, k]", matrix.rank);
  return {};
}

// The parent of node i ≥ 1: an earlier one, or a mark and node 0.
__device__ int parentOf(const int32_t* parents, int i, int* problems) { return int(checkedIndex(parents[i], i, problems)); }

// By one thread.
__device__ void readDepths(const int32_t* parents, int n, int* depths, int* problems) {
  depths[0] = 0;
  if (parents[0] != -1) reportProblem(problems, Problems::index);
  for (int i = 1; i < n; ++i) depths[i] = depths[parentOf(parents, i, problems)] + 1;
}

__global__ void __launch_bounds__(kSelectThreads) updateMatrix(Rows logits, const int32_t* tokens, int n, int k, int32_t* matrix, int64_t stride, int* problems) {
  Shared shared;
  auto* scratch = shared.take<SamplerScratch>(1);
  const int node = int(blockIdx.x);
  const int64_t token = checkedIndex(tokens[node], logits.width, problems);
  for (int later = node + 1; later < n; ++later)
    if (tokens[later] == tokens[node]) return;  // that one writes this row
  const float* row = logits.row(node);
  const float maximum = rowMaximum(row, logits.width, scratch->maxima);
  if (maximum != maximum) {
    if (threadIdx.x == 0) reportProblem(problems, Problems::notANumber);
    return;
  }
  selectLargest(logits.width, k, &scratch->select, [&](int64_t i) { return orderKey(row[i]); });
  for (int i = int(threadIdx.x); i < k; i += int(blockDim.x)) matrix[token * stride + i] = int32_t(candidateIndex(scratch->select.items[i]));
}

__global__ void growTree(const int32_t* matrix, int64_t vocabulary, int64_t k, int64_t stride, const int32_t* root, const int32_t* parents, const int32_t* ranks, int n, int32_t* tokens, int32_t* depths, int* problems) {
  Shared shared;
  int* depth = shared.take<int>(n);
  if (threadIdx.x != 0) return;
  readDepths(parents, n, depth, problems);
  tokens[0] = int32_t(checkedIndex(*root, vocabulary, problems));
  for (int i = 1; i < n; ++i) tokens[i] = int32_t(checkedIndex(matrix[tokens[parentOf(parents, i, problems)] * stride + checkedIndex(ranks[i], k, problems)], vocabulary, problems));
  for (int i = 0; i < n && depths; ++i) depths[i] = depth[i];
}

struct MaskOut {
  uint8_t* mask;
  uint32_t* bits;
  int32_t *depths, *positions;
  int64_t maskStride, bitsStride, words;
};

// A thread a node walks to the root.
__global__ void markAncestors(const int32_t* parents, int n, int32_t past, MaskOut out, int* problems) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  for (int j = 0; j < n && out.mask; ++j) out.mask[i * out.maskStride + j] = 0;
  for (int64_t w = 0; w < out.words && out.bits; ++w) out.bits[i * out.bitsStride + w] = 0;
  int depth = -1;
  for (int j = i;; j = parentOf(parents, j, problems)) {
    ++depth;
    if (out.mask) out.mask[i * out.maskStride + j] = 1;
    if (out.bits) out.bits[i * out.bitsStride + j / 32] |= 1u << (j % 32);
    if (j == 0) break;
  }
  if (i == 0 && parents[0] != -1) reportProblem(problems, Problems::index);
  if (out.depths) out.depths[i] = depth;
  if (out.positions) out.positions[i] = past + depth;
}

struct PathOut {
  int32_t *path, *accepted, *count;
  float* logProb;
};

// By one thread: from the deepest accepted node; drawn[i] is the token behind node i.
__device__ void writePath(const PathOut& out, const int32_t* parents, const int* depths, const int* drawn, int n, int last, int* problems) {
  for (int i = depths[last] + 1; i < n; ++i) out.path[i] = out.accepted[i] = -1;
  for (int node = last;; node = parentOf(parents, node, problems)) {
    out.path[depths[node]] = node;
    out.accepted[depths[node]] = drawn[node];
    if (node == 0) break;
  }
  *out.count = depths[last] + 1;
}

struct Verify {
  Rows logits;
  const int32_t *tokens, *parents, *history;
  int64_t past, window;  // tokens of the history, and how many the penalty looks at
  float* penalised;
};

__global__ void __launch_bounds__(kSelectThreads) verifyNodes(Verify v, int n, Sampler s, PathOut out, int* problems) {
  Shared shared;
  auto* scratch = shared.take<SamplerScratch>(1);
  int *depths = shared.take<int>(n), *drawn = shared.take<int>(n);
  int32_t* path = shared.take<int32_t>(n);
  if (threadIdx.x == 0) readDepths(v.parents, n, depths, problems);
  __syncthreads();
  int deepest = 0;
  const int64_t vocabulary = v.logits.width;
  for (int i = 0; i < n; ++i) {
    const int parent = i > 0 ? parentOf(v.parents, i, problems) : 0;
    const bool reached = i == 0 || (drawn[parent] >= 0 && v.tokens[i] == drawn[parent]);
    __syncthreads();
    if (!reached) {
      if (threadIdx.x == 0) drawn[i] = -1;
      __syncthreads();
      continue;
    }
    const float* x = v.logits.row(i);
    const int64_t seen = min(int64_t(depths[i]), v.window), held = min(max(v.window - depths[i], int64_t(0)), v.past);
    if (v.penalised && seen + held > 0) {
      if (threadIdx.x == 0)
        for (int node = i; node > 0; node = parentOf(v.parents, node, problems)) path[depths[node] - 1] = v.tokens[node];
      for (int64_t j = threadIdx.x; j < vocabulary; j += blockDim.x) v.penalised[j] = x[j];
      __syncthreads();
      penalise(x, vocabulary, v.history + v.past - held, held, s.repeatPenalty, v.penalised, problems);
      penalise(x, vocabulary, path + depths[i] - seen, seen, s.repeatPenalty, v.penalised, nullptr);
      __syncthreads();
      x = v.penalised;
    }
    const int token = drawToken(x, vocabulary, s, s.position + uint64_t(depths[i]), scratch);
    if (threadIdx.x == 0) {
      if (token < 0) reportProblem(problems, Problems::notANumber);
      drawn[i] = token < 0 ? 0 : token;
    }
    if (depths[i] > depths[deepest]) deepest = i;
    __syncthreads();
  }
  if (threadIdx.x == 0) writePath(out, v.parents, depths, drawn, n, deepest, problems);
  if (!out.logProb) return;
  for (int i = depths[deepest] + 1 + int(threadIdx.x); i < n; i += int(blockDim.x)) out.logProb[i] = 0;
  for (int node = deepest;; node = parentOf(v.parents, node, problems)) {
    const float* x = v.logits.row(node);
    const float maximum = rowMaximum(x, vocabulary, scratch->maxima);
    const double sum = sumOfExp(x, vocabulary, maximum, scratch->sums);
    if (threadIdx.x == 0) out.logProb[depths[node]] = float(double(x[drawn[node]]) - double(maximum) - log(sum));
    if (node == 0) break;
  }
}

// x [n] by its sum; false where that is not positive and finite. By the whole block.
__device__ bool normalise(float* x, int64_t n, double* sums) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += double(x[i]);
  sum = blockReduce(sum, sums, [](double a, double b) { return a + b; });
  if (!(sum > 0 && sum < 1e300)) return false;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) x[i] = float(double(x[i]) / sum);
  __syncthreads();
  return true;
}
__device__ bool copyNormalised(const float* from, int64_t n, float* to, double* sums) {
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) to[i] = from[i];
  __syncthreads();
  return normalise(to, n, sums);
}

struct Given {
  Rows target, draft;  // draft.data null: children were chosen by rule
  const int32_t *tokens, *parents;
  const float *uniform, *uniformFinal;
  float *residual, *rest;
};

// r: what the target still may give at this node; s: what the draft's children are still drawn from.
__global__ void __launch_bounds__(kSelectThreads) verifyGiven(Given g, int n, PathOut out, int* problems) {
  Shared shared;
  double* sums = shared.take<double>(kWarp + 1);
  int *depths = shared.take<int>(n), *drawn = shared.take<int>(n);
  const int64_t vocabulary = g.target.width;
  float *r = g.residual, *s = g.rest;
  const bool drafted = g.draft.data != nullptr;
  if (threadIdx.x == 0) readDepths(g.parents, n, depths, problems);
  __syncthreads();
  int node = 0;
  bool good = copyNormalised(g.target.row(0), vocabulary, r, sums), more = drafted && copyNormalised(g.draft.row(0), vocabulary, s, sums);
  for (int i = 1; i < n; ++i) {
    if (parentOf(g.parents, i, problems) != node) continue;
    const int64_t x = checkedIndex(g.tokens[i], vocabulary, problems);
    const float own = r[x], draft = drafted ? s[x] : 1.0f;
    if (drafted && (!more || draft <= 0)) continue;
    bool taken = g.uniform[i] < (drafted ? own / draft : own);
    __syncthreads();
    if (!taken && !drafted && threadIdx.x == 0) r[x] = 0;
    if (!taken && drafted) {
      for (int64_t t = threadIdx.x; t < vocabulary; t += blockDim.x) r[t] = max(r[t] - s[t], 0.0f);
      __syncthreads();
      if (threadIdx.x == 0) s[x] = 0;
      __syncthreads();
      more = normalise(s, vocabulary, sums);
    }
    __syncthreads();
    taken = taken || !normalise(r, vocabulary, sums);  // where nothing else is left, only rounding kept it from being accepted
    if (!taken) continue;
    if (threadIdx.x == 0) drawn[node] = int(x);
    node = i;
    good = copyNormalised(g.target.row(i), vocabulary, r, sums) && good;
    more = drafted && copyNormalised(g.draft.row(i), vocabulary, s, sums);
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  if (!good) reportProblem(problems, Problems::notANumber);
  double mass = 0;
  int chosen = 0;
  for (int64_t i = 0; i < vocabulary; ++i) {
    if (r[i] <= 0) continue;
    chosen = int(i);
    if ((mass += double(r[i])) > double(*g.uniformFinal)) break;
  }
  drawn[node] = chosen;
  writePath(out, g.parents, depths, drawn, n, node, problems);
}

Status nodeRows(const char* op, const char* name, const View& view, int64_t n, Rows& rows) {
  TL_TRY(floatRows(op, name, view, rows));
  if (rows.rows != n) return shapeError(op, name, "must have one row a node", n, rows.rows);
  return rows.width < 1 ? shapeError(op, name, "must have columns", 1, rows.width) : Status{};
}

Status openPath(const char* op, int64_t n, const View& path, const View& accepted, const View& count, PathOut& out) {
  TL_TRY(indexOperand(op, "path", path, n));
  TL_TRY(indexOperand(op, "accepted", accepted, n));
  TL_TRY(indexOperand(op, "count", count, 1));
  out = {path.as<int32_t>(), accepted.as<int32_t>(), count.as<int32_t>(), nullptr};
  return {};
}

}  // namespace

Status recycleUpdate(const RecycleUpdateArgs& args, DeviceContext& context) {
  constexpr const char* op = "recycleUpdate";
  TL_TRY(matrixOperand(op, args.matrix));
  const int64_t n = args.tokens.count(), vocabulary = args.matrix.dims[0], k = args.matrix.dims[1];
  if (n == 0) return {};
  if (k < 1 || k > kMostCandidates) return argumentError(op, "matrix", "must have 1 … 1024 columns", k);
  TL_TRY(indexOperand(op, "tokens", args.tokens, n));
  Rows logits;
  TL_TRY(nodeRows(op, "logits", args.logits, n, logits));
  if (logits.width != vocabulary) return shapeError(op, "logits", "must have a column for each row of the matrix", vocabulary, logits.width);
  if (k > vocabulary) return shapeError(op, "matrix", "has more columns than the vocabulary", vocabulary, k);
  return launch(op, context, updateMatrix, dim3(unsigned(n)), dim3(kSelectThreads), sharedBytes<SamplerScratch>(1), logits, args.tokens.as<const int32_t>(), int(n), int(k), args.matrix.as<int32_t>(),
                args.matrix.rowStride(), context.problems);
}

Status expandTree(const ExpandTreeArgs& args, DeviceContext& context) {
  constexpr const char* op = "expandTree";
  TL_TRY(matrixOperand(op, args.matrix));
  TL_TRY(checkParents(op, args.parents));
  const int64_t n = args.parents.count();
  TL_TRY(indexOperand(op, "root", args.root, 1));
  TL_TRY(indexOperand(op, "ranks", args.ranks, n));
  TL_TRY(indexOperand(op, "tokens", args.tokens, n));
  if (args.depths.present()) TL_TRY(indexOperand(op, "depths", args.depths, n));
  return launch(op, context, growTree, dim3(1), dim3(kWarp), sharedBytes<int>(n), args.matrix.as<const int32_t>(), args.matrix.dims[0], args.matrix.dims[1], args.matrix.rowStride(), args.root.as<const int32_t>(),
                args.parents.as<const int32_t>(), args.ranks.as<const int32_t>(), int(n), args.tokens.as<int32_t>(), args.depths.present() ? args.depths.as<int32_t>() : nullptr, context.problems);
}

Status treeMask(const TreeMaskArgs& args, DeviceContext& context) {
  constexpr const char* op = "treeMask";
  TL_TRY(checkParents(op, args.parents));
  const int64_t n = args.parents.count();
  const View &mask = args.mask, &bits = args.bits;
  if (args.depths.present()) TL_TRY(indexOperand(op, "depths", args.depths, n));
  if (args.positions.present()) TL_TRY(indexOperand(op, "positions", args.positions, n));
  if (!(args.past >= 0 && args.past + double(n) <= 0x7fffffff)) return argumentError(op, "past", "must fit positions of 32 bits");
  if (mask.present() && (mask.dtype != DType::u8 || mask.rank != 2 || !mask.rowsAreUniform() || mask.dims[0] != n || mask.dims[1] != n)) return shapeError(op, "mask", "must be u8 [n, n]", n, mask.dims[1]);
  if (bits.present() && (bits.dtype != DType::i32 || bits.rank != 2 || !bits.rowsAreUniform() || bits.dims[0] != n || bits.dims[1] < (n + 31) / 32))
    return shapeError(op, "bits", "must be i32 [n, words]", (n + 31) / 32, bits.dims[1]);
  const MaskOut out{mask.present() ? mask.as<uint8_t>() : nullptr, bits.present() ? bits.as<uint32_t>() : nullptr, args.depths.present() ? args.depths.as<int32_t>() : nullptr,
                    args.positions.present() ? args.positions.as<int32_t>() : nullptr, mask.present() ? mask.rowStride() : 0, bits.present() ? bits.rowStride() : 0, bits.present() ? bits.dims[1] : 0};
  return launch(op, context, markAncestors, dim3(unsigned(ceilDiv(n, 64))), dim3(64), 0, args.parents.as<const int32_t>(), int(n), int32_t(args.past), out, context.problems);
}

Status verifyTree(const VerifyTreeArgs& args, DeviceContext& context) {
  constexpr const char* op = "verifyTree";
  TL_TRY(checkParents(op, args.parents));
  const int64_t n = args.parents.count();
  TL_TRY(indexOperand(op, "tokens", args.tokens, n));
  Verify v{};
  PathOut out;
  TL_TRY(nodeRows(op, "logits", args.logits, n, v.logits));
  TL_TRY(openPath(op, n, args.path, args.accepted, args.count, out));
  if (args.logProb.present()) {
    TL_TRY(vectorOperand(op, "logProb", args.logProb, n));
    out.logProb = args.logProb.as<float>();
  }
  if (!(args.repeatLastTokens >= 0)) return argumentError(op, "repeatLastTokens", "must be at least 0");
  TL_TRY(checkChain(op, v.logits.width, args));
  v.tokens = args.tokens.as<const int32_t>();
  v.parents = args.parents.as<const int32_t>();
  v.past = args.history.present() ? args.history.dims[0] : 0;
  v.history = args.history.present() ? args.history.as<const int32_t>() : nullptr;
  v.window = int64_t(std::min(args.repeatLastTokens, 0x1p40));
  if (args.repeatPenalty != 1) TL_TRY(context.scratch(op, v.logits.width, &v.penalised));
  const Sampler s{float(args.temperature), args.topK, args.topP, args.minP, args.repeatPenalty, uint64_t(args.seed), uint64_t(args.stream), uint64_t(args.position)};
  return launch(op, context, verifyNodes, dim3(1), dim3(kSelectThreads), sharedBytes<SamplerScratch>(1) + 3 * sharedBytes<int>(n), v, int(n), s, out, context.problems);
}

Status verifySampling(const VerifySamplingArgs& args, DeviceContext& context) {
  constexpr const char* op = "verifySampling";
  TL_TRY(checkParents(op, args.parents));
  const int64_t n = args.parents.count();
  Given g{};
  PathOut out;
  TL_TRY(nodeRows(op, "target", args.target, n, g.target));
  const int64_t vocabulary = g.target.width;
  TL_TRY(indexOperand(op, "tokens", args.tokens, n));
  if (args.draft.present()) TL_TRY(nodeRows(op, "draft", args.draft, n, g.draft));
  if (args.draft.present() && g.draft.width != vocabulary) return shapeError(op, "draft", "must have the vocabulary of the target", vocabulary, g.draft.width);
  TL_TRY(vectorOperand(op, "uniform", args.uniform, n));
  TL_TRY(vectorOperand(op, "uniformFinal", args.uniformFinal, 1));
  TL_TRY(vectorOperand(op, "residual", args.residual, vocabulary));
  TL_TRY(openPath(op, n, args.path, args.accepted, args.count, out));
  g.tokens = args.tokens.as<const int32_t>();
  g.parents = args.parents.as<const int32_t>();
  g.uniform = args.uniform.as<const float>();
  g.uniformFinal = args.uniformFinal.as<const float>();
  g.residual = args.residual.as<float>();
  TL_TRY(context.scratch(op, vocabulary, &g.rest));
  return launch(op, context, verifyGiven, dim3(1), dim3(kSelectThreads), sharedBytes<double>(kWarp + 1) + 2 * sharedBytes<int>(n), g, int(n), out, context.problems);
}

}  // namespace tl::cuda
