import type { Value } from "../graph/value.js";
import { activationCode, type ActivationKind } from "./activation.js";
import { expectDim, expectRank, expectType, fixedDim } from "./check.js";

export interface MatmulOptions {
  /** f32 `[rows]`, added to each output row. */
  readonly bias?: Value | undefined;
  /** f32 `[n, rows]`, added to the result; the sum is written over it. */
  readonly residual?: Value | undefined;
  /** Applied to the sum, while it is still in the cache. */
  readonly activation?: ActivationKind | undefined;
  /** A binding to write to. */
  readonly into?: Value | undefined;
  readonly name?: string;
}

/**
 * x · weightᵀ (+ bias) (+ residual). x `[n, columns]`: q8 for quantised weights, f32 for float ones; weight packed
 * `[rows, columns]` → f32 `[n, rows]`. A row's result does not depend on n or on the number of threads.
 */
export function matmul(x: Value, weight: Value, options: MatmulOptions = {}): Value {
  expectType("matmul", "x", x, "q8", "f32");
  expectType("matmul", "weight", weight, "packed");
  expectRank("matmul", "x", x, 2);
  expectDim("matmul", "x", x, -1, fixedDim("matmul", "weight", weight, 1));
  const rows = fixedDim("matmul", "weight", weight, 0);
  if (options.bias) expectDim("matmul", "bias", options.bias, 0, rows);
  if (options.residual) expectDim("matmul", "residual", options.residual, -1, rows);
  return x.graph.add("matmul", {
    inputs: { x, weight, bias: options.bias, residual: options.residual },
    outputs: { out: { type: "f32", dims: [x.dims[0]!, rows], into: options.into ?? options.residual } },
    parameters: { activation: options.activation === undefined ? 0 : 1 + activationCode[options.activation] },
    ...(options.name === undefined ? {} : { name: options.name }),
  }).out;
}
