// Arithmetic of single cache methods over plain rows.
//   quantizeRows   what int8 and int4 pages hold: codes, scales, minima, and what they stand for (arXiv 2303.06865)
//   mergeEvicted   evicted values flow into the kept token whose key is the most similar (after arXiv 2406.13035)
//   blockRelevance how much the queries' blocks want each block of keys: sums of block maxima of Σ_heads relu(scale · q·k)
//                  (LeMo, arXiv 2501.09767)
//   keepAbove      marks scores at or above a threshold, or their mean
#include "../cache/kv.h"
#include "../simd/target.h"
#include "cache_rows_inl.h"

namespace tl::TL_TARGET {
namespace {

float dotRows(const float* a, const float* b, int64_t n) {
  F32 sum = zero();
  for (int64_t i = 0; i < n; i += kLanes) sum = mulAdd(loadUpTo(a + i, n - i), loadUpTo(b + i, n - i), sum);
  return sumLanes(sum);
}

float normOf(const float* x, int64_t n) { return std::sqrt(dotRows(x, x, n)); }

void quantize4(const float* x, int64_t n, uint8_t* q, float* scale, float* minimum, float* dequantized) {
  for (int64_t g = 0; g * kInt4Group < n; ++g) {
    int8_t codes[kInt4Group] = {};
    const int64_t first = g * kInt4Group;
    const int count = int(std::min(n - first, kInt4Group));
    quantizeInt4(x + first, count, codes, scale[g], minimum[g]);
    for (int i = 0; i < count; ++i) dequantized[first + i] = minimum[g] + float(codes[i]) * scale[g];
    for (int i = 0; i < count; i += 2) q[(first + i) / 2] = uint8_t(codes[i] | (i + 1 < count ? codes[i + 1] << 4 : 0));
  }
}

}  // namespace

Status quantizeRows(const QuantizeRowsArgs& args, Context& context) {
  FloatRows x;
  int64_t bytes, groups;
  TL_TRY(openQuantizeRows(args, kInt4Group, x, bytes, groups));
  const bool four = args.bits == 4;
  forRows(context, x.rows, x.width, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      uint8_t* q = args.q.as<uint8_t>() + i * bytes;
      float *scale = args.scale.as<float>() + i * groups, *dequantized = args.dequantized.as<float>() + i * x.width;
      if (four) {
        quantize4(x.row(i), x.width, q, scale, args.minimum.as<float>() + i * groups, dequantized);
        continue;
      }
      auto* codes = reinterpret_cast<int8_t*>(q);
      *scale = quantizeInt8(x.row(i), x.width, codes);
      for (int64_t d = 0; d < x.width; ++d) dequantized[d] = float(codes[d]) * *scale;
    }
  });
  return {};
}

namespace {

// One head: `out` starts as its values. weights, keyNorms: scratch [tokens].
void mergeHead(const float* key, const float* value, const uint8_t* kept, int64_t tokens, int64_t n, float threshold, float* out, float* weights, float* keyNorms) {
  for (int64_t t = 0; t < tokens; ++t) keyNorms[t] = std::max(normOf(key + t * n, n), 1e-6f);
  std::fill(weights, weights + tokens, 0.0f);
  for (int64_t e = 0; e < tokens; ++e) {
    if (kept[e]) continue;
    int64_t best = -1;
    float closest = kBehind;
    for (int64_t t = 0; t < tokens; ++t) {
      if (!kept[t]) continue;
      const float cosine = dotRows(key + e * n, key + t * n, n) / (keyNorms[e] * keyNorms[t]);
      if (cosine > closest) {
        closest = cosine;
        best = t;
      }
    }
    if (best < 0 || closest < threshold) continue;
    const float size = normOf(value + e * n, n), weight = std::max(closest, 0.0f) * size / (size + normOf(value + best * n, n) + 1e-6f);
    weights[best] += weight;
    const F32 factor = broadcast(weight);
    mapRow(out + best * n, value + e * n, out + best * n, n, [=](F32 sum, F32 v) { return mulAdd(v, factor, sum); });
  }
  for (int64_t t = 0; t < tokens; ++t) {
    if (weights[t] == 0) continue;
    const F32 total = broadcast(1 + weights[t]);
    mapRow(out + t * n, out + t * n, n, [=](F32 v) { return div(v, total); });
  }
}

}  // namespace

Status mergeEvicted(const MergeEvictedArgs& args, Context& context) {
  constexpr const char* op = "mergeEvicted";
  const View& key = args.key;
  TL_TRY(checkMergeEvicted(args));
  const int64_t heads = key.dims[0], tokens = key.dims[1], n = key.dims[2];
  if (2 * tokens > kScratchFloats) return shapeError(op, "key", "has too many tokens", kScratchFloats / 2, tokens);
  if (args.out.data == args.value.data && tokens > 0) return argumentError(op, "out", "must not be the values");
  context.pool.parallelFor(heads, 1, [&](int64_t begin, int64_t end, int thread) {
    float* scratch = reinterpret_cast<float*>(context.pool.scratch(thread));
    for (int64_t head = begin; head < end; ++head) {
      const float* value = args.value.as<float>() + head * tokens * n;
      float* out = args.out.as<float>() + head * tokens * n;
      std::copy(value, value + tokens * n, out);
      mergeHead(key.as<float>() + head * tokens * n, value, args.kept.as<uint8_t>() + head * tokens, tokens, n, float(args.threshold), out, scratch, scratch + tokens);
    }
  });
  return {};
}

namespace {

struct Relevance {
  const View &query, &key;
  int64_t heads, group, tokens, headDim, block;
  float scale;

  // Largest Σ_heads relu(scale · q·k) of a block of queries and a block of keys.
  float largest(int64_t queryBlock, int64_t keyBlock) const {
    float most = 0;
    for (int64_t i = queryBlock * block; i < std::min((queryBlock + 1) * block, tokens); ++i)
      for (int64_t j = keyBlock * block; j < std::min((keyBlock + 1) * block, tokens); ++j) {
        float sum = 0;
        for (int64_t h = 0; h < heads; ++h)
          sum += std::max(0.0f, scale * dotRows(query.as<float>() + h * query.strides[0] + i * query.strides[1], key.as<float>() + h / group * key.strides[0] + j * key.strides[1], headDim));
        most = std::max(most, sum);
      }
    return most;
  }
};

}  // namespace

Status blockRelevance(const BlockRelevanceArgs& args, Context& context) {
  constexpr const char* op = "blockRelevance";
  const View &query = args.query, &key = args.key;
  for (const View* view : {&query, &key}) {
    const char* name = view == &query ? "query" : "key";
    if (view->dtype != DType::f32 || view->rank != 3) return shapeError(op, name, "must be f32 [heads, tokens, headDim]", 3, view->rank);
    if (view->dims[2] > 1 && view->strides[2] != 1) return argumentError(op, name, "must be contiguous along headDim", view->strides[2]);
  }
  if (key.dims[0] < 1 || query.dims[0] < 1 || query.dims[0] % key.dims[0]) return shapeError(op, "query", "must have a multiple of the key's heads", key.dims[0], query.dims[0]);
  if (query.dims[1] != key.dims[1] || query.dims[2] != key.dims[2]) return shapeError(op, "query", "must have the key's tokens and head dimension", key.dims[1], query.dims[1]);
  if (!(args.blockSize >= 1 && args.blockSize <= 0x1p40)) return argumentError(op, "blockSize", "must be 1 or more");
  const Relevance of{query, key, query.dims[0], query.dims[0] / key.dims[0], key.dims[1], key.dims[2], int64_t(args.blockSize), float(args.scale)};
  const int64_t blocks = ceilDiv(of.tokens, of.block);
  TL_TRY(contiguousRows(op, "out", args.out, DType::f32, 1, blocks));
  context.pool.parallelFor(blocks, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      float sum = 0;
      for (int64_t m = args.causal != 0 ? n : 0; m < blocks; ++m) sum += of.largest(m, n);
      for (int64_t m = 0; m < n && args.symmetric != 0; ++m) sum += of.largest(n, m);
      args.out.as<float>()[n] = sum / float(of.heads);
    }
  });
  return {};
}

Status keepAbove(const KeepAboveArgs& args, Context&) {
  constexpr const char* op = "keepAbove";
  const View& scores = args.scores;
  const int64_t n = scores.count();
  TL_TRY(vectorOperand(op, "scores", scores, scores.lastDim()));
  TL_TRY(contiguousRows(op, "kept", args.kept, DType::u8, 1, n));
  const float* x = scores.as<float>();
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += double(x[i]);
  const float threshold = args.ofMean != 0 ? float(sum / double(n)) : float(args.threshold);
  for (int64_t i = 0; i < n; ++i) args.kept.as<uint8_t>()[i] = x[i] >= threshold;
  return {};
}

}  // namespace tl::TL_TARGET
