import { checkArray } from "../check.js";
import { invalidArgument } from "../errors.js";
import type { DraftMethod } from "./drafter.js";

export const method: DraftMethod = {
  recipe: "routeSmallLarge",
  paper: "R2R",
  arxiv: "2505.21600",
  summary: "the rule that picks the large model's token where a router's score, or the small model's entropy, says that paths diverge",
};

/** What tells where paths diverge: a router's logits f32 `[tokens]`, or the small model's logits f32 `[tokens, vocabulary]`. */
export type RouteBy = { readonly score: Float32Array } | { readonly logits: Float32Array };

export interface Routed {
  /** f32 `[tokens]`: σ(score), or the entropy of softmax(logits) in nats. */
  readonly divergence: Float32Array;
  /** u8 `[tokens]`: 1 where divergence ≥ threshold. */
  readonly useLarge: Uint8Array;
  readonly tokens: Int32Array;
}

/** Entropy in nats of softmax(logits). */
function entropy(logits: Float32Array): number {
  const largest = logits.reduce((most, x) => Math.max(most, x), -Infinity);
  let total = 0, weighted = 0;
  for (const x of logits) {
    const weight = Math.exp(x - largest);
    total += weight;
    if (weight > 0) weighted += weight * (x - largest);
  }
  return Math.log(total) - weighted / total;
}

/** R2R's rule (arXiv 2505.21600): the small model's token, or the large one's where the divergence reaches `threshold`. */
export function routeSmallLarge(small: Int32Array, large: Int32Array, by: RouteBy, threshold: number): Routed {
  checkArray("small", small, Int32Array);
  checkArray("large", large, Int32Array);
  const values = typeof by === "object" && by !== null ? ("score" in by ? by.score : by.logits) : undefined, n = small.length;
  if (!(values instanceof Float32Array)) throw invalidArgument("by", "{ score } or { logits } of a Float32Array", by);
  if (large.length !== n) throw invalidArgument("large", `${n} tokens`, large);
  if (typeof threshold !== "number" || Number.isNaN(threshold)) throw invalidArgument("threshold", "a number", threshold);
  const divergence = new Float32Array(n);
  if ("score" in by) {
    if (by.score.length !== n) throw invalidArgument("by.score", `${n} numbers`, by.score);
    for (let i = 0; i < n; i++) divergence[i] = 1 / (1 + Math.exp(-by.score[i]!));
  } else {
    const width = by.logits.length / Math.max(n, 1);
    if (!Number.isInteger(width)) throw invalidArgument("by.logits", `${n} rows`, by.logits);
    for (let i = 0; i < n; i++) divergence[i] = entropy(by.logits.subarray(i * width, (i + 1) * width));
  }
  const useLarge = Uint8Array.from(divergence, (value) => Number(value >= threshold));
  return { divergence, useLarge, tokens: small.map((token, i) => (useLarge[i] ? large[i]! : token)) };
}
