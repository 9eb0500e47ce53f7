import { runOptions, unmerge } from "../ops/reduce-eager.js";
import type { RunOptions } from "../schedule.js";
import { disposable, tensor, type Tensor } from "../tensor.js";

/** Indices by falling value, equal ones by lowest index; NaN last. */
export function descending(values: ArrayLike<number>): number[] {
  const of = (index: number): number => (Number.isNaN(values[index]!) ? -Infinity : values[index]!);
  return Array.from(values, (_, index) => index).sort((a, b) => of(b) - of(a) || a - b);
}

/** The k largest, equal ones by lowest index, in rising order of index. */
export const top = (values: ArrayLike<number>, k: number): number[] => descending(values).slice(0, Math.max(0, k)).sort((a, b) => a - b);

/** Lists as one matrix i32 `[lists, longest]`, padded with −1. */
export function indexRows(lists: readonly (readonly number[])[], width = Math.max(0, ...lists.map((list) => list.length))): Tensor<"i32"> {
  const data = new Int32Array(lists.length * width).fill(-1);
  lists.forEach((list, row) => data.set(list, row * width));
  return tensor(data, [lists.length, width]);
}

/** What a choice of rows leaves behind, as every reduction tells it. */
export interface Chosen extends Disposable {
  /** f32 `[batch, most tokens, width]`, zeros behind `counts`. */
  readonly tokens: Tensor<"f32">;
  /** f32 `[batch, most tokens]`: 1, and 0 behind `counts`. */
  readonly sizes: Tensor<"f32">;
  /** i32 `[batch, tokens]`: the new row of each token, −1 where it was dropped. */
  readonly source: Tensor<"i32">;
  /** i32 `[batch, most tokens]`: which token each new row is, −1 behind `counts`. */
  readonly index: Tensor<"i32">;
  readonly counts: Int32Array;
}

/** Rows of x f32 `[batch, tokens, width]` by lists of rising indices, copied. */
export async function choose(x: Tensor<"f32">, lists: readonly (readonly number[])[], options: RunOptions): Promise<Chosen> {
  const [batch, tokens] = x.shape as [number, number], index = indexRows(lists), tokensOut = await unmerge(x, index, runOptions(options));
  const source = new Int32Array(batch * tokens).fill(-1);
  lists.forEach((list, b) => list.forEach((token, row) => (source[b * tokens + token] = row)));
  const sizes = tensor(Float32Array.from(index.data, (token) => (token < 0 ? 0 : 1)), index.shape), places = tensor(source, [batch, tokens]);
  return disposable({ tokens: tokensOut, sizes, source: places, index, counts: Int32Array.from(lists, (list) => list.length) });
}

/** One row of a matrix of numbers. */
export const rowOf = (matrix: Tensor<"f32">, row: number): Float32Array => matrix.data.subarray(row * matrix.shape.at(-1)!, (row + 1) * matrix.shape.at(-1)!);
