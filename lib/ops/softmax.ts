import type { Value } from "../graph/value.js";
import { expectType } from "./check.js";

/** softmax(x · scale) along the last axis, f32; `into` may be x itself. A row of only −∞ gives zeros. */
export function softmax(x: Value, options: { readonly scale?: number; readonly into?: Value } = {}): Value {
  expectType("softmax", "x", x, "f32");
  return x.graph.add("softmax", { inputs: { x }, outputs: { out: { type: "f32", dims: x.dims, into: options.into } }, parameters: { scale: options.scale ?? 1 } }).out;
}
