import { bipartiteMatch, countTokens, densityPeaks, keepTokens } from "../ops/reduce.js";
import { numberOption } from "../check.js";
import { applyMap, baselines, checkSpecialTokens, type Reduction } from "./reduction.js";
import { keeping, type KeepOptions } from "./schedule.js";

export const method = { recipe: "dpcKnn", paper: baselines, arxiv: "2204.08680", summary: "density peaks become cluster centres, the others join the nearest one" };

export type DpcKnnOptions = KeepOptions & {
  /** Neighbours that a density is made of, the token itself among them; 5. */
  readonly k?: number;
  /** Token 0 is a class token: it stays, and nobody joins it; false. */
  readonly classToken?: boolean;
};

/**
 * Density peaks clustering as vision models use it (TCFormer, arXiv 2204.08680; Chat-UniVi, 2311.08046). ρᵢ = exp(−mean of the k smallest
 * ‖xᵢ − xⱼ‖² / width); δᵢ = distance to the nearest denser token; the largest ρ · δ are the centres, every other token joins
 * the nearest of them. New rows are means weighted by `scores` where given, else by size.
 */
export function dpcKnn(options: DpcKnnOptions): Reduction {
  const kept = keeping(options, "up"), { classToken } = checkSpecialTokens(options, false), k = numberOption("options.k", options.k, 5, 1, 1024, true), first = Number(classToken);
  return {
    name: "dpcKnn",
    key: `dpcKnn ${kept.key} ${k} ${classToken}`,
    needs: { metric: false, scores: false },
    proportional: false,
    dataDependent: false,
    keep: (tokens, at) => kept.count(tokens, first, at),
    apply(tokens, { rows, metric = tokens.x, scores, ...at }) {
      const { bounds } = tokens, { score } = densityPeaks(metric, bounds, { k });
      const centres = keepTokens(score, bounds, countTokens(bounds, kept.plan(first, at)), { first });
      const map = bipartiteMatch(metric, bounds, { destinations: centres, distance: "euclidean", distillToken: classToken });
      return { ...applyMap(tokens, map, { rows, weights: scores ?? tokens.sizes }), kept: centres };
    },
  };
}
