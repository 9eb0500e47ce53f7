import type { Value } from "../graph/value.js";
import { expectRank, expectType, fixedDim } from "./check.js";

/** Rows of a table by id, times `scale`. table packed or float `[vocabulary, width]`, ids i32 `[n]` → f32 `[n, width]`. */
export function embedding(table: Value, ids: Value, options: { readonly scale?: number } = {}): Value {
  expectType("embedding", "ids", ids, "i32");
  expectRank("embedding", "ids", ids, 1);
  return table.graph.add("embedding", {
    inputs: { table, ids },
    outputs: { out: { type: "f32", dims: [ids.dims[0]!, fixedDim("embedding", "table", table, 1)] } },
    parameters: { scale: options.scale ?? 1 },
  }).out;
}

/** Rows of x by index, copied exactly. x f32 `[rows, width]`, index i32 `[m]` → f32 `[m, width]`. */
export function gatherRows(x: Value, index: Value): Value {
  expectType("gatherRows", "index", index, "i32");
  expectRank("gatherRows", "x", x, 2);
  return x.graph.add("gatherRows", { inputs: { x, index }, outputs: { out: { type: "f32", dims: [index.dims[0]!, x.dims[1]!] } } }).out;
}
