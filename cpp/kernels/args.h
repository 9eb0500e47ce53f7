// One POD a op: its operands as views in the order inputs, outputs, then its parameters as doubles. CPU kernels, CUDA
// twins, the executor and the binding all use these. ops.def names the fields; table.h checks the sizes against it.
//
// Shapes are written [outer, …, inner]. `n` = new tokens of the step. f32 unless said otherwise. An operand marked
// (optional) may have dtype none. Kernels check what memory safety needs; full checks with good messages are in lib/ops.
#pragma once
#include "../core/view.h"

namespace tl {

// ---- norm.cpp
// out[i] = x[i] / sqrt(mean(x²) + epsilon) · (weight[i] + weightOffset), each row by itself (arXiv 1910.07467).
// x [rows, width], weight [width], out [rows, width] f32 or q8 (quantised for the integer matmul that follows).
// x and out may be views with any row stride.
struct RmsNormArgs { View x, weight, out; double epsilon, weightOffset; };
// out = (x − mean) / sqrt(variance + epsilon) · weight + bias (arXiv 1607.06450). bias (optional). out f32 or q8.
struct LayerNormArgs { View x, weight, bias, out; double epsilon; };

// ---- activation.cpp
// kind: 0 silu, 1 gelu-tanh, 2 gelu (erf), 3 relu, 4 sigmoid, 5 tanh.
// out = activation(gate) · up, x [rows, 2·width] = gate | up. out [rows, width] f32 or q8. (GLU variants, arXiv 2002.05202)
struct GatedActivationArgs { View x, out; double kind; };
struct ActivationArgs { View x, out; double kind; };
// out = a · scale + b; b (optional) of a's shape or one row [width]. In place allowed.
struct AddArgs { View a, b, out; double scale; };
// out = cap · tanh(x / cap), in place allowed (Gemma 2, arXiv 2408.00118).
struct SoftcapArgs { View x, out; double cap; };
// Any float type to any float type, or to q8.
struct ConvertArgs { View x, out; };

// ---- embedding.cpp
// out[i] = table[ids[i]] · scale. table: packed weight or f32/f16/bf16 [vocabulary, width]; ids i32 [n]; out [n, width] f32.
struct EmbeddingArgs { View table, ids, out; double scale; };
// out[i] = x[index[i]]: rows of f32 copied exactly. x [rows, width], index i32 [m]; out [m, width].
struct GatherRowsArgs { View x, index, out; };

// ---- matmul.cpp
// out = x · weightᵀ + bias + residual. x [n, columns] q8 or f32, weight packed [rows, columns], bias (optional) [rows],
// residual (optional) [n, rows] may be out itself. out [n, rows] f32. A row's result never depends on n.
struct MatmulArgs { View x, weight, bias, residual, out; };

// ---- rope.cpp
// The cosines and sines of a step, made once and shared by all layers. positions i32 [n]; frequencies i64 [dim/2] holding
// the bits of doubles (f32 angles are off by 1e-3 near position 5,000); out [n, dim] = cos | sin, both times `magnitude`.
struct RopeTableArgs { View positions, frequencies, out; double magnitude; };
// Rotates x [n, heads, headDim] in place by table [n, dim]; elements past dim stay. interleaved: pairs (2i, 2i+1), else
// (i, i + dim/2). (arXiv 2104.09864)
struct RopeArgs { View x, table, out; double interleaved; };
// RMS norm of each head of x [n, heads, headDim] by weight [headDim], in place (Qwen3, Gemma 3).
struct HeadNormArgs { View x, weight, out; double epsilon, weightOffset; };

// ---- cache.cpp: `cache` is a KvStep, see cache/kv.h
// Writes the step's keys and values [n, kvHeads, headDim] behind each head's tokens of `layer`.
struct CacheAppendArgs { View key, value, cache; double layer; };

// ---- attention.cpp
// Causal attention of the step's queries [n, heads, headDim] over the cache, the step's own tokens included.
// window 0 = unlimited; softcap 0 = none; sinks: tokens at the start that a window always sees. out [n, heads, headDim].
struct CachedAttentionArgs { View query, cache, out; double layer, scale, window, softcap, sinks; };

// ---- sample.cpp
// logits [1, vocabulary]; history i32 [m] (optional) for the repetition penalty. Order as in llama.cpp's default chain:
// repeat penalty, top-k, top-p, min-p, temperature, draw. temperature 0 = arg-max (lowest index wins ties).
// The draw is uniform(seed, stream, position). out token i32 [1], logProb f32 [1] (natural log of the token's
// probability under the plain softmax of the logits, before any sampler). NaN logits: Code::numeric.
struct SampleArgs { View logits, history, token, logProb; double temperature, topK, topP, minP, repeatPenalty, seed, stream, position; };
// Per row of logits [n, vocabulary]: the k largest in falling order (equal: lowest index first), and log-sum-exp.
// values f32 [n, k], indices i32 [n, k], logSumExp [n] (optional).
struct TopKArgs { View logits, values, indices, logSumExp; };
// Per row: natural-log probability of targets[i] under softmax(logits[i]). logits [n, vocabulary], targets i32 [n], out [n].
struct LogProbArgs { View logits, targets, out; };
// out = softmax(x · scale) along the last axis. A row of only −inf gives zeros.
struct SoftmaxArgs { View x, out; double scale; };

}  // namespace tl
