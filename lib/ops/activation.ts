import { ShapeError } from "../errors.js";
import type { Value } from "../graph/value.js";
import { expectType, fixedDim } from "./check.js";

/** The numbers of cpp/kernels/args.h. */
export const activationCode = { silu: 0, "gelu-tanh": 1, gelu: 2, relu: 3, sigmoid: 4, tanh: 5, "quick-gelu": 6 } as const;
export type ActivationKind = keyof typeof activationCode;

/** activation(gate) · up for x = gate | up, f32 `[rows, 2·width]` → `[rows, width]` f32 or q8 (SwiGLU, GEGLU: arXiv 2002.05202). */
export function gatedActivation(x: Value, kind: ActivationKind, options: { readonly as?: "f32" | "q8"; readonly name?: string } = {}): Value {
  expectType("gatedActivation", "x", x, "f32");
  const double = fixedDim("gatedActivation", "x", x, -1);
  if (double % 2 !== 0) throw new ShapeError("gatedActivation", "x", `gatedActivation: Expected an even last dimension of x but received ${x}`);
  return x.graph.add("gatedActivation", {
    inputs: { x },
    outputs: { out: { type: options.as ?? "f32", dims: [...x.dims.slice(0, -1), double / 2] } },
    parameters: { kind: activationCode[kind] },
    ...(options.name === undefined ? {} : { name: options.name }),
  }).out;
}

/** One of silu, gelu-tanh, gelu (erf), relu, sigmoid, tanh, quick-gelu on each element; may lie where x lay. */
export function activation(x: Value, kind: ActivationKind): Value {
  expectType("activation", "x", x, "f32");
  return x.graph.add("activation", { inputs: { x }, outputs: { out: { type: "f32", dims: x.dims } }, parameters: { kind: activationCode[kind] }, reuse: ["out", "x"] }).out;
}

/** Rows of x f32 `[rows, width]` written where `into` of the same shape lies; both may have any row stride. */
export function copyInto(x: Value, into: Value): void {
  x.graph.add("add", { inputs: { a: x }, outputs: { out: { type: "f32", dims: into.dims, into } }, parameters: { scale: 1 } });
}

/** a · scale + b; b has a's shape or is one row; b may be left out. */
export function add(a: Value, b: Value | undefined, options: { readonly scale?: number; readonly name?: string } = {}): Value {
  expectType("add", "a", a, "f32");
  return a.graph.add("add", {
    inputs: { a, b },
    outputs: { out: { type: "f32", dims: a.dims } },
    parameters: { scale: options.scale ?? 1 },
    reuse: ["out", "a"],
    ...(options.name === undefined ? {} : { name: options.name }),
  }).out;
}

/** cap · tanh(x / cap), in place (Gemma 2, arXiv 2408.00118). */
export function softcap(x: Value, cap: number): Value {
  return x.graph.add("softcap", { inputs: { x }, outputs: { out: { type: "f32", dims: x.dims, into: x } }, parameters: { cap } }).out;
}

/** The same numbers in another element type; "q8" quantises rows for an integer matmul. */
export function convert(x: Value, type: "f32" | "f16" | "bf16" | "q8"): Value {
  return x.graph.add("convert", { inputs: { x }, outputs: { out: { type, dims: x.dims } } }).out;
}
