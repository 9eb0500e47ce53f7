import { invalidArgument } from "../errors.js";
import { integer, optionsObject, tokenIds } from "./check.js";
import { baselines, type Drafter, type DraftMethod, type DraftState } from "./drafter.js";
import { SuffixAutomaton, type SuffixMatch } from "./suffix-automaton.js";
import { TreeBuilder, type DraftTree } from "./tree.js";

export const method: DraftMethod = {
  recipe: "suffixLookup",
  paper: baselines,
  arxiv: "2411.04975, 2411.10666",
  summary: "what followed the longest suffix of the text where it stood before, in the text itself or in texts of the user, by a suffix automaton",
};

export interface SuffixLookupOptions {
  /** Shortest match that drafts. Default 1. */
  readonly minMatch?: number;
  /** Longer matches count as this long; of equally long ones the most recent wins. Default 16. */
  readonly maxMatch?: number;
  /** Most tokens drafted along one path. Default 16. */
  readonly numTokens?: number;
  /** Places looked at, longest match first; more than one makes a tree. Default 4. */
  readonly branches?: number;
  /** Texts to quote from, as token ids. They win where they match longer than the text itself. */
  readonly texts?: readonly (readonly number[] | Int32Array)[];
}

export interface SuffixLookupMatch {
  readonly draft: readonly number[];
  /** Position of the draft's first token in its text; −1 for none. */
  readonly start: number;
  /** Tokens that match; 0 for none. */
  readonly match: number;
  readonly fromCorpus: boolean;
}

/** Texts laid end to end, each behind a separator of its own that nothing matches. */
class Corpus {
  readonly tokens: Int32Array;
  readonly automaton = new SuffixAutomaton();

  constructor(tokens: readonly number[] | Int32Array) {
    this.tokens = Int32Array.from(tokens);
    this.automaton.build(this.tokens.map((token, i) => (token < 0 ? -1 - i : token)), (end) => end < this.tokens.length && this.tokens[end]! >= 0);
  }
}

interface Place extends SuffixMatch {
  readonly corpus: boolean;
}

/** The places of the text and of the corpus, kept in step with a growing text. */
class SuffixIndex {
  private own = new SuffixAutomaton();
  private found: SuffixMatch[] = [];
  private reader = { state: 0, length: 0 };

  constructor(private readonly corpus: Corpus | undefined, private readonly cap: number, private readonly most: number) {}

  get bytes(): number {
    return this.own.bytes;
  }

  get length(): number {
    return this.own.length;
  }

  append(token: number): void {
    this.found = this.own.append(token, this.cap, this.most);
    if (this.corpus) this.reader = this.corpus.automaton.step(this.reader.state, this.reader.length, token);
  }

  /** Longest match first; the text itself before the corpus where they match equally. */
  places(): Place[] {
    const own = this.found.map((match) => ({ ...match, corpus: false }));
    if (!this.corpus) return own;
    const quoted = this.corpus.automaton.matches(this.reader.state, this.reader.length, this.cap, this.most).map((match) => ({ ...match, corpus: true }));
    return [...own, ...quoted].sort((a, b) => b.length - a.length || Number(a.corpus) - Number(b.corpus));
  }

  /** The tokens behind a place, up to the end of its text. */
  continuation({ end, corpus }: Place, tokens: ArrayLike<number>, count: number): number[] {
    const text = corpus ? this.corpus!.tokens : tokens, draft: number[] = [];
    for (let i = end; i < Math.min(end + count, text.length) && text[i]! >= 0; i++) draft.push(text[i]!);
    return draft;
  }

  forget(): void {
    this.own = new SuffixAutomaton();
    this.found = [];
    this.reader = { state: 0, length: 0 };
  }
}

function checked(options: SuffixLookupOptions | undefined) {
  const o = optionsObject(options), maxMatch = integer("options.maxMatch", o.maxMatch, 16, 1, 1 << 20);
  return {
    maxMatch, minMatch: Math.max(1, integer("options.minMatch", o.minMatch, 1, 0, 1 << 20)), numTokens: integer("options.numTokens", o.numTokens, 16, 1, 1023),
    branches: integer("options.branches", o.branches, 4, 1, 64),
  };
}

/**
 * What followed the longest suffix of `tokens`, of at most maxMatch tokens, where it stood before: in `tokens`, or in `corpus`
 * (−1 between texts) where it matches longer there. Of equally long matches the most recent.
 */
export function lookupSuffix(tokens: readonly number[] | Int32Array, options: Omit<SuffixLookupOptions, "branches" | "texts"> & { readonly corpus?: readonly number[] | Int32Array } = {}): SuffixLookupMatch {
  const { maxMatch, minMatch, numTokens } = checked(options), { corpus } = options;
  if (corpus !== undefined && !Array.isArray(corpus) && !(corpus instanceof Int32Array)) throw invalidArgument("options.corpus", "an array of token ids and separators", corpus);
  const index = new SuffixIndex(corpus && new Corpus(corpus), maxMatch, 1);
  for (const token of tokenIds("tokens", tokens)) index.append(token);
  const place = index.places()[0];
  if (!place || place.length < minMatch) return { draft: [], start: -1, match: 0, fromCorpus: false };
  return { draft: index.continuation(place, tokens, numTokens), start: place.end, match: place.length, fromCorpus: place.corpus };
}

/** How likely the token behind a match is, the drafted tokens before it counted; only a start: see draft/size.ts. */
const likelihood = (match: number): number => 1 - 0.75 / Math.min(match, 40) ** 0.9;

/** Drafts by quoting: what followed the last tokens before, in the text itself and in the user's texts. */
export function suffixLookup(options?: SuffixLookupOptions): Drafter {
  const { maxMatch, minMatch, numTokens, branches } = checked(options), { texts = [] } = optionsObject(options);
  if (!Array.isArray(texts)) throw invalidArgument("options.texts", "an array of texts as token ids", texts);
  const laid = texts.flatMap((text: readonly number[] | Int32Array, i) => [...tokenIds(`options.texts[${i}]`, text), -1]);
  const corpus = laid.length > 0 ? new Corpus(laid) : undefined;
  return {
    name: method.recipe,
    open(): DraftState {
      const index = new SuffixIndex(corpus, maxMatch, branches);
      return {
        topTokens: 0,
        get stateBytes() {
          return index.bytes;
        },
        propose(tokens, nodes): DraftTree {
          for (let i = index.length; i < tokens.length; i++) index.append(tokens[i]!);
          const builder = new TreeBuilder(tokens.at(-1)!);
          for (const place of index.places().slice(0, branches)) {
            if (place.length < minMatch) continue;
            let node = 0, match = place.length;
            for (const token of index.continuation(place, tokens, Math.min(numTokens, nodes - 1))) node = builder.add(node, token, builder.probabilities[node]! * likelihood(match++));
          }
          return builder.finish(nodes);
        },
        learn: () => undefined,
        rewind(length) {
          if (length < index.length) index.forget();
        },
        [Symbol.dispose]: () => index.forget(),
      };
    },
  };
}
