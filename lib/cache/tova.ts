import { cacheScores, reduceRows } from "../ops/cache-policy.js";
import { baselines, policy, type Budget, type CachePolicy } from "./policy.js";

export const method = { recipe: "tova", paper: baselines, arxiv: "2401.06104", summary: "the tokens that the last query attends to, one choice for all heads" };

export type TovaOptions = Budget & {
  /** The last token stays whatever it scores; true. */
  readonly keepLast?: boolean;
};

/** TOVA (arXiv 2401.06104): the last query's attention, averaged over all heads, ranks the tokens of a layer. */
export function tova(options: TovaOptions): CachePolicy {
  const { keepLast = true } = options ?? {};
  return policy(options, {
    name: "tova",
    observe: { kind: "window", queries: 1 },
    score: (context) => reduceRows(cacheScores(context), { kind: "mean" }),
    protect: () => ({ first: 0, last: keepLast ? 1 : 0 }),
  });
}
