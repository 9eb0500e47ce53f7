import { invalidArgument } from "../errors.js";
import { Calibration } from "./calibration.js";
import type { DraftTree } from "./tree.js";

/** What a step may cost above plain decoding over the long run, and how many steps of loss may be run up at once. */
const guard = 0.02, firstCredit = 1, mostCredit = 8;
/** What a step leaves of the running throughput. */
const memory = 0.98;

/**
 * How much of a tree to verify. The expected tokens of n nodes are 1 + Σ p over the n − 1 likeliest, their cost is measured; of all
 * n the one that gains most over the throughput of late is taken, 1 (no drafting) where none gains. Every step pays into or
 * draws on a credit, so that in the worst case N tokens cost no more than 1.02 · N + 1 plain steps; credit from a good stretch can
 * lose 8 more. Deterministic in its inputs. Trees need not be verified to be observed, so nothing has to be tried out.
 */
export class TreeSize {
  private readonly costs: Float64Array;
  private readonly calibration = new Calibration();
  private credit = firstCredit;
  /** Nodes asked for: twice what paid of late, so that larger trees get their chance. */
  private reach = 16;
  private tokens = 1;
  private cost = 1;

  /** @param costs costs[n − 1]: time of a step of n nodes ÷ time of a step of one, n = 1 …; costs[0] is 1. */
  constructor(costs: ArrayLike<number>) {
    if (costs.length < 1 || costs[0] !== 1) throw invalidArgument("costs", "costs by number of nodes, the first 1", costs);
    let most = 0;
    this.costs = Float64Array.from(costs, (cost, i) => {
      if (!(cost > 0 && cost < Infinity)) throw invalidArgument(`costs[${i}]`, "a positive number", cost);
      return (most = Math.max(most, cost)); // a larger tree is never cheaper: that would be noise of the measurement
    });
  }

  /** How many nodes to propose. */
  get most(): number {
    return Math.min(this.costs.length, Math.ceil(this.reach));
  }

  /** What a step of n nodes costs, in plain steps. */
  costOf(nodes: number): number {
    return this.costs[nodes - 1] ?? this.costs.at(-1)!;
  }

  /** Tokens per plain step's time of late. */
  get throughput(): number {
    return this.tokens / this.cost;
  }

  /** The part of `tree` that pays: its likeliest nodes, the root at least. */
  fit(tree: DraftTree): DraftTree {
    const corrected = this.calibration.correct(tree), falling = corrected.probabilities.slice(1).sort().reverse(), rate = Math.max(1, this.throughput);
    let best = 1, bestGain = 0, tokens = 0;
    for (let n = 2; n <= Math.min(tree.size, this.costs.length); n++) {
      tokens += falling[n - 2]!;
      if (this.credit + 1 + guard < this.costs[n - 1]!) break;
      const gain = tokens - rate * (this.costs[n - 1]! - 1);
      if (gain > bestGain) [best, bestGain] = [n, gain];
    }
    return corrected.best(best);
  }

  /** `proposed` is the whole tree, `verified` how many of its nodes fit() left, `accepted` the tokens that came. */
  observe(proposed: DraftTree, verified: number, accepted: ArrayLike<number>): void {
    const cost = this.costOf(verified);
    this.calibration.observe(proposed, accepted);
    this.credit = Math.min(mostCredit, this.credit + (1 + guard) * accepted.length - cost);
    this.tokens = this.tokens * memory + accepted.length;
    this.cost = this.cost * memory + cost;
    this.reach = Math.max(8, 2 * verified, this.reach * memory);
  }
}
