// The sampler chain of cpp/kernels/sample.cpp on one block of kSelectThreads: repetition penalty, top-k, top-p, min-p,
// temperature, draw. From at most 1,024 candidates the draw runs over them in falling order; from more over all kept elements by
// index, masses as whole numbers of 2^-40 so that no order of addition shows.
#pragma once
#include "../cpp/core/random.h"
#include "select.cuh"

namespace tl::cuda {

struct Sampler {
  float temperature;
  double topK, topP, minP, repeatPenalty;
  uint64_t seed, stream, position;
};

struct SamplerScratch {
  SelectScratch select;
  double sums[kWarp + 1];
  float maxima[kWarp + 1];
  unsigned long long total, mass;
  int token;
};

constexpr double kMassUnit = 1099511627776.0;  // 2^40
__device__ __forceinline__ unsigned long long massOf(double weight) { return static_cast<unsigned long long>(weight * kMassUnit); }

// By one thread: from k candidates in falling order.
__device__ inline int drawFromCandidates(const unsigned long long* items, int k, const Sampler& s, double u) {
  const double first = double(keyValue(candidateKey(items[0])));
  const auto weight = [&](int i, double temperature) { return exp((double(keyValue(candidateKey(items[i]))) - first) / temperature); };
  int kept = k;
  if (s.topP < 1) {
    double total = 0, mass = 0;
    for (int i = 0; i < k; ++i) total += weight(i, 1);
    for (kept = 0; kept < k && mass < s.topP * total; ++kept) mass += weight(kept, 1);
    if (kept < 1) kept = 1;
  }
  if (s.minP > 0)
    while (kept > 1 && double(keyValue(candidateKey(items[kept - 1]))) < first + log(s.minP)) --kept;
  double total = 0, mass = 0;
  for (int i = 0; i < kept; ++i) total += weight(i, double(s.temperature));
  for (int i = 0; i + 1 < kept; ++i)
    if ((mass += weight(i, double(s.temperature))) > u * total) return int(candidateIndex(items[i]));
  return int(candidateIndex(items[kept - 1]));
}

// By the whole block: from all elements, of which topK > 1,024 or topP may keep a part.
__device__ inline int drawFromAll(const float* x, int64_t n, float maximum, const Sampler& s, double u, SamplerScratch* scratch) {
  const auto key = [&](int64_t i) { return orderKey(x[i]); };
  Cut cut{0, ~0ull};
  if (s.topK > 0 && s.topK < double(n)) cut = cutAtCount(n, int64_t(s.topK), &scratch->select.cut, key);
  // Kept elements are marked by their mass; the cut of equal ones by index is found once more in forKept.
  if (s.topP < 1) {
    const uint32_t least = cut.key;
    unsigned long long total = 0;
    if (threadIdx.x == 0) scratch->total = 0;
    __syncthreads();
    forKept(n, cut, scratch->select.counts, key, [&](int64_t i) { total += massOf(exp(double(x[i]) - double(maximum))); });
    atomicAdd(&scratch->total, total);
    __syncthreads();
    const unsigned long long wanted = static_cast<unsigned long long>(double(scratch->total) * s.topP);
    __syncthreads();
    const Cut share = cutAt(n, wanted < 1 ? 1 : wanted, &scratch->select.cut, [&](int64_t i) { return orderKey(x[i]) < least ? 0u : orderKey(x[i]); },
                            [&](int64_t i) { return massOf(exp(double(x[i]) - double(maximum))); });
    const unsigned long long each = massOf(exp(double(keyValue(share.key)) - double(maximum)));
    unsigned long long equal = each == 0 ? ~0ull : (share.equal + each - 1) / each;
    if (share.key == cut.key && cut.equal < equal) equal = cut.equal;
    if (share.key >= cut.key) cut = {share.key, equal};
  }
  const double lowest = s.minP > 0 ? double(maximum) + log(s.minP) : -1e300;
  const auto drawMass = [&](int64_t i) { return double(x[i]) < lowest && x[i] != maximum ? 0ull : massOf(exp((double(x[i]) - double(maximum)) / double(s.temperature))); };
  unsigned long long total = 0;
  if (threadIdx.x == 0) scratch->total = 0;
  __syncthreads();
  forKept(n, cut, scratch->select.counts, key, [&](int64_t i) { total += drawMass(i); });
  atomicAdd(&scratch->total, total);
  __syncthreads();
  const unsigned long long target = static_cast<unsigned long long>(double(scratch->total) * u);
  // Pieces of elements in order: the piece where the running mass passes the target, then the element within it.
  if (threadIdx.x == 0) scratch->mass = 0, scratch->token = -1;
  unsigned long long before = 0;
  unsigned long long seenEqual = 0;
  constexpr int64_t kPiece = 4096;
  for (int64_t first = 0; first < n; first += kPiece) {
    const int64_t count = min(kPiece, n - first);
    if (threadIdx.x == 0) scratch->mass = 0, scratch->select.cut.left = 0;
    __syncthreads();
    const Cut here{cut.key, cut.equal > seenEqual ? cut.equal - seenEqual : 0};
    unsigned long long mass = 0, equal = 0;
    forKept(count, here, scratch->select.counts, [&](int64_t i) { return orderKey(x[first + i]); }, [&](int64_t i) { mass += drawMass(first + i), equal += orderKey(x[first + i]) == cut.key; });
    atomicAdd(&scratch->mass, mass);
    atomicAdd(&scratch->select.cut.left, equal);
    __syncthreads();
    const unsigned long long piece = scratch->mass, equals = scratch->select.cut.left;
    __syncthreads();
    if (piece > 0 && before + piece > target) {
      if (threadIdx.x == 0) {
        unsigned long long running = before, left = here.equal;
        for (int64_t i = 0; i < count; ++i) {
          const uint32_t k = orderKey(x[first + i]);
          if (k < cut.key || (k == cut.key && left-- == 0)) {
            if (k == cut.key) left = 0;
            continue;
          }
          running += drawMass(first + i);
          if (running > target) {
            scratch->token = int(first + i);
            break;
          }
        }
      }
      break;
    }
    before += piece;
    seenEqual += equals;
  }
  __syncthreads();
  const int token = scratch->token;
  __syncthreads();
  return token;
}

// One draw from x [n] (penalties applied), by the whole block. −1 where the largest logit is not finite.
__device__ inline int drawToken(const float* x, int64_t n, const Sampler& s, uint64_t position, SamplerScratch* scratch) {
  const float maximum = rowMaximum(x, n, scratch->maxima);
  if (!(fabsf(maximum) < TL_INFINITY)) return -1;
  const auto key = [&](int64_t i) { return orderKey(x[i]); };
  if (s.temperature == 0 || s.topK == 1 || n == 1) {
    selectLargest(n, 1, &scratch->select, key);
    const int token = int(candidateIndex(scratch->select.items[0]));
    __syncthreads();
    return token;
  }
  const double u = uniform(s.seed, s.stream, position);
  if (s.topK < 1 || s.topK > kMostCandidates) return drawFromAll(x, n, maximum, s, u, scratch);
  const int k = int(min(int64_t(s.topK), n));
  selectLargest(n, k, &scratch->select, key);
  if (threadIdx.x == 0) scratch->token = drawFromCandidates(scratch->select.items, k, s, u);
  __syncthreads();
  const int token = scratch->token;
  __syncthreads();
  return token;
}

// Applies the penalty to x, a copy of `logits`; tokens outside the vocabulary are passed over.
__device__ inline void penalise(const float* logits, int64_t n, const int32_t* ids, int64_t count, double penalty, float* x, int* problems) {
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    if (ids[i] < 0 || ids[i] >= n) {
      if (problems) reportProblem(problems, Problems::index);
      continue;
    }
    const float value = logits[ids[i]];
    // A token may come twice: both write the same number.
    atomicExch(reinterpret_cast<int*>(x) + ids[i], __float_as_int(float(value > 0 ? double(value) / penalty : double(value) * penalty)));
  }
}

}  // namespace tl::cuda
