import { checkOptionsObject } from "../check.js";
import { invalidArgument } from "../errors.js";
import type { Value } from "../graph/value.js";
import { activation, add } from "../ops/activation.js";
import { attention } from "../ops/attention.js";
import { reduceRows } from "../ops/cache-policy.js";
import { evenBounds, integer, number, shaped, viewAs } from "../ops/reduce-eager.js";
import { unmergeRows } from "../ops/reduce.js";
import { run } from "../ops/run.js";
import type { RunOptions } from "../schedule.js";
import { tensor, type Tensor } from "../tensor.js";
import { byHeads, checkLinear, joinHeads, linear, normed, type Linear, type Norm } from "./layers.js";

export const method = { recipe: "crossAttentionCompress", paper: "mPLUG-DocOwl2", arxiv: "2409.03420", summary: "each token of the global view attends to the crops' tokens of its own place" };

export interface CrossAttentionLayer<T = Tensor<"f32">> {
  readonly norm: Norm<T>;
  readonly keyNorm: Norm<T>;
  readonly query: Linear<T>;
  readonly key: Linear<T>;
  readonly value: Linear<T>;
  readonly out: Linear<T>;
  readonly feedForwardNorm: Norm<T>;
  /** W₂ LN(silu(W₁ f) ⊙ W₃ f). */
  readonly gate: Linear<T>;
  readonly up: Linear<T>;
  readonly innerNorm: Norm<T>;
  readonly down: Linear<T>;
}

export interface CrossAttentionWeights<T = Tensor<"f32">> {
  readonly layers: readonly CrossAttentionLayer<T>[];
  readonly projection: Linear<T>;
  /** Appended, `[out]`. */
  readonly end?: T;
}

export interface CrossAttentionOptions extends RunOptions {
  /** Tokens of each view, height × width. */
  readonly height: number;
  readonly width: number;
  /** Crops lie in rows × cols. */
  readonly rows: number;
  readonly cols: number;
  readonly heads: number;
  /** Of the feed-forward's inner norm; 1e-6. */
  readonly innerEpsilon?: number;
}

/** Which of the crops' tokens each global token sees: the crops laid out as one map, cut into rows × cols windows. */
function windows({ height, width, rows, cols }: CrossAttentionOptions): number[] {
  const list: number[] = [];
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) for (let dy = 0; dy < rows; dy++) for (let dx = 0; dx < cols; dx++) {
    const mapY = y * rows + dy, mapX = x * cols + dx, crop = Math.floor(mapY / height) * cols + Math.floor(mapX / width);
    list.push(crop * height * width + (mapY % height) * width + (mapX % width));
  }
  return list;
}

/**
 * DocOwl2's compressor (arXiv 2409.03420): global f32 `[batch, h · w, width]`, crops `[batch, rows · cols, h · w, width]` → tokens `[batch, h · w (+ 1 with
 * an end token), out]`. Layers add to the normed stream, as published. source i32 `[batch, rows · cols · h · w]`: the token each of the crops' tokens is in.
 */
export async function crossAttentionCompress(
  global: Tensor<"f32">, crops: Tensor<"f32">, weights: CrossAttentionWeights, options: CrossAttentionOptions,
): Promise<{ readonly tokens: Tensor<"f32">; readonly sizes: Tensor<"f32">; readonly source: Tensor<"i32"> }> {
  checkOptionsObject(options, "an object with height, width, rows, cols and heads");
  const { height, width, rows, cols, heads, innerEpsilon = 1e-6 } = options, tokens = height * width, seen = rows * cols;
  for (const name of ["height", "width", "rows", "cols", "heads"] as const) integer(`options.${name}`, options[name], 1, 4096);
  number("options.innerEpsilon", innerEpsilon, 0, 1);
  const [batch, , columns] = shaped("global", global, "f32", null, tokens, null).shape as [number, number, number];
  shaped("crops", crops, "f32", batch, seen, tokens, columns);
  if (!Array.isArray(weights?.layers) || weights.layers.length === 0) throw invalidArgument("weights.layers", "an array of layers", weights?.layers);
  if (columns % heads !== 0) throw invalidArgument("options.heads", `a divisor of ${columns}`, heads);
  const outWidth = checkLinear("weights.projection", weights.projection, null, columns).weight.shape[0]!, list = windows(options);
  const { end, ...computed } = weights;
  if (end) shaped("weights.end", end, "f32", outWidth);
  const made = await run("crossAttentionCompress", { global, crops }, { weights: { ...computed, layers: { ...computed.layers } }, ...options }, (v, given) => {
    const w = (given as { weights: CrossAttentionWeights<Value> }).weights, { graph } = v["global"]!;
    const places = graph.constant("windows", "i32", Int32Array.from({ length: batch * list.length }, (_, i) => list[i % list.length]!), [batch * list.length]);
    const window = viewAs(unmergeRows(viewAs(v["crops"]!, [batch * seen * tokens, columns]), evenBounds(graph, batch, seen * tokens), places, evenBounds(graph, batch, list.length)), [batch * tokens, seen, columns]);
    let x = v["global"]!;
    for (const layer of Object.values(w.layers)) x = oneLayer(x, window, layer, { batch, tokens, heads, innerEpsilon });
    return { tokens: linear(x, w.projection) };
  });
  const count = tokens + (end ? 1 : 0), out = new Float32Array(batch * count * outWidth);
  for (let b = 0; b < batch; b++) {
    out.set(made.tokens.data.subarray(b * tokens * outWidth, (b + 1) * tokens * outWidth), b * count * outWidth);
    if (end) out.set(end.data, (b * count + tokens) * outWidth);
  }
  made.tokens.dispose();
  const source = new Int32Array(batch * seen * tokens);
  list.forEach((token, i) => {
    for (let b = 0; b < batch; b++) source[b * seen * tokens + token] = Math.floor(i / seen);
  });
  return { tokens: tensor(out, [batch, count, outWidth]), sizes: tensor(Float32Array.from({ length: batch * count }, (_, i) => (i % count < tokens ? seen : 0)), [batch, count]), source: tensor(source, [batch, seen * tokens]) };
}

function oneLayer(x: Value, window: Value, layer: CrossAttentionLayer<Value>, { batch, tokens, heads, innerEpsilon }: { batch: number; tokens: number; heads: number; innerEpsilon: number }): Value {
  const columns = x.dims[2] as number, epsilon = 1e-5;
  const stream = normed(x, layer.norm, epsilon), keys = normed(window, layer.keyNorm, epsilon), query = viewAs(linear(stream, layer.query), [batch * tokens, 1, columns]);
  const { out } = attention(byHeads(query, heads), byHeads(linear(keys, layer.key), heads), byHeads(linear(keys, layer.value), heads));
  const attended = add(viewAs(linear(joinHeads(out), layer.out), [batch, tokens, columns]), stream);
  const f = normed(attended, layer.feedForwardNorm, epsilon), gate = activation(linear(f, layer.gate), "silu"), up = linear(f, layer.up), inner = gate.dims[2] as number;
  const flat = (value: Value): Value => viewAs(value, [batch * tokens, inner]);
  const product = viewAs(reduceRows(flat(gate), { kind: "sum", rows: batch * tokens, weights: flat(up) }), [batch, tokens, inner]);
  return add(linear(normed(product, layer.innerNorm, innerEpsilon), layer.down), attended);
}
