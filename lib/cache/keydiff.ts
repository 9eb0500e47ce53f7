import { cacheKeyDiff } from "../ops/cache-policy.js";
import { baselines, policy, type Budget, type CachePolicy } from "./policy.js";

export const method = { recipe: "keyDiff", paper: baselines, arxiv: "2504.15364", summary: "keys that differ most from the mean key stay" };

/** KeyDiff (arXiv 2504.15364): score −cos(k, mean of all keys / their norms). */
export function keyDiff(options: Budget): CachePolicy {
  return policy(options, { name: "keyDiff", score: (context) => cacheKeyDiff(context) });
}
