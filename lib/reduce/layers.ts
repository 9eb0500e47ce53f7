import { Value } from "../graph/value.js";
import { copyInto } from "../ops/activation.js";
import { layerNorm } from "../ops/norm.js";
import { rowProducts } from "../ops/reduce.js";
import { shaped, viewAs } from "../ops/reduce-eager.js";
import type { Tensor } from "../tensor.js";

/** weight f32 `[out, in]`, bias `[out]`. */
export interface Linear<T = Tensor<"f32">> {
  readonly weight: T;
  readonly bias?: T;
}

export interface Norm<T = Tensor<"f32">> {
  readonly weight: T;
  readonly bias: T;
}

/** x f32 `[batch, n, in]` · weightᵀ + bias → `[batch, n, out]`. */
export function linear(x: Value, { weight, bias }: Linear<Value>): Value {
  return rowProducts(x, viewAs(weight, [1, ...(weight.dims as number[])]), { bias });
}

export const normed = (x: Value, { weight, bias }: Norm<Value>, epsilon: number): Value => layerNorm(x, weight, bias, { epsilon });

/** `[batch, n, heads · headDim]` as `[batch, heads, n, headDim]`. */
export const byHeads = (x: Value, heads: number): Value => x.split(heads).permute(0, 2, 1, 3);

/** Attention's result `[batch, heads, n, headDim]`, copied to `[batch, n, heads · headDim]`. */
export function joinHeads(out: Value): Value {
  const [batch, heads, n, headDim] = out.dims as [number, number, number, number], { graph } = out;
  const joined = graph.buffer("joined", "f32", [batch, n, heads * headDim]), views = joined.split(heads).permute(0, 2, 1, 3);
  for (let b = 0; b < batch; b++) for (let h = 0; h < heads; h++) {
    const rows = (of: Value): Value => rowsOf(of, b, h, n, headDim);
    copyInto(rows(out), rows(views));
  }
  return joined;
}

function rowsOf(of: Value, batch: number, head: number, n: number, headDim: number): Value {
  const [ofBatch, ofHead, ofToken] = of.strides as [number, number, number, number];
  return new Value(of.graph, "f32", [n, headDim], of.storage, [ofToken, 1], of.offset + batch * ofBatch + head * ofHead);
}

export const checkLinear = (name: string, of: Linear, out: number | null, width: number): Linear => {
  const rows = shaped(`${name}.weight`, of?.weight, "f32", out, width).shape[0]!;
  if (of.bias) shaped(`${name}.bias`, of.bias, "f32", rows);
  return of;
};
