import type { CachePolicy } from "../cache/policy.js";
import { ArgumentError, ContextOverflowError } from "../errors.js";
import type { LanguageModel } from "./model.js";
import { checkOptions } from "./options.js";
import { Sequence } from "./sequence.js";

export interface ScoreOptions {
  /** How many of the largest logits to return at each position. Default 20. */
  readonly top?: number;
  /** The first `after` tokens are only context, 0 … tokens − 1: rows begin behind them. Default 0. */
  readonly after?: number | undefined;
  /** Cuts the cache once, behind the first `after` tokens, as a session does behind its prompt: what follows sees what was kept. */
  readonly cache?: CachePolicy | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: { readonly stage: "score"; readonly loaded: number; readonly total: number }) => void) | undefined;
}

/** What a model predicts along a given text (teacher forcing). Row i is the prediction after token `after` + i. */
export interface Score {
  readonly ids: readonly number[];
  /** logProbs[i] = natural log of the probability of ids[after + i + 1] after ids[0 … after + i]: one fewer than rows. */
  readonly logProbs: readonly number[];
  /** exp of the mean of −logProbs; NaN for a single row. */
  readonly perplexity: number;
  readonly topIds: readonly (readonly number[])[];
  readonly topLogits: readonly (readonly number[])[];
  /** Log-sum-exp of all logits, by position. */
  readonly logSumExp: readonly number[];
}

/** Rows whose logits exist at once: a vocabulary of 49,152 needs 12.6 MB for 64. */
export const scoreTokens = 64;

export async function scoreIds(model: LanguageModel, ids: readonly number[], top: number, { after = 0, cache, signal, onProgress }: ScoreOptions): Promise<Score> {
  if (ids.length === 0) throw new ArgumentError("input", "Expected at least one token for input but received none");
  if (ids.length > model.contextLength) throw new ContextOverflowError(`The input has ${ids.length} tokens but the context holds ${model.contextLength}`);
  const options = checkOptions({ signal, seed: 0 }), total = ids.length;
  using sequence = new Sequence(model, { threads: model.threads, eviction: cache && model.eviction(cache) });
  const logProbs: number[] = [], logSumExp: number[] = [], topIds: number[][] = [], topLogits: number[][] = [];
  if (after > 0) {
    sequence.tokens.push(...ids.slice(0, after));
    await sequence.prefill(options, () => onProgress?.({ stage: "score", loaded: sequence.cached, total }));
    // The step that ends a prompt is the one that policies observe; what it draws is not wanted.
    await sequence.step(options);
    sequence.tokens.pop();
    await sequence.evictIfDue("prefill", options);
  }
  for (let begin = after; begin < total; begin += scoreTokens) {
    const n = Math.min(scoreTokens, total - begin);
    sequence.tokens.push(...ids.slice(begin, begin + n));
    // The last row has no next token: any id does, its log-probability is not used.
    const targets = Int32Array.from({ length: n }, (_, i) => ids[begin + i + 1] ?? 0);
    const rows = await sequence.scoreStep(targets, top, options);
    for (let i = 0; i < n; i++) {
      if (begin + i + 1 < total) logProbs.push(rows.logProb[i]!);
      logSumExp.push(rows.logSumExp[i]!);
      topIds.push([...rows.indices.subarray(i * top, (i + 1) * top)]);
      topLogits.push([...rows.values.subarray(i * top, (i + 1) * top)]);
    }
    onProgress?.({ stage: "score", loaded: begin + n, total });
  }
  const perplexity = Math.exp(-logProbs.reduce((sum, p) => sum + p, 0) / logProbs.length);
  return { ids: [...ids], logProbs, perplexity, topIds, topLogits, logSumExp };
}
