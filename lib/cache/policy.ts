import { checkOptionsObject } from "../check.js";
import { invalidArgument } from "../errors.js";
import type { Dim } from "../graph/dims.js";
import type { Parameter } from "../graph/graph.js";
import type { RopeConfig } from "../ops/rope.js";
import type { Value } from "../graph/value.js";

/** The row of docs/methods.json that the field's usual policies share. */
export const baselines = "Baselines of the field: StreamingLLM, H2O, TOVA, SnapKV, PyramidKV, KNorm, ExpectedAttention, KeyDiff, AdaKV";

/**
 * By-products of attention that a policy's scores are made of.
 *
 * - `window`: attention weights summed over the last `queries` queries of a step replace what was kept
 * - `all`: attention weights summed over all queries so far
 * - `queries`: mean and covariance of the queries before RoPE, see queryStatistics; those of the first `sinks` tokens left out
 */
export type Observation =
  | { readonly kind: "none" }
  | { readonly kind: "window"; readonly queries: number }
  | { readonly kind: "all" }
  | { readonly kind: "queries"; readonly sinks: number };

/** Where a score is built: one layer of a cache in a graph that runs when tokens are to be evicted. */
export interface ScoreContext {
  readonly cache: Value;
  readonly layer: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Of the longest head. */
  readonly tokens: Dim;
  /** How many tokens the sequence has had, evicted ones counted. */
  readonly seen: Parameter;
  /** Of this layer's queries, f32 `[heads, 1 + headDim + headDim²]`, see queryStatistics; where `observe` is "queries". */
  readonly statistics?: Value | undefined;
  /** The layer's rotary embedding, where the cache's owner knows it: mean(n) is f32 `[1, rotaryDim]`, the cosines then sines of the next n positions averaged. */
  readonly rotation?: { readonly style: RopeConfig["style"]; mean(positions: number): Value } | undefined;
}

/** How much is kept, protected tokens included. */
export type Budget =
  /** Tokens a head and layer (on average where a policy divides them unevenly). */
  | {
      readonly budget: number;
      readonly ratio?: undefined;
      /** false: only behind the prompt. Default: while decoding too, where the policy can. */
      readonly decode?: boolean | undefined;
    }
  /** The share that goes, 0 ≤ ratio < 1: max(1, ⌊tokens · (1 − ratio)⌋ ) tokens stay. Only behind the prompt, not while decoding. */
  | { readonly ratio: number; readonly budget?: undefined; readonly decode?: undefined };

/**
 * What to keep of a KV cache. Each part is a fragment with a default: what to observe, how to score, how to divide the
 * budget, what to protect, when to run. Selection and compaction are the same for all.
 */
export interface CachePolicy {
  readonly name: string;
  readonly observe: Observation;
  /** Scores f32 `[kvHeads, tokens]`, or `[1, tokens]` for one choice of all heads; the largest stay. Absent: the newest. */
  score?(context: ScoreContext): Value;
  /** Tokens to keep of each head on average, for each layer. */
  allocate(shape: { readonly layers: number; readonly kvHeads: number; readonly tokens: number }): readonly number[];
  /** Tokens at the start and end that stay whatever they score, within the budget. */
  protect(budget: number): { readonly first: number; readonly last: number };
  /** Heads of a layer share their budgets; each keeps this share of its own. */
  readonly acrossHeads?: { readonly safeguard: number };
  readonly when: { readonly decode: boolean };
  /** Keys are rotated so that positions stay dense: for texts longer than the model's context. */
  readonly rerotate: boolean;
  /** Pages before the last `recent` tokens are converted; `alone`: that is all, nothing is evicted. */
  readonly quantize?: { readonly recent: number; readonly type: "int8" | "int4"; readonly alone: boolean };
  /** A policy of its own for each layer. */
  layerPolicy?(layer: number, layers: number): CachePolicy;
}

export function checkInteger(name: string, value: unknown, low: number): number {
  if (!Number.isSafeInteger(value) || (value as number) < low) throw invalidArgument(name, `an integer of at least ${low}`, value);
  return value as number;
}

export function checkNumber(name: string, value: unknown, low: number, high: number): number {
  if (typeof value !== "number" || !(value >= low && value <= high)) throw invalidArgument(name, `a number in ${low} … ${high}`, value);
  return value;
}

export function checkChoice<T extends string>(name: string, value: unknown, choices: readonly T[]): T {
  if (!choices.includes(value as T)) throw invalidArgument(name, choices.map((choice) => `'${choice}'`).join(" or "), value);
  return value as T;
}

export function checkPolicy(name: string, value: CachePolicy | undefined): void {
  if (typeof value?.allocate !== "function" || typeof value.protect !== "function") throw invalidArgument(name, "a cache policy such as snapKV({ budget: 512 })", value);
}

/** An odd kernel of a pooling. */
export function checkKernel(value: unknown): number {
  if (checkInteger("options.kernel", value, 1) % 2 === 0) throw invalidArgument("options.kernel", "an odd integer", value);
  return value as number;
}

/** budget or ratio as tokens to keep of `tokens`. */
export function budgetOf(options: Budget): (tokens: number) => number {
  const { budget, ratio } = checkOptionsObject(options, "an object with budget or ratio");
  if ((budget === undefined) === (ratio === undefined)) throw invalidArgument("options", "either budget or ratio", options);
  if (ratio !== undefined) {
    if (checkNumber("options.ratio", ratio, 0, 1) === 1) throw invalidArgument("options.ratio", "a number below 1", ratio);
    return (tokens) => Math.max(1, Math.trunc(tokens * (1 - ratio)));
  }
  checkInteger("options.budget", budget, 1);
  return () => budget!;
}

/** A policy of the plain kind: each layer and head has the same budget. Those with a budget in tokens work while decoding. */
export function policy(options: Budget, parts: Pick<CachePolicy, "name"> & Partial<CachePolicy>): CachePolicy {
  const budget = budgetOf(options), { decode } = options;
  if (decode !== undefined && typeof decode !== "boolean") throw invalidArgument("options.decode", "a boolean", decode);
  return {
    observe: { kind: "none" },
    allocate: ({ layers, tokens }) => new Array<number>(layers).fill(budget(tokens)),
    protect: () => ({ first: 0, last: 0 }),
    rerotate: false,
    ...parts,
    when: { decode: options.budget !== undefined && decode !== false && (parts.when?.decode ?? true) },
  };
}

/** For graphs of models: which column sums attention has to give, and what cacheObserve makes of them. Undefined: none. */
export function observedSums(observation: Observation, shape: { readonly heads: number; readonly kvHeads: number }): { readonly queries: number; readonly accumulate: boolean; readonly scale: number } | undefined {
  const share = shape.kvHeads / shape.heads;
  if (observation.kind === "window") return { queries: observation.queries, accumulate: false, scale: share / observation.queries };
  if (observation.kind === "all") return { queries: 2 ** 30, accumulate: true, scale: share };
  return undefined;
}
