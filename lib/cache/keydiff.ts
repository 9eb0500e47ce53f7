import { cacheKeyDiff } from "../ops/cache-policy.js";
import { policy, type Budget, type CachePolicy } from "./policy.js";

const baselines = "Baselines of the field: StreamingLLM, H2O, TOVA, SnapKV, PyramidKV, KNorm, ExpectedAttention, KeyDiff, AdaKV";
export const method = { recipe: "keyDiff", paper: baselines, arxiv: "2504.15364", summary: "keys that differ most from the mean key stay" };

/** KeyDiff (arXiv 2504.15364): score −cos(k, mean of all keys / their norms). */
export function keyDiff(options: Budget): CachePolicy {
  return policy(options, { name: "keyDiff", score: (context) => cacheKeyDiff(context) });
}
