import { baselines, budgetOf, checkNumber, policy, type CachePolicy } from "./policy.js";
import { windowVotes, type SnapKVOptions } from "./snapkv.js";

export const method = { recipe: "pyramidKV", paper: baselines, arxiv: "2406.02069", summary: "SnapKV with budgets that fall from layer to layer" };

export type PyramidKVOptions = SnapKVOptions & {
  /** The last layers get about budget / beta; 20. */
  readonly beta?: number;
};

function halfEven(x: number): number {
  const rounded = Math.round(x);
  return Math.abs(x - Math.trunc(x)) === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
}

/** Budgets of all layers, `budget` on average, falling in equal steps; all the same where that does not fit the window or the tokens. */
export function pyramidBudgets({ layers, tokens, budget, window, beta }: { layers: number; tokens: number; budget: number; window: number; beta: number }): number[] {
  let low = budget / beta, high = 2 * budget - low;
  if (high >= tokens - window) {
    high = tokens - window;
    low = 2 * budget - high;
  }
  if (layers === 1 || !(tokens >= high && high >= low && low >= window)) return new Array<number>(layers).fill(Math.max(1, halfEven(budget)));
  return Array.from({ length: layers }, (_, layer) => halfEven(high - (layer * (high - low)) / (layers - 1)));
}

/** PyramidKV (arXiv 2406.02069): SnapKV's choice, more tokens in the first layers than in the last; `budget` is a layer's mean. */
export function pyramidKV(options: PyramidKVOptions): CachePolicy {
  const { window, ...votes } = windowVotes(options), { beta = 20 } = options ?? {};
  checkNumber("options.beta", beta, 1, Number.MAX_VALUE);
  const budget = budgetOf(options), { ratio } = options;
  return policy(options, {
    name: "pyramidKV",
    ...votes,
    // A ratio's mean need not be whole: kvpress rounds each layer's budget, not the mean.
    allocate: ({ layers, tokens }) => pyramidBudgets({ layers, tokens, budget: ratio === undefined ? budget(tokens) : tokens * (1 - ratio), window, beta }),
    when: { decode: false },
  });
}
