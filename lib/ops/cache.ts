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
}

/**
 * Causal attention of a step's queries f32 `[n, heads, headDim]` over one layer of the cache, the step's own tokens
 * included → f32 `[n, heads, headDim]`. Online softmax: no n × tokens matrix exists (arXiv 2205.14135).
 */
export function cachedAttention(query: Value, cache: Value, options: CachedAttentionOptions): Value {
  expectRank("cachedAttention", "query", query, 3);
  expectType("cachedAttention", "cache", cache, "cache");
  const { layer, scale, window = 0, softcap = 0, sinks = 0 } = options;
  return query.graph.add("cachedAttention", {
    inputs: { query, cache },
    outputs: { out: { type: "f32", dims: query.dims } },
    parameters: { layer, scale, window, softcap, sinks },
    name: "attention",
  }).out;
}
