import { checkOptionsObject } from "../check.js";
import { ArgumentError } from "../errors.js";
import { baselines, checkNumber, type CachePolicy } from "./policy.js";
import { snapKV, type SnapKVOptions } from "./snapkv.js";

export const method = { recipe: "adaKV", paper: baselines, arxiv: "2407.11550", summary: "the heads of a layer share their budgets" };

export interface AdaKVOptions {
  /** Share of the budget that each head has of its own; 0.2. */
  readonly safeguard?: number;
}

/** AdaKV (arXiv 2407.11550): the best tokens of all heads of a layer stay, `budget` a head on average. Over SnapKV, or over any policy with scores of each head. */
export function adaKV(options: (SnapKVOptions | { readonly policy: CachePolicy }) & AdaKVOptions): CachePolicy {
  const { safeguard = 0.2 } = checkOptionsObject(options, "an object with budget or ratio");
  checkNumber("options.safeguard", safeguard, 0, 1);
  const scored = "policy" in options ? (options as { policy: CachePolicy }).policy : snapKV(options as SnapKVOptions);
  if (!scored?.score) throw new ArgumentError("options.policy", `Expected a policy with scores for options.policy but received ${scored?.name ?? "none"}`);
  return { ...scored, name: `adaKV(${scored.name})`, acrossHeads: { safeguard }, when: { decode: false } };
}
