import t from "tap";
import { combine, DraftTree, DynamicTree, promptLookup, routeSmallLarge, tokenRecycling, type Drafter, type DraftStep } from "tokenloom";
import fc from "../support/property.js";

/** Proposes chains given beforehand, later or at once, and notes what it is told. */
function scripted(name: string, chains: readonly (readonly number[])[], probability: number, later = false) {
  const told: DraftStep[] = [], closed: string[] = [], rewound: number[] = [];
  let step = 0;
  const drafter: Drafter = {
    name,
    open: () => ({
      topTokens: later ? 3 : 0,
      stateBytes: 10,
      propose(tokens, nodes) {
        const chain = [tokens.at(-1)!, ...chains[step++ % chains.length]].slice(0, nodes), tree = DraftTree.chain(chain, Float32Array.from(chain, (_, i) => probability ** i));
        return later ? Promise.resolve(tree) : tree;
      },
      learn: (each) => void told.push(each),
      rewind: (length) => void rewound.push(length),
      [Symbol.dispose]: () => void closed.push(name),
    }),
  };
  return { drafter, told, closed, rewound };
}

const learn = (tree: DraftTree, accepted: readonly number[]): DraftStep => ({ tree, path: Int32Array.from(accepted, (_, i) => i), accepted: Int32Array.from(accepted) });

t.test("trees are merged, parts are told, whether or not they answer at once", async (t) => {
  const a = scripted("a", [[1, 2], [1, 2]], 0.8), b = scripted("b", [[1, 3]], 0.5, true), state = combine(a.drafter, b.drafter).open({ vocabulary: 10 });
  t.equal(combine(a.drafter, b.drafter).name, "a + b");
  t.equal(state.topTokens, 3);
  t.equal(state.stateBytes, 20);
  const tree = await state.propose([5], 8);
  t.same([...tree.tokens], [5, 1, 2, 3]);
  t.same([...tree.parents], [-1, 0, 1, 1]);
  const step = learn(tree, [1, 2, 9]);
  state.learn(step);
  state.rewind(4);
  state[Symbol.dispose]();
  t.same([a.told, b.told, a.closed, b.closed, a.rewound, b.rewound], [[step], [step], ["a"], ["b"], [4], [4]]);
  t.ok(combine(a.drafter).open({ vocabulary: 10 }).propose([5], 3) instanceof DraftTree, "at once where all are");
});

t.test("a part that is often wrong loses its place to one that is right", async (t) => {
  const boastful = scripted("boastful", [[1, 2, 3]], 0.95), modest = scripted("modest", [[4, 5, 6]], 0.3), state = combine(boastful.drafter, modest.drafter).open({ vocabulary: 10 });
  t.same([...(await state.propose([0], 4)).tokens], [0, 1, 2, 3]);
  for (let i = 0; i < 40; i++) state.learn(learn(await state.propose([0], 4), [4, 5, 6, 7]));
  t.same([...(await state.propose([0], 4)).tokens], [0, 4, 5, 6]);
});

t.test("the merged tree keeps to the number of nodes", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.array(fc.nat(4), { maxLength: 12 }), { minLength: 1, maxLength: 4 }), fc.integer({ min: 1, max: 20 }), async (chains, nodes) => {
      const state = combine(...chains.map((chain, i) => scripted(`${i}`, [chain], 0.5).drafter)).open({ vocabulary: 5 }), tree = await state.propose([2], nodes);
      const paths = new Set(chains.flatMap((chain) => chain.slice(0, nodes - 1).map((_, i) => chain.slice(0, i + 1).join())));
      return tree.size === Math.min(nodes, paths.size + 1);
    }),
    { numRuns: 100, seed: 1 },
  );
});

t.test("what is no drafter is refused", (t) => {
  t.throws(() => combine(), { name: "ArgumentError" });
  t.throws(() => combine(promptLookup(), {} as never), { name: "ArgumentError" });
  t.equal(combine(promptLookup(), tokenRecycling()).open({ vocabulary: 100 }).topTokens, 8);
  t.end();
});

t.test("the dynamic tree is the likeliest part of what was expanded", (t) => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 5 }), fc.integer({ min: 0, max: 3 }), fc.integer({ min: 1, max: 40 }), fc.nat(1000), (topK, depth, nodes, seed) => {
      const vocabulary = 7, table = Array.from({ length: vocabulary }, (_, a) => Array.from({ length: vocabulary }, (_, b) => -Math.abs(Math.sin(seed + a * 31 + b * 17)) * 3));
      const ranked = (token: number): number[] => table[token].map((_, id) => id).sort((a, b) => table[token][b] - table[token][a]).slice(0, topK);
      const growth = new DynamicTree(2, { topK, depth, nodes });
      // By the paper: levels of [path, score], the best of each level expanded.
      let level: { path: number[]; score: number }[] = [{ path: [2], score: 0 }];
      const all = [...level];
      for (let i = 0; i <= depth; i++) {
        const frontier = growth.frontier, { tokens } = growth.tree();
        growth.expand(frontier.flatMap((node) => ranked(tokens[node])), frontier.flatMap((node) => ranked(tokens[node]).map((id) => table[tokens[node]][id])), Math.min(topK, vocabulary));
        const made = level.flatMap(({ path, score }) => ranked(path.at(-1)!).map((id) => ({ path: [...path, id], score: score + table[path.at(-1)!][id] })));
        all.push(...made);
        level = made.sort((a, b) => b.score - a.score).slice(0, topK);
      }
      const { tree, scores } = growth.finish(), wanted = all.slice(1).map(({ score }) => score).sort((a, b) => b - a).slice(0, nodes - 1);
      const got = [...scores.subarray(1)].sort((a, b) => b - a);
      return growth.done && tree.size === wanted.length + 1 && wanted.every((score, i) => Math.abs(score - got[i]) < 1e-5) && scores.every((score, i) => Math.abs(Math.exp(score) - tree.probabilities[i]) < 1e-6);
    }),
    { numRuns: 200, seed: 2 },
  );
  const one = new DynamicTree(1, { depth: 0 });
  t.throws(() => one.expand([1, 2], [0], 2), { name: "ArgumentError" });
  one.expand([1], [-1], 1);
  t.throws(() => one.expand([1], [-1], 1), { name: "ArgumentError" });
  t.end();
});

t.test("routing follows the score or the entropy", (t) => {
  const small = Int32Array.of(1, 2), large = Int32Array.of(3, 4);
  t.same([...routeSmallLarge(small, large, { score: Float32Array.of(-2, 2) }, 0.5).tokens], [1, 4]);
  const { divergence, useLarge } = routeSmallLarge(small, large, { logits: Float32Array.of(0, 0, 0, 0, 50, -Infinity, 0, 0) }, 1);
  t.ok(Math.abs(divergence[0] - Math.log(4)) < 1e-6 && divergence[1] < 1e-6);
  t.same([...useLarge], [1, 0]);
  t.throws(() => routeSmallLarge(small, Int32Array.of(1), { score: new Float32Array(2) }, 0.5), { name: "ArgumentError" });
  t.throws(() => routeSmallLarge(small, large, { score: new Float32Array(1) }, 0.5), { name: "ArgumentError" });
  t.throws(() => routeSmallLarge(small, large, { logits: new Float32Array(3) }, NaN), { name: "ArgumentError" });
  t.end();
});
