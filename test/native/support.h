// What tests of kernels share: every target that runs here, guarded memory, running one op, and views.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "../../cpp/kernels/table.h"

namespace tl::test {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

inline std::vector<const KernelTable*> tables() {
  std::vector<const KernelTable*> found;
  for (int i = 0; i < int(Isa::count); ++i)
    if (const KernelTable* table = kernelTable(Isa(i))) found.push_back(table);
  return found;
}

// Sizes around the lanes (4, 8, 16) of all targets and their unrolled loops.
inline const std::vector<int64_t>& oddSizes() {
  static const std::vector<int64_t> sizes = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 129, 576};
  return sizes;
}

// n elements behind and before 64 bytes that nobody may write, starting `offset` elements past an aligned address.
template <typename T> class Guarded {
 public:
  explicit Guarded(int64_t n, int64_t offset = 0) : count_(n), bytes_(size_t(n + offset) * sizeof(T) + 2 * kGuard + 64, kMark) {
    const auto address = reinterpret_cast<uintptr_t>(bytes_.data());
    start_ = size_t((address + 63) / 64 * 64 - address) + kGuard + size_t(offset) * sizeof(T);
  }
  Guarded(std::initializer_list<T> values) : Guarded(int64_t(values.size())) { std::copy(values.begin(), values.end(), data()); }
  T* data() { return reinterpret_cast<T*>(bytes_.data() + start_); }
  T& operator[](int64_t i) { return data()[i]; }
  int64_t size() const { return count_; }
  std::vector<T> values() { return {data(), data() + count_}; }
  bool intact() const {
    for (size_t i = 0; i < bytes_.size(); ++i)
      if ((i < start_ || i >= start_ + size_t(count_) * sizeof(T)) && bytes_[i] != kMark) return false;
    return true;
  }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr unsigned char kMark = 0xa5;
  int64_t count_;
  std::vector<unsigned char> bytes_;
  size_t start_ = 0;
};

inline void fill(Guarded<float>& values, uint32_t seed, float low = -4, float high = 4) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(low, high);
  for (int64_t i = 0; i < values.size(); ++i) values[i] = uniform(random);
}

template <typename T> struct TypeOf;
template <> struct TypeOf<float> { static constexpr DType value = DType::f32; };
template <> struct TypeOf<f16> { static constexpr DType value = DType::f16; };
template <> struct TypeOf<bf16> { static constexpr DType value = DType::bf16; };
template <> struct TypeOf<int32_t> { static constexpr DType value = DType::i32; };
template <> struct TypeOf<int64_t> { static constexpr DType value = DType::i64; };

template <typename T> View view(T* data, std::initializer_list<int64_t> dims) {
  return contiguous(data, TypeOf<T>::value, int(dims.size()), dims.begin());
}
template <typename T> View row(Guarded<T>& values) { return view(values.data(), {values.size()}); }
// [rows, width] at a stride of its own.
template <typename T> View strided(T* data, int64_t rows, int64_t width, int64_t stride) {
  View made = view(data, {rows, width});
  made.strides[0] = stride;
  return made;
}
inline View quantized(void* data, int64_t rows, int64_t width) {
  const int64_t dims[] = {rows, width};
  return contiguous(data, DType::q8, 2, dims);
}

template <typename Args> Status run(const KernelTable& table, Op op, const Args& args, int threads = 1) {
  ThreadPool::Turn turn(ThreadPool::shared(), threads);
  EXPECT_TRUE(turn.ok());
  Context context{ThreadPool::shared()};
  return table.kernels[size_t(op)](&args, context);
}

// |got − wanted| ≤ tolerance · max(|wanted|, floor); NaN equals NaN, infinities themselves.
inline bool close(double got, double wanted, double tolerance, double floor = 1) {
  if (std::isnan(wanted) || std::isnan(got)) return std::isnan(wanted) && std::isnan(got);
  if (std::isinf(wanted) || std::isinf(got)) return got == wanted;
  return std::fabs(got - wanted) <= tolerance * std::max(std::fabs(wanted), floor);
}

}  // namespace tl::test

#define TL_EXPECT_OK(expression)                                                             \
  do {                                                                                       \
    const ::tl::Status tlGot = (expression);                                                 \
    EXPECT_FALSE(tlGot) << tlGot.op << ": " << tlGot.argument << " " << tlGot.message;       \
  } while (0)
