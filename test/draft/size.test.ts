import t from "tap";
import { DraftTree, TreeSize } from "tokenloom";
import fc from "../support/property.js";
import { random } from "./support.js";

const linear = (step: number, nodes = 32): number[] => Array.from({ length: nodes }, (_, i) => 1 + step * i);

/** Decodes `tokens` tokens where each of a chain's drafts is right with probability `right`, whatever the drafter believes. */
function decode(size: TreeSize, costs: readonly number[], tokens: number, right: () => number, believed: number, next: () => number) {
  let made = 0, cost = 0, nodes = 0, steps = 0;
  while (made < tokens) {
    const length = Math.min(16, costs.length), chain = DraftTree.chain(Int32Array.from({ length }, (_, i) => i), Float32Array.from({ length }, (_, i) => believed ** i));
    const tree = size.fit(chain), p = right();
    let accepted = 0;
    while (accepted < tree.size - 1 && next() < p) accepted++;
    // The token behind the accepted ones: the next draft with probability p too where the tree ended before it.
    const last = accepted === tree.size - 1 && next() < p ? accepted + 1 : -1;
    size.observe(chain, tree.size, [...Array.from({ length: accepted }, (_, i) => i + 1), last]);
    made += accepted + 1;
    cost += costs[tree.size - 1];
    nodes += tree.size;
    steps++;
  }
  return { made, cost, nodes: nodes / steps };
}

t.test("drafting that never pays costs next to nothing, whatever it believes", (t) => {
  fc.assert(
    fc.property(fc.double({ min: 0.001, max: 1, noNaN: true }), fc.double({ min: 0.01, max: 1, noNaN: true }), fc.integer({ min: 50, max: 400 }), fc.double({ min: 0, max: 0.05, noNaN: true }), fc.nat(), (step, believed, tokens, right, seed) => {
      const costs = linear(step), { made, cost } = decode(new TreeSize(costs), costs, tokens, () => right, believed, random(seed));
      return cost <= 1.02 * made + 1.0001;
    }),
    { numRuns: 200, seed: 1 },
  );
  t.end();
});

t.test("where drafts are right it comes near the best fixed size", (t) => {
  for (const right of [0.5, 0.7, 0.9]) {
    for (const step of [0.02, 0.1, 0.3]) {
      for (const believed of [0.2, 0.6, 0.95]) {
        const costs = linear(step), { made, cost, nodes } = decode(new TreeSize(costs), costs, 3000, () => right, believed, random(7));
        let best = 1;
        for (let n = 2; n <= 16; n++) best = Math.max(best, (1 - right ** n) / (1 - right) / costs[n - 1]);
        t.ok(made / cost > 0.93 * best, `right ${right}, ${step} a node, believed ${believed}: ${(made / cost).toFixed(2)} tokens a step's time of ${best.toFixed(2)}, ${nodes.toFixed(1)} nodes`);
      }
    }
  }
  t.end();
});

t.test("it shrinks to no drafting when the text changes, and comes back", (t) => {
  const costs = linear(0.15), size = new TreeSize(costs), next = random(3);
  const good = decode(size, costs, 1000, () => 0.9, 0.6, next), bad = decode(size, costs, 1000, () => 0.02, 0.6, next), settled = decode(size, costs, 1000, () => 0.02, 0.6, next);
  const again = decode(size, costs, 1000, () => 0.9, 0.6, next);
  t.ok(good.made / good.cost > 2, `good: ${good.made / good.cost}`);
  t.ok(bad.made / bad.cost > 0.94, `just after: ${bad.made / bad.cost}`);
  t.ok(settled.made / settled.cost > 0.97 && settled.nodes < 1.1, `settled: ${settled.made / settled.cost} with ${settled.nodes} nodes`);
  t.ok(again.made / again.cost > 1.8, `again: ${again.made / again.cost}`);
  t.end();
});

t.test("the same inputs give the same sizes", (t) => {
  const run = (): number => decode(new TreeSize(linear(0.1)), linear(0.1), 500, () => 0.6, 0.5, random(9)).cost;
  t.equal(run(), run());
  t.end();
});

t.test("a tree is cut to its likeliest nodes; costs are checked", (t) => {
  const tree = new DraftTree(Int32Array.of(0, 1, 2, 3, 4), Int32Array.of(-1, 0, 0, 1, 2), Float32Array.of(1, 0.9, 0.05, 0.85, 0.04));
  const fitted = new TreeSize([1, 1.2, 1.4, 1.6, 1.8]).fit(tree);
  t.same([...fitted.tokens], [0, 1, 3]);
  t.equal(new TreeSize([1]).fit(tree).size, 1);
  t.equal(new TreeSize([1]).most, 1);
  for (const costs of [[], [2], [1, NaN], [1, 0]]) t.throws(() => new TreeSize(costs), { name: "ArgumentError" });
  t.end();
});
