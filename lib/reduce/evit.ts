import { invalidArgument } from "../errors.js";
import { integer } from "../ops/reduce-eager.js";
import { countTokens, keepTokens, keptMap } from "../ops/reduce.js";
import { applyMap, baselines, checkSpecialTokens, needed, type Reduction } from "./reduction.js";
import { keeping, type KeepOptions } from "./schedule.js";

export const method = { recipe: "eVit", paper: baselines, arxiv: "2202.07800", summary: "tokens that the class token attends to stay; the others become one weighted sum" };

export type EVitOptions = KeepOptions & {
  /** Token 0 is a class token: it stays and is not counted; true. */
  readonly classToken?: boolean;
  /** What becomes of the others: "weightedSum" (the paper's: Σ score · x, not normalised), "weightedMean", or "none": they are dropped. */
  readonly fuse?: "weightedSum" | "weightedMean" | "none";
  /** With "weightedMean": how many rows the others become, as many runs of about one length; 1. */
  readonly recycle?: number;
};

/**
 * EViT (arXiv 2202.07800): of n tokens behind the class token ⌈keepRate · n⌉ stay, those of the largest attention of the class token, in
 * their order; the others are fused into one more row. The paper prunes at keepRate 0.7 in layers [3, 6, 9] of 12.
 */
export function eVit(options: EVitOptions): Reduction {
  const kept = keeping(options, "up"), { fuse = "weightedSum", recycle } = options, { classToken } = checkSpecialTokens(options);
  if (fuse !== "weightedSum" && fuse !== "weightedMean" && fuse !== "none") throw invalidArgument("options.fuse", "'weightedSum', 'weightedMean' or 'none'", fuse);
  if (recycle !== undefined && fuse !== "weightedMean") throw invalidArgument("options.recycle", "nothing beside fuse 'weightedMean'", recycle);
  if (recycle !== undefined) integer("options.recycle", recycle, 1);
  const first = Number(classToken), gather = fuse === "none" ? 0 : (recycle ?? 1);
  return {
    name: "eVit",
    key: `eVit ${kept.key} ${classToken} ${fuse} ${gather}`,
    needs: { metric: false, scores: true },
    proportional: false,
    dataDependent: false,
    keep(tokens, at) {
      const stay = kept.count(tokens, first, at);
      return stay + Math.min(gather, tokens - stay);
    },
    apply(tokens, { rows, scores: given, ...at }) {
      const scores = needed("eVit", "scores", given);
      const marks = keepTokens(scores, tokens.bounds, countTokens(tokens.bounds, kept.plan(first, at)), { first });
      return applyMap(tokens, keptMap(marks, tokens.bounds, { gather }), { rows, weights: scores, kept: marks, kind: fuse === "weightedSum" ? "sum" : "mean" });
    },
  };
}
