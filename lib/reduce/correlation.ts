import { checkOptionsObject, numberOption } from "../check.js";
import { invalidArgument } from "../errors.js";
import { bipartiteMatch, keepTokens, keptMap, uniqueRows } from "../ops/reduce.js";
import { checkLayers } from "./schedule.js";
import { applyMap, checkSpecialTokens, needed, type Reduction } from "./reduction.js";

export const method = {
  recipe: "correlationGuided", paper: "Token-level Correlation-guided Compression", arxiv: "2407.14439",
  summary: "in the spirit of: as many tokens stay as resemble no earlier one, those the class token attends to",
};

export interface CorrelationGuidedOptions {
  /** A token resembles another above this cosine of their keys; 0.8. */
  readonly threshold?: number;
  /** The others join the most similar token that stays, weighted by their scores; false: they are dropped. */
  readonly merge?: boolean;
  /** Token 0 is a class token: it stays, alone; false. */
  readonly classToken?: boolean;
  /** Layers in which tokens go, from 0; all by default. */
  readonly layers?: readonly number[];
}

/**
 * In the spirit of token-level correlation-guided compression (arXiv 2407.14439), whose method section was out of reach. Reading the tokens in
 * order, one is unique unless its key's cosine with an earlier unique one is above the threshold; as many tokens as are unique stay, those
 * of the largest attention of the class token. How many that are depends on the data.
 */
export function correlationGuided(options: CorrelationGuidedOptions = {}): Reduction {
  checkOptionsObject(options);
  const { merge = false, layers: only } = options, { classToken } = checkSpecialTokens(options, false), threshold = numberOption("options.threshold", options.threshold, 0.8, -1, 1), first = Number(classToken);
  checkLayers("options.layers", only);
  if (typeof merge !== "boolean") throw invalidArgument("options.merge", "a boolean", merge);
  return {
    name: "correlationGuided",
    key: `correlationGuided ${threshold} ${merge} ${classToken} ${only}`,
    needs: { metric: true, scores: true },
    proportional: false,
    dataDependent: true,
    keep: (tokens) => tokens,
    acts: (layer) => only === undefined || only.includes(layer),
    apply(tokens, { rows, metric = tokens.x, scores: given }) {
      const scores = needed("correlationGuided", "scores", given), { bounds } = tokens;
      const { counts } = uniqueRows(metric, bounds, threshold), kept = keepTokens(scores, bounds, counts, { first });
      if (!merge) return applyMap(tokens, keptMap(kept, bounds), { rows, kept });
      return { ...applyMap(tokens, bipartiteMatch(metric, bounds, { destinations: kept, distillToken: classToken }), { rows, weights: scores }), kept };
    },
  };
}
