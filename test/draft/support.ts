import { compile } from "#lib/graph/compile.js";
import { Graph } from "#lib/graph/graph.js";
import { verifyTree } from "#lib/ops/draft.js";
import { sample } from "#lib/ops/sample.js";
import type { DraftTree } from "tokenloom";

/** A generator of its own (mulberry32): results must not depend on the package's. */
export function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

const scalarNames = ["temperature", "topK", "topP", "minP", "repeatPenalty", "seed", "stream", "position"] as const;
export type Chain = Record<(typeof scalarNames)[number], number>;
export const plain: Chain = { temperature: 1, topK: 0, topP: 1, minP: 0, repeatPenalty: 1, seed: 7, stream: 0, position: 0 };

/** Compiled once: verifyTree over any tree, and sample one by one. */
export function programs(vocabulary: number, most = 64) {
  const graph = new Graph("verify"), n = graph.symbol("n", most), h = graph.symbol("h", 256);
  const parameters = Object.fromEntries([...scalarNames, "repeatLastTokens"].map((name) => [name, graph.scalar(name)])) as never;
  const int = (name: string) => graph.binding(name, "i32", [n]);
  verifyTree(graph.binding("logits", "f32", [n, vocabulary]), int("tokens"), int("parents"), graph.binding("history", "i32", [h]), {
    path: int("path"), accepted: int("accepted"), logProb: graph.binding("logProb", "f32", [n]), count: graph.binding("count", "i32", [1]),
  }, parameters);
  const single = new Graph("sample"), history = single.symbol("h", 256);
  sample(single.binding("logits", "f32", [1, vocabulary]), single.binding("history", "i32", [history]), { token: single.binding("token", "i32", [1]), logProb: single.binding("logProb", "f32", [1]) },
    Object.fromEntries(scalarNames.map((name) => [name, single.scalar(name)])) as never);
  const verify = compile(graph), draw = compile(single);
  return {
    async verify(logits: Float32Array, tree: DraftTree, history: readonly number[], scalars: Chain & { repeatLastTokens: number }, threads = 1) {
      const n = tree.size, path = new Int32Array(n), accepted = new Int32Array(n), logProb = new Float32Array(n), count = new Int32Array(1);
      await verify.run({ symbols: { n, h: history.length }, bindings: { logits, tokens: tree.tokens, parents: tree.parents, history: Int32Array.from(history), path, accepted, logProb, count }, scalars: { ...scalars } }, { threads });
      return { path, accepted, logProb, count: count[0] };
    },
    async draw(logits: Float32Array, history: readonly number[], scalars: Chain) {
      const token = new Int32Array(1), logProb = new Float32Array(1);
      await draw.run({ symbols: { h: history.length }, bindings: { logits, history: Int32Array.from(history), token, logProb }, scalars: { ...scalars } }, { threads: 1 });
      return { token: token[0], logProb: logProb[0] };
    },
    [Symbol.dispose]() {
      verify.dispose();
      draw.dispose();
    },
  };
}

/** Pearson's statistic of counts against probabilities; those of probability 0 must not occur. */
export function chiSquare(counts: readonly number[], probabilities: readonly number[], draws: number): number {
  return counts.reduce((sum, count, i) => {
    const expected = probabilities[i] * draws;
    return sum + (expected === 0 ? (count === 0 ? 0 : Infinity) : (count - expected) ** 2 / expected);
  }, 0);
}
