import { checkOptionsObject } from "../check.js";
import { invalidArgument } from "../errors.js";
import { reduceRows } from "../ops/cache-policy.js";
import { integer, reshaped, shaped, viewAs } from "../ops/reduce-eager.js";
import { convolve } from "../ops/reduce.js";
import { run } from "../ops/run.js";
import type { RunOptions } from "../schedule.js";
import type { Tensor } from "../tensor.js";
import { indexRows, rowOf, top } from "./select.js";

export const method = { recipe: "explanationConv", paper: "Generic Token Compression (explainability)", arxiv: "2506.01097", summary: "in the spirit of: a small convolution on the first layer's attention map scores tokens" };

/** weight f32 `[outputs, inputs, k, k]`, k odd, bias `[outputs]`. */
export interface Convolution {
  readonly weight: Tensor<"f32">;
  readonly bias: Tensor<"f32">;
}

/**
 * In the spirit of explanation-guided compression (arXiv 2506.01097), whose layer sizes were out of reach: attention f32 `[batch, heads, queries, h · w]`,
 * mean over queries, goes as a map of `heads` channels through convolutions with ReLU between; the last has one output. → scores f32 `[batch, h · w]`
 * and index i32 `[batch, keep]` of the largest.
 */
export async function explanationConv(
  attention: Tensor<"f32">, layers: readonly Convolution[], options: { readonly height: number; readonly width: number; readonly keep: number } & RunOptions,
): Promise<{ readonly scores: Tensor<"f32">; readonly index: Tensor<"i32"> }> {
  checkOptionsObject(options, "an object with height, width and keep");
  const { height, width, keep } = options, tokens = integer("options.height", height, 1) * integer("options.width", width, 1);
  integer("options.keep", keep, 0, tokens);
  const [batch, heads] = shaped("attention", attention, "f32", null, null, null, tokens).shape as [number, number];
  if (!Array.isArray(layers) || layers.length === 0) throw invalidArgument("layers", "an array of convolutions", layers);
  layers.forEach(({ weight, bias }, l) => {
    const inputs = l === 0 ? heads : layers[l - 1]!.weight.shape[0]!, outputs = l === layers.length - 1 ? 1 : null, k = weight?.shape?.[2] ?? 1;
    shaped(`layers[${l}].bias`, bias, "f32", shaped(`layers[${l}].weight`, weight, "f32", outputs, inputs, k, k).shape[0]!);
    if (k % 2 === 0) throw invalidArgument(`layers[${l}].weight`, "kernels of an odd size", k);
  });
  const inputs = Object.fromEntries(layers.flatMap(({ weight, bias }, l) => [[`weight${l}`, weight], [`bias${l}`, bias]]));
  const made = await run("explanationConv", { attention, ...inputs }, options, (v) => {
    const queries = attention.shape[2]!;
    let x = viewAs(reduceRows(viewAs(v["attention"]!, [batch * heads * queries, tokens]), { kind: "mean", rows: batch * heads }), [batch, heads, height, width]);
    layers.forEach((_, l) => (x = convolve(x, v[`weight${l}`]!, v[`bias${l}`]!, l < layers.length - 1)));
    return { scores: x };
  });
  const scores = reshaped<Tensor<"f32">>(made.scores, [batch, tokens]);
  return { scores, index: indexRows(Array.from({ length: batch }, (_, b) => top(rowOf(scores, b), keep))) };
}
