import { addDim, scaleDim, type Dim } from "../graph/dims.js";
import type { Value } from "../graph/value.js";
import { expectRank, expectType, fixedDim } from "./check.js";

/**
 * The patches of images as rows of numbers 0 … 255 (arXiv 2010.11929): pixels u8 `[images, height, width, channels]` → f32
 * `[images · (prefix + patches), patch · patch · channels]`, a patch's pixels row by row; each image's first `prefix` rows are 0.
 */
export function imagePatches(pixels: Value, options: { readonly patch: number; readonly prefix: number }): Value {
  const op = "imagePatches", { patch, prefix } = options;
  expectType(op, "pixels", pixels, "u8");
  expectRank(op, "pixels", pixels, 4);
  const [height, width, channels] = [1, 2, 3].map((axis) => fixedDim(op, "pixels", pixels, axis)) as [number, number, number];
  const rows = scaleDim(pixels.dims[0]!, prefix + (height / patch) * (width / patch), 1);
  return pixels.graph.add(op, { inputs: { pixels }, outputs: { out: { type: "f32", dims: [rows, patch * patch * channels] } }, parameters: { patch, prefix } }).out;
}

const pools = { cls: 0, mean: 1, max: 2 } as const;
export type PoolKind = keyof typeof pools;

/**
 * One row a sequence: its first row, mean (weighed by sizes f32 `[n]`) or maximum, divided by its 2-norm where `normalize`.
 * x f32 `[n, width]`, bounds i32 `[sequences + 1]` → f32 `[sequences, width]`.
 */
export function poolSequences(x: Value, bounds: Value, options: { readonly kind: PoolKind; readonly sizes?: Value | undefined; readonly normalize: boolean }): Value {
  expectType("poolSequences", "x", x, "f32");
  return x.graph.add("poolSequences", {
    inputs: { x, bounds, sizes: options.sizes },
    outputs: { out: { type: "f32", dims: [addDim(bounds.dims[0]!, -1), x.dims[1]!] } },
    parameters: { kind: pools[options.kind], normalize: options.normalize ? 1 : 0 },
  }).out;
}

/** out[i] = Σ_k weights[i, k] · x[index[i, k]] in each of `blocks` blocks of rows: weights f32 and index i32 `[m, taps]` → f32 `[blocks · m, width]`. */
export function interpolateRows(x: Value, index: Value, weights: Value, blocks: Dim): Value {
  const dims = [scaleDim(blocks, fixedDim("interpolateRows", "weights", weights, 0), 1), x.dims[1]!];
  return x.graph.add("interpolateRows", { inputs: { x, index, weights }, outputs: { out: { type: "f32", dims } } }).out;
}
