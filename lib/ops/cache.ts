import type { Dim } from "../graph/dims.js";
import type { OutputPlan, Parameter } from "../graph/graph.js";
import type { Value } from "../graph/value.js";
import { expectRank, expectType } from "./check.js";

/** Appends a step's keys and values, f32 `[n, kvHeads, headDim]` each, to one layer of the cache. */
export function cacheAppend(key: Value, value: Value, cache: Value, layer: number): void {
  expectRank("cacheAppend", "key", key, 3);
  expectRank("cacheAppend", "value", value, 3);
  expectType("cacheAppend", "cache", cache, "cache");
  key.graph.add("cacheAppend", { inputs: { key, value, cache }, outputs: {}, parameters: { layer } });
}

export interface CachedAttentionOptions {
  readonly layer: number;
  /** Multiplies query · key. */
  readonly scale: number;
  /** Keys that a query sees, its own counted; 0 or absent: all. */
  readonly window?: number | undefined;
  readonly softcap?: number | undefined;
  /** Tokens at the start that a window always sees (StreamingLLM, arXiv 2309.17453). */
  readonly sinks?: number | undefined;
  /**
   * The new tokens are nodes of a draft tree in order of depth: i32 `[n, words]`, bit j of row i set where node i descends from
   * node j or is it (arXiv 2305.09781). A node's result is that of decoding its path token by token, to the bit.
   */
  readonly tree?: Value | undefined;
  /** Also gives the weights summed over the last `queries` queries, `[heads, keys]`; `keys` bounds the tokens of any head. */
  readonly columnSums?: { readonly queries: Parameter; readonly keys: Dim } | undefined;
  /** Also gives the log-sum-exp of each row, f32 `[n, heads]`: with `tree`, for observePath. */
  readonly logSumExp?: boolean | undefined;
}

/**
 * Causal attention of a step's queries f32 `[n, heads, headDim]` over one layer of the cache, the step's own tokens
 * included → out f32 `[n, heads, headDim]`. Online softmax: no n × tokens matrix exists (arXiv 2205.14135).
 */
export function cachedAttention(query: Value, cache: Value, options: CachedAttentionOptions): { out: Value; columnSums?: Value; logSumExp?: Value } {
  expectRank("cachedAttention", "query", query, 3);
  expectType("cachedAttention", "cache", cache, "cache");
  const { layer, scale, window = 0, softcap = 0, sinks = 0, tree, columnSums, logSumExp } = options;
  if (tree) expectType("cachedAttention", "tree", tree, "i32");
  const [n, heads] = query.dims as [Dim, Dim];
  const outputs: Record<string, OutputPlan> = { out: { type: "f32", dims: query.dims } };
  if (columnSums || logSumExp) outputs["logSumExp"] = { type: "f32", dims: [n, heads] };
  if (columnSums) outputs["columnSums"] = { type: "f32", dims: [heads, columnSums.keys] };
  return query.graph.add("cachedAttention", {
    inputs: { query, cache, tree },
    outputs,
    parameters: { layer, scale, window, softcap, sinks, columnQueries: columnSums?.queries ?? 0 },
    name: "attention",
  }) as { out: Value; columnSums?: Value; logSumExp?: Value };
}

export interface ObservePathOptions {
  readonly layer: number;
  /** Of the same layer's cachedAttention. */
  readonly scale: number;
  readonly softcap?: number | undefined;
  readonly tree: Value;
  readonly logSumExp: Value;
  /** The accepted nodes, i32 `[n]` and `[1]`, as verifyTree gives them. */
  readonly path: Value;
  readonly count: Value;
  /** How many nodes at the end of the path count. */
  readonly queries: Parameter;
  /** Weights times this are added to the tokens' scores; the first node that counts replaces them where `accumulate` is 0. */
  readonly share: number;
  readonly accumulate: Parameter;
  /** Bounds the tokens of any head. */
  readonly keys: Dim;
}

/**
 * What an accepted path of a draft tree attended to, onto the scores kept in the cache: those of decoding the path token by
 * token with cacheObserve, to the bit. Behind cachedAttention and verifyTree of the same step.
 */
export function observePath(query: Value, cache: Value, options: ObservePathOptions): void {
  expectRank("observePath", "query", query, 3);
  expectType("observePath", "cache", cache, "cache");
  const { layer, scale, softcap = 0, tree, logSumExp, path, count, queries, share, accumulate, keys } = options;
  const columnSums = query.graph.buffer("columnSums", "f32", [query.dims[1]!, keys]);
  query.graph.add("observePath", { inputs: { query, cache, tree, logSumExp, path, count, columnSums }, outputs: {}, parameters: { layer, scale, softcap, queries, share, accumulate } });
}
