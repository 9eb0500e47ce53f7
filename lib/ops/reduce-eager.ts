import { checkOptionsObject, flagOption } from "../check.js";
import { invalidArgument, ShapeError } from "../errors.js";
import { evaluate, expectTensor } from "../graph/evaluate.js";
import type { Graph, Scalar } from "../graph/graph.js";
import { denseStrides, Value } from "../graph/value.js";
import { runOptions, type RunOptions } from "../schedule.js";
import { tensor, type Tensor } from "../tensor.js";
import { attention } from "./attention.js";
import * as graphs from "./reduce.js";

type Float = Tensor<"f32">;
type Int = Tensor<"i32">;
type Mask = Tensor<"u8">;

export { runOptions };

export function integer(name: string, value: unknown, low: number, high = Number.MAX_SAFE_INTEGER): number {
  if (!Number.isSafeInteger(value) || (value as number) < low || (value as number) > high) {
    throw invalidArgument(name, high === Number.MAX_SAFE_INTEGER ? `an integer of at least ${low}` : `an integer from ${low} to ${high}`, value);
  }
  return value as number;
}

export function number(name: string, value: unknown, low: number, high: number): number {
  if (typeof value !== "number" || !(value >= low && value <= high)) throw invalidArgument(name, `a number in ${low} … ${high}`, value);
  return value;
}

/** A tensor of a type and shape; null in `dims` stands for any size. */
export function shaped<T extends "f32" | "i32" | "u8">(name: string, value: unknown, type: T, ...dims: (number | null)[]): Tensor<T> {
  const made = expectTensor(name, value, type) as unknown as Tensor<T>;
  if (made.shape.length !== dims.length || dims.some((dim, axis) => dim !== null && made.shape[axis] !== dim)) {
    throw new ShapeError(name, name, `Expected the shape [${dims.map((dim) => dim ?? "any").join(", ")}] for ${name} but received [${made.shape.join(", ")}]`);
  }
  return made;
}

/** The same elements under other dims. */
export const viewAs = (value: Value, dims: readonly number[]): Value => new Value(value.graph, value.type, dims, value.storage, denseStrides(dims), value.offset);

/** Bounds of `batch` sequences of `tokens` tokens each. */
export const evenly = (batch: number, tokens: number): Int32Array => Int32Array.from({ length: batch + 1 }, (_, b) => b * tokens);
export const evenBounds = (graph: Graph, batch: number, tokens: number): Value => graph.constant("bounds", "i32", evenly(batch, tokens), [batch + 1]);

/** How long each sequence is. */
export const lengthsOf = (bounds: Int32Array): Int32Array => Int32Array.from({ length: bounds.length - 1 }, (_, b) => bounds[b + 1]! - bounds[b]!);

/** The same memory under another shape; the tensor given is let go. */
export function reshaped<T extends Tensor>(of: Tensor, shape: readonly number[]): T {
  const made = of.reshape(shape);
  of.dispose();
  return made as T;
}

/** Rows of each sequence, padded to the longest: those behind are `fill`. */
export function padded<T extends "f32" | "i32">(rows: Tensor<T>, bounds: Int32Array, fill = 0): Tensor<T> {
  const batch = bounds.length - 1, width = rows.shape[1] ?? 1, longest = lengthsOf(bounds).reduce((most, length) => Math.max(most, length), 0);
  const from = rows.data as Float32Array, shape = rows.shape.length > 1 ? [batch, longest, width] : [batch, longest];
  if (batch * longest * width === from.length) return reshaped(rows, shape);
  const data = new (from.constructor as typeof Float32Array)(batch * longest * width).fill(fill);
  for (let b = 0; b < batch; b++) data.set(from.subarray(bounds[b]! * width, bounds[b + 1]! * width), b * longest * width);
  rows.dispose();
  return tensor(data, shape) as unknown as Tensor<T>;
}

export interface RowProductsOptions extends RunOptions {
  /** cos(xᵢ, yⱼ), 0 where either is zero. */
  readonly cosine?: boolean;
  /** y is `[…, width, m]`: the plain matrix product. */
  readonly transposed?: boolean;
  /** f32 `[m]`, added. */
  readonly bias?: Float;
}

/** xᵢ · yⱼ: x f32 `[batch, n, width]`, y f32 `[batch | 1, m, width]` → f32 `[batch, n, m]`. */
export async function rowProducts(x: Float, y: Float, options: RowProductsOptions = {}): Promise<Float> {
  shaped("x", x, "f32", null, null, null);
  const { bias } = checkOptionsObject(options), [batch, , width] = x.shape as [number, number, number];
  const cosine = flagOption("options.cosine", options.cosine, false), transposed = flagOption("options.transposed", options.transposed, false);
  shaped("y", y, "f32", null, transposed ? width : null, transposed ? null : width);
  if (y.shape[0] !== batch && y.shape[0] !== 1) throw new ShapeError("rowProducts", "y", `rowProducts: Expected ${batch} or 1 batch entries of y but received ${y.shape[0]}`);
  if (bias) shaped("options.bias", bias, "f32", y.shape[transposed ? 2 : 1]!);
  const { out } = await evaluate("rowProducts", { x, y, bias }, `${cosine} ${transposed}`, (v) => ({ out: graphs.rowProducts(v["x"]!, v["y"]!, { cosine, transposed, bias: v["bias"] }) }), runOptions(options));
  return out as Float;
}

/** Cosines of all rows f32 `[batch, n, width]` with all rows `[batch, m, width]`, by default themselves; 0 for a row of zeros. */
export const cosineMatrix = (a: Float, b: Float = a, options: RunOptions = {}): Promise<Float> => rowProducts(a, b, { ...runOptions(options), cosine: true });

/** The closest row of y for each row of x, equal ones by lowest index; no matrix is made. index i32, best f32 `[batch, n]`: the cosine, or minus the squared distance. */
export async function closestRows(x: Float, y: Float, options: { readonly distance?: graphs.Distance } & RunOptions = {}): Promise<{ readonly index: Int; readonly best: Float }> {
  shaped("x", x, "f32", null, null, null);
  shaped("y", y, "f32", null, null, x.shape[2]!);
  if (y.shape[0] !== x.shape[0] && y.shape[0] !== 1) throw new ShapeError("closestRows", "y", `closestRows: Expected ${x.shape[0]} or 1 batch entries of y but received ${y.shape[0]}`);
  const distance = checkDistance(checkOptionsObject(options).distance);
  const made = await evaluate("closestRows", { x, y }, distance, (v) => graphs.closestRows(v["x"]!, v["y"]!, distance) as unknown as Record<string, Value>, runOptions(options));
  return made as unknown as { index: Int; best: Float };
}

export function checkDistance(distance: unknown): graphs.Distance {
  if (distance === undefined) return "cosine";
  if (distance !== "cosine" && distance !== "euclidean") throw invalidArgument("options.distance", "'cosine' or 'euclidean'", distance);
  return distance;
}

export interface BipartiteMatchOptions extends RunOptions {
  /** Tokens that are merged away; fewer where there are not so many, `counts` tells. */
  readonly merge: number;
  /** The first token stays; false. */
  readonly classToken?: boolean;
  /** The first destination, by default the second token, takes nobody; false. */
  readonly distillToken?: boolean;
  /** u8 `[batch, tokens]`: who others are merged into; absent: every second token. */
  readonly destinations?: Mask;
  readonly distance?: graphs.Distance;
}

/**
 * ToMe's matching (arXiv 2210.09461) of metric f32 `[batch, tokens, width]`: map i32 `[batch, tokens]` is the new row of each token, counts
 * i32 `[batch]` how many rows there are; best f32 and partner i32 `[batch, tokens]`: similarity and number of each source's destination.
 */
export async function bipartiteMatch(metric: Float, options: BipartiteMatchOptions): Promise<{ readonly map: Int; readonly counts: Int; readonly best: Float; readonly partner: Int }> {
  const [batch, tokens, width] = shaped("metric", metric, "f32", null, null, null).shape as [number, number, number];
  checkOptionsObject(options, "an object with merge");
  const { merge, destinations } = options, distance = checkDistance(options.distance);
  const classToken = flagOption("options.classToken", options.classToken, false), distillToken = flagOption("options.distillToken", options.distillToken, false);
  integer("options.merge", merge, 0);
  if (destinations) shaped("options.destinations", destinations, "u8", batch, tokens);
  const made = await evaluate("bipartiteMatch", { metric, destinations }, `${classToken} ${distillToken} ${distance}`, (v, graph) => {
    const { map, bounds, best, partner } = graphs.bipartiteMatch(viewAs(v["metric"]!, [batch * tokens, width]), evenBounds(graph, batch, tokens), {
      merge: graph.scalar("merge"), classToken, distillToken, distance, destinations: v["destinations"] && viewAs(v["destinations"], [batch * tokens]),
    });
    return { map, bounds, best, partner };
  }, runOptions(options), { merge });
  const counts = tensor(lengthsOf(made.bounds.data as Int32Array)), shape = [batch, tokens];
  made.bounds.dispose();
  return { map: reshaped(made.map, shape), counts, best: reshaped(made.best, shape), partner: reshaped(made.partner, shape) };
}

/** Rows of x f32 `[batch, m, width]` by source i32 `[batch, n]` → `[batch, n, width]`, copied; zeros where source is −1 (ToMe's unmerge). */
export async function unmerge(x: Float, source: Int, options: RunOptions = {}): Promise<Float> {
  const [batch, m, width] = shaped("x", x, "f32", null, null, null).shape as [number, number, number], n = shaped("source", source, "i32", batch, null).shape[1]!;
  const { out } = await evaluate("unmerge", { x, source }, "", (v, graph) => ({
    out: graphs.unmergeRows(viewAs(v["x"]!, [batch * m, width]), evenBounds(graph, batch, m), viewAs(v["source"]!, [batch * n]), evenBounds(graph, batch, n)),
  }), runOptions(options));
  return reshaped(out, [batch, n, width]);
}

export interface FarthestOptions extends RunOptions {
  readonly keep: number;
  /** The first choice: the token whose nearest other one is farthest (DivPrune), that of the largest score, or a given one. */
  readonly start: "alone" | { readonly scores: Float } | { readonly index: number };
  readonly distance?: graphs.Distance;
  /** What the next token has the largest of: the distance to its nearest chosen one, or the sum of distances to all chosen. */
  readonly objective?: "maxmin" | "maxsum";
}

/** Greedy choice of far tokens: x f32 `[batch, tokens, width]` → order i32 `[batch, keep]`, kept u8 `[batch, tokens]`. Equal ones: the lowest index. */
export async function farthestRows(x: Float, options: FarthestOptions): Promise<{ readonly order: Int; readonly kept: Mask }> {
  const [batch, tokens, width] = shaped("x", x, "f32", null, null, null).shape as [number, number, number];
  checkOptionsObject(options, "an object with keep and start");
  const { start, objective = "maxmin" } = options, distance = checkDistance(options.distance), keep = integer("options.keep", options.keep, 0, tokens);
  if (objective !== "maxmin" && objective !== "maxsum") throw invalidArgument("options.objective", "'maxmin' or 'maxsum'", objective);
  if (start !== "alone" && (typeof start !== "object" || start === null || !("scores" in start || "index" in start))) throw invalidArgument("options.start", "'alone', { scores } or { index }", start);
  const scores = typeof start === "object" && "scores" in start ? shaped("options.start.scores", start.scores, "f32", batch, tokens) : undefined;
  const first = typeof start === "object" && "index" in start ? integer("options.start.index", start.index, 0, Math.max(0, tokens - 1)) : 0;
  const kind = start === "alone" ? "alone" : scores ? "score" : "index";
  const { order, kept } = await evaluate("farthestRows", { x, scores }, `${kind} ${distance} ${objective}`, (v, graph) => {
    const counts = graphs.countTokens(evenBounds(graph, batch, tokens), { add: graph.scalar("keep") });
    const made = graphs.farthestRows(viewAs(v["x"]!, [batch * tokens, width]), evenBounds(graph, batch, tokens), counts, {
      start: kind, first: graph.scalar("first") as Scalar, scores: v["scores"] && viewAs(v["scores"], [batch * tokens]), distance, sum: objective === "maxsum",
    });
    return { order: made.order, kept: made.kept };
  }, runOptions(options), { keep, first });
  const chosen = new Int32Array(batch * keep);
  for (let b = 0; b < batch; b++) chosen.set((order.data as Int32Array).subarray(b * tokens, b * tokens + keep), b * keep);
  order.dispose();
  return { order: tensor(chosen, [batch, keep]), kept: reshaped(kept, [batch, tokens]) };
}

/** How dense each token lies, exp(−mean of the k smallest ‖xᵢ − xⱼ‖² / width), and its peak score, density · distance to a denser one: x f32 `[batch, tokens, width]` (DPC-kNN). */
export async function densityPeaks(x: Float, options: { readonly k?: number } & RunOptions = {}): Promise<{ readonly density: Float; readonly score: Float }> {
  const [batch, tokens, width] = shaped("x", x, "f32", null, null, null).shape as [number, number, number], k = integer("options.k", checkOptionsObject(options).k ?? 5, 1);
  const made = await evaluate("densityPeaks", { x }, String(k), (v, graph) => graphs.densityPeaks(viewAs(v["x"]!, [batch * tokens, width]), evenBounds(graph, batch, tokens), { k: Math.min(k, Math.max(1, tokens)) }) as unknown as Record<string, Value>, runOptions(options));
  return { density: reshaped(made["density"]!, [batch, tokens]), score: reshaped(made["score"]!, [batch, tokens]) };
}

/** Rows of x f32 `[batch, tokens, width]` whose cosine with no earlier unique row is above the threshold: unique u8 `[batch, tokens]`, counts i32 `[batch]`. */
export async function uniqueRows(x: Float, options: { readonly threshold: number } & RunOptions): Promise<{ readonly unique: Mask; readonly counts: Int }> {
  const [batch, tokens, width] = shaped("x", x, "f32", null, null, null).shape as [number, number, number], threshold = number("options.threshold", checkOptionsObject(options, "an object with threshold").threshold, -1, 1);
  const made = await evaluate("uniqueRows", { x }, "", (v, graph) => graphs.uniqueRows(viewAs(v["x"]!, [batch * tokens, width]), evenBounds(graph, batch, tokens), graph.scalar("threshold")) as unknown as Record<string, Value>, runOptions(options), { threshold });
  return { unique: reshaped(made["unique"]!, [batch, tokens]), counts: made["counts"] as Int };
}

export interface SegmentPoolOptions extends RunOptions {
  /** A 1 closes a segment with its token, what follows the last one is a segment too; or it opens one, as the first token does. */
  readonly mark?: "end" | "start";
  readonly reduce?: "mean" | "sum" | "max" | "first" | "last";
}

/** Segments of tokens pooled: x f32 `[batch, tokens, width]`, boundary u8 `[batch, tokens]` → out `[batch, segments, width]` padded with zeros, segment i32 `[batch, tokens]`, lengths i32 `[batch, segments]`, counts i32 `[batch]`. */
export async function segmentPool(x: Float, boundary: Mask, options: SegmentPoolOptions = {}): Promise<{ readonly out: Float; readonly segment: Int; readonly lengths: Int; readonly counts: Int }> {
  const [batch, tokens, width] = shaped("x", x, "f32", null, null, null).shape as [number, number, number], { mark = "end", reduce = "mean" } = checkOptionsObject(options);
  shaped("boundary", boundary, "u8", batch, tokens);
  if (mark !== "end" && mark !== "start") throw invalidArgument("options.mark", "'end' or 'start'", mark);
  if (!["mean", "sum", "max", "first", "last"].includes(reduce)) throw invalidArgument("options.reduce", "'mean', 'sum', 'max', 'first' or 'last'", reduce);
  const made = await evaluate("segmentPool", { x, boundary }, `${mark} ${reduce}`, (v, graph) => {
    const bounds = evenBounds(graph, batch, tokens), map = graphs.segmentMap(viewAs(v["boundary"]!, [batch * tokens]), bounds, { start: mark === "start" });
    const { out, sizes } = graphs.mergeRows(viewAs(v["x"]!, [batch * tokens, width]), map, bounds, { rows: batch * tokens, kind: reduce });
    return { out, sizes, map: map.map, bounds: map.bounds };
  }, runOptions(options));
  const bounds = (made.bounds.data as Int32Array).slice(), lengths = tensor(Int32Array.from(made.sizes.data as Float32Array));
  for (const used of [made.bounds, made.sizes]) used.dispose();
  return {
    out: padded(made.out as Float, bounds), segment: reshaped(made.map, [batch, tokens]), lengths: padded(lengths, bounds),
    counts: tensor(lengthsOf(bounds)),
  };
}

async function resize(op: string, x: Float, to: { readonly height: number; readonly width: number }, bilinear: boolean, options: RunOptions): Promise<Float> {
  const [batch, , , width] = shaped("x", x, "f32", null, null, null, null).shape as [number, number, number, number];
  if (typeof to !== "object" || to === null) throw invalidArgument("to", "an object with height and width", to);
  const height = integer("to.height", to.height, 0), across = integer("to.width", to.width, 0);
  const { out } = await evaluate(op, { x }, `${height} ${across}`, (v) => ({ out: graphs.resizeGrid(v["x"]!, [batch, height, across, width], bilinear) }), runOptions(options));
  return out as Float;
}

/** Adaptive average pooling of a grid of tokens f32 `[batch, h, w, width]`: means over rows ⌊i·h/height⌋ … ⌈(i+1)·h/height⌉−1, columns likewise. */
export const adaptivePoolGrid = (x: Float, to: { readonly height: number; readonly width: number }, options: RunOptions = {}): Promise<Float> => resize("adaptivePool", x, to, false, options);

/** Bilinear resizing of a grid of tokens f32 `[batch, h, w, width]`, half-pixel centres, clamped at the edges. */
export const resizeBilinear = (x: Float, to: { readonly height: number; readonly width: number }, options: RunOptions = {}): Promise<Float> => resize("resizeBilinear", x, to, true, options);

/** Cross-correlation of maps f32 `[batch, inputs, h, w]` with weight `[outputs, inputs, k, k]`, k odd, zeros around, + bias `[outputs]`, then ReLU where asked. */
export async function convolve(x: Float, weight: Float, bias: Float, options: { readonly relu?: boolean } & RunOptions = {}): Promise<Float> {
  checkOptionsObject(options);
  shaped("x", x, "f32", null, null, null, null);
  shaped("weight", weight, "f32", null, x.shape[1]!, null, null);
  if (weight.shape[3] !== weight.shape[2]) throw invalidArgument("weight", "square kernels", `[${weight.shape.join(", ")}]`);
  shaped("bias", bias, "f32", weight.shape[0]!);
  if (weight.shape[2]! % 2 === 0) throw invalidArgument("weight", "kernels of an odd size", `${weight.shape[2]}`);
  const { out } = await evaluate("convolve", { x, weight, bias }, String(options.relu === true), (v) => ({ out: graphs.convolve(v["x"]!, v["weight"]!, v["bias"]!, options.relu === true) }), runOptions(options));
  return out as Float;
}

export interface EntropyOptions extends RunOptions {
  /** x are logits: p = softmax(x). */
  readonly logits?: boolean;
  /** Of the logarithm; e. */
  readonly base?: number;
  /** Divided by that of the uniform distribution; 0 for one outcome. */
  readonly normalize?: boolean;
}

const perBase = (base: unknown): number => {
  if (base === undefined) return 1;
  if (typeof base !== "number" || !(base > 0) || base === 1 || !Number.isFinite(base)) throw invalidArgument("options.base", "a positive number other than 1", base);
  return 1 / Math.log(base);
};

/** −Σ p log p along the last axis of x f32 `[…, outcomes]`, 0 · log 0 = 0. */
export async function entropy(x: Float, options: EntropyOptions = {}): Promise<Float> {
  const { shape } = expectTensor("x", x, "f32"), k = shape.at(-1) ?? 0, { base, logits = false, normalize = false } = checkOptionsObject(options), scale = perBase(base);
  const { out } = await evaluate("entropy", { x }, String(logits), (v, graph) => ({ out: graphs.entropy(viewAs(v["x"]!, [x.size / Math.max(1, k), k]), { logits, scale: graph.scalar("scale") }) }), runOptions(options), {
    scale: !normalize ? scale : k > 1 ? 1 / Math.log(k) : 0,
  });
  return reshaped(out, shape.slice(0, -1));
}

/** Entropy of the grey levels of each patch × patch of pixels u8 `[batch, h, w, channels]` → f32 `[batch, ⌊h/patch⌋ · ⌊w/patch⌋]` (VFlowOpt, arXiv 2508.05211). */
export async function patchEntropy(pixels: Mask, options: { readonly patch: number; readonly base?: number } & RunOptions): Promise<Float> {
  const [batch, height, width] = shaped("pixels", pixels, "u8", null, null, null, null).shape as [number, number, number], patch = integer("options.patch", checkOptionsObject(options, "an object with patch").patch, 1, 4096), scale = perBase(options.base);
  const { out } = await evaluate("patchEntropy", { pixels }, String(patch), (v, graph) => ({ out: graphs.patchEntropy(v["pixels"]!, [batch, Math.floor(height / patch) * Math.floor(width / patch)], patch, graph.scalar("scale")) }), runOptions(options), { scale });
  return out as Float;
}

/** Attention that counts each key as often as the tokens it stands for (ToMe, arXiv 2210.09461): query, key, value f32 `[batch, heads, tokens, headDim]`, sizes f32 `[batch, tokens]`. */
export async function proportionalAttention(query: Float, key: Float, value: Float, sizes: Float, options: { readonly scale?: number } & RunOptions = {}): Promise<Float> {
  const [batch, , tokens] = shaped("key", key, "f32", null, null, null, null).shape as [number, number, number], { scale } = checkOptionsObject(options);
  shaped("sizes", sizes, "f32", batch, tokens);
  if (scale !== undefined) number("options.scale", scale, -Number.MAX_VALUE, Number.MAX_VALUE);
  const { out } = await evaluate("proportionalAttention", { query: expectTensor("query", query), key, value: expectTensor("value", value), sizes }, String(scale), (v) => ({
    out: attention(v["query"]!, v["key"]!, v["value"]!, { bias: viewAs(graphs.logSizes(v["sizes"]!), [batch, 1, 1, tokens]), ...(scale !== undefined && { scale }) }).out,
  }), runOptions(options));
  return out as Float;
}
