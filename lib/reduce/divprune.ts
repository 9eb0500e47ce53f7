import { countTokens, farthestRows, keptMap } from "../ops/reduce.js";
import { applyMap, checkSpecialTokens, type Reduction } from "./reduction.js";
import { keeping, type KeepOptions } from "./schedule.js";

export const method = { recipe: "divPrune", paper: "DivPrune", arxiv: "2503.02175", summary: "greedy max–min choice by cosine distance" };

export type DivPruneOptions = KeepOptions & {
  /** Token 0 is a class token: it is the first choice; false. */
  readonly classToken?: boolean;
};

/**
 * DivPrune (arXiv 2503.02175): first the token whose nearest other one is farthest by 1 − cosine, then again and again the one farthest from
 * its nearest chosen one. Shares are rounded to even. What stays is copied, in its order.
 */
export function divPrune(options: DivPruneOptions): Reduction {
  const kept = keeping(options, "even"), { classToken } = checkSpecialTokens(options, false), first = Number(classToken);
  return {
    name: "divPrune",
    key: `divPrune ${kept.key} ${classToken}`,
    needs: { metric: false, scores: false },
    proportional: false,
    dataDependent: false,
    keep: (tokens, at) => kept.count(tokens, first, at),
    apply(tokens, { rows, metric = tokens.x, ...at }) {
      const { bounds } = tokens, { kept: marks } = farthestRows(metric, bounds, countTokens(bounds, kept.plan(first, at)), { start: classToken ? "index" : "alone" });
      return applyMap(tokens, keptMap(marks, bounds), { rows, kept: marks });
    },
  };
}
