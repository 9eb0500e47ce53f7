import { addDim, dimMax, scaleDim, type Dim } from "../graph/dims.js";
import type { OutputPlan, Parameter } from "../graph/graph.js";
import { Value, type ValueType } from "../graph/value.js";
import { expectDim, expectRank, expectType, fixedDim } from "./check.js";

/**
 * Tokens of several sequences lie end to end as rows; bounds i32 `[sequences + 1]` says where each begins, its last element how
 * many rows there are. Rows behind are zeros, and map nowhere.
 */
export interface TokenMap {
  /** i32 `[rows]`: each row's place among the new rows of its sequence; −1: dropped. */
  readonly map: Value;
  /** i32 `[sequences + 1]`: where each sequence begins among the new rows. */
  readonly bounds: Value;
}

/** How far rows are apart: 1 − cosine (0 for a row of zeros), or Euclidean. */
export type Distance = "cosine" | "euclidean";
const distances = { cosine: 0, euclidean: 1 } as const;

const vector = (type: ValueType, dim: Dim): OutputPlan => ({ type, dims: [dim] });
const flag = (value: boolean | undefined): number => (value ? 1 : 0);

function expectRows(op: string, x: Value, bounds: Value): Dim {
  expectType(op, "x", x, "f32");
  expectRank(op, "x", x, 2);
  expectType(op, "bounds", bounds, "i32");
  expectRank(op, "bounds", bounds, 1);
  return x.dims[0]!;
}

/** How many sequences there are, at most. */
function mostSequences(bounds: Value): number {
  return dimMax(bounds.dims[0]!) - 1;
}

/** Room for rows regrouped for the vector units: each sequence's begin at a multiple of their width. */
function panels(of: Value, bounds: Value): OutputPlan {
  const into = of.graph.buffer("panels", "f32", [dimMax(of.dims[0]!) + 16 * mostSequences(bounds), fixedDim("panels", "x", of, 1)]);
  return { type: "f32", dims: into.dims, into };
}

export interface MatchOptions {
  /** Sources that are merged, at most; all where undefined. Without `destinations` no more than half of the tokens can be. */
  readonly merge?: Parameter | undefined;
  /** The first token stays. */
  readonly classToken?: boolean;
  /** The first destination, by default the second token, takes nobody. */
  readonly distillToken?: boolean;
  /** u8 `[rows]`, 1 for tokens that others are merged into; absent: every second one of a sequence. */
  readonly destinations?: Value | undefined;
  readonly distance?: Distance;
}

/**
 * Each source looks for the nearest destination, equal ones by lowest index; the `merge` sources nearest to theirs join them. metric f32
 * `[rows, metricDim]`. New order: sources that stay, then destinations, both as they came. No matrix of similarities exists.
 * best f32, partner i32 `[rows]`: each source's similarity (cosine; minus the squared distance) and destination, −1 for others.
 */
export function bipartiteMatch(metric: Value, bounds: Value, options: MatchOptions): TokenMap & { readonly best: Value; readonly partner: Value } {
  const op = "bipartiteMatch", rows = expectRows(op, metric, bounds), { merge = 2 ** 31, classToken, distillToken, destinations, distance = "cosine" } = options;
  if (destinations) {
    expectType(op, "destinations", destinations, "u8");
    expectDim(op, "destinations", destinations, 0, rows);
  }
  const made = metric.graph.add(op, {
    inputs: { metric, destinations, bounds },
    outputs: { map: vector("i32", rows), newBounds: vector("i32", bounds.dims[0]!), best: vector("f32", rows), partner: vector("i32", rows), members: vector("i32", rows), panels: panels(metric, bounds) },
    parameters: { merge, classToken: flag(classToken), distillToken: flag(distillToken), distance: distances[distance] },
  });
  return { map: made.map, bounds: made.newBounds, best: made.best, partner: made.partner };
}

export interface MergeRowsOptions {
  /** New rows, at most. */
  readonly rows: Dim;
  /** f32 `[rows]`; absent: each weighs 1. */
  readonly weights?: Value | undefined;
  /** f32 `[rows]`, added up for each new row; absent: each is 1. */
  readonly sizes?: Value | undefined;
  /** u8 `[rows]`: a new row whose first member is marked is that member, copied. */
  readonly kept?: Value | undefined;
  readonly kind?: "mean" | "sum" | "max" | "first" | "last";
}

/**
 * New rows out of their members: Σ weight · x / Σ weight (the plain mean where weights add up to 0), Σ weight · x, the largest of each
 * element, the first or the last. A mean of one member is that member, copied. x f32 `[rows, width]` → out, sizes.
 */
export function mergeRows(x: Value, { map, bounds: newBounds }: TokenMap, bounds: Value, options: MergeRowsOptions): { readonly out: Value; readonly sizes: Value } {
  const op = "mergeRows", { rows, weights, sizes, kept, kind = "mean" } = options, from = expectRows(op, x, bounds);
  expectType(op, "map", map, "i32");
  expectDim(op, "map", map, 0, from);
  if (weights) expectType(op, "weights", weights, "f32");
  if (sizes) expectType(op, "sizes", sizes, "f32");
  if (kept) expectType(op, "kept", kept, "u8");
  const made = x.graph.add(op, {
    inputs: { x, map, weights, sizes, kept, bounds, newBounds },
    outputs: { out: { type: "f32", dims: [rows, x.dims[1]!] }, newSizes: vector("f32", rows), totals: vector("f32", rows), members: vector("i32", scaleDim(rows, 2, 1)) },
    parameters: { kind: ["mean", "sum", "max", "first", "last"].indexOf(kind) },
  });
  return { out: made.out, sizes: made.newSizes };
}

/** Where original tokens are once the rows that they are in have moved: source i32 `[original rows]` → the same, through map. */
export function chainSource(source: Value, original: Value, map: Value, bounds: Value): Value {
  expectType("chainSource", "source", source, "i32");
  return source.graph.add("chainSource", { inputs: { source, original, map, bounds }, outputs: { out: vector("i32", source.dims[0]!) } }).out;
}

/** The row of x that each original token is in, copied; zeros for what was dropped. x f32 `[rows, width]`, source i32 `[original rows]`. */
export function unmergeRows(x: Value, bounds: Value, source: Value, original: Value): Value {
  expectRows("unmergeRows", x, bounds);
  return x.graph.add("unmergeRows", { inputs: { x, bounds, source, original }, outputs: { out: { type: "f32", dims: [source.dims[0]!, x.dims[1]!] } } }).out;
}

export interface CountOptions {
  /** Of each sequence's tokens; 0. */
  readonly rate?: Parameter;
  /** Added behind rounding; 0. */
  readonly add?: Parameter;
  /** Tokens that are not counted and come on top: a class token. */
  readonly first?: number;
  readonly rounding?: "truncate" | "even" | "up";
}

/** How many tokens of each sequence stay: first + round(rate · (tokens − first)) + add, within 0 and what is there → i32 `[sequences]`. */
export function countTokens(bounds: Value, options: CountOptions): Value {
  expectType("countTokens", "bounds", bounds, "i32");
  const { rate = 0, add = 0, first = 0, rounding = "truncate" } = options;
  return bounds.graph.add("countTokens", {
    inputs: { bounds }, outputs: { counts: vector("i32", addDim(bounds.dims[0]!, -1)) }, parameters: { rate, add, first, rounding: ["truncate", "even", "up"].indexOf(rounding) },
  }).counts;
}

/** Marks in u8 `[rows]` the `counts` tokens of each sequence with the largest scores f32 `[rows]`, equal ones by lowest index, NaN last; the `first` ones always, and they count. */
export function keepTokens(scores: Value, bounds: Value, counts: Value, options: { readonly first?: number } = {}): Value {
  expectType("keepTokens", "scores", scores, "f32");
  expectRank("keepTokens", "scores", scores, 1);
  return scores.graph.add("keepTokens", { inputs: { scores, bounds, counts }, outputs: { kept: vector("u8", scores.dims[0]!) }, parameters: { first: options.first ?? 0 } }).kept;
}

/**
 * Tokens that kept u8 `[rows]` marks stay in their order; the others are dropped, or with `gather` g become min(g, others) further rows,
 * one for each of as many runs of them, lengths differing by at most one, longer ones first.
 */
export function keptMap(kept: Value, bounds: Value, options: { readonly gather?: number } = {}): TokenMap {
  expectType("keptMap", "kept", kept, "u8");
  const made = kept.graph.add("keptMap", { inputs: { kept, bounds }, outputs: { map: vector("i32", kept.dims[0]!), newBounds: vector("i32", bounds.dims[0]!) }, parameters: { gather: options.gather ?? 0 } });
  return { map: made.map, bounds: made.newBounds };
}

/** Mean over heads: x f32 `[rows, heads, headDim]` → f32 `[rows, headDim]`. */
export function meanHeads(x: Value): Value {
  expectRank("meanHeads", "x", x, 3);
  return x.graph.add("meanHeads", { inputs: { x }, outputs: { out: { type: "f32", dims: [x.dims[0]!, x.dims[2]!] } } }).out;
}

/** ln of sizes f32 `[rows]`, for attention's bias: a key that stands for n tokens counts n times (arXiv 2210.09461). */
export function logSizes(sizes: Value): Value {
  return sizes.graph.add("logSizes", { inputs: { sizes }, outputs: { out: { type: "f32", dims: sizes.dims } } }).out;
}

/** x · yᵀ: x f32 `[batch, n, width]`, y `[batch | 1, m, width]` (`transposed`: `[batch | 1, width, m]`), + bias `[m]` → `[batch, n, m]`; `cosine`: of their directions. */
export function rowProducts(x: Value, y: Value, options: { readonly cosine?: boolean; readonly transposed?: boolean; readonly bias?: Value | undefined } = {}): Value {
  const op = "rowProducts", { cosine, transposed, bias } = options;
  for (const [name, operand] of [["x", x], ["y", y]] as const) {
    expectType(op, name, operand, "f32");
    expectRank(op, name, operand, 3);
  }
  const width = fixedDim(op, "x", x, 2), m = fixedDim(op, "y", y, transposed ? 2 : 1);
  expectDim(op, "y", y, transposed ? 1 : 2, width);
  if (bias) expectDim(op, "bias", bias, 0, m);
  return x.graph.add(op, {
    inputs: { x, y, bias }, outputs: { out: { type: "f32", dims: [x.dims[0]!, x.dims[1]!, m] }, panels: { type: "f32", dims: [y.dims[0]!, m + 16, width] } },
    parameters: { cosine: flag(cosine), transposed: flag(transposed) },
  }).out;
}

/** The closest row of y `[batch | 1, m, width]` for each row of x `[batch, n, width]`: index i32, best f32 `[batch, n]`. */
export function closestRows(x: Value, y: Value, distance: Distance = "cosine"): { readonly index: Value; readonly best: Value } {
  const op = "closestRows", m = fixedDim(op, "y", y, 1), width = fixedDim(op, "x", x, 2);
  expectDim(op, "y", y, 2, width);
  const made = x.graph.add(op, {
    inputs: { x, y }, outputs: { index: { type: "i32", dims: x.dims.slice(0, 2) }, best: { type: "f32", dims: x.dims.slice(0, 2) }, panels: { type: "f32", dims: [y.dims[0]!, m + 16, width] } },
    parameters: { distance: distances[distance] },
  });
  return { index: made.index, best: made.best };
}

/** Density peaks of x f32 `[rows, width]`: density and score f32 `[rows]`, see args.h. k neighbours, the token itself among them. */
export function densityPeaks(x: Value, bounds: Value, options: { readonly k: number }): { readonly density: Value; readonly score: Value } {
  const rows = expectRows("densityPeaks", x, bounds);
  const made = x.graph.add("densityPeaks", {
    inputs: { x, bounds }, outputs: { density: vector("f32", rows), score: vector("f32", rows), nearest: { type: "f32", dims: [rows, options.k] }, panels: panels(x, bounds) },
  });
  return { density: made.density, score: made.score };
}

export interface FarthestRowsOptions {
  readonly start: "alone" | "score" | "index";
  readonly first?: Parameter;
  readonly scores?: Value | undefined;
  readonly distance?: Distance;
  readonly sum?: boolean;
}

/** Greedy choice of far rows, counts i32 `[sequences]` of them: kept u8 `[rows]`, order i32 `[rows]` (within the sequence, −1 behind). */
export function farthestRows(x: Value, bounds: Value, counts: Value, options: FarthestRowsOptions): { readonly kept: Value; readonly order: Value } {
  const rows = expectRows("farthestRows", x, bounds), { start, first = 0, scores, distance = "cosine", sum } = options;
  const { graph } = x, most = dimMax(rows), work = graph.buffer("work", "i32", [3 * most]);
  const made = graph.add("farthestRows", {
    inputs: { x, scores, bounds, counts },
    outputs: { kept: vector("u8", rows), order: vector("i32", rows), unit: { type: "f32", dims: x.dims }, distances: vector("f32", rows), work: { type: "i32", dims: work.dims, into: work } },
    parameters: { start: ["alone", "score", "index"].indexOf(start), first, distance: distances[distance], sum: flag(sum) },
  });
  return { kept: made.kept, order: made.order };
}

/** Rows that resemble no earlier unique row of their sequence by a cosine above the threshold: unique u8 `[rows]`, counts i32 `[sequences]`. */
export function uniqueRows(x: Value, bounds: Value, threshold: Parameter): { readonly unique: Value; readonly counts: Value } {
  const rows = expectRows("uniqueRows", x, bounds);
  const made = x.graph.add("uniqueRows", {
    inputs: { x, bounds }, outputs: { unique: vector("u8", rows), counts: vector("i32", addDim(bounds.dims[0]!, -1)), unit: { type: "f32", dims: x.dims }, work: vector("i32", rows) },
    parameters: { threshold },
  });
  return { unique: made.unique, counts: made.counts };
}

/** Segments that boundary u8 `[rows]` closes, or opens (`start`), as a map. */
export function segmentMap(boundary: Value, bounds: Value, options: { readonly start: boolean }): TokenMap {
  const made = boundary.graph.add("segmentMap", {
    inputs: { boundary, bounds }, outputs: { map: vector("i32", boundary.dims[0]!), newBounds: vector("i32", bounds.dims[0]!) }, parameters: { start: flag(options.start) },
  });
  return { map: made.map, bounds: made.newBounds };
}

/** x f32 `[batch, h, w, width]` to the dims given, by adaptive means or bilinearly. */
export function resizeGrid(x: Value, dims: readonly number[], bilinear: boolean): Value {
  return x.graph.add("resizeGrid", { inputs: { x }, outputs: { out: { type: "f32", dims } }, parameters: { bilinear: flag(bilinear) } }).out;
}

/** Cross-correlation, see args.h. */
export function convolve(x: Value, weight: Value, bias: Value, relu: boolean): Value {
  return x.graph.add("convolve", { inputs: { x, weight, bias }, outputs: { out: { type: "f32", dims: [x.dims[0]!, weight.dims[0]!, x.dims[2]!, x.dims[3]!] } }, parameters: { relu: flag(relu) } }).out;
}

/** Entropy of rows f32 `[rows, outcomes]`, times `scale`. */
export function entropy(x: Value, options: { readonly logits: boolean; readonly scale: Parameter }): Value {
  return x.graph.add("entropy", { inputs: { x }, outputs: { out: vector("f32", x.dims[0]!) }, parameters: { logits: flag(options.logits), scale: options.scale } }).out;
}

/** Entropy of grey levels of patches of pixels u8 `[batch, h, w, channels]`, times `scale`. */
export function patchEntropy(pixels: Value, dims: readonly number[], patch: number, scale: Parameter): Value {
  return pixels.graph.add("patchEntropy", { inputs: { pixels }, outputs: { out: { type: "f32", dims } }, parameters: { patch, scale } }).out;
}
