import { DraftTree } from "./tree.js";

/** Half a unit of log-odds each, from −5 to 5. */
const bins = 21;
/** How many trials a drafter's own estimate counts for. */
const priorTrials = 4;
/** What a step leaves of the counts: after some hundred steps without trials an estimate is back at the drafter's own. */
const memory = 0.993;

function binOf(probability: number): number {
  const odds = Math.log(probability / (1 - probability)) * 2;
  return Math.round(Math.min(Math.max(odds, -10), 10)) + 10;
}

/**
 * Learns what a drafter's probabilities are worth. A child of an accepted node is a trial of its conditional probability, whether
 * or not it was verified: the tokens that came tell. So a drafter whose trees do not pay is still measured, at no cost.
 */
export class Calibration {
  private readonly hits = new Float64Array(bins);
  private readonly trials = new Float64Array(bins);

  /** A drafter's conditional probability of a child, corrected. */
  conditional(probability: number): number {
    if (!(probability > 0)) return 0;
    const bin = binOf(Math.min(probability, 1));
    return (this.hits[bin]! + priorTrials * Math.min(probability, 1)) / (this.trials[bin]! + priorTrials);
  }

  /** The tree with its probabilities corrected. */
  correct(tree: DraftTree): DraftTree {
    const corrected = new Float32Array(tree.size);
    corrected[0] = 1;
    for (let i = 1; i < tree.size; i++) {
      const parent = tree.parents[i]!;
      corrected[i] = corrected[parent]! * this.conditional(tree.probabilities[i]! / tree.probabilities[parent]!);
    }
    return new DraftTree(tree.tokens, tree.parents, corrected).consistent();
  }

  /** A child of this conditional probability was right, or was not. */
  trial(probability: number, hit: boolean): void {
    const bin = binOf(Math.min(probability, 1));
    this.trials[bin]!++;
    if (hit) this.hits[bin]!++;
  }

  /** Called at each step, so that old trials count for less. */
  fade(): void {
    for (let bin = 0; bin < bins; bin++) {
      this.hits[bin]! *= memory;
      this.trials[bin]! *= memory;
    }
  }

  /** `tokens` came behind the tree's root: its children, then the children of the one that was right, and so on are trials. */
  observe(tree: DraftTree, tokens: ArrayLike<number>): void {
    this.fade();
    for (let node = 0, depth = 0; node >= 0 && depth < tokens.length; depth++) {
      let right = -1;
      for (let i = node + 1; i < tree.size; i++) {
        if (tree.parents[i] !== node) continue;
        const hit = tree.tokens[i] === tokens[depth];
        this.trial(tree.probabilities[i]! / tree.probabilities[node]!, hit);
        if (hit && right < 0) right = i;
      }
      node = right;
    }
  }
}
