import { checkOptionsObject } from "../check.js";
import { invalidArgument } from "../errors.js";
import { evaluate } from "../graph/evaluate.js";
import type { Value } from "../graph/value.js";
import { evenBounds, evenly, integer, lengthsOf, padded, reshaped, runOptions, shaped, viewAs } from "../ops/reduce-eager.js";
import type { RunOptions } from "../schedule.js";
import { disposable, tensor, type Tensor } from "../tensor.js";
import { checkReduction, type Reduction } from "./reduction.js";

export interface ReduceOptions extends RunOptions {
  /** What similarity is measured by, f32 `[batch, tokens, metricDim]`; the tokens themselves. */
  readonly metric?: Tensor<"f32">;
  /** How important tokens are, f32 `[batch, tokens]`. */
  readonly scores?: Tensor<"f32">;
  /** How many original tokens each one stands for, f32 `[batch, tokens]`; one. */
  readonly sizes?: Tensor<"f32">;
  /** Of an earlier reduction, i32 `[batch, original tokens]`: the result's source then names original tokens too. */
  readonly source?: Tensor<"i32">;
  /** Where a schedule stands: this layer of so many; 0 of 1. */
  readonly layer?: number;
  readonly layers?: number;
}

export interface Reduced extends Disposable {
  /** f32 `[batch, most tokens, width]`, zeros behind `counts`. */
  readonly tokens: Tensor<"f32">;
  /** f32 `[batch, most tokens]`: how many original tokens each one stands for. */
  readonly sizes: Tensor<"f32">;
  /** i32 `[batch, original tokens]`: the row that each original token is in, −1 where it was dropped; unmerge() undoes a reduction by it. */
  readonly source: Tensor<"i32">;
  /** Tokens of each batch entry: more than asked for where a method's own limits stop it, such as ToMe's half. */
  readonly counts: Int32Array;
  /** u8 `[batch, tokens]`: who stayed, or was merged into; of methods that choose such tokens. */
  readonly kept?: Tensor<"u8">;
}

/** Nothing goes: the same tokens, copied. */
function unchanged(tokens: Tensor<"f32">, { sizes, source }: ReduceOptions): Reduced {
  const [batch, count] = tokens.shape as [number, number, number], own = { sizes: new Float32Array(batch * count).fill(1), source: Int32Array.from({ length: batch * count }, (_, i) => i % count) };
  return disposable({
    tokens: tensor(tokens.data.slice(), tokens.shape), sizes: tensor(sizes?.data.slice() ?? own.sizes, [batch, count]),
    source: tensor(source?.data.slice() ?? own.source, source?.shape ?? [batch, count]), counts: new Int32Array(batch).fill(count), kept: tensor(new Uint8Array(batch * count).fill(1), [batch, count]),
  });
}

/**
 * A reduction on tokens f32 `[batch, tokens, width]`, outside any model: the same ops that run inside one. Results chain: give `sizes` and
 * `source` of one to the next. Errors: ArgumentError, ShapeError, AbortError.
 */
export async function reduceTokens(reduction: Reduction, tokens: Tensor<"f32">, options: ReduceOptions = {}): Promise<Reduced> {
  checkReduction("reduction", reduction);
  const [batch, count, width] = shaped("tokens", tokens, "f32", null, null, null).shape as [number, number, number];
  checkOptionsObject(options);
  const { metric, scores, sizes, source, layer = 0, layers = 1 } = options;
  if (metric) shaped("options.metric", metric, "f32", batch, count, null);
  if (scores) shaped("options.scores", scores, "f32", batch, count);
  if (sizes) shaped("options.sizes", sizes, "f32", batch, count);
  if (source) shaped("options.source", source, "i32", batch, null);
  integer("options.layers", layers, 1);
  integer("options.layer", layer, 0, layers - 1);
  if (reduction.needs.scores && !scores) throw invalidArgument("options.scores", `f32 scores for ${reduction.name}`, scores);
  const most = reduction.keep(count, { layer, layers });
  if (most === count && !reduction.dataDependent) return unchanged(tokens, options);
  const originals = source?.shape[1] ?? count;
  const results: Record<string, Tensor | undefined> = await evaluate("reduceTokens", { tokens, metric, scores, sizes, source }, `${reduction.key} ${layer} ${layers}`, (v, graph) => {
    const flat = (name: string, dims: readonly number[]) => v[name] && viewAs(v[name], dims);
    const given = {
      x: flat("tokens", [batch * count, width])!, bounds: evenBounds(graph, batch, count), sizes: flat("sizes", [batch * count]),
      source: flat("source", [batch * originals]), original: evenBounds(graph, batch, originals),
    };
    const { x, bounds, sizes: newSizes, source: newSource, kept } = reduction.apply(given, { layer, layers, rows: batch * most, metric: flat("metric", [batch * count, metric?.shape[2] ?? 0]), scores: flat("scores", [batch * count]) });
    const all: Record<string, Value> = { tokens: x, sizes: newSizes!, source: newSource! };
    if (bounds.storage.kind === "arena") all["bounds"] = bounds; // a constant says what keep() says
    if (kept) all["kept"] = kept;
    return all;
  }, runOptions(options));
  const bounds = (results["bounds"]?.data as Int32Array | undefined)?.slice() ?? evenly(batch, most);
  results["bounds"]?.dispose();
  return disposable({
    tokens: padded(results["tokens"] as Tensor<"f32">, bounds), sizes: padded(results["sizes"] as Tensor<"f32">, bounds), source: reshaped(results["source"]!, [batch, originals]),
    counts: lengthsOf(bounds), ...(results["kept"] && { kept: reshaped<Tensor<"u8">>(results["kept"], [batch, count]) }),
  });
}
