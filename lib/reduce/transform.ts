import { numberOption } from "../check.js";
import { copyInto } from "../ops/activation.js";
import { packedAttention } from "../ops/attention.js";
import { bipartiteMatch, countTokens, keepTokens, keptMap, logSizes, mergeRows } from "../ops/reduce.js";
import { rmsNorm } from "../ops/norm.js";
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
      // Directions times √metricDim; a row of zeros stays one.
      const ones = graph.constant("ones", "f32", new Float32Array(metricDim).fill(1), [metricDim]);
      const key = rmsNorm(metric, ones, { epsilon: 1e-30 }), query = mergeRows(key, places, bounds, { rows }).out;
      const width = x.dims[1] as number, bias = sizes && logSizes(sizes), out = graph.buffer("transformed", "f32", [rows, width]);
      for (let begin = 0; begin < width; begin += widestValue) {
        const columns = Math.min(widestValue, width - begin);
        const mixed = packedAttention(query.split(1), key.split(1), x.columns(begin, columns).split(1), bounds, { queryBounds: places.bounds, bias, scale: 1 / (temperature * metricDim) }).out.join();
        copyInto(mixed, out.columns(begin, columns));
      }
      // Who belongs to whom, for sizes and source.
      const nearest = bipartiteMatch(metric, bounds, { destinations: marks });
      return { ...applyMap(tokens, nearest, { rows }), x: out, kept: marks };
    },
  };
}
