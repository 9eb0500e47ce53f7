import { scaleDim, type Dim } from "../graph/dims.js";
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

/**
 * Rows of x by index, copied exactly; zeros for −1. x f32 `[rows, width]`, index i32 `[m]` → f32 `[m, width]`. With `blocks`, x is so
 * many blocks of rows, each indexed by itself → `[blocks · m, width]`.
 */
export function gatherRows(x: Value, index: Value, blocks?: Dim): Value {
  expectType("gatherRows", "index", index, "i32");
  expectRank("gatherRows", "x", x, 2);
  const dim = blocks === undefined ? index.dims[0]! : scaleDim(blocks, fixedDim("gatherRows", "index", index, 0), 1);
  return x.graph.add("gatherRows", { inputs: { x, index }, outputs: { out: { type: "f32", dims: [dim, x.dims[1]!] } } }).out;
}
