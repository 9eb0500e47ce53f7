import fc from "fast-check";
import t from "tap";
import { ops, recyclingTemplate, tensor, tokenRecycling, type DraftTree, type TopTokens } from "tokenloom";

const vocabulary = 50;

/** The top k of random logits of each token, as the topK op gives them. */
function topOf(tokens: Int32Array, k: number, logitsOf: (token: number, node: number) => Float32Array): TopTokens {
  const indices: number[] = [], values: number[] = [], logSumExp: number[] = [];
  tokens.forEach((token, node) => {
    const logits = logitsOf(token, node), order = [...logits.keys()].sort((a, b) => logits[b] - logits[a] || a - b).slice(0, k);
    indices.push(...order);
    values.push(...order.map((id) => logits[id]));
    logSumExp.push(Math.log(logits.reduce((sum, x) => sum + Math.exp(x), 0)));
  });
  return { k, indices: Int32Array.from(indices), values: Float32Array.from(values), logSumExp: Float32Array.from(logSumExp) };
}

const logitsBy = (seed: number) => (token: number, node = 0): Float32Array => Float32Array.from({ length: vocabulary }, (_, id) => Math.sin(seed + token * 12.9 + node * 7.1 + id * 78.2) * 4);

/** Every token's row is learnt, by chains as verified trees. */
async function learned(options: Parameters<typeof tokenRecycling>[0], logitsOf: (token: number) => Float32Array) {
  const drafter = tokenRecycling(options), state = drafter.open({ vocabulary }), first = await state.propose([0], 64);
  t.equal(first.size, 1, "a fresh matrix proposes nothing");
  for (let token = 0; token < vocabulary; token++) {
    const tree = await state.propose([token], 1);
    state.learn({ tree, path: Int32Array.of(0), accepted: Int32Array.of(0), top: topOf(tree.tokens, state.topTokens, logitsOf) });
  }
  return { drafter, state };
}

t.test("the likeliest paths of the matrix, by brute force", async (t) => {
  const logitsOf = logitsBy(1), { state } = await learned({ k: 4, depth: 3 }, logitsOf);
  const follow = new Map(Array.from({ length: vocabulary }, (_, token) => {
    const top = topOf(Int32Array.of(token), 4, logitsOf);
    // One byte a probability: sixteenths of a power of two.
    return [token, [...top.indices].map((id, rank) => ({ id, p: 2 ** (Math.round(((top.values[rank] - top.logSumExp[0]) / Math.LN2) * 16) / 16) }))] as const;
  }));
  const all: { path: number[]; p: number }[] = [];
  const walk = (path: number[], p: number): void => {
    if (path.length > 1) all.push({ path, p });
    if (path.length <= 3) for (const next of follow.get(path.at(-1)!)!) walk([...path, next.id], p * next.p);
  };
  walk([7], 1);
  all.sort((a, b) => b.p - a.p);
  const tree = await state.propose([3, 7], 20), sum = (of: readonly number[]): number => of.reduce((total, p) => total + p, 0);
  t.equal(tree.size, 20);
  t.ok(Math.abs(sum([...tree.probabilities].slice(1)) - sum(all.slice(0, 19).map(({ p }) => p))) < 1e-4);
  t.ok(Math.max(...tree.depths) <= 3);
});

t.test("a template is filled as the op fills it", async (t) => {
  for (const template of [recyclingTemplate]) {
    const logitsOf = logitsBy(2), { state } = await learned({ shape: template }, logitsOf), matrix = tensor(new Int32Array(vocabulary * 8), [vocabulary, 8]);
    const tokens = Int32Array.from({ length: vocabulary }, (_, token) => token), logits = tensor(Float32Array.from([...tokens].flatMap((token) => [...logitsOf(token)])), [vocabulary, vocabulary]);
    await ops.recycleUpdate(matrix, tensor(tokens), logits);
    const { tokens: wanted } = await ops.expandTree(matrix, tensor(Int32Array.of(9)), tensor(template.parents), tensor(template.ranks));
    t.same((await state.propose([9], 81)).tokens, wanted.data);
    const cut = await state.propose([9], 12);
    t.equal(cut.size, 12);
  }
  t.same((await (await learned({ shape: "paper" }, logitsBy(2))).state.propose([9], 81)).size, 81);
});

t.test("of equal tokens the last node's row stays, in the op as in the drafter", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.nat(9), { minLength: 1, maxLength: 30 }), fc.nat(100), async (tokens, seed) => {
      const logitsOf = logitsBy(seed), state = tokenRecycling({ k: 3, depth: 1 }).open({ vocabulary }), matrix = tensor(new Int32Array(vocabulary * 3), [vocabulary, 3]);
      const tree = { tokens: Int32Array.from(tokens) } as DraftTree, top = topOf(tree.tokens, 3, logitsOf);
      state.learn({ tree, path: Int32Array.of(0), accepted: Int32Array.of(0), top });
      await ops.recycleUpdate(matrix, tensor(tree.tokens), tensor(Float32Array.from(tokens.flatMap((token, node) => [...logitsOf(token, node)])), [tokens.length, vocabulary]));
      for (const token of new Set(tokens)) {
        const node = tokens.lastIndexOf(token), wanted = [...top.indices.subarray(node * 3, node * 3 + 3)], proposed = await state.propose([token], 4);
        if (matrix.data.slice(token * 3, token * 3 + 3).join() !== wanted.join() || [...proposed.tokens.subarray(1)].join() !== wanted.join()) return false;
      }
      return true;
    }),
    { numRuns: 100, seed: 1 },
  );
});

t.test("a saved matrix is a hot start; anything else is refused", async (t) => {
  const { drafter, state } = await learned({ k: 5 }, logitsBy(3)), saved = drafter.save(), again = tokenRecycling({ matrix: saved });
  t.same((await again.open({ vocabulary }).propose([4], 30)).tokens, (await state.propose([4], 30)).tokens);
  t.same(again.save(), saved);
  const damaged = saved.slice();
  damaged[40] ^= 1;
  for (const bytes of [damaged, saved.subarray(0, saved.length - 1), new Uint8Array(3), new Uint8Array(100)]) t.throws(() => tokenRecycling({ matrix: bytes }).open({ vocabulary }), { name: "ArgumentError" });
  t.throws(() => tokenRecycling({ matrix: saved }).open({ vocabulary: 51 }), { name: "ArgumentError" });
  t.throws(() => tokenRecycling({ matrix: [] as never }), { name: "ArgumentError" });
  t.throws(() => tokenRecycling().save(), { name: "ArgumentError" });
});

t.test("the matrix keeps its byte budget and is shared by the drafter's sessions", (t) => {
  const drafter = tokenRecycling();
  const state = drafter.open({ vocabulary: 49152 });
  t.ok(state.stateBytes <= 2 << 20 && state.topTokens === 8, `${state.stateBytes} bytes`);
  t.throws(() => drafter.open({ vocabulary: 49153 }), { name: "ArgumentError" });
  const large = tokenRecycling({ byteBudget: 2 << 20 }).open({ vocabulary: 151936 });
  t.ok(large.stateBytes <= 2 << 20 && large.topTokens === 2);
  t.throws(() => tokenRecycling({ byteBudget: 1000 }).open({ vocabulary: 49152 }), { name: "ArgumentError" });
  for (const options of [{ k: 0 }, { k: 1.5 }, { depth: 0 }, { shape: { parents: Int32Array.of(-1, 0), ranks: Int32Array.of(0, 8) } }]) t.throws(() => tokenRecycling(options), { name: "ArgumentError" });
  t.end();
});
