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

/** Drafts of one session: what to propose, how much of it to verify, what was learnt. */
export class Speculation implements Disposable {
  readonly state: DraftState;
  private size: TreeSize | undefined;
  private counts = { steps: 0, nodes: 0, tokens: 0, draftMs: 0, forwardMs: 0 };

  constructor(private readonly model: LanguageModel, drafter: Drafter, private readonly nodes: number | undefined, private readonly threads: number) {
    this.state = drafter.open({ vocabulary: model.config.vocabulary, model });
  }

  /** Forgets the figures of the last generation; measures the cost of trees where that has not been done. */
  async start(): Promise<void> {
    this.counts = { steps: 0, nodes: 0, tokens: 0, draftMs: 0, forwardMs: 0 };
    if (this.nodes === undefined) this.size ??= new TreeSize(await this.model.draftCosts(this.threads));
  }

  /** What to verify next, behind `tokens`, at most `depth` drafts deep; `proposed` is all that came to mind. */
  async propose(tokens: readonly number[], depth: number): Promise<{ proposed: DraftTree; tree: DraftTree }> {
    const started = performance.now(), most = Math.min(this.nodes ?? this.size!.most, draftNodes);
    let proposed = most > 1 && depth > 0 ? await this.state.propose(tokens, most) : DraftTree.chain([tokens.at(-1)!]);
    proposed = proposed.shallow(depth);
    const tree = this.size ? this.size.fit(proposed) : proposed.best(most);
    this.counts.draftMs += performance.now() - started;
    return { proposed, tree };
  }

  learn(proposed: DraftTree, draft: VerifiedDraft, forwardMs: number): void {
    const started = performance.now(), { counts } = this;
    this.size?.observe(proposed, draft.tree.size, draft.accepted);
    this.state.learn(draft);
    counts.steps++;
    counts.nodes += draft.tree.size;
    counts.tokens += draft.accepted.length;
    counts.forwardMs += forwardMs;
    counts.draftMs += performance.now() - started;
  }

  statistics(): DraftStatistics {
    const { steps, nodes, tokens, draftMs, forwardMs } = this.counts, each = Math.max(1, steps);
    return { steps, nodesPerStep: nodes / each, tokensPerStep: tokens / each, draftMs, forwardMs, stateBytes: this.state.stateBytes };
  }

  [Symbol.dispose](): void {
    this.state[Symbol.dispose]();
  }
}

const measuredNodes = [1, 2, 4, 8, 12, 16, 24, 32, 48, draftNodes], measuredPast = 64, rounds = 3;

/** Best of a few steps over trees of some sizes, straight lines in between. */
export async function measureDraftCosts(model: LanguageModel, threads: number): Promise<Float64Array> {
  using sequence = new Sequence(model, threads);
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
  return costs;
}
