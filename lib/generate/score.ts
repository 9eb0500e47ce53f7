import { ArgumentError, ContextOverflowError } from "../errors.js";
import { callNative, native } from "../native.js";
import type { LanguageModel } from "./model.js";

export interface ScoreOptions {
  /** How many of the largest logits to return at each position. Default 20. */
  readonly top?: number;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: { readonly stage: "score"; readonly loaded: number; readonly total: number }) => void) | undefined;
}

/** What a model predicts along a given text (teacher forcing). Row i is the prediction after token i. */
export interface Score {
  readonly ids: readonly number[];
  /** logProbs[i] = natural log of the probability of ids[i + 1] after ids[0 … i]: one fewer than ids. */
  readonly logProbs: readonly number[];
  /** exp of the mean of −logProbs; NaN for a single token. */
  readonly perplexity: number;
  readonly topIds: readonly (readonly number[])[];
  readonly topLogits: readonly (readonly number[])[];
  /** Log-sum-exp of all logits, by position. */
  readonly logSumExp: readonly number[];
}

/** Rows whose logits exist at once: a vocabulary of 49,152 needs 12.6 MB for 64. */
export const scoreTokens = 64;

export async function scoreIds(model: LanguageModel, ids: readonly number[], top: number, options: ScoreOptions): Promise<Score> {
  if (ids.length === 0) throw new ArgumentError("input", "Expected at least one token for input but received none");
  if (ids.length > model.contextLength) throw new ContextOverflowError(`The input has ${ids.length} tokens but the context holds ${model.contextLength}`);
  const graph = await model.graphs.score(top);
  const cache = callNative(() => native.createCache(model.pool));
  const logProbs: number[] = [], logSumExp: number[] = [], topIds: number[][] = [], topLogits: number[][] = [];
  try {
    for (let begin = 0; begin < ids.length; begin += scoreTokens) {
      const n = Math.min(scoreTokens, ids.length - begin);
      const bindings = {
        ids: Int32Array.from(ids.slice(begin, begin + n)),
        positions: Int32Array.from({ length: n }, (_, i) => begin + i),
        // The last row has no next token: any id does, its log-probability is not used.
        targets: Int32Array.from({ length: n }, (_, i) => ids[begin + i + 1] ?? 0),
        values: new Float32Array(n * top),
        indices: new Int32Array(n * top),
        logSumExp: new Float32Array(n),
        logProb: new Float32Array(n),
      };
      await graph.run({ symbols: { n }, bindings: { ...bindings, cache } }, { signal: options.signal, threads: model.threads });
      for (let i = 0; i < n; i++) {
        if (begin + i + 1 < ids.length) logProbs.push(bindings.logProb[i]!);
        logSumExp.push(bindings.logSumExp[i]!);
        topIds.push([...bindings.indices.subarray(i * top, (i + 1) * top)]);
        topLogits.push([...bindings.values.subarray(i * top, (i + 1) * top)]);
      }
      options.onProgress?.({ stage: "score", loaded: begin + n, total: ids.length });
    }
  } finally {
    native.release(cache);
  }
  const perplexity = Math.exp(-logProbs.reduce((sum, p) => sum + p, 0) / logProbs.length);
  return { ids: [...ids], logProbs, perplexity, topIds, topLogits, logSumExp };
}
