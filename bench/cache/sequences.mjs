// Sequences that share one prefill: what the parts of bench:cache measure policies on.
import { checkOptions } from "#lib/generate/options.js";
import { Sequence } from "#lib/generate/sequence.js";

export const options = checkOptions({ temperature: 0, seed: 0 });

/** `ids` computed, observed as the policy wants it, not cut. */
export async function computed(model, ids, policy) {
  const sequence = new Sequence(model, { threads: model.threads, eviction: policy && model.eviction(policy) });
  sequence.tokens.push(...ids);
  await sequence.prefill(options, () => undefined);
  await sequence.step(options);
  sequence.tokens.pop();
  return sequence;
}

/** What a policy leaves of a sequence that was observed as it wants it; without a policy all. */
export async function cut(model, base, policy) {
  const sequence = base.fork(base.cached, { threads: model.threads, eviction: policy && model.eviction(policy) });
  await sequence.evictIfDue("prefill", options);
  return sequence;
}
