// Sequences of tokens that lie end to end as rows: where they begin, flat operands, places from counts.
#pragma once
#include "select.cuh"

namespace tl::cuda {

template <typename T> Status flatOr(const char* op, const char* name, const View& view, DType type, int64_t count, const T*& data) {
  T* found = nullptr;
  if (view.present()) TL_TRY(flat(op, name, view, type, count, found));
  data = found;
  return {};
}

// The larger one; NaN stays, whichever side it is on.
__device__ __forceinline__ float largerOf(float most, float value) { return value > most || value != value ? value : most; }

// bounds i32 [count + 1] in device memory; what they say is held within [0, most].
struct Sequences {
  const int32_t* bounds;
  int64_t count, most;
  __device__ int64_t begin(int64_t s) const { return min(max(int64_t(bounds[s]), int64_t(0)), most); }
  __device__ int64_t length(int64_t s) const { return max(begin(s + 1) - begin(s), int64_t(0)); }
  __device__ int64_t rows() const { return begin(count); }
  // The sequence that row i lies in; `count` behind the last.
  __device__ int64_t of(int64_t i) const {
    int64_t low = 0, high = count;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (begin(middle + 1) <= i) low = middle + 1;
      else high = middle;
    }
    return low;
  }
};

inline Status openSequences(const char* op, const char* name, const View& view, int64_t rows, Sequences& sequences) {
  int32_t* data = nullptr;
  if (view.rank != 1) return argumentError(op, name, "must be one row of i32", view.rank);
  TL_TRY(flat(op, name, view, DType::i32, 1, data));
  sequences = {data, view.count() - 1, rows};
  return {};
}

inline Status tokenRows(const char* op, const char* name, const View& view, const View& bounds, Rows& rows, Sequences& sequences) {
  TL_TRY(floatRows(op, name, view, rows));
  return openSequences(op, "bounds", bounds, rows.rows, sequences);
}

constexpr int kThreads = 128;
inline dim3 gridOf(int64_t count) { return dim3(unsigned(ceilDiv(count, kThreads))); }
__device__ inline int64_t threadNumber() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }

// newBounds[s + 1] = Σ of the first s + 1 counts; newBounds holds the counts behind its first element. One thread.
__global__ inline void addBounds(int32_t* newBounds, int64_t count) {
  if (threadIdx.x != 0) return;
  newBounds[0] = 0;
  for (int64_t s = 0; s < count; ++s) newBounds[s + 1] += newBounds[s];
}

// The row's 2-norm, 1 for a row of zeros; by one thread.
__device__ inline float normOf(const float* x, int64_t n) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum = fmaf(x[i], x[i], sum);
  const float norm = sqrtf(sum);
  return norm > 0 ? norm : 1.0f;
}

// unit [rows, width] = rows of x by their norms: a block a row.
__global__ inline void unitRows(Rows x, float* unit) {
  Shared shared;
  float* scratch = shared.take<float>(kWarp + 1);
  const float* from = x.row(blockIdx.x);
  float sum = 0;
  for (int64_t c = threadIdx.x; c < x.width; c += blockDim.x) sum = fmaf(from[c], from[c], sum);
  sum = blockSum(sum, scratch);
  const float norm = sum > 0 ? sqrtf(sum) : 1.0f;
  for (int64_t c = threadIdx.x; c < x.width; c += blockDim.x) unit[blockIdx.x * x.width + c] = from[c] / norm;
}
constexpr size_t kUnitBytes = sharedBytes<float>(kWarp + 1);

}  // namespace tl::cuda
