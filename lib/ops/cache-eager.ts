import { checkOptionsObject, flagOption } from "../check.js";
import { invalidArgument, ShapeError } from "../errors.js";
import { evaluate, expectTensor } from "../graph/evaluate.js";
import { Value } from "../graph/value.js";
import { runOptions, type RunOptions } from "../schedule.js";
import type { Tensor } from "../tensor.js";
import { attention } from "./attention.js";
import * as graphs from "./cache-policy.js";
import { softmax } from "./softmax.js";

type Float = Tensor<"f32">;
type Mask = Tensor<"u8">;

function integer(name: string, value: unknown, low: number): number {
  if (!Number.isSafeInteger(value) || (value as number) < low) throw invalidArgument(name, `an integer of at least ${low}`, value);
  return value as number;
}

function number(name: string, value: unknown, low: number, high: number): number {
  if (typeof value !== "number" || !(value >= low && value <= high)) throw invalidArgument(name, `a number in ${low} … ${high}`, value);
  return value;
}

function float(name: string, value: unknown, ...ranks: number[]): Float {
  const made = expectTensor(name, value, "f32") as Float;
  if (!ranks.includes(made.shape.length)) throw invalidArgument(name, `a tensor of rank ${ranks.join(" or ")}`, `[${made.shape.join(", ")}]`);
  return made;
}

/** The same memory under another shape; the tensor given is let go. */
function shaped<T extends Tensor>(of: Tensor, shape: readonly number[]): T {
  const made = of.reshape(shape);
  of.dispose();
  return made as T;
}

/** The last axis as columns, all others as rows. */
function asRows(value: Value): Value {
  const columns = value.dims.at(-1) as number, rows = (value.dims.slice(0, -1) as number[]).reduce((product, dim) => product * dim, 1);
  return new Value(value.graph, value.type, [rows, columns], value.storage, [columns, 1], value.offset);
}

export interface KeepTopOptions extends RunOptions {
  /** Tokens that stay of each head, the protected ones included. */
  readonly budget: number;
  /** Tokens at the start that stay whatever they score; 0. */
  readonly first?: number;
  /** Tokens at the end that do. */
  readonly last?: number;
  /** budget · heads tokens of all heads of a batch entry together stay; each head has this share of the budget of its own (AdaKV, arXiv 2407.11550). */
  readonly acrossHeads?: { readonly safeguard: number };
}

/** Which tokens stay: kept u8 in the shape of scores f32 `[heads, tokens]` or `[batch, heads, tokens]`. Equal scores: the lowest index; NaN last. */
export async function keepTop(scores: Float, options: KeepTopOptions): Promise<{ readonly kept: Mask }> {
  const { shape } = float("scores", scores, 2, 3);
  checkOptionsObject(options, "an object with budget");
  const { budget, first = 0, last = 0, acrossHeads } = options, [batch, heads, tokens] = (shape.length === 3 ? shape : [1, ...shape]) as [number, number, number];
  for (const [name, value] of Object.entries({ budget, first, last })) integer(`options.${name}`, value, 0);
  const safeguard = acrossHeads && number("options.acrossHeads.safeguard", acrossHeads.safeguard, 0, 1);
  const { kept } = await evaluate("keepTop", { scores }, String(safeguard), (v, graph) => {
    const all = graph.buffer("kept", "u8", [batch * heads * tokens]), rows = asRows(v["scores"]!);
    const parameters = { budget: graph.scalar("budget"), first: graph.scalar("first"), last: graph.scalar("last"), tokens, acrossHeads };
    for (let b = 0; b < batch; b++) {
      const own = new Value(graph, "f32", [heads, tokens], rows.storage, rows.strides, rows.offset + b * heads * tokens);
      graphs.keepTop(own, all, { ...parameters, layer: b });
    }
    return { kept: all };
  }, runOptions(options), { budget, first, last });
  return { kept: shaped(kept, shape) };
}

/** Scores f32 `[…, tokens]` averaged (zeros beyond the ends count) or maximised over an odd window of tokens; the last `last` of each row take no part and get −∞. */
export async function poolScores(x: Float, options: { readonly kernel: number; readonly kind: "avg" | "max"; readonly last?: number } & RunOptions): Promise<{ readonly out: Float }> {
  const { shape } = float("x", x, 1, 2, 3, 4), { kernel, kind, last = 0 } = checkOptionsObject(options, "an object with kernel and kind");
  if (integer("options.kernel", kernel, 1) % 2 === 0) throw invalidArgument("options.kernel", "an odd integer", kernel);
  if (kind !== "avg" && kind !== "max") throw invalidArgument("options.kind", "'avg' or 'max'", kind);
  integer("options.last", last, 0);
  const { out } = await evaluate("poolScores", { x }, `${kernel} ${kind} ${last}`, (v) => ({ out: graphs.poolScores(asRows(v["x"]!), { kernel, kind, last }) }), runOptions(options));
  return { out: shaped(out, shape) };
}

export interface Quantized {
  /** u8 `[…, n]`, the bits of int8 −127 … 127; or two int4 0 … 15 a byte, the low half first, `[…, ⌈n / 2⌉]`. */
  readonly q: Mask;
  /** One a row for int8, one for each 32 elements for int4. */
  readonly scale: Float;
  /** int4: x = minimum + scale · q. */
  readonly minimum?: Float;
  readonly dequantized: Float;
}

/** Rows of x f32 `[…, n]` as int8 caches keep them, or in 4 bits with scales for each 32 elements (arXiv 2303.06865, 2402.02750). */
export async function quantizeRows(x: Float, options: { readonly type: "int8" | "int4" } & RunOptions): Promise<Quantized> {
  const { shape } = float("x", x, 1, 2, 3, 4), { type } = checkOptionsObject(options, "an object with type"), outer = shape.slice(0, -1);
  if (type !== "int8" && type !== "int4") throw invalidArgument("options.type", "'int8' or 'int4'", type);
  const made = await evaluate("quantizeRows", { x }, type, (v) => graphs.quantizeRows(asRows(v["x"]!), type === "int4" ? 4 : 8) as Record<string, Value>, runOptions(options));
  const { q, scale, minimum, dequantized } = made as Record<string, Tensor>;
  const ofGroups = type === "int4" ? [...outer, scale!.shape[1]!] : outer;
  return { q: shaped(q!, [...outer, q!.shape[1]!]), scale: shaped(scale!, ofGroups), ...(minimum && { minimum: shaped<Float>(minimum, ofGroups) }), dequantized: shaped(dequantized!, shape) };
}

/**
 * Evicted values flow into what stays (after D2O, arXiv 2406.13035): each token that kept u8 `[…, tokens]` leaves out goes to
 * the kept one whose key is closest by cosine, where that is at least `threshold` (0). key, value f32 `[…, tokens, headDim]`;
 * out: the values with those of kept tokens changed.
 */
export async function mergeEvicted(key: Float, value: Float, kept: Mask, options: { readonly threshold?: number } & RunOptions = {}): Promise<{ readonly out: Float }> {
  const { shape } = float("key", key, 3, 4), { threshold = 0 } = checkOptionsObject(options), same = (other: readonly number[], wanted: readonly number[]): boolean => other.join() === wanted.join();
  number("options.threshold", threshold, -1, 1);
  if (!same(float("value", value, 3, 4).shape, shape)) throw new ShapeError("mergeEvicted", "value", `Expected the key's shape [${shape.join(", ")}] but received [${value.shape.join(", ")}]`);
  if (!same(expectTensor("kept", kept, "u8").shape, shape.slice(0, -1))) throw new ShapeError("mergeEvicted", "kept", `Expected the shape [${shape.slice(0, -1).join(", ")}] but received [${kept.shape.join(", ")}]`);
  const [tokens, headDim] = shape.slice(-2) as [number, number], heads = key.size / Math.max(1, tokens * headDim);
  using keys = key.reshape([heads, tokens, headDim]), values = value.reshape([heads, tokens, headDim]), mask = kept.reshape([heads, tokens]);
  const inputs = { key: keys, value: values, kept: mask };
  const { out } = await evaluate("mergeEvicted", inputs, "", (v, graph) => ({ out: graphs.mergeEvicted(v["key"]!, v["value"]!, v["kept"]!, graph.scalar("threshold")) }), runOptions(options), { threshold });
  return { out: shaped(out, shape) };
}

/**
 * Landmark attention's choice of blocks (arXiv 2305.16300): a block's landmark is its last key; its score is the largest
 * weight that any query gives it among the landmarks. query f32 `[batch, heads, n, headDim]`, key `[batch, kvHeads, tokens,
 * headDim]` → scores f32 and kept u8 `[batch, kvHeads, ⌊tokens / blockSize⌋]`.
 */
export async function landmarkBlocks(query: Float, key: Float, options: { readonly blockSize: number; readonly topK: number } & RunOptions): Promise<{ readonly scores: Float; readonly kept: Mask }> {
  const [batch, kvHeads, tokens, headDim] = float("key", key, 4).shape as [number, number, number, number], { blockSize, topK } = checkOptionsObject(options, "an object with blockSize and topK");
  float("query", query, 4);
  integer("options.topK", topK, 0);
  const blocks = Math.floor(tokens / integer("options.blockSize", blockSize, 1)), shape = [batch, kvHeads, blocks];
  const made = await evaluate("landmarkBlocks", { query, key }, String(blockSize), (v, graph) => {
    const whole = v["key"]!, [ofBatch, ofHead] = whole.strides as [number, number];
    const landmarks = new Value(graph, "f32", [...shape, headDim], whole.storage, [ofBatch, ofHead, blockSize * headDim, 1], whole.offset + (blockSize - 1) * headDim);
    const logits = asRows(attention(v["query"]!, landmarks, landmarks, { returnScores: true }).scores!);
    const scores = graphs.reduceRows(softmax(logits, { into: logits }), { kind: "max", rows: batch * kvHeads });
    const kept = graphs.keepTop(scores, graph.buffer("kept", "u8", [batch * kvHeads * blocks]), { layer: 0, tokens: blocks, budget: graph.scalar("topK") });
    return { scores, kept };
  }, runOptions(options), { topK });
  return { scores: shaped(made.scores, shape), kept: shaped(made.kept, shape) };
}

export interface BlockRelevanceOptions extends RunOptions {
  readonly blockSize: number;
  /** Only blocks of queries from a key's own block on count; true. */
  readonly causal?: boolean;
  /** A block of queries also counts for what it wants of the blocks before it; false. */
  readonly symmetric?: boolean;
  /** Multiplies query · key; 1. */
  readonly scale?: number;
  /** Blocks at or above it stay; by default the mean of the scores. */
  readonly threshold?: number;
}

/**
 * LeMo's choice of blocks (arXiv 2501.09767): query f32 `[heads, tokens, headDim]`, before RoPE, key `[kvHeads, tokens,
 * headDim]` → scores f32 and kept u8 `[⌈tokens / blockSize⌉]`, one choice for all heads.
 */
export async function blockRelevance(query: Float, key: Float, options: BlockRelevanceOptions): Promise<{ readonly scores: Float; readonly kept: Mask }> {
  float("query", query, 3);
  float("key", key, 3);
  const { blockSize, scale = 1, threshold } = checkOptionsObject(options, "an object with blockSize");
  const causal = flagOption("options.causal", options.causal, true), symmetric = flagOption("options.symmetric", options.symmetric, false);
  integer("options.blockSize", blockSize, 1);
  number("options.scale", scale, -Number.MAX_VALUE, Number.MAX_VALUE);
  if (threshold !== undefined) number("options.threshold", threshold, -Infinity, Infinity);
  const made = await evaluate("blockRelevance", { query, key }, `${blockSize} ${causal} ${symmetric} ${threshold === undefined}`, (v, graph) => {
    const scores = graphs.blockRelevance(v["query"]!, v["key"]!, { blockSize, causal, symmetric, scale: graph.scalar("scale") });
    return { scores, kept: graphs.keepAbove(scores, threshold === undefined ? undefined : graph.scalar("threshold")) };
  }, runOptions(options), { scale, ...(threshold !== undefined && { threshold }) });
  return { scores: shaped(made.scores, [made.scores.size]), kept: made.kept as Mask };
}
