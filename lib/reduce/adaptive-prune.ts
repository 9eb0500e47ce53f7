import { invalidArgument } from "../errors.js";
import { reduceRows } from "../ops/cache-policy.js";
import { integer, number, shaped, viewAs } from "../ops/reduce-eager.js";
import { rowProducts } from "../ops/reduce.js";
import { run } from "../ops/run.js";
import type { RunOptions } from "../schedule.js";
import { tensor, type Tensor } from "../tensor.js";
import { roundEven } from "./schedule.js";
import { choose, rowOf, type Chosen } from "./select.js";

export const method = { recipe: "adaptivePrune", paper: "ATP-LLaVA", arxiv: "2412.00447", summary: "tokens above a threshold of the instance, or on a sparse grid, stay" };

/** Thresholds from data: z = projection · [mean self, mean cross] + bias, θ = sigmoid(head · z + bias). */
export interface ThresholdHeads {
  readonly projection: { readonly weight: Tensor<"f32">; readonly bias: Tensor<"f32"> };
  readonly redundancy: { readonly weight: Tensor<"f32">; readonly bias: Tensor<"f32"> };
  readonly spatial: { readonly weight: Tensor<"f32">; readonly bias: Tensor<"f32"> };
}

export type AdaptivePruneOptions = RunOptions & {
  readonly gridHeight: number;
  readonly gridWidth: number;
  /** The share of the grid that is augmented; 0.25. */
  readonly rate?: number;
  /** Score of the augmented ones: 1 − rate · lambda; 3. */
  readonly lambda?: number;
  /** f32 `[batch]` each, or heads that make them. */
  readonly thresholds: { readonly redundancy: Tensor<"f32">; readonly spatial: Tensor<"f32"> } | ThresholdHeads;
};

export interface AdaptivePruned extends Chosen {
  readonly scores: Tensor<"f32">;
  readonly spatial: Float32Array;
  readonly thresholds: { readonly redundancy: Float32Array; readonly spatial: Float32Array };
}

const dot = (weight: Float32Array, row: number, x: readonly number[], bias: Float32Array): number => x.reduce((sum, value, i) => sum + weight[row * x.length + i]! * value, bias[row]!);

function thresholdsOf(given: AdaptivePruneOptions["thresholds"], batch: number, means: readonly (readonly [number, number])[]): { redundancy: Float32Array; spatial: Float32Array } {
  if (!("projection" in given)) {
    return { redundancy: shaped("options.thresholds.redundancy", given.redundancy, "f32", batch).data.slice(), spatial: shaped("options.thresholds.spatial", given.spatial, "f32", batch).data.slice() };
  }
  const { projection, redundancy, spatial } = given, inner = shaped("options.thresholds.projection.weight", projection.weight, "f32", null, 2).shape[0]!;
  const of = ({ weight, bias }: ThresholdHeads["spatial"]): Float32Array => Float32Array.from(means, (mean) => {
    const z = Array.from({ length: inner }, (_, row) => dot(projection.weight.data, row, mean, projection.bias.data));
    return 1 / (1 + Math.exp(-dot(weight.data, 0, z, bias.data)));
  });
  for (const head of [redundancy, spatial]) shaped("options.thresholds", head.weight, "f32", 1, inner);
  return { redundancy: of(redundancy), spatial: of(spatial) };
}

/**
 * Adaptive pruning with spatial augmentation (ATP-LLaVA, arXiv 2412.00447, after a reimplementation that cites its equations): x f32 `[batch, n, width]`,
 * logits f32 `[batch, heads, n, n]` among image tokens before softmax, cross f32 `[batch, heads, text, n]` from text tokens after it. score = half the sum of
 * both means; who is above θ redundancy, or whose place is above θ spatial, stays.
 */
export async function adaptivePrune(x: Tensor<"f32">, logits: Tensor<"f32">, cross: Tensor<"f32">, options: AdaptivePruneOptions): Promise<AdaptivePruned> {
  if (typeof options?.thresholds !== "object" || options.thresholds === null) throw invalidArgument("options.thresholds", "thresholds, or heads that make them", options?.thresholds);
  const { gridHeight, gridWidth, rate = 0.25, lambda = 3, thresholds } = options, n = integer("options.gridHeight", gridHeight, 1) * integer("options.gridWidth", gridWidth, 1);
  number("options.rate", rate, 1e-6, 1);
  number("options.lambda", lambda, 0, Number.MAX_VALUE);
  const batch = shaped("x", x, "f32", null, n, null).shape[0]!, heads = shaped("logits", logits, "f32", batch, null, n, n).shape[1]!, text = shaped("cross", cross, "f32", batch, null, null, n).shape[2]!;
  const crossHeads = cross.shape[1]!;
  const made = await run("adaptivePrune", { logits, cross }, { signal: options.signal, threads: options.threads }, (v) => {
    const { graph } = v["logits"]!, share = graph.constant("share", "f32", new Float32Array(n).fill(1 / n), [1, 1, n]);
    const keys = viewAs(rowProducts(viewAs(v["logits"]!, [1, batch * heads * n, n]), share), [batch * heads, n]);
    return { self: reduceRows(keys, { kind: "mean", rows: batch }), cross: reduceRows(viewAs(v["cross"]!, [batch * crossHeads * text, n]), { kind: "mean", rows: batch }) };
  });
  const mean = (row: Float32Array): number => row.reduce((sum, value) => sum + value, 0) / n;
  const found = thresholdsOf(thresholds, batch, Array.from({ length: batch }, (_, b) => [mean(rowOf(made.self, b)), mean(rowOf(made.cross, b))] as const));
  const scores = tensor(made.self.data.map((value, i) => (value + made.cross.data[i]!) / 2), [batch, n]), stride = Math.max(1, roundEven(Math.sqrt(1 / rate)));
  made[Symbol.dispose]();
  const spatial = Float32Array.from({ length: n }, (_, token) => (Math.floor(token / gridWidth) % stride === 0 && (token % gridWidth) % stride === 0 ? Math.max(0, 1 - rate * lambda) : 0));
  const lists = Array.from({ length: batch }, (_, b) => Array.from({ length: n }, (_, token) => token).filter((token) => rowOf(scores, b)[token]! > found.redundancy[b]! || spatial[token]! > found.spatial[b]!));
  return { ...(await choose(x, lists, options)), scores, spatial, thresholds: found };
}
