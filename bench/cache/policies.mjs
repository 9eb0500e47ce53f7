// The policies that bench:cache compares, by the share of tokens that stays. Windows are 64 queries, as kvpress has them.
import { adaKV, expectedAttention, h2o, kNorm, keyDiff, pyramidKV, randomEviction, snapKV, streamingLlm, tova, valueNorm, vatp } from "tokenloom";

const window = 64;

/** name: [a policy of a budget or ratio, the press of kvpress that it is compared with]. */
export const policies = {
  streamingLlm: [(size) => streamingLlm(size)],
  "streamingLlm, rerotate: false": [(size) => streamingLlm({ ...size, rerotate: false }), "StreamingLLM"],
  h2o: [(size) => h2o(size)],
  vatp: [(size) => vatp(size)],
  tova: [(size) => tova(size), "TOVA"],
  snapKV: [(size) => snapKV({ ...size, window }), "SnapKV"],
  pyramidKV: [(size) => pyramidKV({ ...size, window }), "PyramidKV"],
  adaKV: [(size) => adaKV({ ...size, window })],
  kNorm: [(size) => kNorm(size), "Knorm"],
  keyDiff: [(size) => keyDiff(size)],
  expectedAttention: [(size) => expectedAttention(size), "ExpectedAttention"],
  valueNorm: [(size) => valueNorm(size)],
  randomEviction: [(size) => randomEviction({ ...size, seed: 1 })],
};

/** Shares of the tokens that stay. */
export const shares = [0.5, 0.25];

/** Every policy at every share, and the whole cache first: `{ name, share, policy, press }`. */
export function cuts() {
  const all = Object.entries(policies).flatMap(([name, [make, press]]) => shares.map((share) => ({ name, share, policy: make({ ratio: 1 - share }), press })));
  return [{ name: "all tokens", share: 1, policy: undefined, press: "none" }, ...all];
}
