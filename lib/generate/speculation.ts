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

/** Steps after which a drafter that took more time than it saved is asked again: doubled each time, up to the second number. */
const firstPause = 8, mostPause = 256;
/** How much of a plain step's time drafting may lose, on average, before it pauses. */
const tolerated = 0.01;

/** Whether asking the drafter pays for the time it takes itself: TreeSize only knows what forward passes cost. */
class Patience {
  private gain = 0;
  private asked = 0;
  private pause = firstPause;
  private left = 0;

  /** Whether to ask now. */
  ask(): boolean {
    return this.left === 0 || --this.left === 0;
  }

  /** `gain`: plain steps saved by the last proposal, its own time taken off. */
  observe(gain: number): void {
    this.gain = this.asked++ === 0 ? gain : 0.8 * this.gain + 0.2 * gain;
    if (this.gain > 0) this.pause = firstPause;
    if (this.asked < 4 || this.gain >= -tolerated) return;
    this.left = this.pause;
    this.pause = Math.min(2 * this.pause, mostPause);
    this.asked = 0;
  }
}

/** Drafts of one session: what to propose, how much of it to verify, what was learnt. */
export class Speculation implements Disposable {
  readonly state: DraftState;
  private size: TreeSize | undefined;
  private readonly patience = new Patience();
  private plainMs = 0;
  private lastDraftMs: number | undefined;
  private counts = { steps: 0, nodes: 0, tokens: 0, draftMs: 0, forwardMs: 0 };

  constructor(private readonly model: LanguageModel, drafter: Drafter, private readonly nodes: number | undefined, private readonly threads: number) {
    this.state = drafter.open({ vocabulary: model.config.vocabulary, model });
  }

  /** Forgets the figures of the last generation; measures the cost of trees where that has not been done. */
  async start(): Promise<void> {
    this.counts = { steps: 0, nodes: 0, tokens: 0, draftMs: 0, forwardMs: 0 };
    if (this.nodes === undefined) this.size ??= new TreeSize(await this.model.draftCosts(this.threads));
  }

  /** What to verify next, behind `tokens`; `proposed` is all that came to mind. `allowed` says how deep a tree of some depth may be. */
  async propose(tokens: readonly number[], allowed: (depth: number) => number): Promise<{ proposed: DraftTree; tree: DraftTree }> {
    const started = performance.now(), most = Math.min(this.nodes ?? this.size!.most, draftNodes);
    const asked = most > 1 && allowed(1) > 0 && (this.nodes !== undefined || this.patience.ask());
    let proposed = asked ? await this.state.propose(tokens, most) : DraftTree.chain([tokens.at(-1)!]);
    proposed = proposed.shallow(allowed(proposed.depths.at(-1)!)); // breadth first: the last node is the deepest
    const tree = this.size ? this.size.fit(proposed) : proposed.best(most);
    const took = performance.now() - started;
    this.lastDraftMs = asked ? took : undefined;
    this.counts.draftMs += took;
    return { proposed, tree };
  }

  learn(proposed: DraftTree, draft: VerifiedDraft, forwardMs: number): void {
    const started = performance.now(), { counts } = this;
    this.size?.observe(proposed, draft.tree.size, draft.accepted);
    this.state.learn(draft);
    this.weigh(draft, forwardMs);
    counts.steps++;
    counts.nodes += draft.tree.size;
    counts.tokens += draft.accepted.length;
    counts.forwardMs += forwardMs;
    counts.draftMs += performance.now() - started;
  }

  private weigh({ tree, accepted }: VerifiedDraft, forwardMs: number): void {
    if (!this.size) return;
    const cost = this.size.costOf(tree.size), plain = forwardMs / cost;
    this.plainMs = this.plainMs === 0 ? plain : 0.9 * this.plainMs + 0.1 * plain;
    if (this.lastDraftMs !== undefined) this.patience.observe(accepted.length - cost - this.lastDraftMs / this.plainMs);
  }

  statistics(): DraftStatistics {
    const { steps, nodes, tokens, draftMs, forwardMs } = this.counts, each = Math.max(1, steps);
    return { steps, nodesPerStep: nodes / each, tokensPerStep: tokens / each, draftMs, forwardMs, stateBytes: this.state.stateBytes };
  }

  [Symbol.dispose](): void {
    this.state[Symbol.dispose]();
  }
}

const measuredNodes = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32], measuredPast = 64, rounds = 6;

/** Best of a few steps over trees of some sizes, straight lines in between and beyond: another load of the machine is not to count. */
export async function measureDraftCosts(model: LanguageModel, threads: number): Promise<Float64Array> {
  using sequence = new Sequence(model, { threads });
  const options = checkOptions({ temperature: 0, seed: 0 });
  for (let i = 0; i < Math.min(measuredPast, model.contextLength - 2); i++) sequence.tokens.push(i % model.config.vocabulary);
  await sequence.step(options);
  const best = new Map(measuredNodes.map((nodes) => [nodes, Infinity])), kept = sequence.tokens.length;
  for (let round = 0; round < rounds; round++) {
    for (const nodes of measuredNodes) {
      // A root and its children: the deepest accepted path is short, and the shape does not change the cost.
      const tree = new DraftTree(Int32Array.from({ length: nodes }, (_, i) => (i === 0 ? sequence.tokens.at(-1)! : (i * 7) % model.config.vocabulary)), Int32Array.from({ length: nodes }, (_, i) => (i === 0 ? -1 : 0)));
      const started = performance.now();
      await sequence.draftStep(tree, options, 0);
      best.set(nodes, Math.min(best.get(nodes)!, performance.now() - started));
      sequence.keepFirst(kept);
    }
  }
  const one = best.get(1)!, costs = new Float64Array(draftNodes);
  measuredNodes.forEach((high, i) => {
    const low = measuredNodes[i - 1] ?? 0, from = best.get(low) ?? one, to = best.get(high)!;
    for (let n = low + 1; n <= high; n++) costs[n - 1] = (from + ((to - from) * (n - low)) / (high - low)) / one;
  });
  costs[0] = 1;
  const [before, largest] = measuredNodes.slice(-2) as [number, number], slope = (costs[largest - 1]! - costs[before - 1]!) / (largest - before);
  for (let n = largest + 1; n <= draftNodes; n++) costs[n - 1] = costs[largest - 1]! + slope * (n - largest);
  return costs;
}
