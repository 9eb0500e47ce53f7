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
}

/**
 * Causal attention of a step's queries f32 `[n, heads, headDim]` over one layer of the cache, the step's own tokens
 * included → out f32 `[n, heads, headDim]`. Online softmax: no n × tokens matrix exists (arXiv 2205.14135).
 */
export function cachedAttention(query: Value, cache: Value, options: CachedAttentionOptions): { out: Value; columnSums?: Value } {
  expectRank("cachedAttention", "query", query, 3);
  expectType("cachedAttention", "cache", cache, "cache");
  const { layer, scale, window = 0, softcap = 0, sinks = 0, tree, columnSums } = options;
  if (tree) expectType("cachedAttention", "tree", tree, "i32");
  const [n, heads] = query.dims as [Dim, Dim];
  const outputs: Record<string, OutputPlan> = { out: { type: "f32", dims: query.dims } };
  if (columnSums) {
    outputs["logSumExp"] = { type: "f32", dims: [n, heads] };
    outputs["columnSums"] = { type: "f32", dims: [heads, columnSums.keys] };
  }
  return query.graph.add("cachedAttention", {
    inputs: { query, cache, tree },
    outputs,
    parameters: { layer, scale, window, softcap, sinks, columnQueries: columnSums?.queries ?? 0 },
    name: "attention",
  }) as { out: Value; columnSums?: Value };
}
