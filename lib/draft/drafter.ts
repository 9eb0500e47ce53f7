/**
 * How drafting fits into a generation. A Drafter is what a user names in the session's options; the session opens one state of it.
 * Each step that drafts, with `tokens` all the tokens it holds (the last one decided but not cached yet):
 *
 *   1. `tree = state.propose(tokens, most)`, and `tree = size.fit(tree)` of draft/size.ts: how much of it pays;
 *   2. one forward pass over tree.tokens at tree.positions(cached), each node seeing the cache and its ancestors (treeMask or
 *      tree.ancestors()), that ends with verifyTree of ops/draft.ts and, where state.topTokens > 0, with topK on all rows;
 *   3. the rows of `path` stay in the cache, the `accepted` tokens join the text;
 *   4. `size.observe(proposed, accepted)` and `state.learn({ tree, path, accepted, top })`.
 *
 * The text never depends on what is proposed: see verifyTree. After an error between 1 and 4 nothing was learnt, and nothing
 * has to be undone.
 */
import type { DraftingModel } from "./draft-model.js";
import type { DraftTree } from "./tree.js";

/** The k largest logits of each node of the verified tree, as the topK op gives them. */
export interface TopTokens {
  readonly k: number;
  /** i32 `[n, k]`, largest first. */
  readonly indices: Int32Array;
  /** f32 `[n, k]`. */
  readonly values: Float32Array;
  /** f32 `[n]`. */
  readonly logSumExp: Float32Array;
}

/** What came of a proposal. */
export interface DraftStep {
  /** The tree that was verified: what was proposed, or the part of it that pays. */
  readonly tree: DraftTree;
  /** Accepted nodes, root first. */
  readonly path: Int32Array;
  /** The token drawn at each of them: the accepted drafts, then one more. */
  readonly accepted: Int32Array;
  /** Where the state asks for them. */
  readonly top?: TopTokens | undefined;
}

export interface DraftState extends Disposable {
  /** How many of the largest logits of each node learn() wants; 0 for none. */
  readonly topTokens: number;
  /** Bytes held at present for what was learnt. */
  readonly stateBytes: number;
  /** A tree of at most `nodes` nodes whose root is the last of `tokens`; the root alone where nothing comes to mind. */
  propose(tokens: readonly number[], nodes: number): DraftTree | Promise<DraftTree>;
  /** Called after each step that was preceded by propose(), once the accepted tokens have joined the text. Where drafts do not pay, steps pass without either. */
  learn(step: DraftStep): void;
  /** The session gave back all but the first `length` tokens. What was learnt from them may stay. */
  rewind(length: number): void;
}

export interface DraftContext {
  /** The model that writes the text, where there is one. */
  readonly model?: DraftingModel | undefined;
  /** Token ids are 0 … vocabulary − 1. */
  readonly vocabulary: number;
}

/** A way of guessing tokens ahead; made by tokenRecycling(), promptLookup() … */
export interface Drafter {
  readonly name: string;
  open(context: DraftContext): DraftState;
}

/** The row of docs/methods.json that the field's usual drafters share. */
export const baselines = "Baselines of the field: prompt lookup, suffix lookup, draft-model tree, EAGLE-2 dynamic tree, lookahead";

/** Which paper a drafter follows: docs/methods.md is made from it. */
export interface DraftMethod {
  readonly recipe: string;
  /** The row of docs/methods.json. */
  readonly paper: string;
  readonly arxiv: string;
  readonly summary: string;
}
