import { checkOptionsObject } from "../check.js";
import { evaluate } from "../graph/evaluate.js";
import type { Value } from "../graph/value.js";
import { add } from "../ops/activation.js";
import { evenBounds, integer, number, reshaped, rowProducts, runOptions, shaped, viewAs } from "../ops/reduce-eager.js";
import { mergeRows } from "../ops/reduce.js";
import type { RunOptions } from "../schedule.js";
import { tensor, type Tensor } from "../tensor.js";
import { top } from "./select.js";

export const method = { recipe: "pMod", paper: "p-MoD", arxiv: "2412.04449", summary: "vision tokens skip layers by a tanh gate; ratios fall over the layers" };

/** The share of vision tokens that each layer works on: cos(π l / (layers − 1)) / 2 + average, above `maximum` all, never below `minimum`. */
export function pModRatios(layers: number, options: { readonly average?: number; readonly maximum?: number; readonly minimum?: number } = {}): number[] {
  integer("layers", layers, 1);
  const { average = 0.5, maximum = 0.85, minimum = 0.15 } = options;
  for (const [name, value] of Object.entries({ average, maximum, minimum })) number(`options.${name}`, value, 0, 1);
  return Array.from({ length: layers }, (_, layer) => {
    const share = layers === 1 ? 0.5 + average : Math.cos((Math.PI * layer) / (layers - 1)) / 2 + average;
    return share > maximum ? 1 : Math.max(share, minimum);
  });
}

export interface PModOptions extends RunOptions {
  /** The share of target tokens that the layer works on. */
  readonly ratio: number;
  /** gate = gateScale · tanh(logit) + gateBias; 0.2 and 1. */
  readonly gateScale?: number;
  readonly gateBias?: number;
}

/**
 * A decoder layer of p-MoD (arXiv 2412.04449): x, the layer's last branch and the residual that it is added to, f32 `[batch, tokens, width]`; target u8
 * `[batch, tokens]` marks vision tokens; router weight f32 `[width]`, bias `[1]`. Of the targets the int(n · ratio) of the largest logit stay. out = residual +
 * gate · branch for those that stay, gate · x for the others.
 */
export async function pMod(
  x: Tensor<"f32">, branch: Tensor<"f32">, residual: Tensor<"f32">, target: Tensor<"u8">, router: { readonly weight: Tensor<"f32">; readonly bias?: Tensor<"f32"> }, options: PModOptions,
): Promise<{ readonly out: Tensor<"f32">; readonly weights: Tensor<"f32">; readonly kept: Tensor<"u8"> }> {
  const [batch, tokens, width] = shaped("x", x, "f32", null, null, null).shape as [number, number, number];
  shaped("branch", branch, "f32", batch, tokens, width);
  shaped("residual", residual, "f32", batch, tokens, width);
  shaped("target", target, "u8", batch, tokens);
  checkOptionsObject(options, "an object with ratio");
  const { ratio, gateScale = 0.2, gateBias = 1 } = options;
  number("options.ratio", ratio, 0, 1);
  for (const [name, value] of Object.entries({ gateScale, gateBias })) number(`options.${name}`, value, -Number.MAX_VALUE, Number.MAX_VALUE);
  using weight = shaped("router.weight", router?.weight, "f32", width).reshape([1, 1, width]);
  const logits = await rowProducts(x, weight, { ...(router.bias && { bias: shaped("router.bias", router.bias, "f32", 1) }), ...runOptions(options) });
  const kept = new Uint8Array(batch * tokens).fill(1), gates = new Float32Array(batch * tokens).fill(1);
  for (let b = 0; b < batch; b++) {
    const targets = Array.from({ length: tokens }, (_, i) => b * tokens + i).filter((i) => target.data[i]);
    for (const i of targets) {
      kept[i] = 0;
      gates[i] = gateScale * Math.tanh(logits.data[i]!) + gateBias;
    }
    for (const place of top(targets.map((i) => logits.data[i]!), Math.trunc(targets.length * ratio))) kept[targets[place]!] = 1;
  }
  logits.dispose();
  const rows = batch * tokens;
  using ofBranch = tensor(gates.map((gate, i) => (kept[i] ? gate : 0)), [rows]), ofResidual = tensor(Float32Array.from(kept), [rows]), ofX = tensor(gates.map((gate, i) => (kept[i] ? 0 : gate)), [rows]);
  const { out } = await evaluate("pMod", { x, branch, residual, ofBranch, ofResidual, ofX }, "", (v, graph) => {
    const bounds = evenBounds(graph, 1, rows), map = graph.constant("map", "i32", Int32Array.from({ length: rows }, (_, i) => i), [rows]);
    const weighted = (name: string, by: string): Value => mergeRows(viewAs(v[name]!, [rows, width]), { map, bounds }, bounds, { rows, weights: v[by]!, kind: "sum" }).out;
    return { out: add(add(weighted("branch", "ofBranch"), weighted("residual", "ofResidual")), weighted("x", "ofX")) };
  }, runOptions(options));
  return { out: reshaped(out, [batch, tokens, width]), weights: tensor(gates, [batch, tokens]), kept: tensor(kept, [batch, tokens]) };
}
