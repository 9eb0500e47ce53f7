import type { Value } from "../graph/value.js";
import { expectDim, expectRank, expectType, fixedDim } from "./check.js";

export interface NormOptions {
  readonly epsilon: number;
  /** Added to each weight: 1 where a file stores w − 1. */
  readonly weightOffset?: number;
  /** "q8" quantises the result for the integer matmul that reads it. */
  readonly as?: "f32" | "q8";
  readonly name?: string;
}

/**
 * RMS norm of each row (arXiv 1910.07467): x / sqrt(mean(x²) + epsilon) · weight.
 * x f32 `[rows, width]`, weight f32 `[width]` → f32 or q8 `[rows, width]`.
 */
export function rmsNorm(x: Value, weight: Value, options: NormOptions): Value {
  expectType("rmsNorm", "x", x, "f32");
  expectRank("rmsNorm", "weight", weight, 1);
  expectDim("rmsNorm", "weight", weight, 0, fixedDim("rmsNorm", "x", x, -1));
  return x.graph.add("rmsNorm", {
    inputs: { x, weight },
    outputs: { out: { type: options.as ?? "f32", dims: x.dims } },
    parameters: { epsilon: options.epsilon, weightOffset: options.weightOffset ?? 0 },
    ...(options.as === "q8" ? {} : { reuse: ["out", "x"] as const }),
    ...(options.name === undefined ? {} : { name: options.name }),
  }).out;
}

/** Layer norm of each row (arXiv 1607.06450): (x − mean) / sqrt(variance + epsilon) · weight + bias. Shapes as rmsNorm. */
export function layerNorm(x: Value, weight: Value, bias: Value | undefined, options: Omit<NormOptions, "weightOffset">): Value {
  expectType("layerNorm", "x", x, "f32");
  const width = fixedDim("layerNorm", "x", x, -1);
  expectDim("layerNorm", "weight", weight, 0, width);
  if (bias) expectDim("layerNorm", "bias", bias, 0, width);
  return x.graph.add("layerNorm", {
    inputs: { x, weight, bias },
    outputs: { out: { type: options.as ?? "f32", dims: x.dims } },
    parameters: { epsilon: options.epsilon },
    ...(options.name === undefined ? {} : { name: options.name }),
  }).out;
}

/** RMS norm of each head, in place: x f32 `[tokens, heads, headDim]`, weight `[headDim]` (Qwen 3, Gemma 3). */
export function headNorm(x: Value, weight: Value, options: NormOptions): Value {
  expectRank("headNorm", "x", x, 3);
  expectDim("headNorm", "weight", weight, 0, fixedDim("headNorm", "x", x, -1));
  return x.graph.add("headNorm", {
    inputs: { x, weight },
    outputs: { out: { type: "f32", dims: x.dims, into: x } },
    parameters: { epsilon: options.epsilon, weightOffset: options.weightOffset ?? 0 },
    ...(options.name === undefined ? {} : { name: options.name }),
  }).out;
}
