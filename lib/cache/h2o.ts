import { cacheScores } from "../ops/cache-policy.js";
import { baselines, checkChoice, checkInteger, policy, type Budget, type CachePolicy } from "./policy.js";

export const method = { recipe: "h2o", paper: baselines, arxiv: "2306.14048", summary: "heavy hitters: the tokens with the most attention so far, and the newest" };

export type H2OOptions = Budget & {
  /** Newest tokens that always stay; half the budget. */
  readonly recent?: number;
  /** "count" divides by the number of queries that could see a token; "none". */
  readonly normalize?: "none" | "count";
};

/** Protects the newest tokens, half the budget unless `recent` says how many, and the first `sinks`. */
export function protectNewest(recent: number | undefined, sinks = 0): CachePolicy["protect"] {
  if (recent !== undefined) checkInteger("options.recent", recent, 0);
  return (budget) => ({ first: sinks, last: recent ?? Math.floor(budget / 2) });
}

/** H2O (arXiv 2306.14048): attention summed over all queries ranks the tokens; the newest stay. */
export function h2o(options: H2OOptions): CachePolicy {
  const { recent, normalize = "none" } = options ?? {};
  const newest = protectNewest(recent);
  checkChoice("options.normalize", normalize, ["none", "count"]);
  return policy(options, {
    name: "h2o",
    observe: { kind: "all" },
    score: (context) => cacheScores(context, { seen: normalize === "count" ? context.seen : undefined }),
    protect: newest,
  });
}
