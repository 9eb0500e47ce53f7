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
// kind: 0 silu, 1 gelu-tanh, 2 gelu (erf), 3 relu, 4 sigmoid, 5 tanh, 6 quick gelu.
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
// out[i] = x[index[i]]: rows of f32 copied exactly, zeros for an index of −1. x [rows, width], index i32 [m]; out [m, width]. Or
// out [b · m, width]: then x is b blocks of rows / b rows, each of which is indexed by itself.
struct GatherRowsArgs { View x, index, out; };

// ---- matmul.cpp
// out = x · weightᵀ + bias + residual. x [n, columns] q8 or f32, weight packed [rows, columns], bias (optional) [rows],
// residual (optional) [n, rows] may be out itself. out [n, rows] f32. A row's result never depends on n.
// activation: 0 none, else 1 + a kind of activation.cpp, applied to the sum.
struct MatmulArgs { View x, weight, bias, residual, out; double activation; };

// ---- rope.cpp
// The cosines and sines of a step, made once and shared by all layers. positions i32 [n]; frequencies i64 [dim/2] holding
// the bits of doubles (f32 angles are off by 1e-3 near position 5,000); out [n, dim] = cos | sin, both times `magnitude`.
struct RopeTableArgs { View positions, frequencies, out; double magnitude; };
// Rotates x [n, heads, headDim] by table [n, dim] into out, x itself allowed; elements past dim are copied. interleaved: pairs (2i, 2i+1), else
// (i, i + dim/2). (arXiv 2104.09864)
struct RopeArgs { View x, table, out; double interleaved; };
// RMS norm of each head of x [n, heads, headDim] by weight [headDim], in place (Qwen3, Gemma 3).
struct HeadNormArgs { View x, weight, out; double epsilon, weightOffset; };

// ---- cache.cpp: `cache` is a KvStep, see cache/kv.h
// Writes the step's keys and values [n, kvHeads, headDim] behind each head's tokens of `layer`.
struct CacheAppendArgs { View key, value, cache; double layer; };

// ---- cache_score.cpp: what eviction ranks cached tokens by. out f32 [kvHeads, tokens], −inf behind a head's length; tokens
// that the step appends count, their positions do not exist yet.
// The query heads of each kv head of columnSums [heads, keys] summed, times `scale`, become the scores kept in the cache of
// all length + newTokens tokens; with accumulate they are added to, from 0 for new tokens. After cachedAttention.
struct CacheObserveArgs { View columnSums, cache; double layer, scale, accumulate; };
// The scores kept in the cache; seen > 0: divided by the number of queries that could see the token, seen − position.
struct CacheScoresArgs { View cache, out; double layer, seen; };
// Norms of keys, or of values, times `scale`; order 1: Σ|x|, order 2: sqrt(Σ x²).
struct CacheNormsArgs { View cache, out; double layer, values, order, scale; };
struct CacheKeyDiffArgs { View cache, out; double layer; };
// q · k of the last row of query [n, heads, headDim], summed over the query heads of each kv head; no scale.
struct CacheQueryScoresArgs { View query, cache, out; double layer; };
// uniform(seed, layer · kvHeads + head, position).
struct CacheRandomArgs { View cache, out; double layer, seed; };

// ---- cache_select.cpp
// Pooled along the tokens of each row, stride 1, `kernel` odd: the average (zeros past the ends count) or maximum. The last
// `last` tokens take no part and get −inf. Rows are the heads of `cache`, or (without) all of x's width. Not in place.
struct PoolScoresArgs { View x, cache, out; double layer, kernel, maximum, last; };
// x [rows · group, n] to out [rows, n] over neighbouring rows; kind: 0 mean, 1 maximum, 2 sum. weights [rows, n] (optional):
// out = (reduced + epsilon) · weights.
struct ReduceRowsArgs { View x, weights, out; double kind, epsilon; };
// Writes kept u8 [layers · kvHeads · tokens] of one layer: 1 for the tokens of each head that stay, `budget` of them: its
// first `first`, its last `last` (both within the budget, the first ones first), then the best scores, equal ones by lowest
// index, NaN last. scores (optional) [kvHeads, tokens], or one row for all heads; absent: the newest stay.
// safeguard ≥ 0: heads · budget tokens stay in all; each head has max(1, ⌊budget · safeguard⌋) of its own (0 for 0), the
// rest goes to the best of all heads, equal ones by lowest head (arXiv 2407.11550).
// cache (optional): its heads and their lengths; absent: rows and width of the scores, `layer` counts batches.
struct KeepTopArgs { View scores, cache, kept; double layer, tokens, budget, first, last, safeguard; };

// ---- cache_expected.cpp
// Rows skip … n − 1 of query [n, heads, headDim] join statistics [heads, 1 + headDim + headDim²], updated in place: their
// count, mean, and Σ (q − mean)(q − mean)ᵀ.
struct QueryStatisticsArgs { View query, statistics; double skip; };
// out [heads, tokens] = scale · μ·k + scale²/2 · kᵀΣk (without covariance the first term), −inf for the first `sinks` tokens and
// behind a head's length; μ, Σ of the statistics, rotated by rotation [rotaryDim] = mean cosines | mean sines.
struct CacheExpectedLogitsArgs { View statistics, rotation, cache, out; double layer, interleaved, scale, sinks, covariance; };

// ---- cache_method.cpp
// Rows of x [rows, n] in int8, as cache pages keep them, or in int4. bits 8: q [rows, n] signed bytes, scale [rows, 1]; bits 4: q [rows,
// ⌈n / 2⌉] two a byte, low half first, scale and minimum [rows, ⌈n / 32⌉]. q u8; dequantized [rows, n].
struct QuantizeRowsArgs { View x, q, scale, minimum, dequantized; double bits; };
// key, value [heads, tokens, headDim], kept u8 [heads, tokens]; out = value with each token that is not kept merged into the
// kept one of the closest key (cosine c ≥ threshold, equal ones by lowest index), at weight max(c, 0) ‖v_e‖ / (‖v_e‖ + ‖v_t‖ + 1e-6).
struct MergeEvictedArgs { View key, value, kept, out; double threshold; };
// query [heads, tokens, headDim], key [kvHeads, tokens, headDim]; out [1, blocks]: Σ over query blocks m (causal: m ≥ n) of the
// maximum in block (m, n) of Σ_heads max(0, scale · q·k) / heads; symmetric: and of the blocks (n, m), m < n.
struct BlockRelevanceArgs { View query, key, out; double blockSize, causal, symmetric, scale; };
// kept u8 [n] = scores [n] ≥ threshold; ofMean: ≥ their mean.
struct KeepAboveArgs { View scores, kept; double threshold, ofMean; };

// ---- cache_rotate.cpp
// Rotates the keys of one layer to dense positions, t = slot + (longest head of the cache − the head's length), and sets them.
// frequencies as in ropeTable. Pages that change must be this cache's own: see KvCache::prepareKeep.
struct CacheRotateArgs { View frequencies, cache; double layer, interleaved; };

// ---- attention.cpp
// Causal attention of the step's queries [n, heads, headDim] over the cache, the step's own tokens included.
// window 0 = unlimited; softcap 0 = none; sinks: tokens at the start that a window always sees. out [n, heads, headDim].
//   tree        (optional) i32 [n, words]: the new tokens are nodes of a draft tree in order of depth; bit j of row i: node i
//               descends from node j, or is it. A node's result is that of decoding its path token by token, to the bit.
//   logSumExp   (optional) [n, heads], natural logarithm
//   columnSums  (optional, not with tree) [heads, most keys]: weights summed over the last `columnQueries` queries; needs logSumExp
struct CachedAttentionArgs { View query, cache, tree, out, logSumExp, columnSums; double layer, scale, window, softcap, sinks, columnQueries; };
// What cacheObserve makes of decoding a draft tree's accepted path token by token, behind cachedAttention of the same step with
// the same query, tree and logSumExp: to the bit. path i32 [n] and count i32 [1] as verifyTree gives them. Of the path the last
// `queries` nodes count, times `share`; the first of them replaces the scores kept in the cache unless `accumulate`.
// columnSums [heads, most keys]: working memory.
struct ObservePathArgs { View query, cache, tree, logSumExp, path, count, columnSums; double layer, scale, softcap, queries, share, accumulate; };

// The whole family: softmax attention of query [batch, heads, queries, headDim] over key [batch, kvHeads, keys, headDim] and
// value [batch, kvHeads, keys, valueDim]; any strides but 1 along the last axis; f32, f16 or bf16. Query head h reads
// key/value head h / (heads / kvHeads). Query i stands at p = keys − queries + i. A row that sees no key: 0, logSumExp −inf.
// Order: scale, softcap, relative terms, slopes and bias, mask. All operands but query, key, value, out are optional.
//   bias              f32 [1 | batch, 1 | heads, 1 | queries, keys], added; −inf hides a key
//   slopes            f32 [heads]: s − slopes[h] · |p − j| (ALiBi, arXiv 2108.12409)
//   sinks             f32 [heads]: a logit that joins the denominator only (arXiv 2508.10925); logSumExp counts it
//   contentToPosition f32 [batch, heads, queries, x], positionToContent f32 [batch, heads, keys, x], relativeIndex i32
//                     [queries + keys − 1]: s + scale · (c2p[i][x] + p2c[j][x]), x = relativeIndex[i − j + keys − 1]
//                     (DeBERTa, arXiv 2006.03654; its scale is 1 / sqrt(3 · headDim))
//   mask              maskShape 1: u8 [1 | heads, ⌈queries / blockQuery⌉, ⌈keys / blockKey⌉] (arXiv 1904.10509)
//                     maskShape 2: i32 [nodes, words], bit j of row i: node i sees node j; queries = nodes, all keys before
//                     the last `nodes` are the prefix that all see (arXiv 2305.09781)
//   maskShape 3       neighbourhood of an image in text (arXiv 2410.06169): gridStart, gridHeight, gridWidth, radius, causalGrid
//   maskShape 4       region to point (arXiv 2407.02392): gridHeight, gridWidth, factor
//   cuQuery, cuKey    i32 [n + 1]: ragged sequences laid end to end along the tokens of batch 1 (arXiv 2307.08691)
//   blockTable        i32 [batch, kvHeads, pages a head]; key and value are then [pages, pageSize, headDim] (arXiv 2309.06180)
//   lengths           i32 [batch, kvHeads]: keys of each head, with blockTable; p counts from them
//   keyScale …        quantized 1: key and value i8 or u8 (two's complement), scales f32 [batch, kvHeads, keys], minima absent.
//                     quantized 2: two elements a byte, low half first, [… ⌈headDim / 2⌉], scales and minima
//                     [batch, kvHeads, keys, ⌈headDim / 32⌉], x = minimum + scale · q (arXiv 2303.06865, 2402.02750)
//   out               [batch, heads, queries, valueDim] f32, f16 or bf16
//   logSumExp         f32 [batch, heads, queries], natural logarithm
//   columnSums        f32 [batch, heads, keys]: weights summed over the last `columnQueries` queries; needs logSumExp
//   scores            f32 [batch, heads, queries, keys]: the logits for inspection, −inf where masked
// window 0 = unlimited; sinkTokens: first keys that a window always sees (arXiv 2309.17453); softcap 0 = none; offByOne: a
// logit of 0 joins the denominator (logSumExp of an empty row is then 0).
struct AttentionArgs {
  View query, key, value, bias, slopes, sinks, contentToPosition, positionToContent, relativeIndex, mask, cuQuery, cuKey, blockTable, lengths;
  View keyScale, keyMinimum, valueScale, valueMinimum;
  View out, logSumExp, columnSums, scores;
  double causal, scale, softcap, window, sinkTokens, offByOne, columnQueries, quantized;
  double maskShape, blockQuery, blockKey, gridStart, gridHeight, gridWidth, radius, causalGrid, factor;
};

// ---- attention_relatives.cpp: shapes as above, f32, f16 or bf16 in, f32 out
// Attention over disjoint sets of keys becomes one: partialOut f32 [partials, batch, heads, queries, dim], partialLogSumExp
// [partials, batch, heads, queries]; out [batch, heads, queries, dim], logSumExp [batch, heads, queries] (arXiv 2412.20501).
struct MergeStatesArgs { View partialOut, partialLogSumExp, out, logSumExp; };
// Stick-breaking: from the newest key back, each takes σ(s) of what is left (arXiv 2306.04640, 2410.17980). Causal; the
// query's own key with attendCurrent. out, remainder f32 [batch, heads, queries] (optional): what no key took;
// addRemainder: out + remainder · (value at the query's position).
struct StickBreakingArgs { View query, key, value, out, remainder; double scale, attendCurrent, addRemainder; };
// Landmark attention's grouped softmax (arXiv 2305.16300). isLandmark u8 [keys]; a landmark closes its block.
struct LandmarkAttentionArgs { View query, key, value, isLandmark, out; double scale; };
// ---- attention_feature.cpp
// One step of slot attention (arXiv 2006.15055): softmax over the slots of query [batch, heads, slots, headDim] (with
// jointHeads over heads and slots, arXiv 2505.17726), then a mean over the keys: out = Σ_j (a_j + epsilon) v_j / Σ_j (a_j +
// epsilon). heads = kvHeads. assignment f32 [batch, heads, slots, keys] (optional): a.
struct SlotAttentionArgs { View query, key, value, out, assignment; double scale, epsilon, jointHeads; };
// Token-parameter attention (arXiv 2410.23168): s = scale · x · keysᵀ, out = gelu(s · sqrt(n) / ‖s‖₂) · values.
// x f32 [rows …, inputs], keys [n, inputs], values [n, outputs], out [rows …, outputs]. A row of zeros gives zeros.
struct PattentionArgs { View x, keys, values, out; double scale; };

// ---- encoder.cpp
// The patches of images as rows, numbers 0 … 255: pixels u8 [images, height, width, channels]; out [images · (prefix + patches),
// patch · patch · channels], a patch's pixels row by row; the first `prefix` rows of each image are 0.
struct ImagePatchesArgs { View pixels, out; double patch, prefix; };
// One row a sequence: x [n, width], bounds i32 [sequences + 1] as in ragged attention. kind: 0 its first row, 1 the mean, 2 the
// maximum; sizes [n] (optional): weights of the mean. normalize: divided by its 2-norm. An empty sequence gives 0.
struct PoolSequencesArgs { View x, bounds, sizes, out; double kind, normalize; };
// out[i] = Σ_k weights[i, k] · x[index[i, k]]: weights [m, taps], index i32 [m, taps], x and out in blocks as in gatherRows.
struct InterpolateRowsArgs { View x, index, weights, out; };

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

// ---- draft.cpp: a tree of drafted tokens is tokens i32 [n] and parents i32 [n], parents[0] = −1, parents[i] < i; node 0 is the
// last token already decided. n ≤ 1024.
// Token Recycling (arXiv 2408.08696): row tokens[i] of matrix i32 [vocabulary, k], written in place, becomes the k largest of
// logits[i] (equal: lowest index first); of equal tokens the last node's row stays. logits [n, vocabulary].
struct RecycleUpdateArgs { View tokens, logits, matrix; };
// tokens[0] = root [1], tokens[i] = matrix[tokens[parents[i]], ranks[i]]; depths i32 [n] (optional).
struct ExpandTreeArgs { View matrix, root, parents, ranks, tokens, depths; };
// Who sees whom (arXiv 2305.09781): mask u8 [n, n], bits i32 [n, ⌈n / 32⌉] (bit j % 32 of word j / 32), depths i32 [n] and
// positions i32 [n] = past + depth; all outputs optional.
struct TreeMaskArgs { View parents, mask, bits, depths, positions; double past; };
// Draws a token at each accepted node by the chain of SampleArgs at position + depth; a child that holds the drawn token is
// accepted. The deepest accepted node wins, of equals the lowest. The penalty looks at the last `repeatLastTokens` of history
// and path. path i32 [n]: accepted nodes, root first; accepted i32 [n]: their draws, that is the accepted drafts and one token
// more; logProb f32 [n] of each; all −1 (logProb 0) behind the first `count` i32 [1]. One node: what `sample` gives.
struct VerifyTreeArgs {
  View logits, tokens, parents, history, path, accepted, logProb, count;
  double temperature, topK, topP, minP, repeatPenalty, repeatLastTokens, seed, stream, position;
};
// Verification with given probabilities and random numbers (arXiv 2305.09781, 2401.15077): target f32 [n, vocabulary], draft
// f32 [n, vocabulary] (optional: children were drawn from it without replacement, in order; absent: chosen by rule),
// uniform f32 [n], uniformFinal f32 [1]. path, accepted, count as above; residual f32 [vocabulary]: what the last token is drawn from.
struct VerifySamplingArgs { View tokens, parents, target, draft, uniform, uniformFinal, path, accepted, count, residual; };

// ---- reduce_match.cpp: distance 0 = 1 − cosine (a row of zeros has cosine 0), 1 = Euclidean. `panels` is scratch f32 [enough rows,
// width]: rows regrouped for the vector units, each batch entry or sequence from a multiple of kLanes on.
// out [batch, n, m] = x [batch, n, width] · y [batch | 1, m, width], transposed: y [batch | 1, width, m]; cosine: of the rows' directions;
// bias [m] (optional) is added.
struct RowProductsArgs { View x, y, bias, out, panels; double cosine, transposed; };
// For each row of x the closest row of y, equal ones by lowest index: index i32 [batch, n], best [batch, n] = cosine or −distance².
struct ClosestRowsArgs { View x, y, index, best, panels; double distance; };
// Tokens of sequences lie end to end as rows; bounds i32 [sequences + 1] holds where each begins, and the number of rows in use. `map`
// i32 [rows]: a row's place among the new rows of its sequence, −1 = dropped; newBounds: theirs.
// Bipartite matching (ToMe, arXiv 2210.09461; ToMeSD, 2303.17604). destinations u8 [rows] (optional): absent, every second token of a
// sequence, and at most half of the unprotected ones are merged. members: scratch i32 [rows].
struct BipartiteMatchArgs { View metric, destinations, bounds, map, newBounds, best, partner, members, panels; double merge, classToken, distillToken, distance; };
// Density peaks (DPC-kNN): density = exp(−mean of the k smallest ‖xᵢ − xⱼ‖² / width), k = columns of nearest [rows, k], scratch; score =
// density · distance to the nearest denser token (the densest one: the largest distance of its sequence).
struct DensityPeaksArgs { View x, bounds, density, score, nearest, panels; };

// ---- reduce_spread.cpp
// Greedy choice of far tokens (DivPrune, arXiv 2503.02175; ToDRE, 2505.18757): counts[s] of each sequence, marked in kept u8 [rows], in order
// of choice in order i32 [rows], −1 behind. start 0: the token whose nearest other one is farthest; 1: the largest of scores [rows]; 2: the
// token `first`. Then the token farthest from its nearest chosen one, sum: of the largest sum of distances to the chosen ones. Scratch: unit
// [rows, width], distances [rows], work i32 [3 · rows].
struct FarthestRowsArgs { View x, scores, bounds, counts, kept, order, unit, distances, work; double start, first, distance, sum; };
// unique u8 [rows]: no earlier unique token of the sequence has a cosine above the threshold; counts i32 [sequences] of them (after arXiv
// 2407.14439). Scratch: unit [rows, width], work i32 [rows].
struct UniqueRowsArgs { View x, bounds, unique, counts, unit, work; double threshold; };

// ---- reduce_rows.cpp
// counts i32 [sequences] = first + round(rate · (tokens − first)) + add, within 0 … tokens; rounding 0 truncates, 1 to even, 2 up.
struct CountTokensArgs { View bounds, counts; double rate, add, first, rounding; };
// kept u8 [rows]: the first `first` tokens of each sequence, and of the others those of the largest scores [rows], counts[s] in all.
struct KeepTokensArgs { View scores, bounds, counts, kept; double first; };
// Kept tokens in order; the others −1, or in min(gather, others) further rows, a run of them each, longer runs first.
struct KeptMapArgs { View kept, bounds, map, newBounds; double gather; };
// boundary u8 [rows]: 1 closes a segment with its token (the rest of a sequence is one more), with `start` opens one, as the first token does.
struct SegmentMapArgs { View boundary, bounds, map, newBounds; double start; };
// out [new rows, width]; kind 0: Σ weight · x / Σ weight, 1: Σ weight · x, 2: maximum, 3: first, 4: last of a row's members; newSizes: sums of
// sizes. weights, sizes [rows] (optional: 1). kept u8 [rows] (optional): a row whose first member is kept is a copy of it. Scratch: totals,
// members [new rows].
struct MergeRowsArgs { View x, map, weights, sizes, kept, bounds, newBounds, out, newSizes, totals, members; double kind; };
// out i32 [original rows] = map of the row that source names, −1 stays.
struct ChainSourceArgs { View source, original, map, bounds, out; };
// out [original rows, width] = the row of x that source names, zeros for −1.
struct UnmergeRowsArgs { View x, bounds, source, original, out; };
// x [rows, heads, headDim] to its mean over heads [rows, headDim].
struct MeanHeadsArgs { View x, out; };
struct LogSizesArgs { View sizes, out; };

// ---- reduce_grid.cpp
// x [batch, h, w, width] to out [batch, outH, outW, width]: means of adaptive windows (rows ⌊i · h / outH⌋ … ⌈(i + 1) · h / outH⌉), or bilinear
// (half-pixel centres, clamped).
struct ResizeGridArgs { View x, out; double bilinear; };
// Cross-correlation of x [batch, inputs, h, w] with weight [outputs, inputs, k, k], k odd, zeros around, + bias [outputs].
struct ConvolveArgs { View x, weight, bias, out; double relu; };
// out [rows] = −scale · Σ p ln p over x [rows, k], p = x or softmax(x).
struct EntropyArgs { View x, out; double logits, scale; };
// The same of the grey levels (256 bins, nearest, halves up) of each patch × patch of pixels u8 [batch, h, w, channels]: out [batch, patches].
struct PatchEntropyArgs { View pixels, out; double patch, scale; };

}  // namespace tl
