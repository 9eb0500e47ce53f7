// Arithmetic of single cache methods over plain rows: see cpp/kernels/cache_method.cpp.
#include "cache_pages.cuh"

namespace tl::cuda {
namespace {

constexpr int kWarps = kCacheThreads / kWarp;

// A warp a row.
__global__ void __launch_bounds__(kCacheThreads) quantize8(Rows x, int8_t* q, float* scale, float* dequantized) {
  const int64_t i = int64_t(blockIdx.x) * kWarps + warpIndex();
  if (i >= x.rows) return;
  float largest = 0;
  for (int64_t d = laneIndex(); d < x.width; d += kWarp) largest = max(largest, fabsf(x.row(i)[d]));
  const float step = warpMax(largest) / 127;
  for (int64_t d = laneIndex(); d < x.width; d += kWarp) {
    const int code = step > 0 ? __float2int_rn(x.row(i)[d] / step) : 0;
    q[i * x.width + d] = int8_t(code);
    dequantized[i * x.width + d] = float(code) * step;
  }
  if (laneIndex() == 0) scale[i] = step;
}

__global__ void __launch_bounds__(kCacheThreads) quantize4(Rows x, uint8_t* q, float* scale, float* minimum, float* dequantized) {
  const int64_t i = int64_t(blockIdx.x) * kWarps + warpIndex(), groups = (x.width + kInt4Group - 1) / kInt4Group, bytes = (x.width + 1) / 2;
  if (i >= x.rows) return;
  const int lane = laneIndex();
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t d = group * kInt4Group + lane;
    const float value = x.row(i)[d < x.width ? d : group * kInt4Group], largest = warpMax(value), least = -warpMax(-value), step = (largest - least) / 15;
    const int code = d < x.width && step > 0 ? __float2int_rn((value - least) / step) : 0, next = shuffleXor(code, 1);
    if (d < x.width) dequantized[i * x.width + d] = __fadd_rn(least, __fmul_rn(float(code), step));
    if (lane % 2 == 0 && d < x.width) q[i * bytes + d / 2] = uint8_t(code | next << 4);
    if (lane == 0) scale[i * groups + group] = step, minimum[i * groups + group] = least;
  }
}

__device__ float warpDot(const float* a, const float* b, int64_t n) {
  float sum = 0;
  for (int64_t d = laneIndex(); d < n; d += kWarp) sum = fmaf(a[d], b[d], sum);
  return warpSum(sum);
}

struct Merge {
  const float *key, *value;
  const uint8_t* kept;
  int64_t tokens, n;
  float threshold;
};

// For each token that is not kept: the kept one of the closest key, or −1, and its weight. A warp a token, grid (tokens, heads).
__global__ void __launch_bounds__(kCacheThreads) findTargets(Merge m, int32_t* targets, float* weights) {
  const int64_t head = blockIdx.y, e = int64_t(blockIdx.x) * kWarps + warpIndex();
  if (e >= m.tokens) return;
  const float *key = m.key + head * m.tokens * m.n, *value = m.value + head * m.tokens * m.n;
  const uint8_t* kept = m.kept + head * m.tokens;
  int32_t best = -1;
  float closest = -TL_INFINITY, weight = 0;
  const float norm = max(sqrtf(warpDot(key + e * m.n, key + e * m.n, m.n)), 1e-6f);
  for (int64_t t = 0; t < m.tokens && !kept[e]; ++t) {
    if (!kept[t]) continue;
    const float other = max(sqrtf(warpDot(key + t * m.n, key + t * m.n, m.n)), 1e-6f), cosine = warpDot(key + e * m.n, key + t * m.n, m.n) / (norm * other);
    if (cosine > closest) closest = cosine, best = int32_t(t);
  }
  if (best >= 0 && closest >= m.threshold) {
    const float size = sqrtf(warpDot(value + e * m.n, value + e * m.n, m.n)), target = sqrtf(warpDot(value + best * m.n, value + best * m.n, m.n));
    weight = max(closest, 0.0f) * size / (size + target + 1e-6f);
  } else {
    best = -1;
  }
  if (laneIndex() == 0) targets[head * m.tokens + e] = best, weights[head * m.tokens + e] = weight;
}

// A thread a number of the output; what flows in is added with tokens ascending.
__global__ void __launch_bounds__(kCacheThreads) mergeValues(Merge m, const int32_t* targets, const float* weights, float* out) {
  const int64_t head = blockIdx.y, i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, t = i / m.n, d = i % m.n;
  if (t >= m.tokens) return;
  const float* value = m.value + head * m.tokens * m.n;
  float sum = value[t * m.n + d], total = 0;
  for (int64_t e = 0; e < m.tokens; ++e) {
    if (targets[head * m.tokens + e] != t) continue;
    const float weight = weights[head * m.tokens + e];
    total += weight;
    sum = fmaf(value[e * m.n + d], weight, sum);
  }
  out[head * m.tokens * m.n + t * m.n + d] = total == 0 ? sum : sum / (1 + total);
}

struct Relevance {
  const float *query, *key;
  int64_t queryHead, queryToken, keyHead, keyToken, heads, group, tokens, dim, block;
  float scale;
};

// largest[m][n] of block m of queries and n of keys: a block a pair.
__global__ void __launch_bounds__(kCacheThreads) blockMaxima(Relevance r, int64_t blocks, float* largest) {
  Shared shared;
  float* scratch = shared.take<float>(kWarp + 1);
  const int64_t m = blockIdx.y, n = blockIdx.x;
  float most = 0;
  for (int64_t pair = threadIdx.x; pair < r.block * r.block; pair += blockDim.x) {
    const int64_t i = m * r.block + pair / r.block, j = n * r.block + pair % r.block;
    if (i >= r.tokens || j >= r.tokens) continue;
    float sum = 0;
    for (int64_t h = 0; h < r.heads; ++h) {
      const float *q = r.query + h * r.queryHead + i * r.queryToken, *k = r.key + h / r.group * r.keyHead + j * r.keyToken;
      float dot = 0;
      for (int64_t d = 0; d < r.dim; ++d) dot = fmaf(q[d], k[d], dot);
      sum += max(0.0f, r.scale * dot);
    }
    most = max(most, sum);
  }
  most = blockMax(most, scratch);
  if (threadIdx.x == 0) largest[m * blocks + n] = most;
}

__global__ void __launch_bounds__(kCacheThreads) sumRelevance(const float* largest, int64_t blocks, bool causal, bool symmetric, float heads, float* out) {
  const int64_t n = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n >= blocks) return;
  float sum = 0;
  for (int64_t m = causal ? n : 0; m < blocks; ++m) sum += largest[m * blocks + n];
  for (int64_t m = 0; m < n && symmetric; ++m) sum += largest[n * blocks + m];
  out[n] = sum / heads;
}

__global__ void __launch_bounds__(kCacheThreads) markAbove(const float* scores, int64_t n, float threshold, bool ofMean, uint8_t* kept) {
  Shared shared;
  double* scratch = shared.take<double>(kWarp + 1);
  if (ofMean) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += double(scores[i]);
    threshold = float(blockReduce(sum, scratch, [](double a, double b) { return a + b; }) / double(n));
  }
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) kept[i] = scores[i] >= threshold;
}

}  // namespace

Status quantizeRows(const QuantizeRowsArgs& args, DeviceContext& context) {
  constexpr const char* op = "quantizeRows";
  Rows x;
  int64_t bytes, groups;
  TL_TRY(openQuantizeRows(args, kInt4Group, x, bytes, groups));
  const dim3 grid(unsigned(ceilDiv(x.rows, kWarps)));
  if (args.bits == 8) return launch(op, context, quantize8, grid, dim3(kCacheThreads), 0, x, args.q.as<int8_t>(), args.scale.as<float>(), args.dequantized.as<float>());
  return launch(op, context, quantize4, grid, dim3(kCacheThreads), 0, x, args.q.as<uint8_t>(), args.scale.as<float>(), args.minimum.as<float>(), args.dequantized.as<float>());
}

Status mergeEvicted(const MergeEvictedArgs& args, DeviceContext& context) {
  constexpr const char* op = "mergeEvicted";
  const View& key = args.key;
  TL_TRY(checkMergeEvicted(args));
  const int64_t heads = key.dims[0], tokens = key.dims[1], n = key.dims[2];
  if (args.out.data == args.value.data && tokens > 0) return argumentError(op, "out", "must not be the values");
  int32_t* targets = nullptr;
  float* weights = nullptr;
  TL_TRY(context.scratch(op, std::max<int64_t>(heads * tokens, 1), &targets));
  TL_TRY(context.scratch(op, std::max<int64_t>(heads * tokens, 1), &weights));
  const Merge m{key.as<const float>(), args.value.as<const float>(), args.kept.as<const uint8_t>(), tokens, n, float(args.threshold)};
  TL_TRY(launch(op, context, findTargets, dim3(unsigned(ceilDiv(tokens, kWarps)), unsigned(heads)), dim3(kCacheThreads), 0, m, targets, weights));
  return launch(op, context, mergeValues, dim3(unsigned(ceilDiv(tokens * n, kCacheThreads)), unsigned(heads)), dim3(kCacheThreads), 0, m, targets, weights, args.out.as<float>());
}

Status blockRelevance(const BlockRelevanceArgs& args, DeviceContext& context) {
  constexpr const char* op = "blockRelevance";
  const View &query = args.query, &key = args.key;
  TL_TRY(checkType(op, "query", query, DType::f32, -1, -1, -1));
  TL_TRY(checkType(op, "key", key, DType::f32, -1, query.dims[1], query.dims[2]));
  if (key.dims[0] < 1 || query.dims[0] < 1 || query.dims[0] % key.dims[0]) return shapeError(op, "query", "must have a multiple of the key's heads", key.dims[0], query.dims[0]);
  if (!(args.blockSize >= 1 && args.blockSize <= 0x1p40)) return argumentError(op, "blockSize", "must be 1 or more");
  const Relevance r{query.as<const float>(), key.as<const float>(), query.strides[0], query.strides[1], key.strides[0], key.strides[1], query.dims[0], query.dims[0] / key.dims[0],
                    key.dims[1], key.dims[2], std::min<int64_t>(int64_t(args.blockSize), std::max<int64_t>(key.dims[1], 1)), float(args.scale)};
  const int64_t blocks = ceilDiv(r.tokens, int64_t(args.blockSize));
  if (blocks > 65535) return shapeError(op, "blockSize", "makes more blocks than a grid has rows", 65535, blocks);
  TL_TRY(contiguousRows(op, "out", args.out, DType::f32, 1, blocks));
  float* largest = nullptr;
  TL_TRY(context.scratch(op, std::max<int64_t>(blocks * blocks, 1), &largest));
  TL_TRY(launch(op, context, blockMaxima, dim3(unsigned(blocks), unsigned(blocks)), dim3(kCacheThreads), sharedBytes<float>(kWarp + 1), r, blocks, largest));
  return launch(op, context, sumRelevance, dim3(unsigned(ceilDiv(blocks, kCacheThreads))), dim3(kCacheThreads), 0, largest, blocks, args.causal != 0, args.symmetric != 0, float(r.heads), args.out.as<float>());
}

Status keepAbove(const KeepAboveArgs& args, DeviceContext& context) {
  constexpr const char* op = "keepAbove";
  const int64_t n = args.scores.count();
  TL_TRY(vectorOperand(op, "scores", args.scores, args.scores.lastDim()));
  TL_TRY(contiguousRows(op, "kept", args.kept, DType::u8, 1, n));
  return launch(op, context, markAbove, dim3(1), dim3(kCacheThreads), sharedBytes<double>(kWarp + 1), args.scores.as<const float>(), n, float(args.threshold), args.ofMean != 0, args.kept.as<uint8_t>());
}

}  // namespace tl::cuda
