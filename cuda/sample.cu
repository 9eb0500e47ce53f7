// From logits to tokens: see cpp/kernels/sample.cpp. One block a row.
#include "sampler.cuh"

namespace tl::cuda {
namespace {

__global__ void __launch_bounds__(kSelectThreads) sampleToken(const float* logits, int64_t n, const int32_t* history, int64_t past, Sampler s, float* penalised, int32_t* token, float* logProb, int* problems) {
  Shared shared;
  auto* scratch = shared.take<SamplerScratch>(1);
  const float* x = logits;
  if (penalised) {
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) penalised[i] = logits[i];
    __syncthreads();
    penalise(logits, n, history, past, s.repeatPenalty, penalised, problems);
    __syncthreads();
    x = penalised;
  }
  const int drawn = drawToken(x, n, s, s.position, scratch);
  const float maximum = rowMaximum(logits, n, scratch->maxima);
  const bool spoiled = drawn < 0 || !(fabsf(maximum) < TL_INFINITY);
  const double sum = spoiled ? 1 : sumOfExp(logits, n, maximum, scratch->sums);
  if (threadIdx.x != 0) return;
  if (spoiled) reportProblem(problems, Problems::notANumber);
  *token = spoiled ? 0 : drawn;
  if (logProb) *logProb = spoiled ? 0.0f : float(double(logits[drawn]) - double(maximum) - log(sum));
}

__global__ void __launch_bounds__(kSelectThreads) selectRows(Rows logits, int k, Rows values, int32_t* indices, int64_t indexStride, float* logSumExp, int* problems) {
  Shared shared;
  auto* scratch = shared.take<SamplerScratch>(1);
  const int64_t row = blockIdx.x;
  const float* x = logits.row(row);
  const float maximum = rowMaximum(x, logits.width, scratch->maxima);
  if (maximum != maximum && threadIdx.x == 0) reportProblem(problems, Problems::notANumber);
  selectLargest(logits.width, k, &scratch->select, [&](int64_t i) { return orderKey(x[i]); });
  for (int i = int(threadIdx.x); i < k; i += int(blockDim.x)) {
    const int64_t index = candidateIndex(scratch->select.items[i]);
    values.row(row)[i] = x[index];
    indices[row * indexStride + i] = int32_t(index);
  }
  if (!logSumExp) return;
  const double sum = sumOfExp(x, logits.width, maximum, scratch->sums);
  if (threadIdx.x == 0) logSumExp[row] = maximum == -TL_INFINITY ? -TL_INFINITY : float(double(maximum) + log(sum));
}

__global__ void __launch_bounds__(kSelectThreads) scoreTargets(Rows logits, const int32_t* targets, float* out, int* problems) {
  Shared shared;
  auto* maxima = shared.take<float>(kWarp + 1);
  auto* sums = shared.take<double>(kWarp + 1);
  const float* x = logits.row(blockIdx.x);
  const float maximum = rowMaximum(x, logits.width, maxima);
  const double sum = sumOfExp(x, logits.width, maximum, sums);
  if (threadIdx.x == 0) out[blockIdx.x] = float(double(x[checkedIndex(targets[blockIdx.x], logits.width, problems)]) - (double(maximum) + log(sum)));
}

__global__ void __launch_bounds__(kSelectThreads) softmaxRows(Rows x, Rows out, float scale) {
  Shared shared;
  auto* maxima = shared.take<float>(kWarp + 1);
  auto* sums = shared.take<double>(kWarp + 1);
  const float* from = x.row(blockIdx.x);
  float* to = out.row(blockIdx.x);
  float largest = -TL_INFINITY;
  for (int64_t i = threadIdx.x; i < x.width; i += blockDim.x) largest = max(largest, from[i] * scale);
  largest = blockMax(largest, maxima);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < x.width; i += blockDim.x) sum += double(to[i] = largest == -TL_INFINITY ? 0.0f : expf(from[i] * scale - largest));
  sum = blockReduce(sum, sums, [](double a, double b) { return a + b; });
  const float inverse = largest == -TL_INFINITY ? 0.0f : float(1 / sum);
  for (int64_t i = threadIdx.x; i < x.width; i += blockDim.x) to[i] *= inverse;
}

Status rowsOfLogits(const char* op, const View& view, Rows& rows) {
  TL_TRY(openLogits(op, view, rows));
  return checkGrid(op, rows.rows);
}

constexpr size_t kReduceBytes = sharedBytes<float>(kWarp + 1) + sharedBytes<double>(kWarp + 1);

}  // namespace

Status sample(const SampleArgs& args, DeviceContext& context) {
  const int64_t n = args.logits.count();
  TL_TRY(vectorOperand("sample", "logits", args.logits, n));
  if (args.token.dtype != DType::i32 || args.token.count() != 1) return argumentError("sample", "token", "must be one i32", args.token.count());
  if (args.logProb.present() && (args.logProb.dtype != DType::f32 || args.logProb.count() != 1)) return argumentError("sample", "logProb", "must be one f32", args.logProb.count());
  TL_TRY(checkChain("sample", n, args));
  const int64_t past = args.history.present() ? args.history.dims[0] : 0;
  float* penalised = nullptr;
  if (args.repeatPenalty != 1 && past > 0) TL_TRY(context.scratch("sample", n, &penalised));
  const Sampler s{float(args.temperature), args.topK, args.topP, args.minP, args.repeatPenalty, uint64_t(args.seed), uint64_t(args.stream), uint64_t(args.position)};
  return launch("sample", context, sampleToken, dim3(1), dim3(kSelectThreads), sharedBytes<SamplerScratch>(1), args.logits.as<const float>(), n, args.history.as<const int32_t>(), past, s, penalised,
                args.token.as<int32_t>(), args.logProb.present() ? args.logProb.as<float>() : nullptr, context.problems);
}

Status topK(const TopKArgs& args, DeviceContext& context) {
  Rows logits, values;
  TL_TRY(openTopK(args, logits, values));
  TL_TRY(checkGrid("topK", logits.rows));
  const View& indices = args.indices;
  return launch("topK", context, selectRows, dim3(unsigned(logits.rows)), dim3(kSelectThreads), sharedBytes<SamplerScratch>(1), logits, int(values.width), values, indices.as<int32_t>(), indices.rowStride(),
                args.logSumExp.present() ? args.logSumExp.as<float>() : nullptr, context.problems);
}

Status logProb(const LogProbArgs& args, DeviceContext& context) {
  Rows logits;
  TL_TRY(rowsOfLogits("logProb", args.logits, logits));
  TL_TRY(columnOperand("logProb", "targets", args.targets, DType::i32, logits.rows));
  TL_TRY(columnOperand("logProb", "out", args.out, DType::f32, logits.rows));
  return launch("logProb", context, scoreTargets, dim3(unsigned(logits.rows)), dim3(kSelectThreads), kReduceBytes, logits, args.targets.as<const int32_t>(), args.out.as<float>(), context.problems);
}

Status softmax(const SoftmaxArgs& args, DeviceContext& context) {
  Rows x, out;
  TL_TRY(floatRows("softmax", "x", args.x, x));
  TL_TRY(floatRows("softmax", "out", args.out, out));
  TL_TRY(sameShape("softmax", "out", x, out));
  TL_TRY(checkGrid("softmax", x.rows));
  return launch("softmax", context, softmaxRows, dim3(unsigned(x.rows)), dim3(kSelectThreads), kReduceBytes, x, out, float(args.scale));
}

}  // namespace tl::cuda
