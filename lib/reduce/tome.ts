import { bipartiteMatch } from "../ops/reduce.js";
import { applyMap, baselines, checkSpecialTokens, type Reduction, type SpecialTokens } from "./reduction.js";
import { checkSchedule, scheduled, type Schedule } from "./schedule.js";

export const method = { recipe: "toMe", paper: baselines, arxiv: "2210.09461", summary: "in each layer the most similar pairs of tokens become their mean; attention counts a token as often as it was merged" };

export interface ToMeOptions extends SpecialTokens {
  /** Tokens merged away in each layer: `13`, one number a layer, or a course. At most half of the tokens can go in one layer. */
  readonly perLayer: Schedule;
  /** Attention weighs merged tokens by their size; true. */
  readonly proportional?: boolean;
}

/**
 * Token merging (ToMe, arXiv 2210.09461). Even tokens look for the most similar odd one by cosine of the keys; the best pairs
 * become their size-weighted mean. `toMe(13)` is `toMe({ perLayer: 13 })`. Order of the result: even tokens that stay, then
 * the odd ones. Throws ArgumentError.
 */
export function toMe(options: number | ToMeOptions): Reduction {
  const given = typeof options === "object" && options !== null && !Array.isArray(options) ? options : { perLayer: options as number };
  const { perLayer, proportional = true } = given, special = checkSpecialTokens(given);
  checkSchedule("options.perLayer", perLayer, { low: 0, high: Infinity, whole: true });
  const spared = Number(special.classToken) + Number(special.distillToken);
  const merged = (layer: number, layers: number): number => scheduled("options.perLayer", perLayer, layer, layers, true);
  return {
    name: "toMe",
    key: `toMe ${JSON.stringify({ perLayer, ...special })}`,
    needs: { metric: true, scores: false },
    proportional,
    dataDependent: false,
    keep: (tokens, { layer, layers }) => tokens - Math.max(0, Math.min(merged(layer, layers), Math.floor((tokens - spared) / 2))),
    apply(tokens, { layer, layers, rows, metric = tokens.x }) {
      return applyMap(tokens, bipartiteMatch(metric, tokens.bounds, { merge: merged(layer, layers), ...special }), { rows });
    },
  };
}
