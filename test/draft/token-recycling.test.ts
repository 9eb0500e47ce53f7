import t from "tap";
import { DraftTree, ops, recyclingTemplate, tensor, tokenRecycling, type TopTokens } from "tokenloom";
import fc from "../support/property.js";

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

/** Rows are learnt one by one, by texts of one token or of two: trees of the root alone. */
async function learned(options: Parameters<typeof tokenRecycling>[0], logitsOf: (token: number) => Float32Array, pairs = 0) {
  const drafter = tokenRecycling({ byteBudget: 40_000, ...options }), state = drafter.open({ vocabulary });
  t.equal((await state.propose([0], 64)).size, 1, "a fresh matrix proposes nothing");
  const learn = async (text: number[], seed: number): Promise<void> => {
    state.rewind(0);
    const tree = await state.propose(text, 1);
    state.learn({ tree, path: Int32Array.of(0), accepted: Int32Array.of(0), top: topOf(tree.tokens, state.topTokens, (token) => logitsOf(token + seed)) });
  };
  for (let pair = 0; pair < pairs; pair++) await learn([(pair * 7) % vocabulary, (pair * 3) % vocabulary], 100 + pair);
  for (let token = 0; token < vocabulary; token++) await learn([token], 0);
  state.rewind(0);
  return { drafter, state };
}

t.test("the likeliest paths of the matrix, by brute force", async (t) => {
  for (const pairs of [0, 300]) {
    const depth = 3, { state } = await learned({ k: 4, depth }, logitsBy(1), pairs);
    // What the drafter thinks of one step, from trees one step deep.
    const follow = new Map<string, { token: number; p: number }[]>();
    const followers = async (before: number, token: number): Promise<{ token: number; p: number }[]> => {
      const key = `${before} ${token}`;
      if (!follow.has(key)) {
        state.rewind(0);
        const tree = await state.propose([before, token], 64), found: { token: number; p: number }[] = [];
        for (let i = 1; i < tree.size; i++) if (tree.depths[i] === 1) found.push({ token: tree.tokens[i], p: tree.probabilities[i] });
        follow.set(key, found);
      }
      return follow.get(key)!;
    };
    const all: number[] = [];
    const walk = async (path: number[], p: number): Promise<void> => {
      if (path.length > 2) all.push(p);
      if (path.length - 2 < depth) for (const next of await followers(path.at(-2)!, path.at(-1)!)) if (p * next.p >= 1 / 128) await walk([...path, next.token], p * next.p);
    };
    await walk([21, 9], 1);
    all.sort((a, b) => b - a);
    const tree = await state.propose([21, 9], 16), got = [...tree.probabilities].slice(1).sort((a, b) => b - a);
    t.ok(got.length === Math.min(15, all.length) && got.length > 3 && got.every((p, i) => Math.abs(p - all[i]) < 1e-5), `${pairs} pairs: ${got} of ${all}`);
    t.ok(Math.max(...tree.depths) <= depth);
  }
});

t.test("behind a pair it proposes what the pair had, behind one token what the token had", async (t) => {
  const { state } = await learned({ k: 2, depth: 1 }, logitsBy(4), 3), tokens = async (text: number[]): Promise<number[]> => [...(await state.propose(text, 3)).tokens];
  const best = (seed: number): number[] => [...topOf(Int32Array.of(seed), 2, logitsBy(4)).indices];
  t.same(await tokens([14, 6]), [6, ...best(6 + 102)]);
  t.same(await tokens([15, 6]), [6, ...best(6)]);
});

t.test("a prompt that was only read is proposed again", async (t) => {
  const state = tokenRecycling().open({ vocabulary }), tree = await state.propose([5, 6, 7, 8, 9, 5, 6], 5);
  t.same([...tree.tokens], [6, 7, 8, 9, 5]);
  state.rewind(2);
  t.same([...(await state.propose([5, 6, 7], 2)).tokens], [7, 8]);
});

t.test("a template is filled as the op fills it", async (t) => {
  for (const template of [recyclingTemplate]) {
    const logitsOf = logitsBy(2), { state } = await learned({ shape: template }, logitsOf), matrix = tensor(new Int32Array(vocabulary * 8), [vocabulary, 8]);
    const tokens = Int32Array.from({ length: vocabulary }, (_, token) => token), logits = tensor(Float32Array.from([...tokens].flatMap((token) => [...logitsOf(token)])), [vocabulary, vocabulary]);
    await ops.recycleUpdate(matrix, tensor(tokens), logits);
    const { tokens: wanted } = await ops.expandTree(matrix, tensor(Int32Array.of(9)), tensor(template.parents), tensor(template.ranks));
    t.same((await state.propose([9], 81)).tokens, wanted.data);
    t.equal((await state.propose([9], 12)).size, 12);
  }
  t.same((await (await learned({ shape: "paper" }, logitsBy(2))).state.propose([9], 81)).size, 81);
});

t.test("of equal tokens the last node's row stays, in the op as in the drafter", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.nat(9), { minLength: 1, maxLength: 30 }), fc.nat(100), async (tokens, seed) => {
      const logitsOf = logitsBy(seed), state = tokenRecycling({ k: 3, depth: 1, byteBudget: 40_000 }).open({ vocabulary }), matrix = tensor(new Int32Array(vocabulary * 3), [vocabulary, 3]);
      const tree = DraftTree.chain(tokens), top = topOf(tree.tokens, 3, logitsOf);
      state.learn({ tree, path: Int32Array.of(0), accepted: Int32Array.of(0), top });
      await ops.recycleUpdate(matrix, tensor(tree.tokens), tensor(Float32Array.from(tokens.flatMap((token, node) => [...logitsOf(token, node)])), [tokens.length, vocabulary]));
      for (const token of new Set(tokens)) {
        const node = tokens.lastIndexOf(token), wanted = [...top.indices.subarray(node * 3, node * 3 + 3)], proposed = await state.propose([token], 4);
        if (matrix.data.slice(token * 3, token * 3 + 3).join() !== wanted.join() || proposed.size < 2 || !proposed.tokens.subarray(1).every((id, rank) => id === wanted[rank])) return false;
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
