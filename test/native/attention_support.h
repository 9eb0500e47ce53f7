// What the attention tests share: targets, tensors with guard zones, and the float64 formula they compare with.
#pragma once
#include <cstdlib>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "../../cpp/cache/kv.h"
#include "../../cpp/kernels/table.h"
#include "slow.h"

namespace tl::test {

// How many random cases a test runs: all of them in plain builds, a sixth in slow ones. TOKENLOOM_CASES sets the number.
inline unsigned cases(unsigned full) {
  if (const char* count = std::getenv("TOKENLOOM_CASES")) return unsigned(std::atoi(count));
  return kSlow ? (full + 5) / 6 : full;
}

// A length that attention pays for by its square: in slow builds one block of keys and a part of a page at most.
inline int64_t shortened(int64_t length) { return kSlow && length > 200 ? 136 + length % 32 : length; }

inline std::vector<Isa> targets() {
  std::vector<Isa> all;
  for (int i = 0; i < int(Isa::count); ++i)
    if (kernelTable(Isa(i))) all.push_back(Isa(i));
  return all;
}

template <typename Args> Status run(Isa isa, Op op, const Args& args, int threads = 1) {
  ThreadPool& pool = ThreadPool::shared();
  ThreadPool::Turn turn(pool, threads);
  Context context{pool};
  return kernelTable(isa)->kernels[size_t(op)](&args, context);
}

constexpr float kGuard = 12345.678f;

// f32 [dims…], contiguous, or with `gap` unused elements behind each row of the last axis; 64 guard elements on each side.
struct Tensor {
  std::vector<int64_t> dims;
  int64_t gap = 0;
  std::vector<float> data;

  Tensor() = default;
  explicit Tensor(std::vector<int64_t> shape, int64_t gapElements = 0) : dims(std::move(shape)), gap(gapElements) {
    data.assign(size_t(128 + rows() * (dims.back() + gap)), kGuard);
  }
  int64_t rows() const {
    int64_t n = 1;
    for (size_t i = 0; i + 1 < dims.size(); ++i) n *= dims[i];
    return n;
  }
  float* row(int64_t i) { return data.data() + 64 + i * (dims.back() + gap); }
  const float* row(int64_t i) const { return data.data() + 64 + i * (dims.back() + gap); }
  void fill(std::mt19937& random, float scale = 1) {
    std::normal_distribution<float> normal(0, scale);
    for (int64_t i = 0; i < rows(); ++i)
      for (int64_t j = 0; j < dims.back(); ++j) row(i)[j] = normal(random);
  }
  View view() {
    View v = contiguous(row(0), DType::f32, int(dims.size()), dims.data());
    int64_t stride = dims.back() + gap;
    for (int i = int(dims.size()) - 2; i >= 0; --i) {
      v.strides[i] = stride;
      stride *= dims[size_t(i)];
    }
    return v;
  }
  bool guardsIntact() const {
    for (int i = 0; i < 64; ++i)
      if (data[size_t(i)] != kGuard || data[data.size() - 1 - size_t(i)] != kGuard) return false;
    for (int64_t i = 0; i < rows(); ++i)
      for (int64_t j = 0; j < gap; ++j)
        if (row(i)[dims.back() + j] != kGuard) return false;
    return true;
  }
};

// One query of the formula: logit(j) of visible keys, value(j, d).
struct Reference {
  std::vector<double> out, weights;
  double logSumExp = -std::numeric_limits<double>::infinity();
};

inline Reference referenceRow(int64_t keys, int64_t valueDim, const std::function<bool(int64_t)>& visible, const std::function<double(int64_t)>& logit,
                              const std::function<double(int64_t, int64_t)>& value, double extraLogit = -std::numeric_limits<double>::infinity()) {
  Reference result;
  result.out.assign(size_t(valueDim), 0);
  result.weights.assign(size_t(keys), 0);
  double maximum = extraLogit;
  std::vector<double> logits(static_cast<size_t>(keys));
  for (int64_t j = 0; j < keys; ++j)
    if (visible(j)) maximum = std::max(maximum, logits[size_t(j)] = logit(j));
  if (maximum == -std::numeric_limits<double>::infinity()) return result;
  double sum = std::exp(extraLogit - maximum);
  for (int64_t j = 0; j < keys; ++j)
    if (visible(j)) sum += result.weights[size_t(j)] = std::exp(logits[size_t(j)] - maximum);
  for (int64_t j = 0; j < keys; ++j) {
    if (!visible(j)) continue;
    result.weights[size_t(j)] /= sum;
    for (int64_t d = 0; d < valueDim; ++d) result.out[size_t(d)] += result.weights[size_t(j)] * value(j, d);
  }
  result.logSumExp = maximum + std::log(sum);
  return result;
}

inline float rounded(DType type, float x) { return type == DType::f16 ? toFloat(toF16(x)) : type == DType::bf16 ? toFloat(toBf16(x)) : x; }

}  // namespace tl::test
