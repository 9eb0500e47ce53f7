import { numberOption } from "../check.js";
import { Value } from "../graph/value.js";
import { attention } from "../ops/attention.js";
import { bipartiteMatch, countTokens, keepTokens, keptMap, logSizes, mergeRows } from "../ops/reduce.js";
import { rmsNorm } from "../ops/norm.js";
import { viewAs } from "../ops/reduce-eager.js";
import { applyMap, checkSpecialTokens, needed, type Reduction } from "./reduction.js";
import { keeping, type KeepOptions } from "./schedule.js";

export const method = {
  recipe: "tokenTransforming", paper: "Token Transforming", arxiv: "2506.05709",
  summary: "in the spirit of: the best tokens become means of all tokens, weighted by a softmax of similarities",
};

export type TokenTransformingOptions = KeepOptions & {
  /** Of the softmax over cosines; 0.1. */
  readonly temperature?: number;
  /** Token 0 is a class token: it is an anchor; false. */
  readonly classToken?: boolean;
};

const widestValue = 512;

/**
 * In the spirit of Token Transforming (arXiv 2506.05709), whose own construction of the matrix was out of reach: X' = W X with one row of W for
 * each of the `keep` tokens of the largest score, Wᵢⱼ = softmaxⱼ(cos(anchorᵢ, j) / temperature + ln sizeⱼ) over all tokens of the sequence.
 * W exists only inside attention. Pruning, merging and pooling are ops.rowProducts with other matrices. A token's source is its most
 * similar anchor, sizes count those.
 */
export function tokenTransforming(options: TokenTransformingOptions): Reduction {
  const kept = keeping(options, "up"), { classToken } = checkSpecialTokens(options, false), temperature = numberOption("options.temperature", options.temperature, 0.1, 1e-6, 1e6), first = Number(classToken);
  return {
    name: "tokenTransforming",
    key: `tokenTransforming ${kept.key} ${temperature} ${classToken}`,
    needs: { metric: true, scores: true },
    proportional: false,
    dataDependent: false,
    keep: (tokens, at) => kept.count(tokens, first, at),
    apply(tokens, { rows, metric = tokens.x, scores: given, ...at }) {
      const scores = needed("tokenTransforming", "scores", given), { x, bounds, sizes } = tokens, { graph } = x, [, metricDim] = metric.dims as [number, number];
      const marks = keepTokens(scores, bounds, countTokens(bounds, kept.plan(first, at)), { first }), places = keptMap(marks, bounds);
      // Directions times √metricDim (a row of zeros stays one), and a column more: ln size, which the queries take once.
      const ones = graph.constant("ones", "f32", new Float32Array(metricDim).fill(1), [metricDim]), scale = 1 / (temperature * metricDim);
      const key = graph.buffer("key", "f32", [metric.dims[0]!, metricDim + 1]), copy = (from: Value, to: Value, by: number, plus?: Value): void => {
        graph.add("add", { inputs: { a: from, b: plus }, outputs: { out: { type: "f32", dims: to.dims, into: to } }, parameters: { scale: by } });
      };
      copy(rmsNorm(metric, ones, { epsilon: 1e-30 }), key.columns(0, metricDim), 1);
      const last = key.columns(metricDim, 1);
      copy(sizes ? viewAs(logSizes(sizes), [sizes.dims[0] as number, 1]) : metric.columns(0, 1), last, sizes ? 1 / scale : 0);
      const query = mergeRows(key, places, bounds, { rows }).out;
      copy(query.columns(metricDim, 1), query.columns(metricDim, 1), 0, graph.constant("one", "f32", Float32Array.of(1), [1]));
      const one = (value: Value): Value => new Value(graph, "f32", [1, 1, ...value.dims], value.storage, [0, 0, ...value.strides], value.offset);
      const width = x.dims[1] as number;
      const mixed = (begin: number, columns: number): Value => {
        const { out } = attention(one(query), one(key), one(x.columns(begin, columns)), { scale, ragged: { cuQuery: places.bounds, cuKey: bounds } });
        return viewAs(out, [rows as number, columns]);
      };
      const out = width <= widestValue ? mixed(0, width) : graph.buffer("transformed", "f32", [rows, width]);
      for (let begin = 0; begin < width && width > widestValue; begin += widestValue) {
        const columns = Math.min(widestValue, width - begin), into = out.columns(begin, columns);
        copy(mixed(begin, columns), into, 1);
      }
      // Who belongs to whom, for sizes and source.
      const nearest = bipartiteMatch(metric, bounds, { destinations: marks });
      return { ...applyMap(tokens, nearest, { rows }), x: out, kept: marks };
    },
  };
}
