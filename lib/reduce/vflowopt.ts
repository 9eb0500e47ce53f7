import { invalidArgument } from "../errors.js";
import { evaluate } from "../graph/evaluate.js";
import { reduceRows } from "../ops/cache-policy.js";
import { number, reshaped, rowProducts, runOptions, shaped, viewAs, evenBounds } from "../ops/reduce-eager.js";
import { mergeRows } from "../ops/reduce.js";
import type { RunOptions } from "../schedule.js";
import { disposable, tensor, type Tensor } from "../tensor.js";
import { roundEven } from "./schedule.js";
import { descending, indexRows, rowOf } from "./select.js";

export const method = { recipe: "vFlowOpt", paper: "VFlowOpt", arxiv: "2508.05211", summary: "attention and patch entropy rank tokens; stages prune them, each into one recycled row" };

export interface VFlowOptOptions extends RunOptions {
  /** The share of tokens that each stage keeps of those left. */
  readonly keepRatios: readonly number[];
  /** Rows that receive at most t times the mean attention do not vote; 0: all vote that receive any. */
  readonly t?: number;
  /** Weight of softmax(entropy); 0. */
  readonly alpha?: number;
  /** What a stage prunes becomes one row, Σ importance · x / Σ importance; true. The paper's own recycling was out of reach. */
  readonly recycle?: boolean;
}

export interface VFlowOptResult extends Disposable {
  /** f32 `[batch, kept + recycled, width]`. */
  readonly tokens: Tensor<"f32">;
  readonly sizes: Tensor<"f32">;
  /** i32 `[batch, tokens]`: the row each token is in, −1 where it was dropped. */
  readonly source: Tensor<"i32">;
  /** i32 `[batch, kept]`. */
  readonly index: Tensor<"i32">;
  readonly importance: Tensor<"f32">;
  /** Tokens alive behind each stage. */
  readonly stageCounts: Int32Array;
}

/** Mean over heads of attention `[batch, heads, n, n]`, rows that vote averaged, + alpha · softmax(entropy). */
async function importanceOf(attention: Tensor<"f32">, entropy: Tensor<"f32">, t: number, alpha: number, options: RunOptions): Promise<Tensor<"f32">> {
  const [batch, heads, n] = attention.shape as [number, number, number];
  const { mean, received } = await evaluate("vFlowOpt", { attention }, "", (v) => {
    const over = reduceRows(viewAs(v["attention"]!, [batch * heads, n * n]), { kind: "mean", rows: batch });
    return { mean: over, received: reduceRows(viewAs(over, [batch * n, n]), { kind: "mean", rows: batch }) };
  }, runOptions(options));
  const voting = new Float32Array(batch * n);
  for (let b = 0; b < batch; b++) {
    const row = rowOf(received as Tensor<"f32">, b), least = (t * row.reduce((sum, value) => sum + value, 0)) / n;
    const voters = Array.from(row, (value) => value > least), count = voters.filter(Boolean).length || n;
    for (let i = 0; i < n; i++) voting[b * n + i] = voters[i] || count === n ? 1 / count : 0;
  }
  using weights = tensor(voting, [batch, 1, n]), matrix = reshaped<Tensor<"f32">>(mean, [batch, n, n]);
  received.dispose();
  const importance = reshaped<Tensor<"f32">>(await rowProducts(weights, matrix, { transposed: true, ...runOptions(options) }), [batch, n]);
  for (let b = 0; b < batch && alpha !== 0; b++) {
    const row = rowOf(entropy, b), most = row.reduce((a, value) => Math.max(a, value), -Infinity), exps = Array.from(row, (value) => Math.exp(value - most)), total = exps.reduce((sum, e) => sum + e, 0);
    exps.forEach((e, i) => (importance.data[b * n + i]! += (alpha * e) / total));
  }
  return importance;
}

/**
 * VFlowOpt (arXiv 2508.05211): attention f32 `[batch, heads, n, n]` behind softmax and the entropy of each token's patch `[batch, n]` (see
 * ops.patchEntropy) rank tokens x f32 `[batch, n, width]`. Each stage prunes roundEven(alive · (1 − ratio)) of least importance, of equal ones the last.
 */
export async function vFlowOpt(x: Tensor<"f32">, attention: Tensor<"f32">, entropy: Tensor<"f32">, options: VFlowOptOptions): Promise<VFlowOptResult> {
  const [batch, n, width] = shaped("x", x, "f32", null, null, null).shape as [number, number, number];
  shaped("attention", attention, "f32", batch, null, n, n);
  shaped("entropy", entropy, "f32", batch, n);
  if (!Array.isArray(options?.keepRatios) || !options.keepRatios.every((ratio) => typeof ratio === "number" && ratio >= 0 && ratio <= 1)) throw invalidArgument("options.keepRatios", "shares from 0 to 1, one a stage", options?.keepRatios);
  const { keepRatios, t = 0, alpha = 0, recycle = true } = options;
  number("options.t", t, 0, Number.MAX_VALUE);
  number("options.alpha", alpha, 0, Number.MAX_VALUE);
  if (typeof recycle !== "boolean") throw invalidArgument("options.recycle", "a boolean", recycle);
  const importance = await importanceOf(attention, entropy, t, alpha, options), map = new Int32Array(batch * n).fill(-1), kept = new Uint8Array(batch * n);
  const stageCounts: number[] = [];
  let extra = 0;
  const lists = Array.from({ length: batch }, (_, b) => {
    let alive = descending(rowOf(importance, b));
    const pruned: number[][] = [];
    keepRatios.forEach((ratio, stage) => {
      const gone = roundEven(alive.length * (1 - ratio));
      if (gone > 0) pruned.push(alive.slice(alive.length - gone));
      alive = alive.slice(0, alive.length - gone);
      stageCounts[stage] = alive.length;
    });
    const list = alive.sort((i, j) => i - j);
    list.forEach((token, row) => {
      map[b * n + token] = row;
      kept[b * n + token] = 1;
    });
    extra = recycle ? pruned.length : 0;
    if (recycle) pruned.forEach((tokens, stage) => tokens.forEach((token) => (map[b * n + token] = list.length + stage)));
    return list;
  });
  const rows = (lists[0]?.length ?? 0) + extra;
  using places = tensor(map.slice(), [batch * n]), marks = tensor(kept, [batch * n]);
  const made = await evaluate("vFlowOpt.merge", { x, importance, map: places, kept: marks }, `${rows}`, (v, graph) => {
    const { out, sizes } = mergeRows(viewAs(v["x"]!, [batch * n, width]), { map: v["map"]!, bounds: evenBounds(graph, batch, rows) }, evenBounds(graph, batch, n), { rows: batch * rows, weights: viewAs(v["importance"]!, [batch * n]), kept: v["kept"]! });
    return { tokens: out, sizes };
  }, runOptions(options));
  return disposable({
    tokens: reshaped<Tensor<"f32">>(made.tokens, [batch, rows, width]), sizes: reshaped<Tensor<"f32">>(made.sizes, [batch, rows]), source: tensor(map, [batch, n]), index: indexRows(lists),
    importance, stageCounts: Int32Array.from(stageCounts),
  });
}
