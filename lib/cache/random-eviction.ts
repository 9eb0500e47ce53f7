import { cacheRandom } from "../ops/cache-policy.js";
import { checkInteger, policy, type Budget, type CachePolicy } from "./policy.js";

export type RandomEvictionOptions = Budget & {
  /** 0. */
  readonly seed?: number;
};

/** A baseline: which tokens stay is drawn, for each head by itself; a function of seed, layer, head and position. */
export function randomEviction(options: RandomEvictionOptions): CachePolicy {
  const { seed = 0 } = options ?? {};
  checkInteger("options.seed", seed, 0);
  return policy(options, { name: "randomEviction", score: (context) => cacheRandom(context, { seed }) });
}
