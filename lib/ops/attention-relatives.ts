import { ShapeError } from "../errors.js";
import type { Value } from "../graph/value.js";
import { expectDim, expectRank, expectType, fixedDim } from "./check.js";

type Sizes = [batch: number, heads: number, queries: number, headDim: number];

function dims(op: string, argument: string, value: Value): Sizes {
  expectRank(op, argument, value, 4);
  expectType(op, argument, value, "f32", "f16", "bf16");
  return [0, 1, 2, 3].map((axis) => fixedDim(op, argument, value, axis)) as Sizes;
}

function checkKeyValue(op: string, query: Value, key: Value, value: Value): { sizes: Sizes; keys: number; valueDim: number } {
  const sizes = dims(op, "query", query), [batch, heads, , headDim] = sizes;
  const [, kvHeads, keys] = dims(op, "key", key), valueDim = dims(op, "value", value)[3];
  expectDim(op, "key", key, 0, batch);
  expectDim(op, "key", key, 3, headDim);
  [batch, kvHeads, keys].forEach((dim, axis) => expectDim(op, "value", value, axis, dim));
  if (kvHeads < 1 || heads % kvHeads !== 0) throw new ShapeError(op, "query", `${op}: Expected dimension 1 of query to be a multiple of the ${kvHeads} key heads but received ${query}`);
  return { sizes, keys, valueDim };
}

/**
 * Attention over disjoint sets of keys becomes attention over their union: out = Σ exp(lse_p − lse) · out_p
 * (arXiv 2412.20501, 2310.01889). partialOut f32 `[partials, batch, heads, queries, dim]`, partialLogSumExp f32
 * `[partials, batch, heads, queries]`. A partial of −∞ has no weight.
 */
export function mergeStates(partialOut: Value, partialLogSumExp: Value): { out: Value; logSumExp: Value } {
  const op = "mergeStates";
  expectRank(op, "partialOut", partialOut, 5);
  expectRank(op, "partialLogSumExp", partialLogSumExp, 4);
  for (const axis of [0, 1, 2, 3]) expectDim(op, "partialLogSumExp", partialLogSumExp, axis, partialOut.dims[axis]!);
  return partialOut.graph.add(op, {
    inputs: { partialOut, partialLogSumExp },
    outputs: { out: { type: "f32", dims: partialOut.dims.slice(1) }, logSumExp: { type: "f32", dims: partialLogSumExp.dims.slice(1) } },
  });
}

export interface StickBreakingOptions {
  readonly scale?: number;
  /** A query sees the key at its own position too. */
  readonly attendCurrent?: boolean;
  /** Where what no key took goes: nowhere, or to the value at the query's position. */
  readonly remainder?: "drop" | "current-value";
}

/** Stick-breaking attention (arXiv 2306.04640, 2410.17980): from the newest key back, each takes σ(s) of what is left. */
export function stickBreaking(query: Value, key: Value, value: Value, options: StickBreakingOptions = {}): { out: Value; remainder: Value } {
  const { sizes: [batch, heads, queries, headDim], valueDim } = checkKeyValue("stickBreaking", query, key, value);
  return query.graph.add("stickBreaking", {
    inputs: { query, key, value },
    outputs: { out: { type: "f32", dims: [batch, heads, queries, valueDim] }, remainder: { type: "f32", dims: [batch, heads, queries] } },
    parameters: { scale: options.scale ?? 1 / Math.sqrt(headDim), attendCurrent: options.attendCurrent ? 1 : 0, addRemainder: options.remainder === "current-value" ? 1 : 0 },
  });
}

/** Landmark attention's grouped softmax (arXiv 2305.16300); isLandmark u8 `[keys]`, a landmark closes its block. */
export function landmarkAttention(query: Value, key: Value, value: Value, isLandmark: Value, options: { readonly scale?: number } = {}): { out: Value } {
  const { sizes: [batch, heads, queries, headDim], keys, valueDim } = checkKeyValue("landmarkAttention", query, key, value);
  expectType("landmarkAttention", "isLandmark", isLandmark, "u8");
  expectDim("landmarkAttention", "isLandmark", isLandmark, 0, keys);
  return query.graph.add("landmarkAttention", {
    inputs: { query, key, value, isLandmark },
    outputs: { out: { type: "f32", dims: [batch, heads, queries, valueDim] } },
    parameters: { scale: options.scale ?? 1 / Math.sqrt(headDim) },
  });
}

export interface SlotAttentionOptions {
  readonly scale?: number;
  /** Keeps the mean over keys finite. Default 1e-8. */
  readonly epsilon?: number;
  /** What the slots compete over: each head by itself, or heads and slots together (Slot-MLLM, 2505.17726). */
  readonly softmaxOver?: "slots" | "heads-slots";
}

/** One step of slot attention (arXiv 2006.15055): slots f32 `[batch, heads, slots, headDim]` compete for the keys. */
export function slotAttention(slots: Value, key: Value, value: Value, options: SlotAttentionOptions = {}): { out: Value; assignment: Value } {
  const { sizes: [batch, heads, count, headDim], keys, valueDim } = checkKeyValue("slotAttention", slots, key, value);
  expectDim("slotAttention", "key", key, 1, heads);
  return slots.graph.add("slotAttention", {
    inputs: { query: slots, key, value },
    outputs: { out: { type: "f32", dims: [batch, heads, count, valueDim] }, assignment: { type: "f32", dims: [batch, heads, count, keys] } },
    parameters: { scale: options.scale ?? 1 / Math.sqrt(headDim), epsilon: options.epsilon ?? 1e-8, jointHeads: options.softmaxOver === "heads-slots" ? 1 : 0 },
  });
}

/**
 * Token–parameter attention (TokenFormer, arXiv 2410.23168): gelu(s · sqrt(n) / ‖s‖) · values, s = scale · x · keysᵀ.
 * x f32 `[batch, tokens, inputs]`, keys `[n, inputs]`, values `[n, outputs]` → `[batch, tokens, outputs]`.
 */
export function pattention(x: Value, keys: Value, values: Value, options: { readonly scale?: number } = {}): { out: Value } {
  const op = "pattention";
  expectRank(op, "keys", keys, 2);
  expectDim(op, "keys", keys, 1, fixedDim(op, "x", x, -1));
  expectRank(op, "values", values, 2);
  expectDim(op, "values", values, 0, fixedDim(op, "keys", keys, 0));
  return x.graph.add(op, {
    inputs: { x, keys, values },
    outputs: { out: { type: "f32", dims: [...x.dims.slice(0, -1), fixedDim(op, "values", values, 1)] } },
    parameters: { scale: options.scale ?? 1 },
  });
}
