import { ShapeError } from "../errors.js";
import { dimMax, type Dim } from "../graph/dims.js";
import type { Graph, OutputPlan, Parameter, Scalar } from "../graph/graph.js";
import { Value } from "../graph/value.js";
import { expectRank, expectType, fixedDim } from "./check.js";

/** Rows of scores f32 `[rows, tokens]`: planned for the most tokens, so that `tokens` may be symbolic. */
function scoreRows(graph: Graph, name: string, rows: number, tokens: Dim): Value {
  const { storage, strides } = graph.buffer(name, "f32", [rows, dimMax(tokens)]);
  return new Value(graph, "f32", [rows, tokens], storage, strides);
}

/** A layer of a cache that scores are made of, and how many tokens its longest head may have. */
export interface CachedTokens {
  readonly cache: Value;
  readonly layer: number;
  readonly kvHeads: number;
  readonly tokens: Dim;
}

function scored(op: string, { cache, layer, kvHeads, tokens }: CachedTokens, inputs: Readonly<Record<string, Value>>, parameters: Readonly<Record<string, Parameter>>): Value {
  expectType(op, "cache", cache, "cache");
  const into = scoreRows(cache.graph, op, kvHeads, tokens);
  return cache.graph.add(op, { inputs: { ...inputs, cache }, outputs: { out: { type: "f32", dims: into.dims, into } }, parameters: { layer, ...parameters } }).out;
}

/**
 * Keeps attention's column sums f32 `[heads, keys]` in the cache, beside the tokens: summed over the query heads of each
 * key/value head, times `scale`; `accumulate` adds them to what is there. Behind cachedAttention of the same step.
 */
export function cacheObserve(columnSums: Value, cache: Value, options: { readonly layer: number; readonly scale: number; readonly accumulate: boolean | Scalar }): void {
  expectRank("cacheObserve", "columnSums", columnSums, 2);
  expectType("cacheObserve", "cache", cache, "cache");
  const { layer, scale, accumulate } = options;
  cache.graph.add("cacheObserve", { inputs: { columnSums, cache }, outputs: {}, parameters: { layer, scale, accumulate: typeof accumulate === "boolean" ? Number(accumulate) : accumulate } });
}

/** What the tokens of a layer were given by cacheObserve → f32 `[kvHeads, tokens]`; `seen` divides by seen − position. */
export const cacheScores = (of: CachedTokens, options: { readonly seen?: Parameter | undefined } = {}): Value => scored("cacheScores", of, {}, { seen: options.seen ?? 0 });

/** Norms of keys or values, ‖x‖₂ or with order 1 Σ|x|, times `scale` → f32 `[kvHeads, tokens]`. */
export const cacheNorms = (of: CachedTokens, options: { readonly values?: boolean; readonly order?: 1 | 2; readonly scale?: number } = {}): Value =>
  scored("cacheNorms", of, {}, { values: options.values ? 1 : 0, order: options.order ?? 2, scale: options.scale ?? 1 });

/** −cos of each key and the mean of all normalised keys (arXiv 2504.15364) → f32 `[kvHeads, tokens]`. */
export const cacheKeyDiff = (of: CachedTokens): Value => scored("cacheKeyDiff", of, {}, {});

/** q · k of the last row of query f32 `[n, heads, headDim]`, summed over each key/value head's query heads → f32 `[kvHeads, tokens]`. */
export function cacheQueryScores(query: Value, of: CachedTokens): Value {
  expectRank("cacheQueryScores", "query", query, 3);
  return scored("cacheQueryScores", of, { query }, {});
}

/** A number in [0, 1) for each token, a function of seed, layer, head and position → f32 `[kvHeads, tokens]`. */
export const cacheRandom = (of: CachedTokens, options: { readonly seed: Parameter }): Value => scored("cacheRandom", of, {}, { seed: options.seed });

export interface PoolOptions {
  /** Odd. */
  readonly kernel: number;
  readonly kind: "avg" | "max";
  /** Tokens at each row's end that take no part; they get −∞. */
  readonly last?: Parameter | undefined;
  /** Its heads' lengths are the rows' lengths. */
  readonly of?: CachedTokens | undefined;
}

/** Scores f32 `[rows, tokens]` averaged or maximised along the tokens, stride 1; zeros (−∞ for "max") beyond the ends. */
export function poolScores(x: Value, { kernel, kind, last = 0, of }: PoolOptions): Value {
  expectRank("poolScores", "x", x, 2);
  const into = scoreRows(x.graph, "poolScores", fixedDim("poolScores", "x", x, 0), x.dims[1]!);
  return x.graph.add("poolScores", {
    inputs: { x, cache: of?.cache }, outputs: { out: { type: "f32", dims: into.dims, into } }, parameters: { layer: of?.layer ?? 0, kernel, maximum: kind === "max" ? 1 : 0, last },
  }).out;
}

const reductions = { mean: 0, max: 1, sum: 2 } as const;

export interface ReduceOptions {
  readonly kind: keyof typeof reductions;
  /** Rows of the result; one by default. */
  readonly rows?: number;
  /** f32 `[rows, n]`: the result is (reduced + epsilon) · weights. */
  readonly weights?: Value | undefined;
  readonly epsilon?: number;
}

/** f32 `[rows · group, n]` reduced over neighbouring rows → `[rows, n]`. */
export function reduceRows(x: Value, { kind, rows = 1, weights, epsilon = 0 }: ReduceOptions): Value {
  expectRank("reduceRows", "x", x, 2);
  if (fixedDim("reduceRows", "x", x, 0) % rows !== 0) throw new ShapeError("reduceRows", "x", `reduceRows: Expected a multiple of ${rows} rows but received ${x}`);
  const into = scoreRows(x.graph, "reduceRows", rows, x.dims[1]!);
  return x.graph.add("reduceRows", { inputs: { x, weights }, outputs: { out: { type: "f32", dims: into.dims, into } }, parameters: { kind: reductions[kind], epsilon } }).out;
}

export interface KeepOptions {
  /** Tokens that stay of each head, the protected ones included. */
  readonly budget: Parameter;
  readonly first?: Parameter | undefined;
  readonly last?: Parameter | undefined;
  /** heads · budget tokens stay of all heads together; each has this share of the budget of its own (AdaKV, arXiv 2407.11550). */
  readonly acrossHeads?: { readonly safeguard: number } | undefined;
  readonly layer: number;
  /** The mask's tokens a head. */
  readonly tokens: Parameter;
  readonly cache?: Value | undefined;
}

/**
 * Marks in u8 `[layers · kvHeads · tokens]` which tokens of a layer stay: those that are protected, then the best by scores
 * f32 `[kvHeads, tokens]` or `[1, tokens]`, equal ones by lowest index. Without scores the newest stay.
 */
export function keepTop(scores: Value | undefined, into: Value, options: KeepOptions): Value {
  expectRank("keepTop", "kept", into, 1);
  const { budget, first = 0, last = 0, acrossHeads, layer, tokens, cache } = options;
  return into.graph.add("keepTop", {
    inputs: { scores, cache }, outputs: { kept: { type: "u8", dims: into.dims, into } }, parameters: { layer, tokens, budget, first, last, safeguard: acrossHeads?.safeguard ?? -1 },
  }).kept;
}

/** Rotates the keys of one layer so that its tokens stand at dense positions; pages must have been made the cache's own (`dense`). */
export function cacheRotate(cache: Value, options: { readonly layer: number; readonly frequencies: Float64Array; readonly style: "interleaved" | "half" }): void {
  expectType("cacheRotate", "cache", cache, "cache");
  const { layer, frequencies, style } = options, { graph } = cache;
  const bits = new BigInt64Array(frequencies.buffer, frequencies.byteOffset, frequencies.length);
  graph.add("cacheRotate", {
    inputs: { frequencies: graph.constant("frequencies", "i64", bits, [bits.length]), cache }, outputs: {}, parameters: { layer, interleaved: style === "interleaved" ? 1 : 0 },
  });
}

/** Numbers a head in query statistics: their count, mean, and sum of products of deviations. */
export const statisticsWidth = (headDim: number): number => 1 + headDim + headDim * headDim;

/** One layer of statistics f32 `[layers, heads, width]`. */
export function statisticsOfLayer(statistics: Value, layer: number): Value {
  const [, heads, width] = statistics.dims as [number, number, number];
  return new Value(statistics.graph, "f32", [heads, width], statistics.storage, [width, 1], statistics.offset + layer * heads * width);
}

/**
 * Adds queries f32 `[n, heads, headDim]`, before RoPE, to statistics f32 `[heads, 1 + headDim + headDim²]`: how many there
 * were, their mean, and the sum of products of deviations from it. The step's first `skip` rows are left out.
 */
export function queryStatistics(query: Value, statistics: Value, options: { readonly skip: Parameter }): void {
  expectRank("queryStatistics", "query", query, 3);
  expectRank("queryStatistics", "statistics", statistics, 2);
  query.graph.add("queryStatistics", { inputs: { query }, outputs: { statistics: { type: "f32", dims: statistics.dims, into: statistics } }, parameters: { skip: options.skip } });
}

export interface ExpectedLogitsOptions {
  /** f32 `[1, rotaryDim]`: cosines then sines, averaged over the positions to come. */
  readonly rotation: Value;
  readonly style: "interleaved" | "half";
  readonly scale: number;
  /** Tokens at the start that get −∞. */
  readonly sinks: number;
  readonly covariance: boolean;
}

/**
 * What queries to come give each key on average (arXiv 2510.00636): μ·k · scale + kᵀΣk · scale² / 2, mean and covariance of
 * the queries so far rotated by `rotation` → f32 `[heads, tokens]`.
 */
export function cacheExpectedLogits(statistics: Value, of: CachedTokens, options: ExpectedLogitsOptions): Value {
  const { cache, layer, tokens } = of, { rotation, style, scale, sinks, covariance } = options;
  const into = scoreRows(cache.graph, "cacheExpectedLogits", fixedDim("cacheExpectedLogits", "statistics", statistics, 0), tokens);
  return cache.graph.add("cacheExpectedLogits", {
    inputs: { statistics, rotation, cache }, outputs: { out: { type: "f32", dims: into.dims, into } },
    parameters: { layer, interleaved: style === "interleaved" ? 1 : 0, scale, sinks, covariance: covariance ? 1 : 0 },
  }).out;
}

/** Rows f32 `[rows, n]` in int8 (`bits` 8) or int4, see args.h. */
export function quantizeRows(x: Value, bits: 4 | 8): { readonly q: Value; readonly scale: Value; readonly minimum?: Value; readonly dequantized: Value } {
  expectRank("quantizeRows", "x", x, 2);
  const [rows, n] = [fixedDim("quantizeRows", "x", x, 0), fixedDim("quantizeRows", "x", x, 1)], groups = bits === 4 ? Math.ceil(n / 32) : 1;
  const outputs: Record<string, OutputPlan> = { q: { type: "u8", dims: [rows, bits === 4 ? Math.ceil(n / 2) : n] }, scale: { type: "f32", dims: [rows, groups] }, dequantized: { type: "f32", dims: [rows, n] } };
  if (bits === 4) outputs["minimum"] = { type: "f32", dims: [rows, groups] };
  return x.graph.add("quantizeRows", { inputs: { x }, outputs, parameters: { bits } }) as { q: Value; scale: Value; minimum?: Value; dequantized: Value };
}

/** Values f32 `[heads, tokens, headDim]`, those that kept u8 `[heads, tokens]` leaves out merged into the closest kept ones. */
export function mergeEvicted(key: Value, value: Value, kept: Value, threshold: Parameter): Value {
  expectRank("mergeEvicted", "key", key, 3);
  return key.graph.add("mergeEvicted", { inputs: { key, value, kept }, outputs: { out: { type: "f32", dims: value.dims } }, parameters: { threshold } }).out;
}

/** How much blocks of queries f32 `[heads, tokens, headDim]` want each block of keys `[kvHeads, tokens, headDim]` → `[1, blocks]` (arXiv 2501.09767). */
export function blockRelevance(query: Value, key: Value, options: { readonly blockSize: number; readonly causal: boolean; readonly symmetric: boolean; readonly scale: Parameter }): Value {
  const { blockSize, causal, symmetric, scale } = options, blocks = Math.ceil(fixedDim("blockRelevance", "key", key, 1) / blockSize);
  return query.graph.add("blockRelevance", {
    inputs: { query, key }, outputs: { out: { type: "f32", dims: [1, blocks] } }, parameters: { blockSize, causal: causal ? 1 : 0, symmetric: symmetric ? 1 : 0, scale },
  }).out;
}

/** u8 `[n]`: scores f32 `[1, n]` at or above the threshold, or their mean where there is none. */
export function keepAbove(scores: Value, threshold: Parameter | undefined): Value {
  return scores.graph.add("keepAbove", {
    inputs: { scores }, outputs: { kept: { type: "u8", dims: [scores.dims.at(-1)!] } }, parameters: { threshold: threshold ?? 0, ofMean: threshold === undefined ? 1 : 0 },
  }).kept;
}
