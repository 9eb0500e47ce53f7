import t from "tap";
import { compile } from "#lib/graph/compile.js";
import { Graph } from "#lib/graph/graph.js";
import { liveNodes } from "#lib/graph/prune.js";
import { activation, add } from "#lib/ops/activation.js";
import { cacheAppend, cachedAttention } from "#lib/ops/cache.js";

t.test("ops that nothing comes of are left out", async (t) => {
  const graph = new Graph("pruned"), n = graph.symbol("n", 4), x = graph.binding("x", "f32", [n, 8]);
  const wanted = add(activation(x, "relu"), undefined, { scale: 2, name: "wanted" });
  const unread = add(activation(wanted, "silu"), undefined, { scale: 3, name: "unread" });
  t.equal(unread.dims.length, 2);
  graph.output("y", wanted);
  t.same(liveNodes(graph).map(({ name }) => name), ["activation", "wanted"]);
  using compiled = compile(graph);
  t.match(compiled.explain(), /pruned: 2 ops/);
  const y = new Float32Array(8);
  await compiled.run({ symbols: { n: 1 }, bindings: { x: Float32Array.from({ length: 8 }, (_, i) => i - 4), y } });
  t.same([...y], [0, 0, 0, 0, 0, 2, 4, 6]);
});

t.test("what goes to a cache stays, attention to it that nobody reads does not", (t) => {
  const graph = new Graph("cache"), n = graph.symbol("n", 4), cache = graph.binding("cache", "cache", []);
  const rows = (name: string) => graph.binding(name, "f32", [n, 8]).split(1);
  cacheAppend(rows("key"), rows("value"), cache, 0);
  cachedAttention(rows("query"), cache, { layer: 0, scale: 1 });
  t.same(liveNodes(graph).map(({ op }) => op.name), ["cacheAppend"]);
  t.end();
});
