// From logits to tokens.
//   sample   one token: repetition penalty, top-k, top-p, min-p, temperature, draw (llama.cpp's default order)
//   topK     the k largest logits of each row, and log Σ exp
//   logProb  log softmax(logits)[target] of each row
//   softmax  softmax(x · scale) along the last axis
// top-p: arXiv 1904.09751. min-p: arXiv 2407.01082. Repetition penalty: arXiv 1909.05858.
#include <atomic>

#include "../simd/target.h"
#include "rows_inl.h"
#include "sampler.h"
#include "select_inl.h"

namespace tl::TL_TARGET {
namespace {

// The scratch of one thread: histogram, candidates, then a row of logits.
constexpr int64_t kCandidateBytes = candidateCapacity(kMostCandidates) * int64_t(sizeof(Candidate));
constexpr int64_t kRowOffset = roundUp(kHistogram * int64_t(sizeof(double)) + kCandidateBytes, 64);
constexpr int64_t kMostVocabulary = (int64_t(kScratchBytes) - kRowOffset) / int64_t(sizeof(float));

struct SampleScratch {
  double* histogram;
  Candidate* candidates;
  float* row;
  explicit SampleScratch(std::byte* base)
      : histogram(reinterpret_cast<double*>(base)),
        candidates(reinterpret_cast<Candidate*>(base + kHistogram * int64_t(sizeof(double)))),
        row(reinterpret_cast<float*>(base + kRowOffset)) {}
};

Status checkSample(const SampleArgs& args) {
  const View &logits = args.logits, &token = args.token, &logProb = args.logProb;
  TL_TRY(vectorOperand("sample", "logits", logits, logits.lastDim()));
  if (token.dtype != DType::i32 || token.count() != 1) return argumentError("sample", "token", "must be one i32", token.count());
  if (logProb.present() && (logProb.dtype != DType::f32 || logProb.count() != 1)) return argumentError("sample", "logProb", "must be one f32", logProb.count());
  return checkSampler("sample", logits.count(), args);
}

Status checkRange(const char* op, float maximum) {
  const Status error = {Code::numeric, op, "logits", "has NaN or no finite largest element"};
  return std::fabs(maximum) <= std::numeric_limits<float>::max() ? Status{} : error;  // NaN compares false
}

// Each token once, however often it is among the ids: the value is always that of `logits`.
void penalise(const float* logits, const int32_t* ids, int64_t count, double penalty, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = logits[ids[i]];
    out[ids[i]] = float(value > 0 ? double(value) / penalty : double(value) * penalty);
  }
}

// Draws from the k ≤ 1024 largest, which lie in falling order.
int32_t drawFromCandidates(const Candidate* candidate, int64_t k, const SampleArgs& args, double u) {
  const double first = double(candidate[0].value);
  const auto weight = [&](int64_t i, double temperature) { return std::exp((double(candidate[i].value) - first) / temperature); };
  int64_t kept = k;
  if (args.topP < 1) {
    double total = 0, mass = 0;
    for (int64_t i = 0; i < k; ++i) total += weight(i, 1);
    for (kept = 0; kept < k && mass < args.topP * total; ++kept) mass += weight(kept, 1);
    kept = std::max<int64_t>(kept, 1);
  }
  if (args.minP > 0)
    while (kept > 1 && double(candidate[kept - 1].value) < first + std::log(args.minP)) --kept;
  double total = 0, mass = 0;
  for (int64_t i = 0; i < kept; ++i) total += weight(i, args.temperature);
  for (int64_t i = 0; i + 1 < kept; ++i)
    if ((mass += weight(i, args.temperature)) > u * total) return candidate[i].index;
  return candidate[kept - 1].index;
}

// weights[i] = exp((x[i] − shift) / temperature) of what the cut keeps, else 0. x and weights may be one.
void weighKept(const float* x, int64_t n, Cut cut, float shift, float temperature, float* weights) {
  const F32 value = broadcast(cut.value), offset = broadcast(shift), divisor = broadcast(temperature);
  int64_t equalSeen = 0;
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32 v = loadUpTo(x + i, n - i);
    const uint32_t larger = bitsOfLanes(greaterThan(v, value));
    uint32_t equal = ~(larger | bitsOfLanes(lessThan(v, value))) & lanesUpTo(n - i), kept = larger;
    for (; equal != 0; equal &= equal - 1)
      if (++equalSeen <= cut.equal) kept |= equal & (~equal + 1);
    const F32 weight = kept == 0 ? zero() : select(lanesOfBits(kept), exp(div(sub(v, offset), divisor)), zero());
    storeUpTo(weights + i, weight, n - i);
  }
}

// The element where the running sum of weights passes u of their total.
int64_t drawFromWeights(const float* weights, int64_t n, double u) {
  const auto blockSum = [&](int64_t i) { return double(sumRow(weights + i, std::min(kExpBlock, n - i), [](F32 v) { return v; })); };
  double total = 0, mass = 0;
  for (int64_t i = 0; i < n; i += kExpBlock) total += blockSum(i);
  int64_t block = 0, heavy = 0;
  for (; block < n; block += kExpBlock) {
    const double sum = blockSum(block);
    if (sum == 0) continue;
    heavy = block;
    if (mass + sum > u * total) break;
    mass += sum;
  }
  int64_t chosen = heavy;  // the last one with weight where rounding lets none pass
  for (int64_t i = heavy; i < std::min(heavy + kExpBlock, n); ++i) {
    if (weights[i] == 0) continue;
    chosen = i;
    if (block < n && (mass += double(weights[i])) > u * total) return i;
  }
  return chosen;
}

// Any number of candidates: a threshold on the logits instead of a list.
int32_t drawFromAll(const float* x, int64_t n, float maximum, const SampleArgs& args, double u, const SampleScratch& scratch) {
  const float nothing = -std::numeric_limits<float>::infinity();
  Cut cut;
  if (args.topK > 0 && args.topK < double(n)) cut = cutAtWeight<false>(x, n, cut, nothing, 0, args.topK, scratch.histogram);
  if (args.topP < 1 && (cut.value > nothing || !cutAtShare(x, n, maximum, args.topP, scratch.histogram, scratch.candidates, cut))) {
    double total = 0;
    if (cut.value > nothing) visitKept<true>(x, n, cut, {cut.value, maximum}, maximum, [&](float, double weight) { total += weight; });
    else total = sumOfExp(x, n, maximum);
    // All that lie below this together weigh less than 1 − topP of the total: the target is reached without them.
    const float lowest = std::max(cut.value, maximum + float(std::log((1 - args.topP) * total / double(n))) - 0.01f);
    cut = cutAtWeight<true>(x, n, cut, lowest, maximum, args.topP * total, scratch.histogram);
  }
  if (args.minP > 0) {
    const float lowest = maximum + float(std::log(args.minP));
    if (lowest > cut.value) cut = {lowest, std::numeric_limits<int64_t>::max()};
  }
  weighKept(x, n, cut, maximum, float(args.temperature), scratch.row);
  return int32_t(drawFromWeights(scratch.row, n, u));
}

int32_t chooseToken(const float* x, int64_t n, float maximum, const SampleArgs& args, const SampleScratch& scratch) {
  if (float(args.temperature) == 0 || args.topK == 1 || n == 1) return int32_t(firstEqual(x, n, maximum));
  const double u = uniform(uint64_t(args.seed), uint64_t(args.stream), uint64_t(args.position));
  if (args.topK < 1 || args.topK > double(kMostCandidates)) return drawFromAll(x, n, maximum, args, u, scratch);
  const int64_t k = std::min(int64_t(args.topK), n);
  selectLargest(x, n, k, scratch.candidates);
  return drawFromCandidates(scratch.candidates, k, args, u);
}

void softmaxRow(const float* x, float* out, int64_t n, float scale) {
  const F32 factor = broadcast(scale);
  mapRow(x, out, n, [=](F32 v) { return mul(v, factor); });
  const float largest = rowMaximum(out, n);
  if (largest == -std::numeric_limits<float>::infinity()) return std::fill(out, out + n, 0.0f);
  const F32 offset = broadcast(largest);
  mapRow(out, out, n, [=](F32 v) { return exp(sub(v, offset)); });
  double sum = 0;
  for (int64_t i = 0; i < n; i += kExpBlock) sum += double(sumRow(out + i, std::min(kExpBlock, n - i), [](F32 v) { return v; }));
  const F32 inverse = broadcast(float(1 / sum));
  mapRow(out, out, n, [=](F32 v) { return mul(v, inverse); });
}

}  // namespace

Status checkSampler(const char* op, int64_t vocabulary, const SampleArgs& args) {
  TL_TRY(checkChain(op, vocabulary, args));
  if (vocabulary > kMostVocabulary) return argumentError(op, "logits", "has a larger vocabulary than sampling supports", vocabulary);
  if (!args.history.present()) return {};
  for (int64_t i = 0; i < args.history.dims[0]; ++i) {
    const int32_t id = args.history.as<int32_t>()[i];
    if (id < 0 || id >= vocabulary) return argumentError(op, "history", "has a number outside the vocabulary", id);
  }
  return {};
}

Status drawToken(const char* op, const float* logits, int64_t n, const SampleArgs& args, const int32_t* path, int64_t pathLength, std::byte* scratchBase, TokenDraw& draw) {
  draw.maximum = rowMaximum(logits, n);
  TL_TRY(checkRange(op, draw.maximum));
  const SampleScratch scratch(scratchBase);
  const float* x = logits;
  float maximum = draw.maximum;
  const int64_t past = args.history.present() ? args.history.dims[0] : 0;
  if (args.repeatPenalty != 1 && past + pathLength > 0) {
    std::memcpy(scratch.row, logits, size_t(n) * sizeof(float));
    penalise(logits, args.history.as<int32_t>(), past, args.repeatPenalty, scratch.row);
    penalise(logits, path, pathLength, args.repeatPenalty, scratch.row);
    x = scratch.row;
    maximum = rowMaximum(x, n);
    TL_TRY(checkRange(op, maximum));
  }
  draw.token = chooseToken(x, n, maximum, args, scratch);
  return {};
}

float logProbability(const float* logits, int64_t n, const TokenDraw& draw) {
  return float(double(logits[draw.token]) - double(draw.maximum) - std::log(sumOfExp(logits, n, draw.maximum)));
}

Status sample(const SampleArgs& args, Context& context) {
  TL_TRY(checkSample(args));
  const float* logits = args.logits.as<float>();
  const int64_t n = args.logits.count();
  TokenDraw draw;
  TL_TRY(drawToken("sample", logits, n, args, nullptr, 0, context.pool.scratch(0), draw));
  *args.token.as<int32_t>() = draw.token;
  if (args.logProb.present()) *args.logProb.as<float>() = logProbability(logits, n, draw);
  return {};
}

Status topK(const TopKArgs& args, Context& context) {
  FloatRows logits, values;
  TL_TRY(openTopK(args, logits, values));
  const View& indices = args.indices;
  const int64_t k = values.width;
  std::atomic<bool> spoiled{false};
  forRows(context, logits.rows, logits.width, [&](int64_t begin, int64_t end, int thread) {
    Candidate* candidates = SampleScratch(context.pool.scratch(thread)).candidates;
    for (int64_t i = begin; i < end; ++i) {
      const float* row = logits.row(i);
      const float maximum = rowMaximum(row, logits.width);
      if (maximum != maximum) {
        spoiled.store(true, std::memory_order_relaxed);
        continue;
      }
      selectLargest(row, logits.width, k, candidates);
      for (int64_t j = 0; j < k; ++j) {
        values.row(i)[j] = candidates[j].value;
        indices.as<int32_t>()[i * indices.rowStride() + j] = candidates[j].index;
      }
      if (args.logSumExp.present()) args.logSumExp.as<float>()[i] = float(logSumExp(row, logits.width, maximum));
    }
  });
  return spoiled.load() ? Status{Code::numeric, "topK", "logits", "has NaN"} : Status{};
}

Status logProb(const LogProbArgs& args, Context& context) {
  FloatRows logits;
  TL_TRY(openLogits("logProb", args.logits, logits));
  TL_TRY(columnOperand("logProb", "targets", args.targets, DType::i32, logits.rows));
  TL_TRY(columnOperand("logProb", "out", args.out, DType::f32, logits.rows));
  const int32_t* targets = args.targets.as<int32_t>();
  for (int64_t i = 0; i < logits.rows; ++i)
    if (targets[i] < 0 || targets[i] >= logits.width) return argumentError("logProb", "targets", "has a number outside the vocabulary", targets[i]);
  forRows(context, logits.rows, logits.width, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      args.out.as<float>()[i] = float(double(logits.row(i)[targets[i]]) - logSumExp(logits.row(i), logits.width));
  });
  return {};
}

Status softmax(const SoftmaxArgs& args, Context& context) {
  FloatRows x, out;
  TL_TRY(floatRows("softmax", "x", args.x, x));
  TL_TRY(floatRows("softmax", "out", args.out, out));
  if (out.rows != x.rows) return shapeError("softmax", "out", "must have as many rows as x", x.rows, out.rows);
  if (out.width != x.width) return shapeError("softmax", "out", "must have as many columns as x", x.width, out.width);
  forRows(context, x.rows, x.width, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) softmaxRow(x.row(i), out.row(i), x.width, float(args.scale));
  });
  return {};
}

}  // namespace tl::TL_TARGET
