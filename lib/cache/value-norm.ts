import { cacheNorms } from "../ops/cache-policy.js";
import { policy, type Budget, type CachePolicy } from "./policy.js";

/** A baseline: values of large norm stay, score ‖v‖₂. */
export function valueNorm(options: Budget): CachePolicy {
  return policy(options, { name: "valueNorm", score: (context) => cacheNorms(context, { values: true }) });
}
