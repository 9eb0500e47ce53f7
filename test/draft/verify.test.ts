import assert from "node:assert/strict";
import t from "tap";
import { ArgumentError, DraftTree, NumericError, ops, tensor, verifyGreedy, verifySampled } from "tokenloom";
import { settledMemory } from "../support/leaks.js";
import fc from "../support/property.js";
import { chiSquare, plain, programs, random } from "./support.js";

/** A language model of its own: logits by the last two tokens. */
function toyLogits(vocabulary: number, seed: number): (context: readonly number[]) => Float32Array {
  const made = new Map<string, Float32Array>();
  return (context) => {
    const key = context.slice(-2).join();
    let logits = made.get(key);
    if (!logits) {
      const next = random(seed + key.split(",").reduce((sum, part) => sum * 31 + Number(part) + 1, 7));
      logits = Float32Array.from({ length: vocabulary }, () => (next() - 0.5) * 6);
      made.set(key, logits);
    }
    return logits;
  };
}

function pathTo(tree: DraftTree, node: number): number[] {
  return node === 0 ? [] : [...pathTo(tree, tree.parents[node]), tree.tokens[node]];
}

const shapes = fc.array(fc.tuple(fc.nat(1000), fc.nat(1000)), { maxLength: 24 });

function treeOf(nodes: readonly (readonly [number, number])[], root: number, vocabulary: number): DraftTree {
  return new DraftTree(Int32Array.from([root, ...nodes.map(([, token]) => token % vocabulary)]), Int32Array.from([-1, ...nodes.map(([parent], i) => parent % (i + 1))]));
}

t.test("whatever is drafted, the tokens are those that sample draws one by one", async (t) => {
  const vocabulary = 11, model = toyLogits(vocabulary, 5);
  using both = programs(vocabulary);
  const chains = fc.record({
    temperature: fc.constantFrom(0, 0.3, 1, 2), topK: fc.constantFrom(0, 3, 5), topP: fc.constantFrom(1, 0.8), minP: fc.constantFrom(0, 0.1), repeatPenalty: fc.constantFrom(1, 1.5),
    seed: fc.nat(1000), stream: fc.nat(3), position: fc.nat(1000), repeatLastTokens: fc.constantFrom(0, 1, 2, 4, 64),
  });
  let drafts = 0;
  await fc.assert(
    fc.asyncProperty(shapes, fc.array(fc.nat(10), { minLength: 1, maxLength: 12 }), chains, async (nodes, text, chain) => {
      const { repeatLastTokens } = chain;
      const context = [...text], wanted: { token: number; logProb: number }[] = [];
      for (let i = 0; i < 25; i++) {
        const history = repeatLastTokens === 0 ? [] : context.slice(-repeatLastTokens);
        wanted.push(await both.draw(model(context), history, { ...chain, position: chain.position + i }));
        context.push(wanted[i].token);
      }
      // Half of the nodes' tokens are right ones, so that paths get long.
      const tree = treeOf(nodes.map(([parent, token], i) => [parent, token % 2 === 0 ? token >> 1 : wanted[depthOf(nodes, i) - 1].token] as const), text.at(-1)!, vocabulary);
      const logits = Float32Array.from(Array.from(tree.tokens.keys()).flatMap((node) => [...model([...text, ...pathTo(tree, node)])]));
      const got = await both.verify(logits, tree, repeatLastTokens === 0 ? [] : text.slice(-repeatLastTokens), chain, 2);
      const accepted = Array.from(got.accepted.subarray(0, got.count));
      drafts += got.count - 1;
      const deepest = Math.max(...Array.from(tree.tokens.keys()).filter((node) => pathTo(tree, node).every((token, i) => token === wanted[i].token)).map((node) => tree.depths[node]));
      assert.deepEqual(accepted, wanted.slice(0, got.count).map(({ token }) => token));
      assert.deepEqual(Array.from(got.logProb.subarray(0, got.count)), wanted.slice(0, got.count).map(({ logProb }) => logProb));
      assert.equal(got.count, deepest + 1, "the deepest");
      assert.deepEqual(Array.from(got.path.subarray(0, got.count), (node) => pathTo(tree, node)), accepted.map((_, i) => accepted.slice(0, i)));
      assert.ok(got.path.subarray(got.count).every((node) => node === -1) && got.accepted.subarray(got.count).every((token) => token === -1) && got.logProb.subarray(got.count).every((p) => p === 0));
    }),
    { numRuns: 150, seed: 4 },
  );
  t.ok(drafts > 100, `${drafts} drafts were accepted`);
});

function depthOf(nodes: readonly (readonly [number, number])[], i: number): number {
  const parent = nodes[i][0] % (i + 1);
  return parent === 0 ? 1 : depthOf(nodes, parent - 1) + 1;
}

t.test("greedy verification is the deepest path of arg-maxes, however often siblings repeat", async () => {
  await fc.assert(
    fc.asyncProperty(shapes, fc.nat(1000), async (nodes, seed) => {
      const vocabulary = 4, tree = treeOf(nodes, 1, vocabulary), next = random(seed);
      const logits = Float32Array.from({ length: tree.size * vocabulary }, () => Math.floor(next() * 3));
      const best = (node: number): number => {
        const row = [...logits.subarray(node * vocabulary, (node + 1) * vocabulary)];
        return row.indexOf(Math.max(...row));
      };
      const accepted = (node: number): boolean => node === 0 || (accepted(tree.parents[node]) && tree.tokens[node] === best(tree.parents[node]));
      const all = Array.from(tree.tokens.keys()).filter(accepted), depth = Math.max(...all.map((node) => tree.depths[node])), last = all.find((node) => tree.depths[node] === depth)!;
      const path: number[] = [];
      for (let node = last; node >= 0; node = tree.parents[node]) path.unshift(node);
      const got = await verifyGreedy(tree, tensor(logits, [tree.size, vocabulary]));
      assert.deepEqual({ ...got, path: [...got.path], tokens: [...got.tokens] }, { path, tokens: path.map(best), accepted: depth });
    }),
    { numRuns: 200, seed: 5 },
  );
});

/** Above the 0.9999 quantile for 7 degrees of freedom; the draws are the same on every run. */
const limit = 29.9;
const target = [0.3, 0.02, 0.18, 0.05, 0.25, 0, 0.15, 0.05], draws = 50_000;

t.test("through the op, first and second tokens have the model's distribution", async (t) => {
  const vocabulary = 8, second = [0.1, 0.4, 0.05, 0.05, 0.1, 0.1, 0.1, 0.1], other = Array.from({ length: vocabulary }, () => 1 / vocabulary);
  using both = programs(vocabulary);
  // The root's children 0, 4 and 4 again; those of the first 1 and 3.
  const tree = new DraftTree(Int32Array.of(2, 0, 4, 4, 1, 3), Int32Array.of(-1, 0, 0, 0, 1, 1));
  const logits = Float32Array.from([target, second, other, other, other, other].flat(), (p) => Math.log(p));
  const first = new Array<number>(vocabulary).fill(0), behind = new Array<number>(vocabulary).fill(0);
  let paths = 0;
  for (let position = 0; position < draws; position++) {
    const { accepted, count } = await both.verify(logits, tree, [], { ...plain, position: position * 8, repeatLastTokens: 0 });
    first[accepted[0]]++;
    if (accepted[0] === 0 && count > 1) behind[accepted[1]]++, paths++;
  }
  t.ok(chiSquare(first, target, draws) < limit, `first tokens ${first}`);
  t.equal(paths, first[0], "a child that holds the drawn token is always accepted");
  t.ok(chiSquare(behind, second, paths) < limit + 5, `second tokens ${behind}`);
});

t.test("deterministic and sampled verification keep the target's distribution", async (t) => {
  const vocabulary = 8, q = [0.1, 0.1, 0.3, 0.2, 0.05, 0.15, 0.05, 0.05];
  for (const mode of ["deterministic", "sampled"] as const) {
    const next = random(mode.length), counts = new Array<number>(vocabulary).fill(0);
    let accepted = 0;
    const p = tensor(Float32Array.from([target, target, target, target].flat()), [4, vocabulary]), draft = tensor(Float32Array.from([q, q, q, q].flat()), [4, vocabulary]);
    for (let i = 0; i < draws; i++) {
      const tokens = [2, 0, 4, 3], left = [...q];
      for (let child = 1; mode === "sampled" && child < 4; child++) {
        let u = next() * left.reduce((sum, weight) => sum + weight, 0), token = 0;
        while (token < vocabulary - 1 && (u -= left[token]) >= 0) token++;
        tokens[child] = token;
        left[token] = 0;
      }
      const found = await verifySampled(new DraftTree(Int32Array.from(tokens), Int32Array.of(-1, 0, 0, 0)), {
        target: p, mode, ...(mode === "sampled" && { draft }), uniform: Float32Array.from({ length: 4 }, next), uniformFinal: next(),
      }, { threads: 1 });
      counts[found.tokens[0]]++;
      accepted += found.accepted;
    }
    t.ok(chiSquare(counts, target, draws) < limit, `${mode}: ${counts}`);
    t.ok(accepted > draws * 0.4, `${mode}: ${accepted} accepted`);
  }
});

t.test("what cannot be verified is refused", async (t) => {
  const tree = DraftTree.chain([0, 1]), logits = tensor(new Float32Array(4), [2, 2]);
  await t.rejects(verifyGreedy(tree, tensor(new Float32Array(6), [3, 2])), { name: "ShapeError" });
  await t.rejects(verifyGreedy(tree, tensor(Float32Array.of(NaN, 0, 0, 0), [2, 2])), NumericError);
  await t.rejects(ops.verifyTree(logits, tensor(Int32Array.of(0, 1)), tensor(Int32Array.of(-1, 0)), { temperature: -1 }), ArgumentError);
  await t.rejects(ops.verifyTree(logits, tensor(Int32Array.of(0, 1)), tensor(Int32Array.of(-1, 0)), { history: tensor(Int32Array.of(2)) }), ArgumentError);
  await t.rejects(verifySampled(tree, { target: logits, mode: "sampled", uniform: new Float32Array(2), uniformFinal: 0 }), { name: "ShapeError" });
  await t.rejects(verifySampled(tree, { target: logits, mode: "deterministic", uniform: new Float32Array(2), uniformFinal: 0 }), NumericError);
});

t.test("nothing is left behind", async (t) => {
  const { weights, cache } = await settledMemory();
  t.same({ weights, cache }, { weights: 0, cache: 0 });
});
