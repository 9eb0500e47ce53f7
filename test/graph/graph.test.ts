import t from "tap";
import { compile } from "#lib/graph/compile.js";
import { evaluate } from "#lib/graph/evaluate.js";
import { Graph } from "#lib/graph/graph.js";
import { planArena } from "#lib/graph/plan.js";
import { finishAtOnce } from "#lib/slice.js";
import { native, dtypeCode } from "#lib/native.js";
import { activation, add } from "#lib/ops/activation.js";
import { gatherRows } from "#lib/ops/embedding.js";
import { rmsNorm } from "#lib/ops/norm.js";
import { tensor } from "#lib/tensor.js";
import { ArgumentError, DisposedError, ShapeError } from "tokenloom";
import fc from "../support/property.js";

const silu = (x: number): number => x / (1 + Math.exp(-x));

t.test("an op on tensors gives what its formula says", async (t) => {
  const x = tensor(Float32Array.from({ length: 3 * 20 }, (_, i) => Math.sin(i)), [3, 20]);
  const weight = tensor(Float32Array.from({ length: 20 }, (_, i) => 1 + i / 10));
  const { out } = await evaluate("rmsNorm", { x, weight }, "", (v) => ({ out: rmsNorm(v["x"]!, v["weight"]!, { epsilon: 1e-5 }) }));
  t.same(out.shape, [3, 20]);
  for (let row = 0; row < 3; row++) {
    const values = [...x.data.subarray(row * 20, row * 20 + 20)];
    const scale = 1 / Math.sqrt(values.reduce((sum, v) => sum + v * v, 0) / 20 + 1e-5);
    values.forEach((v, i) => t.ok(Math.abs(out.data[row * 20 + i]! - v * scale * weight.data[i]!) < 1e-5));
  }
});

t.test("symbolic sizes: one program, many lengths", async (t) => {
  const graph = new Graph("chain"), n = graph.symbol("n", 64), x = graph.binding("x", "f32", [n, 8]);
  const twice = add(activation(x, "silu"), undefined, { scale: 2 });
  graph.output("y", twice);
  using compiled = compile(graph);
  for (const rows of [0, 1, 7, 64]) {
    const input = Float32Array.from({ length: rows * 8 }, (_, i) => i / 10 - 3), y = new Float32Array(rows * 8);
    await compiled.run({ symbols: { n: rows }, bindings: { x: input, y } });
    input.forEach((v, i) => t.ok(Math.abs(y[i]! - 2 * silu(v)) < 1e-4));
  }
  await t.rejects(Promise.resolve().then(() => compiled.run({ symbols: { n: 65 }, bindings: { x: new Float32Array(1), y: new Float32Array(1) } })), ShapeError);
  await t.rejects(compiled.run({ symbols: { n: 64 }, bindings: { x: new Float32Array(8), y: new Float32Array(64 * 8) } }), ShapeError, "memory smaller than the shape");
  t.match(compiled.explain(), /chain: 2 ops[\s\S]*activation\(f32\[n, 8\] bind x\)/);
  t.match(compiled.toSvg(), /^<svg .*<\/svg>$/);
});

t.test("shape errors name op, argument, dimension, expected and received", (t) => {
  const graph = new Graph("wrong"), n = graph.symbol("n", 4), x = graph.binding("x", "f32", [n, 8]), weight = graph.binding("w", "f32", [7]);
  try {
    rmsNorm(x, weight, { epsilon: 1e-5 });
    t.fail("no error");
  } catch (error) {
    t.ok(error instanceof ShapeError);
    t.match((error as ShapeError).message, /rmsNorm: Expected dimension 0 of weight to be 8 but received w f32 \[7\]/);
  }
  t.end();
});

t.test("values that live at the same time never share bytes", (t) => {
  fc.assert(
    fc.property(fc.array(fc.record({ from: fc.nat(30), rows: fc.integer({ min: 1, max: 40 }), binary: fc.boolean(), with: fc.nat(30) }), { minLength: 1, maxLength: 30 }), (steps) => {
      const graph = new Graph("random"), x = graph.binding("x", "f32", [40, 16]);
      const index = graph.binding("index", "i32", [40]);
      const values = [x];
      for (const step of steps) {
        const from = values[step.from % values.length]!, same = values.filter((v) => v.dims[0] === from.dims[0]);
        values.push(step.binary ? add(from, same[step.with % same.length]!) : gatherRows(from, index));
      }
      const { placements, bytes } = finishAtOnce(planArena(graph, graph.nodes));
      const lives = new Map<number, [number, number]>();
      graph.nodes.forEach((node, i) =>
        node.views.forEach((view) => {
          if (view?.storage.kind !== "arena") return;
          const life = lives.get(view.storage.id);
          lives.set(view.storage.id, [life?.[0] ?? i, i]);
        }),
      );
      for (const a of placements) {
        if (a.offset % 64 !== 0 || a.offset + a.bytes > bytes) return false;
        for (const b of placements) {
          if (a.id >= b.id || a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset) continue;
          const [aFirst, aLast] = lives.get(a.id)!, [bFirst, bLast] = lives.get(b.id)!;
          // Sharing is right only where one ends before the other begins, or begins in the op that ends it (in place).
          if (!(aLast <= bFirst || bLast <= aFirst)) return false;
        }
      }
      return true;
    }),
    { numRuns: 300 },
  );
  t.end();
});

t.test("a value that was overwritten in place cannot be used again", (t) => {
  const graph = new Graph("overwritten"), x = graph.buffer("x", "f32", [2, 2]);
  graph.add("softcap", { inputs: { x }, outputs: { out: { type: "f32", dims: x.dims, into: x } }, parameters: { cap: 1 } });
  t.throws(() => activation(x, "silu"), { message: /was overwritten by softcap/ });
  t.end();
});

t.test("a graph disposed of during a run lets it end, then refuses", async (t) => {
  const graph = new Graph("dispose"), x = graph.binding("x", "f32", [1000, 64]);
  graph.output("y", activation(x, "tanh"));
  const compiled = compile(graph), y = new Float32Array(64000);
  const run = compiled.run({ bindings: { x: new Float32Array(64000).fill(0.5), y } });
  compiled.dispose();
  compiled.dispose();
  await run;
  t.ok(Math.abs(y[63999]! - Math.tanh(0.5)) < 1e-6);
  await t.rejects(async () => compiled.run({ bindings: { x: y, y } }), DisposedError);
});

t.test("wrong memory is refused before native code sees it", async (t) => {
  const graph = new Graph("memory"), x = graph.binding("x", "f32", [4]);
  graph.output("y", activation(x, "relu"));
  using compiled = compile(graph);
  const good = new Float32Array(4);
  await t.rejects(async () => compiled.run({ bindings: { y: good } }), ArgumentError);
  await t.rejects(compiled.run({ bindings: { x: new Int32Array(4), y: good } }), ArgumentError);
  await t.rejects(compiled.run({ bindings: { x: new Float32Array(new SharedArrayBuffer(16)), y: good } }), ArgumentError);
  const detached = new Float32Array(4);
  structuredClone(detached.buffer, { transfer: [detached.buffer] });
  await t.rejects(compiled.run({ bindings: { x: detached, y: good } }), ArgumentError);
});

t.test("programs of random words are refused or run, and never crash", async (t) => {
  const graph = new Graph("base"), n = graph.symbol("n", 8), x = graph.binding("x", "f32", [n, 16]);
  graph.output("y", add(rmsNorm(activation(x, "gelu"), graph.constant("w", "f32", new Float32Array(16).fill(1), [16]), { epsilon: 1e-6 }), x));
  const captured: Float64Array[] = [];
  const original = native.createProgram;
  native.createProgram = (words, constants) => {
    captured.push(words);
    return original(words, constants);
  };
  compile(graph).dispose();
  native.createProgram = original;
  const [words] = captured;
  const constant = native.createConstant(new Float32Array(16).fill(1), dtypeCode.f32);
  let ran = 0, refused = 0;
  const random = fc.sample(fc.record({ at: fc.nat(words!.length - 1), value: fc.oneof(fc.integer({ min: -2, max: 12 }), fc.double(), fc.maxSafeInteger(), fc.constantFrom(NaN, Infinity, -1, 2 ** 53)), cut: fc.option(fc.nat(words!.length)) }), { numRuns: 4000, seed: 7 });
  for (const { at, value, cut } of random) {
    const mutant = words!.slice(0, cut ?? undefined);
    if (at < mutant.length) mutant[at] = value;
    try {
      const program = native.createProgram(mutant, [constant]);
      await native.run(program, Float64Array.of(3), [new Float32Array(128), new Float32Array(128)], new Float64Array(0), { threads: 1, device: 0 }, new Int32Array(1));
      native.release(program);
      ran++;
    } catch {
      refused++;
    }
  }
  native.release(constant);
  t.ok(ran > 0 && refused > 0, `${ran} ran, ${refused} refused`);
});
