import { cacheNorms } from "../ops/cache-policy.js";
import { baselines, policy, type Budget, type CachePolicy } from "./policy.js";

export const method = { recipe: "kNorm", paper: baselines, arxiv: "2406.11430", summary: "keys of small norm stay" };

/** KNorm (arXiv 2406.11430): score −‖k‖₂. */
export function kNorm(options: Budget): CachePolicy {
  return policy(options, { name: "kNorm", score: (context) => cacheNorms(context, { scale: -1 }) });
}
