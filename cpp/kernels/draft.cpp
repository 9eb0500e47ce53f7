// Draft trees: what is proposed, who sees whom, what is accepted.
//   recycleUpdate   matrix[tokens[i]] = top-k(logits[i])                              (Token Recycling, arXiv 2408.08696)
//   expandTree      tokens[i] = matrix[tokens[parents[i]], ranks[i]]
//   treeMask        bits of the ancestors of each node, positions                      (SpecInfer, arXiv 2305.09781)
//   verifyTree      draws at each accepted node as `sample` does; a child that holds the draw is accepted
//   verifySampling  accepts or rejects children one by one, from given distributions and random numbers (also 2401.15077)
// verifyTree draws with the random number of the position, not of the tree: children are accepted with the same probability
// as by verifySampling's rule for drafts chosen by rule (Σ of the target's probabilities), and the text is that without drafts.
#include <atomic>

#include "../simd/target.h"
#include "rows_inl.h"
#include "sampler.h"
#include "select_inl.h"

namespace tl::TL_TARGET {
namespace {

constexpr int64_t kMostNodes = 1024;

// A contiguous i32 operand of `count` elements; where `limit` > 0 all lie in 0 … limit − 1.
Status indexOperand(const char* op, const char* name, const View& view, int64_t count, int64_t limit = 0) {
  if (view.dtype != DType::i32) return argumentError(op, name, "must be i32", int64_t(view.dtype));
  if (view.count() != count || view.lastDim() != count) return shapeError(op, name, "must have one element a node", count, view.count());
  if (count > 1 && view.strides[view.rank - 1] != 1) return argumentError(op, name, "must be contiguous", view.rank);
  for (int64_t i = 0; limit > 0 && i < count; ++i)
    if (view.as<int32_t>()[i] < 0 || view.as<int32_t>()[i] >= limit) return argumentError(op, name, "has a number outside its range", view.as<int32_t>()[i]);
  return {};
}

// parents[0] = −1, parents[i] < i. Writes the depths [n].
Status readParents(const char* op, const View& view, int32_t* depths) {
  const int64_t n = view.count();
  TL_TRY(indexOperand(op, "parents", view, n));
  if (n < 1 || n > kMostNodes) return argumentError(op, "parents", "must have 1 … 1024 nodes", n);
  const int32_t* parents = view.as<int32_t>();
  if (parents[0] != -1) return argumentError(op, "parents", "must begin with -1", parents[0]);
  depths[0] = 0;
  for (int64_t i = 1; i < n; ++i) {
    if (parents[i] < 0 || parents[i] >= i) return argumentError(op, "parents", "must name an earlier node", parents[i]);
    depths[i] = depths[parents[i]] + 1;
  }
  return {};
}

Status matrixOperand(const char* op, const View& matrix) {
  if (matrix.dtype != DType::i32) return argumentError(op, "matrix", "must be i32", int64_t(matrix.dtype));
  if (matrix.rank != 2 || !matrix.rowsAreUniform()) return argumentError(op, "matrix", "must be [vocabulary, k]", matrix.rank);
  return {};
}

Status nodeRows(const char* op, const char* name, const View& view, int64_t n, FloatRows& rows) {
  TL_TRY(floatRows(op, name, view, rows));
  if (rows.rows != n) return shapeError(op, name, "must have one row a node", n, rows.rows);
  return rows.width < 1 ? shapeError(op, name, "must have columns", 1, rows.width) : Status{};
}

// Where a verification writes: the nodes of the accepted path and the tokens behind them.
struct PathOutputs {
  int32_t *path, *accepted, *count;
  int64_t n;
  Status open(const char* op, int64_t nodes, const View& pathView, const View& acceptedView, const View& countView) {
    TL_TRY(indexOperand(op, "path", pathView, nodes));
    TL_TRY(indexOperand(op, "accepted", acceptedView, nodes));
    TL_TRY(indexOperand(op, "count", countView, 1));
    path = pathView.as<int32_t>();
    accepted = acceptedView.as<int32_t>();
    count = countView.as<int32_t>();
    n = nodes;
    return {};
  }
  // From the deepest accepted node; drawn[i] is the token behind node i.
  void write(const int32_t* parents, const int32_t* depths, const int32_t* drawn, int32_t last) const {
    const int64_t length = depths[last] + 1;
    for (int32_t node = last; node >= 0; node = parents[node]) {
      path[depths[node]] = node;
      accepted[depths[node]] = drawn[node];
    }
    std::fill(path + length, path + n, -1);
    std::fill(accepted + length, accepted + n, -1);
    *count = int32_t(length);
  }
};

// The arguments of the draw at one node: its position, and the part of the history within the penalty's window.
SampleArgs chainAt(const VerifyTreeArgs& args, int64_t depth) {
  SampleArgs chain = {args.logits, args.history, {}, {}, args.temperature, args.topK, args.topP, args.minP, args.repeatPenalty, args.seed, args.stream, args.position + double(depth)};
  if (!chain.history.present()) return chain;
  const int64_t all = chain.history.dims[0], kept = int64_t(std::min(std::max(args.repeatLastTokens - double(depth), 0.0), double(all)));
  chain.history.data = chain.history.as<int32_t>() + (all - kept);
  chain.history.dims[0] = kept;
  return chain;
}

// Divides x [n] by its sum; false where that is not positive and finite.
bool normalise(float* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i += kExpBlock) sum += double(sumRow(x + i, std::min(kExpBlock, n - i), [](F32 v) { return v; }));
  if (!(sum > 0 && sum <= std::numeric_limits<double>::max())) return false;
  for (int64_t i = 0; i < n; ++i) x[i] = float(double(x[i]) / sum);
  return true;
}

bool copyNormalised(const float* from, int64_t n, float* to) {
  std::memcpy(to, from, size_t(n) * sizeof(float));
  return normalise(to, n);
}

// The smallest index where the running sum of r [n] passes u; the last with weight where rounding lets none pass.
int32_t drawFrom(const float* r, int64_t n, double u) {
  double mass = 0;
  int32_t chosen = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (r[i] <= 0) continue;
    chosen = int32_t(i);
    if ((mass += double(r[i])) > u) break;
  }
  return chosen;
}

}  // namespace

Status recycleUpdate(const RecycleUpdateArgs& args, Context& context) {
  const char* op = "recycleUpdate";
  const View& matrix = args.matrix;
  TL_TRY(matrixOperand(op, matrix));
  const int64_t n = args.tokens.count(), vocabulary = matrix.dims[0], k = matrix.dims[1];
  if (n == 0) return {};
  if (k < 1 || k > kMostCandidates) return argumentError(op, "matrix", "must have 1 … 1024 columns", k);
  TL_TRY(indexOperand(op, "tokens", args.tokens, n, vocabulary));
  FloatRows logits;
  TL_TRY(nodeRows(op, "logits", args.logits, n, logits));
  if (logits.width != vocabulary) return shapeError(op, "logits", "must have a column for each row of the matrix", vocabulary, logits.width);
  if (k > vocabulary) return shapeError(op, "matrix", "has more columns than the vocabulary", vocabulary, k);
  const int32_t* tokens = args.tokens.as<int32_t>();
  std::atomic<bool> spoiled{false};
  forRows(context, n, vocabulary, [&](int64_t begin, int64_t end, int thread) {
    Candidate* candidates = reinterpret_cast<Candidate*>(context.pool.scratch(thread));
    for (int64_t i = begin; i < end; ++i) {
      if (std::find(tokens + i + 1, tokens + n, tokens[i]) != tokens + n) continue;  // a later node writes this row
      const float maximum = rowMaximum(logits.row(i), vocabulary);
      if (maximum != maximum) {
        spoiled.store(true, std::memory_order_relaxed);
        continue;
      }
      selectLargest(logits.row(i), vocabulary, k, candidates);
      int32_t* row = matrix.as<int32_t>() + tokens[i] * matrix.rowStride();
      for (int64_t j = 0; j < k; ++j) row[j] = candidates[j].index;
    }
  });
  return spoiled.load() ? Status{Code::numeric, op, "logits", "has NaN"} : Status{};
}

Status expandTree(const ExpandTreeArgs& args, Context&) {
  const char* op = "expandTree";
  int32_t depths[kMostNodes];
  TL_TRY(matrixOperand(op, args.matrix));
  TL_TRY(readParents(op, args.parents, depths));
  const int64_t n = args.parents.count(), vocabulary = args.matrix.dims[0], k = args.matrix.dims[1], stride = args.matrix.rowStride();
  TL_TRY(indexOperand(op, "root", args.root, 1, vocabulary));
  TL_TRY(indexOperand(op, "ranks", args.ranks, n));
  TL_TRY(indexOperand(op, "tokens", args.tokens, n));
  if (args.depths.present()) TL_TRY(indexOperand(op, "depths", args.depths, n));
  const int32_t *matrix = args.matrix.as<int32_t>(), *parents = args.parents.as<int32_t>(), *ranks = args.ranks.as<int32_t>();
  int32_t* tokens = args.tokens.as<int32_t>();
  tokens[0] = *args.root.as<int32_t>();
  for (int64_t i = 1; i < n; ++i) {
    if (ranks[i] < 0 || ranks[i] >= k) return argumentError(op, "ranks", "has a number outside the matrix", ranks[i]);
    tokens[i] = matrix[tokens[parents[i]] * stride + ranks[i]];
    if (tokens[i] < 0 || tokens[i] >= vocabulary) return argumentError(op, "matrix", "has a number outside the vocabulary", tokens[i]);
  }
  if (args.depths.present()) std::copy(depths, depths + n, args.depths.as<int32_t>());
  return {};
}

Status treeMask(const TreeMaskArgs& args, Context&) {
  const char* op = "treeMask";
  int32_t depths[kMostNodes];
  TL_TRY(readParents(op, args.parents, depths));
  const int64_t n = args.parents.count();
  const View &mask = args.mask, &bits = args.bits;
  if (args.depths.present()) TL_TRY(indexOperand(op, "depths", args.depths, n));
  if (args.positions.present()) TL_TRY(indexOperand(op, "positions", args.positions, n));
  if (!(args.past >= 0 && args.past + double(n) <= 0x7fffffff)) return argumentError(op, "past", "must fit positions of 32 bits");
  if (mask.present()) {
    if (mask.dtype != DType::u8 || mask.rank != 2 || !mask.rowsAreUniform()) return argumentError(op, "mask", "must be u8 [n, n]", mask.rank);
    if (mask.dims[0] != n || mask.dims[1] != n) return shapeError(op, "mask", "must have a row and a column a node", n, mask.dims[1]);
  }
  if (bits.present()) {
    if (bits.dtype != DType::i32 || bits.rank != 2 || !bits.rowsAreUniform()) return argumentError(op, "bits", "must be i32 [n, words]", bits.rank);
    if (bits.dims[0] != n || bits.dims[1] < (n + 31) / 32) return shapeError(op, "bits", "must have a row a node and a bit a node in it", (n + 31) / 32, bits.dims[1]);
  }
  const int32_t* parents = args.parents.as<int32_t>();
  for (int64_t i = 0; i < n; ++i) {
    if (args.depths.present()) args.depths.as<int32_t>()[i] = depths[i];
    if (args.positions.present()) args.positions.as<int32_t>()[i] = int32_t(args.past) + depths[i];
    uint8_t* seen = mask.present() ? std::fill_n(mask.as<uint8_t>() + i * mask.rowStride(), n, uint8_t(0)) - n : nullptr;
    uint32_t* words = bits.present() ? std::fill_n(bits.as<uint32_t>() + i * bits.rowStride(), bits.dims[1], 0u) - bits.dims[1] : nullptr;
    for (int64_t j = i; j >= 0; j = parents[j]) {
      if (seen) seen[j] = 1;
      if (words) words[j / 32] |= uint32_t(1) << (j % 32);
    }
  }
  return {};
}

Status verifyTree(const VerifyTreeArgs& args, Context& context) {
  const char* op = "verifyTree";
  int32_t depths[kMostNodes], drawn[kMostNodes], path[kMostNodes];
  float maximum[kMostNodes];
  TL_TRY(readParents(op, args.parents, depths));
  const int64_t n = args.parents.count();
  TL_TRY(indexOperand(op, "tokens", args.tokens, n));
  FloatRows logits;
  TL_TRY(nodeRows(op, "logits", args.logits, n, logits));
  PathOutputs out;
  TL_TRY(out.open(op, n, args.path, args.accepted, args.count));
  if (args.logProb.present()) TL_TRY(vectorOperand(op, "logProb", args.logProb, n));
  if (!(args.repeatLastTokens >= 0)) return argumentError(op, "repeatLastTokens", "must be at least 0");
  TL_TRY(checkSampler(op, logits.width, chainAt(args, 0)));
  const int32_t *tokens = args.tokens.as<int32_t>(), *parents = args.parents.as<int32_t>();
  int64_t deepest = 0;
  for (int64_t i = 0; i < n; ++i) {
    drawn[i] = -1;
    if (i > 0 && (drawn[parents[i]] < 0 || tokens[i] != drawn[parents[i]])) continue;
    for (int64_t node = i; node > 0; node = parents[node]) path[depths[node] - 1] = tokens[node];
    const int64_t seen = std::min(int64_t(depths[i]), int64_t(std::min(args.repeatLastTokens, double(kMostNodes))));
    TokenDraw draw;
    TL_TRY(drawToken(op, logits.row(i), logits.width, chainAt(args, depths[i]), path + (depths[i] - seen), seen, context.pool.scratch(0), draw));
    drawn[i] = draw.token;
    maximum[i] = draw.maximum;
    if (depths[i] > depths[deepest]) deepest = i;
  }
  out.write(parents, depths, drawn, int32_t(deepest));
  if (!args.logProb.present()) return {};
  float* logProb = args.logProb.as<float>();
  std::fill(logProb, logProb + n, 0.0f);
  for (int64_t node = deepest; node >= 0; node = parents[node])
    logProb[depths[node]] = logProbability(logits.row(node), logits.width, {drawn[node], maximum[node]});
  return {};
}

Status verifySampling(const VerifySamplingArgs& args, Context& context) {
  const char* op = "verifySampling";
  int32_t depths[kMostNodes], drawn[kMostNodes];
  TL_TRY(readParents(op, args.parents, depths));
  const int64_t n = args.parents.count();
  FloatRows target, draft{};
  TL_TRY(nodeRows(op, "target", args.target, n, target));
  const int64_t vocabulary = target.width;
  if (vocabulary > kScratchFloats) return argumentError(op, "target", "has a larger vocabulary than sampling supports", vocabulary);
  TL_TRY(indexOperand(op, "tokens", args.tokens, n, vocabulary));
  if (args.draft.present()) TL_TRY(nodeRows(op, "draft", args.draft, n, draft));
  if (args.draft.present() && draft.width != vocabulary) return shapeError(op, "draft", "must have the vocabulary of the target", vocabulary, draft.width);
  TL_TRY(vectorOperand(op, "uniform", args.uniform, n));
  TL_TRY(vectorOperand(op, "uniformFinal", args.uniformFinal, 1));
  TL_TRY(vectorOperand(op, "residual", args.residual, vocabulary));
  PathOutputs out;
  TL_TRY(out.open(op, n, args.path, args.accepted, args.count));
  const int32_t *tokens = args.tokens.as<int32_t>(), *parents = args.parents.as<int32_t>();
  const Status noWeight = {Code::numeric, op, "target", "has a row without a positive finite sum"};
  // r: what the target still may give at this node; s: what the draft's children are still drawn from.
  float *r = args.residual.as<float>(), *s = reinterpret_cast<float*>(context.pool.scratch(0));
  int64_t node = 0;
  if (!copyNormalised(target.row(0), vocabulary, r)) return noWeight;
  bool more = draft.data != nullptr && copyNormalised(draft.row(0), vocabulary, s);
  for (int64_t i = 1; i < n; ++i) {
    if (parents[i] != node) continue;
    const int32_t x = tokens[i];
    const float u = args.uniform.as<float>()[i];
    if (draft.data != nullptr && (!more || s[x] <= 0)) continue;
    bool taken = draft.data != nullptr ? u < r[x] / s[x] : u < r[x];
    if (!taken && draft.data == nullptr) r[x] = 0;
    if (!taken && draft.data != nullptr) {
      for (int64_t t = 0; t < vocabulary; ++t) r[t] = std::max(r[t] - s[t], 0.0f);
      s[x] = 0;
      more = normalise(s, vocabulary);
    }
    taken = taken || !normalise(r, vocabulary);  // where nothing else is left, only rounding kept it from being accepted
    if (!taken) continue;
    drawn[node] = x;
    node = i;
    if (!copyNormalised(target.row(i), vocabulary, r)) return noWeight;
    more = draft.data != nullptr && copyNormalised(draft.row(i), vocabulary, s);
  }
  drawn[node] = drawFrom(r, vocabulary, double(*args.uniformFinal.as<float>()));
  out.write(parents, depths, drawn, int32_t(node));
  return {};
}

}  // namespace tl::TL_TARGET
