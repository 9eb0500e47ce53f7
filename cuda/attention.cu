// Attention: see cpp/kernels/attention.cpp for what is computed. Parts:
//   attention_unit.cuh    masks, score modifiers, what a block works on    attention_source.cuh  where keys and values lie
//   attention_loop.cuh    the loop in f32, split keys, column sums         attention_tensor.cuh  the loop on tensor cores
#include "attention_loop.cuh"
#include "attention_open.cuh"
#include "attention_tensor.cuh"

namespace tl::cuda {
namespace {

constexpr int32_t kSplitKeys = 512;   // keys of one part, where rows are too few to fill the device
constexpr int32_t kSplitRows = kLoopRows;
constexpr int32_t kTensorFrom = 17;   // rows from which on tensor cores pay

__global__ void fillScores(Strided scores, int32_t heads, int32_t keys) {
  const int32_t head = int32_t(blockIdx.y) % heads, batch = int32_t(blockIdx.y) / heads;
  auto* to = reinterpret_cast<float*>(scores.data) + scores.at(batch, head, blockIdx.x);
  for (int32_t key = int32_t(threadIdx.x); key < keys; key += int32_t(blockDim.x)) to[key] = -TL_INFINITY;
}

template <int kColumns> Status launchLoop(const char* op, const Problem& p, DeviceContext& context, dim3 grid) {
  const size_t bytes = loopBytes(p.headDim, p.valueDim);
  return p.general() ? launch(op, context, attendRows<kColumns, true>, grid, dim3(kLoopThreads), bytes, p) : launch(op, context, attendRows<kColumns, false>, grid, dim3(kLoopThreads), bytes, p);
}

Status runLoop(const char* op, const Problem& p, DeviceContext& context, dim3 grid) {
  if (p.headDim > 256 || p.valueDim > 256) return shapeError(op, "headDim", "is larger than the CUDA kernel's tiles", 256, p.headDim > 256 ? p.headDim : p.valueDim);
  if (p.valueDim <= 64) return launchLoop<2>(op, p, context, grid);
  return p.valueDim <= 128 ? launchLoop<4>(op, p, context, grid) : launchLoop<8>(op, p, context, grid);
}

bool isAligned(const Strided& rows, int64_t page) {
  const auto whole = [](int64_t stride) { return stride % 8 == 0; };
  return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && whole(rows.batch) && whole(rows.head) && whole(rows.token) && whole(page);
}

template <typename T, int kDim> Status launchTensor(const char* op, const Problem& p, DeviceContext& context, dim3 grid) {
  const bool aligned = p.headDim % 8 == 0 && isAligned(p.source.keys, p.source.keyPage) && isAligned(p.source.values, p.source.valuePage);
  return p.general() ? launch(op, context, attendTensor<T, kDim, true>, grid, dim3(kTensorThreads), tensorBytes(kDim), p, aligned)
                     : launch(op, context, attendTensor<T, kDim, false>, grid, dim3(kTensorThreads), tensorBytes(kDim), p, aligned);
}

bool fitsTensor(const Problem& p) {
  const DType type = p.query.dtype;
  return (type == DType::f16 || type == DType::bf16) && p.source.keys.dtype == type && p.source.layout != Layout::pages && !p.source.quantized && p.headDim == p.valueDim && p.headDim <= 128 &&
         p.mostRows >= kTensorFrom;
}

}  // namespace

Status runAttention(const char* op, Problem& p, DeviceContext& context) {
  const int64_t units = int64_t(p.sequences) * p.kvHeads, rows = int64_t(p.queries) * p.group;
  if (units > 65535) return shapeError(op, "query", "has more sequences and heads than a grid has rows", 65535, units);
  if (rows > 0x7fffffff || p.keys > 0x7ffffff0) return shapeError(op, "query", "is longer than 32-bit indices", 0x7fffffff, rows);
  p.mostRows = int32_t(rows);
  if (units == 0 || rows == 0) return {};
  if (p.scores.data) TL_TRY(launch(op, context, fillScores, dim3(unsigned(p.queries), unsigned(p.batch * p.kvHeads * p.group)), dim3(kLoopThreads), 0, p.scores, p.kvHeads * p.group, p.keys));
  if (fitsTensor(p)) {
    const dim3 grid(unsigned(ceilDiv(rows, kTensorRows)), unsigned(units));
    if (p.query.dtype == DType::f16) TL_TRY((p.headDim <= 64 ? launchTensor<f16, 64>(op, p, context, grid) : launchTensor<f16, 128>(op, p, context, grid)));
    else TL_TRY((p.headDim <= 64 ? launchTensor<bf16, 64>(op, p, context, grid) : launchTensor<bf16, 128>(op, p, context, grid)));
  } else {
    p.splits = rows <= kSplitRows && p.keys > kSplitKeys ? int32_t(std::min<int64_t>(ceilDiv(p.keys, kSplitKeys), 65535)) : 1;
    p.splitKeys = int32_t(roundUp(ceilDiv(p.keys, p.splits), kLoopKeys));
    if (p.splits > 1) TL_TRY(context.scratch(op, units * p.splits * rows * (p.valueDim + 2), &p.partial));
    TL_TRY(runLoop(op, p, context, dim3(unsigned(ceilDiv(rows, kLoopRows)), unsigned(units), unsigned(p.splits))));
    if (p.splits > 1) TL_TRY(launch(op, context, mergeSplits, dim3(unsigned(rows), unsigned(units)), dim3(kLoopThreads), 0, p));
  }
  if (!p.columnSums.data || p.keys == 0) return {};
  const dim3 grid(unsigned(ceilDiv(p.keys, kLoopKeys)), unsigned(units), unsigned(p.group));
  const size_t bytes = sharedBytes<float>(kLoopRows * p.headDim) + sharedBytes<float>(kLoopKeys * keyStride(p.headDim)) + sharedBytes<float>(kLoopWarps * kLoopKeys);
  Problem again = p;
  again.scores = {};
  return p.general() ? launch(op, context, sumColumns<true>, grid, dim3(kLoopThreads), bytes, again) : launch(op, context, sumColumns<false>, grid, dim3(kLoopThreads), bytes, again);
}

}  // namespace tl::cuda
