import type { PromptFilter } from "../cache/gemfilter.js";
import { callNative, native } from "../native.js";
import { createPool } from "../cache/pool.js";
import type { LanguageModel } from "./model.js";
import type { CheckedOptions } from "./options.js";
import { chunkTokens } from "./sequence.js";

/**
 * The tokens of a prompt that a filter keeps, in their order: the first layers run over all of it, with a cache of their own
 * that is freed at the end (GemFilter, arXiv 2409.17422). A prompt within the budget stays as it is.
 */
export async function filterPrompt(model: LanguageModel, filter: PromptFilter, prompt: readonly number[], threads: number, options: CheckedOptions): Promise<readonly number[]> {
  const budget = filter.budget(prompt.length);
  if (prompt.length <= budget) return prompt;
  const { kvHeads, headDim } = model.config, graph = await model.graphs.filter(filter);
  const pool = createPool({ layers: filter.layer + 1, kvHeads, headDim, type: model.cacheType }, 0, model.device);
  const cache = callNative(() => native.createCache(pool));
  try {
    const kept = new Uint8Array(prompt.length);
    for (let begin = 0; begin < prompt.length; begin += chunkTokens) {
      const n = Math.min(chunkTokens, prompt.length - begin);
      const ids = Int32Array.from(prompt.slice(begin, begin + n)), positions = Int32Array.from({ length: n }, (_, i) => begin + i);
      await graph.run({ symbols: { n, tokens: begin + n }, bindings: { ids, positions, cache, kept }, scalars: { budget } }, { signal: options.signal, threads, device: model.device });
    }
    return prompt.filter((_, i) => kept[i] === 1);
  } finally {
    native.release(cache);
    native.release(pool);
  }
}
