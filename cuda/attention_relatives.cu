// Relatives of softmax attention: see cpp/kernels/attention_relatives.cpp and attention_feature.cpp. A block takes one query; its
// threads are keys while scores are formed and dimensions while values are summed, a piece of keys at a time.
#include "attention_open.cuh"
#include "core/rows.cuh"

namespace tl::cuda {
namespace {

constexpr int kThreads = 128, kPiece = 128, kMostColumns = 4;  // value dimensions: kMostColumns · kThreads

// [batch, heads, tokens, dim] operands of one op.
struct Operands {
  Strided query, key, value, out;
  int32_t heads, group, queries, keys, headDim, valueDim;
  float scale;
  __device__ float queryAt(int b, int h, int i, int d) const { return loadElement(query.data, query.dtype, query.at(b, h, i) + d); }
  __device__ float valueAt(int b, int h, int j, int d) const { return loadElement(value.data, value.dtype, value.at(b, h / group, j) + d); }
  // q [headDim] in shared memory · key j, times scale.
  __device__ float dot(const float* q, int b, int h, int j) const {
    const int64_t at = key.at(b, h / group, j);
    float sum = 0;
    for (int d = 0; d < headDim; ++d) sum = fmaf(q[d], loadElement(key.data, key.dtype, at + d), sum);
    return sum * scale;
  }
};

Status openOperands(const char* op, const View& query, const View& key, const View& value, const View& out, double scale, Operands& o) {
  if (query.rank != 4 || key.rank != 4 || value.rank != 4) return shapeError(op, "query", "query, key and value must have rank 4", 4, query.rank);
  const int64_t batch = query.dims[0], heads = query.dims[1], kvHeads = key.dims[1], keys = key.dims[2], headDim = query.dims[3], valueDim = value.dims[3];
  if (kvHeads < 1 || heads % kvHeads) return shapeError(op, "query", "must have a multiple of the key's heads", kvHeads, heads);
  if (headDim < 1 || valueDim < 1) return shapeError(op, "query", "must have a head dimension of 1 or more", 1, headDim);
  TL_TRY(checkFloats(op, "query", query, batch, heads, -1, headDim));
  TL_TRY(checkFloats(op, "key", key, batch, kvHeads, keys, headDim));
  TL_TRY(checkFloats(op, "value", value, batch, kvHeads, keys, valueDim));
  TL_TRY(checkType(op, "out", out, DType::f32, batch, heads, query.dims[2], valueDim));
  if (value.dtype != key.dtype) return argumentError(op, "value", "must have the key's element type", int64_t(value.dtype));
  if (headDim > 4096 || valueDim > kMostColumns * kThreads) return shapeError(op, "headDim", "is larger than the CUDA kernel's tiles", kMostColumns * kThreads, valueDim);
  if (batch * heads > 65535 || keys > 0x7ffffff0) return shapeError(op, "query", "has more heads than a grid has rows", 65535, batch * heads);
  o = {strided(query), strided(key), strided(value), strided(out), int32_t(heads), int32_t(heads / kvHeads), int32_t(query.dims[2]), int32_t(keys), int32_t(headDim), int32_t(valueDim), float(scale)};
  return {};
}

size_t rowBytes(const Operands& o) { return sharedBytes<float>(o.headDim) + 3 * sharedBytes<float>(kPiece); }

__device__ void loadQuery(const Operands& o, int b, int h, int i, float* q) {
  for (int d = int(threadIdx.x); d < o.headDim; d += kThreads) q[d] = o.queryAt(b, h, i, d);
  __syncthreads();
}

// log(1 + e^s) without overflow.
__device__ float softplus(float s) { return max(s, 0.0f) + log1pf(expf(-fabsf(s))); }

__global__ void __launch_bounds__(kThreads) breakSticks(Operands o, bool attendCurrent, bool addRemainder, Strided remainders) {
  Shared shared;
  float *q = shared.take<float>(o.headDim), *weights = shared.take<float>(kPiece), *rest = shared.take<float>(kPiece), *carry = shared.take<float>(kPiece);
  const int i = int(blockIdx.x), h = int(blockIdx.y) % o.heads, b = int(blockIdx.y) / o.heads, thread = int(threadIdx.x);
  const int position = o.keys - o.queries + i, end = min(max(position + int(attendCurrent), 0), o.keys);
  loadQuery(o, b, h, i, q);
  float out[kMostColumns] = {}, left = 0;  // left: log of what newer keys left
  for (int first = (end - 1) / kPiece * kPiece; end > 0 && first >= 0; first -= kPiece) {
    const int count = min(kPiece, end - first);
    if (thread < count) {
      const float s = o.dot(q, b, h, first + thread), plus = softplus(s);
      rest[thread] = -plus;        // log(1 − β)
      weights[thread] = s - plus;  // log β
    }
    __syncthreads();
    if (thread == 0) {
      float running = left;
      for (int j = count - 1; j >= 0; --j) {
        weights[j] = expf(weights[j] + running);
        running += rest[j];
      }
      carry[0] = running;
    }
    __syncthreads();
    left = carry[0];
    for (int j = count - 1; j >= 0; --j)
      for (int c = 0; c < kMostColumns; ++c)
        if (c * kThreads + thread < o.valueDim) out[c] = fmaf(weights[j], o.valueAt(b, h, first + j, c * kThreads + thread), out[c]);
    __syncthreads();
  }
  const float remainder = expf(left);
  for (int c = 0; c < kMostColumns; ++c) {
    const int d = c * kThreads + thread;
    if (d >= o.valueDim) continue;
    if (addRemainder && position >= 0) out[c] = fmaf(remainder, o.valueAt(b, h, position, d), out[c]);
    reinterpret_cast<float*>(o.out.data)[o.out.at(b, h, i) + d] = out[c];
  }
  if (thread == 0 && remainders.data) reinterpret_cast<float*>(remainders.data)[remainders.at(b, h, i)] = remainder;
}

// A running softmax: its sum, and of the values of this thread's dimensions.
struct Running {
  float maximum = -TL_INFINITY, sum = 0, out[kMostColumns] = {};
  __device__ void rescale(float top) {
    if (top <= maximum) return;
    const float factor = maximum == -TL_INFINITY ? 0.0f : expf(maximum - top);
    sum *= factor;
    for (int c = 0; c < kMostColumns; ++c) out[c] *= factor;
    maximum = top;
  }
};

__global__ void __launch_bounds__(kThreads, 7) attendLandmarks(Operands o, const uint8_t* isLandmark) {
  Shared shared;
  float *q = shared.take<float>(o.headDim), *scores = shared.take<float>(kPiece);
  const int i = int(blockIdx.x), h = int(blockIdx.y) % o.heads, b = int(blockIdx.y) / o.heads, thread = int(threadIdx.x);
  const int position = o.keys - o.queries + i, end = min(max(position + 1, 0), o.keys);
  int own = max(position, 0);  // first key of the query's own block
  while (own > 0 && !isLandmark[own - 1]) --own;
  loadQuery(o, b, h, i, q);
  Running outer, inner;
  for (int first = 0; first < end; first += kPiece) {
    const int count = min(kPiece, end - first);
    if (thread < count) scores[thread] = o.dot(q, b, h, first + thread);
    __syncthreads();
    for (int j = 0; j < count; ++j) {
      const int key = first + j;
      const float s = scores[j];
      if (isLandmark[key]) {
        if (key >= own) continue;  // its block is the query's own: no group yet
        outer.rescale(s);          // one key whose value is the mean of its block
        const float w = outer.maximum == -TL_INFINITY ? 0.0f : expf(s - outer.maximum), share = inner.sum > 0 ? w / inner.sum : 0;
        outer.sum += w;
        for (int c = 0; c < kMostColumns; ++c) outer.out[c] = fmaf(inner.out[c], share, outer.out[c]);
        inner = Running{};
        continue;
      }
      Running& into = key >= own ? outer : inner;
      into.rescale(s);
      const float w = into.maximum == -TL_INFINITY ? 0.0f : expf(s - into.maximum);
      into.sum += w;
      for (int c = 0; c < kMostColumns; ++c)
        if (c * kThreads + thread < o.valueDim) into.out[c] = fmaf(w, o.valueAt(b, h, key, c * kThreads + thread), into.out[c]);
    }
    __syncthreads();
  }
  for (int c = 0; c < kMostColumns; ++c)
    if (c * kThreads + thread < o.valueDim) reinterpret_cast<float*>(o.out.data)[o.out.at(b, h, i) + c * kThreads + thread] = outer.sum == 0 ? outer.out[c] : outer.out[c] / outer.sum;
}

// a[row][key] of one group (a head, or all heads): a thread a key.
__global__ void __launch_bounds__(kThreads) assignKeys(Operands o, int together, float* assignment) {
  const int j = int(blockIdx.x * kThreads + threadIdx.x), groups = o.heads / together, first = int(blockIdx.y) % groups * together, b = int(blockIdx.y) / groups;
  if (j >= o.keys) return;
  const auto score = [&](int r) {
    const int h = first + r / o.queries, slot = r % o.queries;
    const int64_t query = o.query.at(b, h, slot), key = o.key.at(b, h, j);
    float sum = 0;
    for (int d = 0; d < o.headDim; ++d) sum = fmaf(loadElement(o.query.data, o.query.dtype, query + d), loadElement(o.key.data, o.key.dtype, key + d), sum);
    return sum * o.scale;
  };
  const int rows = together * o.queries;
  float* to = assignment + (int64_t(b) * o.heads + first) * o.queries * o.keys + j;
  float top = -TL_INFINITY, total = 0;
  for (int r = 0; r < rows; ++r) top = max(top, to[int64_t(r) * o.keys] = score(r));
  for (int r = 0; r < rows; ++r) total += to[int64_t(r) * o.keys] = expf(to[int64_t(r) * o.keys] - top);
  for (int r = 0; r < rows; ++r) to[int64_t(r) * o.keys] /= total;
}

// out = Σ_j (a_j + ε) v_j / Σ_j (a_j + ε): a block a slot.
__global__ void __launch_bounds__(kThreads) averageSlots(Operands o, const float* assignment, float epsilon, Strided stored) {
  const int i = int(blockIdx.x), h = int(blockIdx.y) % o.heads, b = int(blockIdx.y) / o.heads, thread = int(threadIdx.x);
  const float* a = assignment + ((int64_t(b) * o.heads + h) * o.queries + i) * o.keys;
  float out[kMostColumns] = {}, sum = 0;
  for (int j = 0; j < o.keys; ++j) {
    const float w = a[j] + epsilon;
    sum += w;
    for (int c = 0; c < kMostColumns; ++c)
      if (c * kThreads + thread < o.valueDim) out[c] = fmaf(w, o.valueAt(b, h, j, c * kThreads + thread), out[c]);
  }
  for (int c = 0; c < kMostColumns; ++c)
    if (c * kThreads + thread < o.valueDim) reinterpret_cast<float*>(o.out.data)[o.out.at(b, h, i) + c * kThreads + thread] = sum == 0 ? out[c] : out[c] / sum;
  for (int j = thread; j < o.keys && stored.data; j += kThreads) reinterpret_cast<float*>(stored.data)[stored.at(b, h, i) + j] = a[j];
}

struct Tokens {
  const void *x, *keys, *values;
  DType type, keyType;
  int64_t xStride, keyStride, valueStride, inputs, n;
  float scale;
};

// Scores of a row's keys in two passes: their norm, then gelu of them times the values. A block a row.
__global__ void __launch_bounds__(kThreads) attendTokens(Tokens t, Rows out) {
  Shared shared;
  float *x = shared.take<float>(t.inputs), *scores = shared.take<float>(kPiece), *sums = shared.take<float>(out.width);
  double* scratch = shared.take<double>(kWarp + 1);
  const int64_t row = blockIdx.x;
  const int thread = int(threadIdx.x);
  for (int64_t c = thread; c < t.inputs; c += kThreads) x[c] = loadElement(t.x, t.type, row * t.xStride + c);
  for (int64_t c = thread; c < out.width; c += kThreads) sums[c] = 0;
  __syncthreads();
  const auto score = [&](int64_t j) {
    float sum = 0;
    for (int64_t c = 0; c < t.inputs; ++c) sum = fmaf(x[c], loadElement(t.keys, t.keyType, j * t.keyStride + c), sum);
    return sum * t.scale;
  };
  double squares = 0;
  for (int64_t j = thread; j < t.n; j += kThreads) {
    const double s = double(score(j));
    squares += s * s;
  }
  squares = blockReduce(squares, scratch, [](double a, double b) { return a + b; });
  const float factor = squares == 0 ? 0.0f : float(sqrt(double(t.n) / squares));
  for (int64_t first = 0; first < t.n; first += kPiece) {
    const int count = int(min(int64_t(kPiece), t.n - first));
    if (thread < count) {
      const float s = score(first + thread) * factor;
      scores[thread] = s * 0.5f * (1.0f + erff(s * 0.70710678f));
    }
    __syncthreads();
    for (int64_t c = thread; c < out.width; c += kThreads) {
      float sum = sums[c];
      for (int j = 0; j < count; ++j) sum = fmaf(scores[j], loadElement(t.values, t.keyType, (first + j) * t.valueStride + c), sum);
      sums[c] = sum;
    }
    __syncthreads();
  }
  for (int64_t c = thread; c < out.width; c += kThreads) out.row(row)[c] = sums[c];
}

struct States {
  const float *partials, *logSumExp;
  int64_t out[5], sum[4], count, heads, queries, dim;  // strides
};

// A block a row; lanes are dimensions.
__global__ void __launch_bounds__(kThreads) mergeParts(States s, Strided out, Strided logSumExp) {
  const int64_t t = int64_t(blockIdx.x) % s.queries, h = int64_t(blockIdx.x) / s.queries % s.heads, b = int64_t(blockIdx.x) / s.queries / s.heads;
  const auto logOf = [&](int64_t p) { return double(s.logSumExp[p * s.sum[0] + b * s.sum[1] + h * s.sum[2] + t * s.sum[3]]); };
  const double nothing = -double(TL_INFINITY);
  double top = nothing, sum = 0;
  for (int64_t p = 0; p < s.count; ++p) top = max(top, logOf(p));
  for (int64_t p = 0; p < s.count; ++p)
    if (logOf(p) != nothing) sum += exp(logOf(p) - top);
  for (int64_t d = threadIdx.x; d < s.dim; d += kThreads) {
    float value = 0;
    for (int64_t p = 0; p < s.count; ++p)
      if (logOf(p) != nothing) value = fmaf(s.partials[p * s.out[0] + b * s.out[1] + h * s.out[2] + t * s.out[3] + d], float(exp(logOf(p) - top) / sum), value);
    reinterpret_cast<float*>(out.data)[out.at(b, h, t) + d] = value;
  }
  if (threadIdx.x == 0 && logSumExp.data) reinterpret_cast<float*>(logSumExp.data)[logSumExp.at(b, h, t)] = sum == 0 ? -TL_INFINITY : float(top + log(sum));
}

}  // namespace

Status mergeStates(const MergeStatesArgs& args, DeviceContext& context) {
  constexpr const char* op = "mergeStates";
  const View &in = args.partialOut, &lse = args.partialLogSumExp;
  TL_TRY(checkType(op, "partialOut", in, DType::f32, -1, -1, -1, -1, -1));
  const int64_t batch = in.dims[1], heads = in.dims[2], queries = in.dims[3], dim = in.dims[4];
  TL_TRY(checkType(op, "partialLogSumExp", lse, DType::f32, in.dims[0], batch, heads, queries));
  TL_TRY(checkType(op, "out", args.out, DType::f32, batch, heads, queries, dim));
  if (args.logSumExp.present()) TL_TRY(checkType(op, "logSumExp", args.logSumExp, DType::f32, batch, heads, queries));
  States s{in.as<const float>(), lse.as<const float>(), {}, {}, in.dims[0], heads, queries, dim};
  for (int i = 0; i < 5; ++i) s.out[i] = in.strides[i];
  for (int i = 0; i < 4; ++i) s.sum[i] = lse.strides[i];
  return launch(op, context, mergeParts, dim3(unsigned(batch * heads * queries)), dim3(kThreads), 0, s, strided(args.out), strided(args.logSumExp));
}

Status stickBreaking(const StickBreakingArgs& args, DeviceContext& context) {
  constexpr const char* op = "stickBreaking";
  Operands o;
  TL_TRY(openOperands(op, args.query, args.key, args.value, args.out, args.scale, o));
  const int64_t batch = args.query.dims[0];
  if (args.remainder.present()) TL_TRY(checkType(op, "remainder", args.remainder, DType::f32, batch, o.heads, o.queries));
  return launch(op, context, breakSticks, dim3(unsigned(o.queries), unsigned(batch * o.heads)), dim3(kThreads), rowBytes(o), o, args.attendCurrent != 0, args.addRemainder != 0, strided(args.remainder));
}

Status landmarkAttention(const LandmarkAttentionArgs& args, DeviceContext& context) {
  constexpr const char* op = "landmarkAttention";
  Operands o;
  TL_TRY(openOperands(op, args.query, args.key, args.value, args.out, args.scale, o));
  TL_TRY(checkType(op, "isLandmark", args.isLandmark, DType::u8, o.keys));
  return launch(op, context, attendLandmarks, dim3(unsigned(o.queries), unsigned(args.query.dims[0] * o.heads)), dim3(kThreads), rowBytes(o), o, args.isLandmark.as<const uint8_t>());
}

Status slotAttention(const SlotAttentionArgs& args, DeviceContext& context) {
  constexpr const char* op = "slotAttention";
  Operands o;
  TL_TRY(openOperands(op, args.query, args.key, args.value, args.out, args.scale, o));
  const int64_t batch = args.query.dims[0], slots = args.query.dims[2];
  if (o.group != 1) return shapeError(op, "key", "must have the query's heads", o.heads, args.key.dims[1]);
  if (args.assignment.present()) TL_TRY(checkType(op, "assignment", args.assignment, DType::f32, batch, o.heads, slots, o.keys));
  if (o.heads == 0 || slots == 0) return {};
  float* assignment = nullptr;
  TL_TRY(context.scratch(op, std::max<int64_t>(batch * o.heads * slots * o.keys, 1), &assignment));
  const int together = args.jointHeads != 0 ? o.heads : 1;
  TL_TRY(launch(op, context, assignKeys, dim3(unsigned(ceilDiv(o.keys, kThreads)), unsigned(batch * o.heads / together)), dim3(kThreads), 0, o, together, assignment));
  return launch(op, context, averageSlots, dim3(unsigned(slots), unsigned(batch * o.heads)), dim3(kThreads), 0, o, assignment, float(args.epsilon), strided(args.assignment));
}

Status pattention(const PattentionArgs& args, DeviceContext& context) {
  constexpr const char* op = "pattention";
  const View& x = args.x;
  Rows out;
  TL_TRY(checkFloats(op, "keys", args.keys, -1, -1));
  const int64_t n = args.keys.dims[0], inputs = args.keys.dims[1], outputs = args.values.rank == 2 ? args.values.dims[1] : 0;
  TL_TRY(checkFloats(op, "values", args.values, n, outputs));
  if (args.values.dtype != args.keys.dtype) return argumentError(op, "values", "must have the keys' element type", int64_t(args.values.dtype));
  if (!isFloat(x.dtype)) return argumentError(op, "x", "must be f32, f16 or bf16", int64_t(x.dtype));
  if (x.rank < 1 || !x.rowsAreUniform()) return argumentError(op, "x", "must have rows at one stride", x.rank);
  TL_TRY(floatRows(op, "out", args.out, out));
  if (x.lastDim() != inputs) return shapeError(op, "x", "must have as many columns as keys", inputs, x.lastDim());
  if (out.width != outputs || out.rows != x.rows()) return shapeError(op, "out", "must have a row for each row of x and a column for each of values", outputs, out.width);
  if (inputs < 1 || outputs < 1) return shapeError(op, "keys", "must have a column or more", 1, inputs);
  const size_t bytes = sharedBytes<float>(inputs) + sharedBytes<float>(kPiece) + sharedBytes<float>(outputs) + sharedBytes<double>(kWarp + 1);
  if (bytes > (size_t(96) << 10)) return argumentError(op, "keys", "has more columns than the CUDA kernel's tiles", inputs);
  const Tokens t{x.data, args.keys.data, args.values.data, x.dtype, args.keys.dtype, x.rowStride(), args.keys.strides[0], args.values.strides[0], inputs, n, float(args.scale)};
  return launch(op, context, attendTokens, dim3(unsigned(out.rows)), dim3(kThreads), bytes, t, out);
}

}  // namespace tl::cuda
