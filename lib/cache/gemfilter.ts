import { cacheQueryScores, keepTop, poolScores, reduceRows, type CachedTokens } from "../ops/cache-policy.js";
import type { Parameter } from "../graph/graph.js";
import type { Value } from "../graph/value.js";
import { budgetOf, checkInteger, checkKernel, type Budget } from "./policy.js";

export const method = { recipe: "gemFilter", paper: "GemFilter (Discovering the Gems in Early Layers)", arxiv: "2409.17422", summary: "early layers choose the prompt's tokens, all layers run on those" };

export type GemFilterOptions = Budget & {
  /** The layer whose last query chooses, counted from 0; the layers before and it run on the whole prompt. */
  readonly layer: number;
  /** Odd width of the average pooling along the tokens; 5. */
  readonly kernel?: number;
};

/**
 * GemFilter (arXiv 2409.17422), a filter of prompts, not of caches: the last query of an early layer ranks the prompt's
 * tokens, the best are prefilled anew from position 0 in text order.
 */
export interface PromptFilter {
  readonly name: "gemFilter";
  readonly layer: number;
  readonly kernel: number;
  budget(tokens: number): number;
  /** Scores f32 `[1, tokens]` of query f32 `[n, heads, headDim]`, after RoPE, against the layer's keys; the step's own tokens count. */
  score(query: Value, of: CachedTokens): Value;
  /** Marks the tokens that stay in u8 `[tokens]`. */
  select(scores: Value, into: Value, budget: Parameter, tokens: Parameter): Value;
}

export function gemFilter(options: GemFilterOptions): PromptFilter {
  const budget = budgetOf(options), { layer, kernel = 5 } = options;
  checkInteger("options.layer", layer, 0);
  checkKernel(kernel);
  return {
    name: "gemFilter",
    layer,
    kernel,
    budget,
    score: (query, of) => poolScores(reduceRows(cacheQueryScores(query, of), { kind: "sum" }), { kernel, kind: "avg" }),
    select: (scores, into, kept, tokens) => keepTop(scores, into, { layer: 0, tokens, budget: kept }),
  };
}
