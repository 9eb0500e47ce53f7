// A non-owning view of a tensor: where it starts, its element type, dims and strides (outermost first, in elements).
#pragma once
#include "dtype.h"

namespace tl {

constexpr int kMaxRank = 5;

struct View {
  void* data = nullptr;
  DType dtype = DType::none;
  int32_t rank = 0;
  int64_t dims[kMaxRank] = {};
  int64_t strides[kMaxRank] = {};

  bool present() const { return dtype != DType::none; }
  template <typename T> T* as() const { return static_cast<T*>(data); }
  int64_t count() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= dims[i];
    return n;
  }
  // All axes but the last seen as one, for ops that work row by row. Needs rows at one common stride: see rowsAreUniform.
  int64_t rows() const {
    int64_t n = 1;
    for (int i = 0; i + 1 < rank; ++i) n *= dims[i];
    return n;
  }
  int64_t lastDim() const { return rank > 0 ? dims[rank - 1] : 1; }
  int64_t rowStride() const { return rank > 1 ? strides[rank - 2] : lastDim(); }
  bool rowsAreUniform() const {
    if (rank > 0 && dims[rank - 1] > 1 && strides[rank - 1] != 1) return false;
    for (int i = rank - 3; i >= 0; --i)
      if (dims[i] > 1 && strides[i] != strides[i + 1] * dims[i + 1]) return false;
    return true;
  }
};

inline View contiguous(void* data, DType type, int rank, const int64_t* dims) {
  View view;
  view.data = data;
  view.dtype = type;
  view.rank = rank;
  int64_t stride = 1;
  for (int i = rank - 1; i >= 0; --i) {
    view.dims[i] = dims[i];
    view.strides[i] = stride;
    stride *= dims[i];
  }
  return view;
}

}  // namespace tl
