import { invalidArgument } from "../errors.js";
import type { Dim } from "../graph/dims.js";
import type { Value } from "../graph/value.js";
import { chainSource, mergeRows, type TokenMap } from "../ops/reduce.js";

/** The row of docs/methods.json that the field's usual reductions share. */
export const baselines = "Baselines of the field: ToMe, ToMeSD, EViT, DPC-kNN";

/**
 * Tokens of one or more sequences, end to end in one matrix, within a graph. `bounds` says where each sequence begins; rows behind
 * the last one's end are zeros that nobody reads.
 */
export interface TokenRows {
  /** Hidden states f32 `[rows, width]`; rows is an upper bound where counts depend on data. */
  readonly x: Value;
  /** i32 `[sequences + 1]`: each sequence's first row, and the number of rows in use. */
  readonly bounds: Value;
  /** f32 `[rows]`: how many original tokens a row stands for; undefined: one each. */
  readonly sizes?: Value | undefined;
  /** i32 `[original rows]`: the row, within its own sequence, that each original token is in; −1 where it was dropped. Undefined: nothing was reduced yet. */
  readonly source?: Value | undefined;
  /** i32 `[sequences + 1]`: bounds before any reduction, which `source` is laid out by. */
  readonly original: Value;
}

/** What attention leaves behind for a reduction. The encoder makes what `needs` names, and nothing else. */
export interface ReductionInputs {
  /** What similarity is measured by, f32 `[rows, metricDim]`: in an encoder the keys, mean over heads (meanHeads()). Absent: the hidden states. */
  readonly metric?: Value | undefined;
  /** How important tokens are, f32 `[rows]`: in an encoder the class token's attention to each, mean over heads. */
  readonly scores?: Value | undefined;
}

export interface ReductionContext extends ReductionInputs {
  readonly layer: number;
  readonly layers: number;
  /** Rows of the result: exact, or an upper bound; the caller sums keep() over the sequences. */
  readonly rows: Dim;
}

export interface ReducedRows extends TokenRows {
  /** u8 `[rows before]`: 1 for rows that stayed, or that others were merged into; where a method chooses such. */
  readonly kept?: Value | undefined;
}

/**
 * A way to go on with fewer tokens, between attention and MLP of an encoder's blocks. In a block the encoder
 *  1. adds ln(sizes) to the logits of each key where `proportional` (logSizes() is attention's `bias`),
 *  2. asks keep(), or acts() where the count depends on data: where nothing goes, nothing happens; else
 *  3. calls apply() and goes on with what that returns.
 */
export interface Reduction {
  readonly name: string;
  /** Reductions of one key add the same ops. */
  readonly key: string;
  /** By-products of attention that apply() reads. */
  readonly needs: { readonly metric: boolean; readonly scores: boolean };
  /** Attention counts a row as often as the tokens it stands for (ToMe, arXiv 2210.09461). */
  readonly proportional: boolean;
  /** How many of a sequence's tokens stay in this layer; at most so many where `dataDependent`. */
  keep(tokens: number, at: { readonly layer: number; readonly layers: number }): number;
  /** keep() is an upper bound: memory and work are planned for it, bounds tell what is left. */
  readonly dataDependent: boolean;
  /** Of a data-dependent one: whether it does something in a layer; absent: in all. */
  acts?(layer: number): boolean;
  /** Adds ops to the graph of `tokens`; called only where something may go. */
  apply(tokens: TokenRows, context: ReductionContext): ReducedRows;
}

/** Leading tokens that no reduction touches, as models have them. */
export interface SpecialTokens {
  /** Token 0 is a class token: it always stays, first; true. */
  readonly classToken?: boolean;
  /** Token 1 is a distillation token (DeiT): it stays, second; false. */
  readonly distillToken?: boolean;
}

export function checkSpecialTokens(options: SpecialTokens, defaultClass = true): { readonly classToken: boolean; readonly distillToken: boolean } {
  const { classToken = defaultClass, distillToken = false } = options;
  for (const [name, value] of Object.entries({ classToken, distillToken })) if (typeof value !== "boolean") throw invalidArgument(`options.${name}`, "a boolean", value);
  return { classToken, distillToken };
}

export interface ApplyOptions {
  /** Of the result, at most. */
  readonly rows: Dim;
  /** f32 `[rows]`; by default the sizes, "even": all the same. */
  readonly weights?: Value | "even" | undefined;
  /** u8 `[rows]`: new rows whose first member is marked are copies of it. */
  readonly kept?: Value;
  readonly kind?: "mean" | "sum";
}

/** Carries out a map: each new row is the weighted mean of its members (a lone member is copied), sizes add up, and the source of every original token follows. */
export function applyMap(tokens: TokenRows, map: TokenMap, options: ApplyOptions): ReducedRows {
  const { x, bounds, sizes, source, original } = tokens, { rows, weights = sizes, kept, kind = "mean" } = options;
  const made = mergeRows(x, map, bounds, { rows, kind, weights: weights === "even" ? undefined : weights, sizes, kept });
  return {
    x: made.out, kept, bounds: map.bounds, sizes: made.sizes, original,
    source: source === undefined ? map.map : chainSource(source, original, map.map, bounds),
  };
}

/** A reduction, or an ArgumentError. */
export function checkReduction(name: string, value: unknown): Reduction {
  if (typeof (value as Reduction | undefined)?.apply !== "function" || typeof (value as Reduction).keep !== "function") throw invalidArgument(name, "a reduction such as toMe(13)", value);
  return value as Reduction;
}

/** An input that a reduction cannot do without. */
export function needed(name: string, input: "metric" | "scores", value: Value | undefined): Value {
  if (value === undefined) throw invalidArgument(input, `f32 ${input} for ${name}`, value);
  return value;
}
