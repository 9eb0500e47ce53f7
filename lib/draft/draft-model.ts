import { numberOption } from "../check.js";
import { ArgumentError, invalidArgument } from "../errors.js";
import { commonLength } from "./common.js";
import { integer, optionsObject } from "./check.js";
import { baselines, type Drafter, type DraftMethod, type DraftState, type TopTokens } from "./drafter.js";
import { TreeBuilder, type DraftTree } from "./tree.js";

export const method: DraftMethod = {
  recipe: "draftModel",
  paper: baselines,
  arxiv: "2211.17192",
  summary: "a smaller model of the same tokenizer writes ahead; its runners-up are leaves beside its own choice",
};

/** A text of the drafting model with a cache of its own. */
export interface DraftText extends Disposable {
  readonly tokens: readonly number[];
  keepFirst(count: number): void;
  /** Appends `tokens`, computes all of the text, and gives the k likeliest next tokens. The text does not grow by them. */
  next(tokens: readonly number[], k: number): Promise<TopTokens>;
  readonly bytes: number;
}

/** What drafting needs of a model; a LanguageModel is one. */
export interface DraftingModel {
  readonly config: { readonly vocabulary: number };
  readonly contextLength: number;
  tokenize(text: string): number[];
  detokenize(ids: readonly number[], options?: { readonly special?: boolean }): string;
  draftText(): DraftText;
}

export interface DraftModelOptions {
  /** Most tokens written ahead. Default 8. */
  readonly numTokens?: number;
  /** Candidates at each position, 1 … 8: 1 drafts a line, more a tree with leaves. Default 3. */
  readonly branches?: number;
  /** Stops where the drafted text is less likely than this to be right. Default 0.2. */
  readonly leastProbability?: number;
}

const probe = "The quick brown fox, 1234 ÄÖÜ 你好\n\tif (x != 0) { return \"draft\"; }";

/** Throws ArgumentError where token ids of the two models do not mean the same. */
export function expectSameTokenizer(draft: DraftingModel, target: DraftingModel): void {
  const same = draft.config.vocabulary === target.config.vocabulary && draft.tokenize(probe).join() === target.tokenize(probe).join();
  const piece = (model: DraftingModel, id: number): string => model.detokenize([id], { special: true });
  for (let id = 0; same && id < target.config.vocabulary; id += 101) if (piece(draft, id) !== piece(target, id)) throw new ArgumentError("model", `Expected a draft model of the same tokenizer but token ${id} differs`);
  if (!same) throw new ArgumentError("model", `Expected a draft model of the same tokenizer (${target.config.vocabulary} tokens) but its tokens differ (${draft.config.vocabulary})`);
}

/** Lets a smaller model with the same tokenizer write ahead (arXiv 2211.17192, 2302.01318). The model stays the caller's. */
export function draftModel(model: DraftingModel, options?: DraftModelOptions): Drafter {
  if (typeof (model as { draftText?: unknown } | null)?.draftText !== "function") throw invalidArgument("model", "a language model", model);
  const o = optionsObject(options), numTokens = integer("options.numTokens", o.numTokens, 8, 1, 63), branches = integer("options.branches", o.branches, 3, 1, 8);
  const leastProbability = numberOption("options.leastProbability", o.leastProbability, 0.2, 0, 1);
  return {
    name: method.recipe,
    open({ model: target }): DraftState {
      if (target) expectSameTokenizer(model, target);
      const text = model.draftText();
      return {
        topTokens: 0,
        get stateBytes() {
          return text.bytes;
        },
        propose: (tokens, nodes) => write(text, tokens, Math.min(numTokens, nodes - 1, model.contextLength - tokens.length - 1), nodes, branches, leastProbability),
        learn: () => undefined,
        rewind: (length) => text.keepFirst(Math.min(length, text.tokens.length)),
        [Symbol.dispose]: () => text[Symbol.dispose](),
      };
    },
  };
}

async function write(text: DraftText, tokens: readonly number[], depth: number, nodes: number, branches: number, least: number): Promise<DraftTree> {
  text.keepFirst(Math.min(commonLength(text.tokens, tokens), tokens.length - 1));
  const builder = new TreeBuilder(tokens.at(-1)!);
  let append = tokens.slice(text.tokens.length), parent = 0;
  for (let level = 0; level < depth && builder.probabilities[parent]! >= least; level++) {
    const { k, indices, values, logSumExp } = await text.next(append, branches);
    let best = parent;
    for (let rank = 0; rank < k && builder.size < nodes; rank++) {
      const node = builder.append(parent, indices[rank]!, builder.probabilities[parent]! * Math.exp(values[rank]! - logSumExp[0]!));
      if (rank === 0) best = node;
    }
    if (best === parent) break;
    parent = best;
    append = [builder.tokens[best]!];
  }
  return builder.finish(nodes);
}
