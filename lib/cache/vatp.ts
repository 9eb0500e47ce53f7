import { cacheNorms, cacheScores, reduceRows } from "../ops/cache-policy.js";
import { protectNewest } from "./h2o.js";
import { baselines, checkInteger, policy, type Budget, type CachePolicy } from "./policy.js";

export const method = { recipe: "vatp", paper: baselines, arxiv: "2406.12335", summary: "attention so far times the size of the value" };

export type VatpOptions = Budget & {
  /** Tokens at the start that always stay, whose values are small where attention is large; 20. */
  readonly sinks?: number;
  /** Newest tokens that always stay; half the budget. */
  readonly recent?: number;
};

/** Value-aware token pruning (arXiv 2406.12335): attention summed over all queries, times Σ|v|; over H2O's attention. */
export function vatp(options: VatpOptions): CachePolicy {
  const { sinks = 20, recent } = options ?? {};
  checkInteger("options.sinks", sinks, 0);
  return policy(options, {
    name: "vatp",
    observe: { kind: "all" },
    score: (context) => reduceRows(cacheScores(context), { kind: "mean", rows: context.kvHeads, weights: cacheNorms(context, { values: true, order: 1 }) }),
    protect: protectNewest(recent, sinks),
  });
}
