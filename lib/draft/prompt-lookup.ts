import { invalidArgument } from "../errors.js";
import { integer, optionsObject, tokenIds } from "./check.js";
import { baselines, type Drafter, type DraftMethod, type DraftState } from "./drafter.js";
import { DraftTree } from "./tree.js";

export const method: DraftMethod = {
  recipe: "promptLookup",
  paper: baselines,
  arxiv: "2304.04487",
  summary: "a chain: what followed the last n-gram where it stood before",
};

export interface PromptLookupOptions {
  /** Longest n-gram looked for, first. Default 3. */
  readonly maxNgram?: number;
  /** Shortest. Default 1. */
  readonly minNgram?: number;
  /** Most tokens drafted. Default 10. */
  readonly numTokens?: number;
  /** Which of several matches. Default "last". */
  readonly pick?: "first" | "last";
}

export interface PromptLookupMatch {
  readonly draft: readonly number[];
  /** Where the draft begins; −1 for none. */
  readonly start: number;
  /** Length of the matched n-gram; 0 for none. */
  readonly ngram: number;
}

function checked(options: PromptLookupOptions | undefined): Required<PromptLookupOptions> {
  const { pick = "last", ...o } = optionsObject(options);
  if (pick !== "first" && pick !== "last") throw invalidArgument("options.pick", "'first' or 'last'", pick);
  const maxNgram = integer("options.maxNgram", o.maxNgram, 3, 1, 64);
  return { maxNgram, minNgram: integer("options.minNgram", o.minNgram, 1, 1, maxNgram), numTokens: integer("options.numTokens", o.numTokens, 10, 1, 1023), pick };
}

/** Where tokens[s … s + g) are the last g tokens, s + g < length; −1 for none. */
function findMatch(tokens: ArrayLike<number>, g: number, pick: "first" | "last"): number {
  const length = tokens.length, step = pick === "first" ? 1 : -1, end = pick === "first" ? length - g : -1;
  for (let s = pick === "first" ? 0 : length - g - 1; s !== end; s += step) {
    let same = 0;
    while (same < g && tokens[s + g - 1 - same] === tokens[length - 1 - same]) same++;
    if (same === g) return s;
  }
  return -1;
}

function lookUp(tokens: ArrayLike<number>, { maxNgram, minNgram, numTokens, pick }: Required<PromptLookupOptions>): PromptLookupMatch {
  for (let g = Math.min(maxNgram, tokens.length - 1); g >= minNgram; g--) {
    const at = findMatch(tokens, g, pick);
    if (at < 0) continue;
    const start = at + g, draft: number[] = [];
    for (let i = start; i < Math.min(start + numTokens, tokens.length); i++) draft.push(tokens[i]!);
    return { draft, start, ngram: g };
  }
  return { draft: [], start: -1, ngram: 0 };
}

/**
 * The tokens that followed the last n-gram where it stood before: the longest n-gram from maxNgram down to minNgram that is
 * found, overlap allowed (apoorvumang/prompt-lookup-decoding).
 */
export function lookupPrompt(tokens: readonly number[] | Int32Array, options?: PromptLookupOptions): PromptLookupMatch {
  return lookUp(tokenIds("tokens", tokens), checked(options));
}

/** How likely the token behind a match is, the drafted tokens before it counted; only a start: see draft/size.ts. */
const likelihood = (match: number): number => 1 - 0.75 / Math.min(match, 40) ** 0.9;

/** Drafts by looking the last words up in the prompt and the text so far: free, and good where the text quotes itself. */
export function promptLookup(options?: PromptLookupOptions): Drafter {
  const { numTokens, ...rest } = checked(options);
  const propose = (tokens: readonly number[], nodes: number): DraftTree => {
    const { draft, ngram } = lookUp(tokens, { ...rest, numTokens: Math.min(numTokens, nodes - 1) }), probabilities = new Float32Array(draft.length + 1).fill(1);
    for (let i = 0; i < draft.length; i++) probabilities[i + 1] = probabilities[i]! * likelihood(ngram + i);
    return DraftTree.chain([tokens.at(-1)!, ...draft], probabilities);
  };
  const state: DraftState = { topTokens: 0, stateBytes: 0, propose, learn: () => undefined, rewind: () => undefined, [Symbol.dispose]: () => undefined };
  return { name: method.recipe, open: () => state };
}
