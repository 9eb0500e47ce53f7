import t from "tap";
import { ArgumentError, DraftTree, mergeTrees, ops, recyclingTemplate, templateOf, tensor } from "tokenloom";
import { settledMemory } from "../support/leaks.js";
import fc from "../support/property.js";

/** Random trees in breadth-first order with few different tokens, so that siblings repeat. */
const trees = fc.array(fc.tuple(fc.nat(1000), fc.nat(5), fc.double({ min: 0, max: 1, noNaN: true })), { maxLength: 70 }).map((nodes) => {
  const parents = [-1, ...nodes.map(([at], i) => at % (i + 1))], depths = [0];
  for (let i = 1; i < parents.length; i++) depths.push(depths[parents[i]] + 1);
  const order = parents.map((_, i) => i).sort((a, b) => depths[a] - depths[b] || a - b), place = order.map((_, i) => order.indexOf(i));
  const tokens = [3, ...nodes.map(([, token]) => token)], conditional = [1, ...nodes.map(([, , p]) => p)], probabilities = [1];
  for (let i = 1; i < parents.length; i++) probabilities.push(probabilities[parents[i]] * conditional[i]);
  return new DraftTree(Int32Array.from(order, (i) => tokens[i]), Int32Array.from(order, (i) => (i === 0 ? -1 : place[parents[i]])), Float32Array.from(order, (i) => probabilities[i]));
});

/** Token paths of all nodes but the root. */
function paths(tree: DraftTree): string[] {
  const names: string[] = [];
  for (let i = 0; i < tree.size; i++) names.push(i === 0 ? "" : `${names[tree.parents[i]]} ${tree.tokens[i]}`);
  return names.slice(1);
}

t.test("ancestors, depths and positions follow the parents, in JavaScript and in the op", async () => {
  await fc.assert(
    fc.asyncProperty(trees, fc.nat(5000), async (tree, past) => {
      const words = Math.ceil(tree.size / 32), bits = tree.ancestors(), made = await ops.treeMask(tensor(tree.parents), { past });
      for (let i = 0; i < tree.size; i++) {
        const seen = new Set<number>();
        for (let j = i; j >= 0; j = tree.parents[j]) seen.add(j);
        for (let j = 0; j < tree.size; j++) {
          if (((bits[i * words + (j >> 5)] >>> (j & 31)) & 1) !== Number(seen.has(j)) || made.mask.data[i * tree.size + j] !== Number(seen.has(j))) return false;
        }
        if (tree.positions(past)[i] !== past + seen.size - 1 || made.positions.data[i] !== past + seen.size - 1 || made.depths.data[i] !== tree.depths[i]) return false;
      }
      return made.bits.data.join() === bits.join();
    }),
    { numRuns: 100, seed: 1 },
  );
});

t.test("best keeps the likeliest nodes, connected", (t) => {
  fc.assert(
    fc.property(trees, fc.integer({ min: 1, max: 80 }), (tree, nodes) => {
      const kept = tree.best(nodes), all = [...tree.probabilities].sort((a, b) => b - a).slice(0, nodes), own = [...kept.probabilities].sort((a, b) => b - a);
      const names = paths(tree);
      return kept.size === Math.min(nodes, tree.size) && own.join() === all.join() && paths(kept).every((path) => names.includes(path)) && kept.depths.every((depth, i) => i === 0 || depth >= kept.depths[i - 1]);
    }),
    { numRuns: 200, seed: 2 },
  );
  t.end();
});

t.test("merging joins equal paths and loses none", (t) => {
  fc.assert(
    fc.property(fc.array(trees, { minLength: 1, maxLength: 4 }), (several) => {
      const merged = mergeTrees(several, 1024), names = paths(merged), wanted = new Map<string, number>();
      for (const tree of several) paths(tree).forEach((path, i) => wanted.set(path, Math.max(wanted.get(path) ?? 0, tree.probabilities[i + 1])));
      return names.length === new Set(names).size && names.length === wanted.size && names.every((path, i) => merged.probabilities[i + 1] <= wanted.get(path)!);
    }),
    { numRuns: 100, seed: 3 },
  );
  t.throws(() => mergeTrees([DraftTree.chain([1]), DraftTree.chain([2])]), { name: "ArgumentError" });
  t.same(Array.from(mergeTrees([DraftTree.chain([1, 2, 3]), DraftTree.chain([1, 2, 4])]).tokens), [1, 2, 3, 4]);
  t.end();
});

t.test("a chain is a tree of one path", (t) => {
  const chain = DraftTree.chain([7, 8, 9]);
  t.same(Array.from(chain.parents), [-1, 0, 1]);
  t.same(Array.from(chain.probabilities), [1, 0.5, 0.25]);
  t.equal(chain.child(1, 9), 2);
  t.equal(chain.child(1, 8), -1);
  t.end();
});

t.test("what is no tree is refused", (t) => {
  for (const [tokens, parents] of [[[], []], [[1], [0]], [[1, 2], [-1]], [[1, 2], [-1, 1]], [[1, 2], [-1, -1]]] as const) {
    t.throws(() => new DraftTree(Int32Array.from(tokens), Int32Array.from(parents)), { name: "ArgumentError" });
  }
  t.throws(() => new DraftTree(new Int32Array(1025), Int32Array.from({ length: 1025 }, (_, i) => i - 1)), { name: "ArgumentError" });
  t.throws(() => new DraftTree(new Int32Array(2), Int32Array.of(-1, 0), new Float32Array(1)), { name: "ArgumentError" });
  t.end();
});

t.test("the recycling template has the paper's levels", (t) => {
  const tree = new DraftTree(recyclingTemplate.parents.slice(), recyclingTemplate.parents);
  t.same([1, 2, 3, 4, 5, 6].map((depth) => tree.depths.filter((d) => d === depth).length), [8, 21, 25, 15, 8, 3]);
  t.same(Array.from(templateOf([[2], [1, 0]]).parents), [-1, 0, 0, 1]);
  t.throws(() => templateOf([[1], [1, 1, 1]]), { name: "ArgumentError" });
  t.end();
});

t.test("ops refuse trees that are none, and leave nothing behind", async (t) => {
  await t.rejects(ops.treeMask(tensor(Int32Array.of(-1, 1))), ArgumentError);
  await t.rejects(ops.treeMask(tensor(Int32Array.of(0))), ArgumentError);
  await t.rejects(ops.expandTree(tensor(Int32Array.of(0, 5), [2, 1]), tensor(Int32Array.of(1)), tensor(Int32Array.of(-1, 0, 1)), tensor(Int32Array.of(0, 0, 0))), ArgumentError);
  const { weights, cache } = await settledMemory();
  t.same({ weights, cache }, { weights: 0, cache: 0 });
});
