import { checkOptionsObject } from "../check.js";
import { invalidArgument } from "../errors.js";
import { checkChoice, checkInteger, checkPolicy, type CachePolicy, type Observation } from "./policy.js";

/** One observation that serves both, as far as there is one. */
function bothObserve(a: CachePolicy, b: CachePolicy): Observation {
  if (a.observe.kind === "none") return b.observe;
  if (b.observe.kind === "none" || JSON.stringify(a.observe) === JSON.stringify(b.observe)) return a.observe;
  throw invalidArgument("policies", `policies that observe the same, as ${a.name} and ${b.name} do not,`, b.observe);
}

/** Another policy for each layer: layer l of a model has policies[min(l, last)], or what a function of (layer, layers) returns of them. */
export function perLayer(policies: readonly CachePolicy[], choose: (layer: number, layers: number) => number = (layer) => Math.min(layer, policies.length - 1)): CachePolicy {
  if (!Array.isArray(policies) || policies.length === 0) throw invalidArgument("policies", "an array of cache policies", policies);
  policies.forEach((policy: CachePolicy, i) => checkPolicy(`policies[${i}]`, policy));
  const all = policies as readonly CachePolicy[];
  const layerPolicy = (layer: number, layers: number): CachePolicy => {
    const index = choose(layer, layers);
    if (!Number.isInteger(index) || !all[index]) throw invalidArgument("choose", `an index below ${all.length}`, index);
    return all[index];
  };
  return {
    name: `perLayer(${all.map(({ name }) => name).join(", ")})`,
    observe: all.slice(1).reduce((observe, policy) => bothObserve({ ...policy, name: all[0]!.name, observe }, policy), all[0]!.observe),
    allocate: (shape) => Array.from({ length: shape.layers }, (_, layer) => layerPolicy(layer, shape.layers).allocate(shape)[layer]!),
    protect: all[0]!.protect,
    when: { decode: all.every(({ when }) => when.decode) },
    rerotate: all.some(({ rerotate }) => rerotate),
    layerPolicy,
  };
}

/** The policy, with at least these tokens protected at the start and end, within its budget. */
export function protect(policy: CachePolicy, options: { readonly first?: number; readonly last?: number } = {}): CachePolicy {
  checkPolicy("policy", policy);
  checkOptionsObject(options);
  const { first = 0, last = 0 } = options;
  checkInteger("options.first", first, 0);
  checkInteger("options.last", last, 0);
  const inner = policy.layerPolicy?.bind(policy);
  return {
    ...policy,
    name: `protect(${policy.name})`,
    protect(budget) {
      const own = policy.protect(budget);
      return { first: Math.max(first, own.first), last: Math.max(last, own.last) };
    },
    ...(inner && { layerPolicy: (layer, layers) => protect(inner(layer, layers), { first, last }) }),
  };
}

/** The policy (none: everything stays), and pages before each head's last `recent` tokens are converted to int8 or int4 (arXiv 2402.02750). */
export function quantizeBeyond(policy: CachePolicy | undefined, options: { readonly recent: number; readonly type: "int8" | "int4" }): CachePolicy {
  if (policy !== undefined) checkPolicy("policy", policy);
  checkOptionsObject(options, "an object with recent and type");
  const quantize = { recent: checkInteger("options.recent", options.recent, 0), type: checkChoice("options.type", options.type, ["int8", "int4"]), alone: policy === undefined };
  if (policy) return { ...policy, name: `quantizeBeyond(${policy.name})`, quantize };
  return {
    name: "quantizeBeyond", observe: { kind: "none" }, allocate: ({ layers, tokens }) => new Array<number>(layers).fill(tokens), protect: () => ({ first: 0, last: 0 }),
    when: { decode: true }, rerotate: false, quantize,
  };
}
