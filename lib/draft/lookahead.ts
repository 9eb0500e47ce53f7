import { integer, optionsObject } from "./check.js";
import { baselines, type Drafter, type DraftMethod, type DraftState } from "./drafter.js";
import { LookaheadPool } from "./lookahead-pool.js";
import { TreeBuilder, type DraftTree } from "./tree.js";

export const method: DraftMethod = {
  recipe: "lookahead",
  paper: baselines,
  arxiv: "2402.02057",
  summary: "a pool of n-grams by their first token, fed by the text and by what the model predicted along rejected branches",
};

export interface LookaheadOptions {
  /** Length of the n-grams, their first token included. Default 4. */
  readonly ngram?: number;
  /** n-grams kept of each first token. Default 8. */
  readonly guessSet?: number;
}

/** How likely the newest guess is, by its age; and each token behind its first. Only a start: see draft/size.ts. */
const newest = 0.35, older = 0.6, nextTokens = 0.7;

/**
 * Guesses by n-grams seen before (arXiv 2402.02057). Where the paper spends extra positions of each step on Jacobi windows, here
 * the verified tree itself gives new n-grams: behind each node, accepted or not, stands what the model predicts there.
 */
export function lookahead(options?: LookaheadOptions): Drafter {
  const o = optionsObject(options), ngram = integer("options.ngram", o.ngram, 4, 2, 16), guessSet = integer("options.guessSet", o.guessSet, 8, 1, 64);
  return {
    name: method.recipe,
    open({ vocabulary }): DraftState {
      const pool = new LookaheadPool({ vocabulary, ngram, guessSet });
      let before: number[] = [], read = 0;
      const learnText = (tokens: readonly number[]): void => {
        for (read = Math.max(read, ngram - 1); read < tokens.length; read++) pool.add(tokens[read - ngram + 1]!, tokens.slice(read - ngram + 2, read + 1));
      };
      return {
        topTokens: 1,
        stateBytes: pool.bytes,
        propose(tokens, nodes): DraftTree {
          learnText(tokens);
          before = tokens.slice(-ngram, -1);
          const root = tokens.at(-1)!, builder = new TreeBuilder(root);
          let first = newest;
          for (const guess of pool.guesses(root).reverse()) {
            let node = 0, probability = first;
            for (const token of guess) {
              node = builder.add(node, token, Math.min(probability, builder.probabilities[node]!));
              probability *= nextTokens;
            }
            first *= older;
          }
          return builder.finish(nodes);
        },
        learn({ tree, top }) {
          if (!top) return;
          for (let node = 0; node < tree.size; node++) {
            const gram = [top.indices[node * top.k]!];
            for (let at = node; at >= 0 && gram.length < ngram; at = tree.parents[at]!) gram.unshift(tree.tokens[at]!);
            if (gram.length < ngram) gram.unshift(...before.slice(gram.length - ngram)); // none where no proposal led here
            if (gram.length === ngram) pool.add(gram[0]!, gram.slice(1));
          }
          before = [];
        },
        rewind(length) {
          read = Math.min(read, length);
        },
        [Symbol.dispose]: () => undefined,
      };
    },
  };
}
