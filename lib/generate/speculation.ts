import type { Drafter, DraftState, TopTokens } from "../draft/drafter.js";
import { TreeSize } from "../draft/size.js";
import { DraftTree } from "../draft/tree.js";
import type { LanguageModel } from "./model.js";
import { checkOptions } from "./options.js";
import { Sequence } from "./sequence.js";

/** Nodes of a draft tree that a step takes at most, root included. */
export const draftNodes = 64;

/** What drafting did in a generation. */
export interface DraftStatistics {
  /** Forward passes, those without drafts included; the first, which comes with the prompt, is not counted. */
  readonly steps: number;
  /** Nodes computed, root included, a step. */
  readonly nodesPerStep: number;
  /** Tokens that came of a step: 1 without a single accepted draft. */
  readonly tokensPerStep: number;
  /** Time in which drafts were made and learnt from. */
  readonly draftMs: number;
  /** Time of forward passes; verification is their last part. */
  readonly forwardMs: number;
  /** Bytes held for what was learnt. */
  readonly stateBytes: number;
}

/** What a verified tree came to, for learning and for pictures. */
export interface VerifiedDraft {
  readonly tree: DraftTree;
  readonly path: Int32Array;
  readonly accepted: Int32Array;
  readonly top?: TopTokens | undefined;
}

/** Steps without drafts after drafting has lost: doubled while it goes on losing, from the first number to the second. */
const firstPause = 8, mostPause = 32;
/** Plain steps that drafting may lose before it pauses, and what a good stretch sets aside for a bad one. */
const mostLoss = 3, mostSaved = 4;

/** Whether drafting pays, with all the time that it takes: TreeSize only weighs one tree against another. */
class Patience {
  private balance = 0;
  private pause = firstPause;
  private left = 0;

  /** Whether to draft now. */
  ask(): boolean {
    return this.left === 0 || --this.left === 0;
  }

  /** `gain`: plain steps saved by the last proposal, its own time taken off. */
  observe(gain: number): void {
    this.balance = Math.min(mostSaved, this.balance + gain);
    if (this.balance >= mostSaved) this.pause = firstPause;
    if (this.balance >= -mostLoss) return;
    this.left = this.pause;
    this.pause = Math.min(2 * this.pause, mostPause);
    this.balance = 0;
  }
}

/** What a drafter proposed, the part of it that pays, and how long it took. */
export interface Proposal {
  readonly proposed: DraftTree;
  readonly tree: DraftTree;
  readonly draftMs: number;
  /** The tree is its root alone, and nothing is to be learnt from its logits: a plain step does. */
  readonly plain: boolean;
}

/** Drafts of one session: what to propose, how much of it to verify, what was learnt. */
export class Speculation implements Disposable {
  readonly state: DraftState;
  private size: TreeSize | undefined;
  private readonly patience = new Patience();
  private rootCost = 1;
  /** Time of a plain step of late, 0 before the first one. */
  private plainMs = 0;
  private counts = { steps: 0, nodes: 0, tokens: 0, draftMs: 0, forwardMs: 0 };

  constructor(private readonly model: LanguageModel, drafter: Drafter, private readonly nodes: number | undefined, private readonly threads: number) {
    this.state = drafter.open({ vocabulary: model.config.vocabulary, model });
  }

  /** Forgets the figures of the last generation; measures the cost of trees where that has not been done. */
  async start(): Promise<void> {
    this.counts = { steps: 0, nodes: 0, tokens: 0, draftMs: 0, forwardMs: 0 };
    if (this.nodes !== undefined || this.size) return;
    const { root, trees } = await this.model.draftCosts(this.threads, this.state.topTokens);
    this.rootCost = root;
    this.size = new TreeSize(trees);
  }

  /**
   * What to verify next, behind `tokens`; `proposed` is all that came to mind. `allowed` says how deep a tree of some depth may be.
   * Undefined: a plain step, as drafts do not pay at present, or there are none and nothing to be learnt without them.
   */
  async propose(tokens: readonly number[], allowed: (depth: number) => number): Promise<Proposal | undefined> {
    const started = performance.now(), { size, state } = this, most = Math.min(this.nodes ?? size!.most, draftNodes);
    if (size && !this.patience.ask()) return undefined;
    let proposed = most > 1 && allowed(1) > 0 ? await state.propose(tokens, most) : DraftTree.chain([tokens.at(-1)!]);
    proposed = proposed.shallow(allowed(proposed.depths.at(-1)!)); // breadth first: the last node is the deepest
    const tree = size ? size.fit(proposed) : proposed.best(most), draftMs = performance.now() - started;
    this.counts.draftMs += draftMs;
    return { proposed, tree, draftMs, plain: tree.size === 1 && state.topTokens === 0 };
  }

  /** After a step over `proposal.tree`, or a plain one in its place. */
  learn({ proposed, draftMs, plain }: Proposal, draft: VerifiedDraft, forwardMs: number): void {
    const started = performance.now(), { size } = this, { tree, accepted } = draft;
    size?.observe(proposed, tree.size, accepted);
    this.state.learn(draft);
    const learnMs = performance.now() - started;
    this.counts.draftMs += learnMs;
    this.count(tree.size, accepted.length, forwardMs);
    if (!size) return;
    const expected = (plain ? 1 : this.rootCost) * size.costOf(tree.size);
    if (tree.size === 1) this.timePlain(forwardMs / expected);
    // What the step took tells of longer caches and other loads, within bounds: it may just have been held up.
    const plainMs = this.plainMs || forwardMs / expected, cost = Math.min(Math.max(forwardMs / plainMs, expected / 2), 2 * expected);
    this.patience.observe(accepted.length - cost - (draftMs + learnMs) / plainMs);
  }

  /** After a plain step without a proposal. */
  skip(forwardMs: number): void {
    this.timePlain(forwardMs);
    this.count(1, 1, forwardMs);
  }

  private timePlain(ms: number): void {
    this.plainMs = this.plainMs === 0 ? ms : 0.9 * this.plainMs + 0.1 * Math.min(ms, 2 * this.plainMs);
  }

  private count(nodes: number, tokens: number, forwardMs: number): void {
    this.counts.steps++;
    this.counts.nodes += nodes;
    this.counts.tokens += tokens;
    this.counts.forwardMs += forwardMs;
  }

  statistics(): DraftStatistics {
    const { steps, nodes, tokens, draftMs, forwardMs } = this.counts, each = Math.max(1, steps);
    return { steps, nodesPerStep: nodes / each, tokensPerStep: tokens / each, draftMs, forwardMs, stateBytes: this.state.stateBytes };
  }

  [Symbol.dispose](): void {
    this.state[Symbol.dispose]();
  }
}

const measuredNodes = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32], measuredPast = 256, rounds = 6;

/** What steps over draft trees cost, the `top` largest logits of each node kept. */
export interface DraftCosts {
  /** A step over a root alone, in plain steps: 1, or more where it is to be learnt from. */
  readonly root: number;
  /** trees[n − 1]: a step over n nodes, in steps over a root alone. */
  readonly trees: Float64Array;
}

/** Best of a few steps over trees of some sizes, straight lines in between and beyond: another load of the machine is not to count. */
export async function measureDraftCosts(model: LanguageModel, threads: number, top: number): Promise<DraftCosts> {
  using sequence = new Sequence(model, { threads });
  const options = checkOptions({ temperature: 0, seed: 0 });
  for (let i = 0; i < Math.min(measuredPast, model.contextLength - 2); i++) sequence.tokens.push(i % model.config.vocabulary);
  await sequence.step(options);
  const best = new Map<number, number>(), kept = sequence.tokens.length;
  const time = async (nodes: number, step: () => Promise<unknown>): Promise<void> => {
    const started = performance.now();
    await step();
    best.set(nodes, Math.min(best.get(nodes) ?? Infinity, performance.now() - started));
    sequence.keepFirst(kept);
    sequence.leaveLast();
  };
  for (let round = 0; round < rounds; round++) {
    await time(0, () => sequence.step(options));
    for (const nodes of measuredNodes) {
      // A root and its children: the deepest accepted path is short, and the shape does not change the cost.
      const tree = new DraftTree(Int32Array.from({ length: nodes }, (_, i) => (i === 0 ? sequence.tokens.at(-1)! : (i * 7) % model.config.vocabulary)), Int32Array.from({ length: nodes }, (_, i) => (i === 0 ? -1 : 0)));
      await time(nodes, () => sequence.draftStep(tree, options, top));
    }
  }
  const one = top === 0 ? best.get(0)! : Math.max(best.get(0)!, best.get(1)!), trees = new Float64Array(draftNodes);
  best.set(1, one); // without logits to learn from, a root alone takes a plain step
  measuredNodes.forEach((high, i) => {
    const low = measuredNodes[i - 1] ?? 0, to = best.get(high)!, from = best.get(low || high)!;
    for (let n = low + 1; n <= high; n++) trees[n - 1] = (from + ((to - from) * (n - low)) / (high - low)) / one;
  });
  const [before, largest] = measuredNodes.slice(-2) as [number, number], slope = (trees[largest - 1]! - trees[before - 1]!) / (largest - before);
  for (let n = largest + 1; n <= draftNodes; n++) trees[n - 1] = trees[largest - 1]! + slope * (n - largest);
  return { root: one / best.get(0)!, trees };
}
