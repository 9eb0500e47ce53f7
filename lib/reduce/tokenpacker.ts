import { checkOptionsObject } from "../check.js";
import { invalidArgument } from "../errors.js";
import type { Value } from "../graph/value.js";
import { activation } from "../ops/activation.js";
import { attention } from "../ops/attention.js";
import { integer, number, shaped, viewAs } from "../ops/reduce-eager.js";
import { resizeGrid } from "../ops/reduce.js";
import { run } from "../ops/run.js";
import type { RunOptions } from "../schedule.js";
import { disposable, tensor, type Tensor } from "../tensor.js";
import { byHeads, checkLinear, joinHeads, linear, normed, type Linear, type Norm } from "./layers.js";

export const method = { recipe: "tokenPacker", paper: "TokenPacker", arxiv: "2407.02392", summary: "a coarse grid's tokens attend to the fine tokens of their own cells" };

/** A TokenPacker projector's weights, f32 `[out, in]`; E = rows of q. */
export interface TokenPackerWeights<T = Tensor<"f32">> {
  readonly query: Linear<T>;
  readonly queryNorm: Norm<T>;
  /** Keys and values: two layers with GELU between, of the features of several layers. */
  readonly key: readonly [Linear<T>, Linear<T>];
  readonly keyNorm: Norm<T>;
  readonly value: readonly [Linear<T>, Linear<T>];
  readonly valueNorm: Norm<T>;
  /** Multi-head attention's own projections: query, key and value `[E, E]` each, and the output's. */
  readonly attention: { readonly query: Linear<T>; readonly key: Linear<T>; readonly value: Linear<T>; readonly out: Linear<T> };
  readonly mlp: readonly [Linear<T>, Linear<T>];
}

export interface TokenPackerOptions extends RunOptions {
  /** Fine tokens form a grid × grid square; the coarse one is grid / scale a side. */
  readonly grid: number;
  readonly scale: number;
  readonly heads: number;
  /** Of the layer norms; 1e-6. */
  readonly epsilon?: number;
}

export interface Packed extends Disposable {
  /** f32 `[batch, (grid / scale)², out]`. */
  readonly tokens: Tensor<"f32">;
  /** Fine tokens each one stands for. */
  readonly sizes: Tensor<"f32">;
  /** i32 `[batch, grid²]`: the cell of each fine token. */
  readonly source: Tensor<"i32">;
  /** What attention gave, before the MLP. */
  readonly attended: Tensor<"f32">;
}

/** TokenPacker (arXiv 2407.02392): x f32 `[batch, grid², width]`, features f32 `[batch, grid², featureWidth]` of several layers side by side. */
export async function tokenPacker(x: Tensor<"f32">, features: Tensor<"f32">, weights: TokenPackerWeights, options: TokenPackerOptions): Promise<Packed> {
  checkOptionsObject(options, "an object with grid, scale and heads");
  const { grid, scale, heads, epsilon = 1e-6 } = options;
  integer("options.grid", grid, 1, 4096);
  if (grid % integer("options.scale", scale, 1, grid) !== 0) throw invalidArgument("options.scale", `a divisor of ${grid}`, scale);
  number("options.epsilon", epsilon, 0, 1);
  const [batch, fine, width] = shaped("x", x, "f32", null, grid * grid, null).shape as [number, number, number], side = grid / scale;
  shaped("features", features, "f32", batch, fine, null);
  const inner = checkLinear("weights.query", weights?.query, null, width).weight.shape[0]!;
  if (inner % integer("options.heads", heads, 1) !== 0) throw invalidArgument("options.heads", `a divisor of ${inner}`, heads);
  const made = await run("tokenPacker", { x, features }, { weights, ...options }, (v, given) => {
    const w = (given as { weights: TokenPackerWeights<Value> }).weights;
    const coarse = viewAs(resizeGrid(viewAs(v["x"]!, [batch, grid, grid, width]), [batch, side, side, width], true), [batch, side * side, width]);
    const two = (layers: readonly [Linear<Value>, Linear<Value>], input: Value): Value => linear(activation(linear(input, layers[0]), "gelu"), layers[1]);
    const query = normed(linear(coarse, w.query), w.queryNorm, epsilon), key = normed(two(w.key, v["features"]!), w.keyNorm, epsilon), value = normed(two(w.value, v["features"]!), w.valueNorm, epsilon);
    const { out } = attention(byHeads(linear(query, w.attention.query), heads), byHeads(linear(key, w.attention.key), heads), byHeads(linear(value, w.attention.value), heads), { regionToPoint: { height: side, width: side, factor: scale } });
    const attended = linear(joinHeads(out), w.attention.out);
    return { attended, tokens: two(w.mlp, attended) };
  });
  const cells = Int32Array.from({ length: batch * fine }, (_, i) => Math.floor(Math.floor((i % fine) / grid) / scale) * side + Math.floor((i % grid) / scale));
  const sizes = tensor(new Float32Array(batch * side * side).fill(scale * scale), [batch, side * side]), source = tensor(cells, [batch, fine]);
  return disposable({ tokens: made.tokens, attended: made.attended, sizes, source });
}
