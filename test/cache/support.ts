import { KvCache, type KvCacheShape } from "tokenloom";

/** Numbers that a seed decides, about normal. */
export function randomNumbers(seed: number): () => number {
  let state = seed >>> 0 || 1;
  const uniform = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state >>> 8) / 2 ** 24;
  };
  return () => uniform() + uniform() + uniform() + uniform() - 2;
}

export function randomRows(random: () => number, tokens: number, heads: number, headDim: number): Float32Array {
  return Float32Array.from({ length: tokens * heads * headDim }, random);
}

/** Rows of one head of `[tokens, heads, headDim]`. */
export function headRows(rows: Float32Array, heads: number, headDim: number, head: number): Float32Array[] {
  return Array.from({ length: rows.length / (heads * headDim) }, (_, i) => rows.subarray((i * heads + head) * headDim, (i * heads + head + 1) * headDim));
}

export interface Step {
  readonly key: Float32Array;
  readonly value: Float32Array;
  readonly query: Float32Array;
}

export function randomStep(random: () => number, tokens: number, { kvHeads, headDim }: KvCacheShape, heads: number): Step {
  return { key: randomRows(random, tokens, kvHeads, headDim), value: randomRows(random, tokens, kvHeads, headDim), query: randomRows(random, tokens, heads, headDim) };
}

/** The positions that each head of a layer kept. */
export function keptPositions(cache: KvCache, layer = 0): number[][] {
  return Array.from({ length: cache.shape.kvHeads }, (_, head) => Array.from(cache.read(layer, head).positions));
}
