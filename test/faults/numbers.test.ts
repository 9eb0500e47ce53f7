import t from "tap";
import { memory, ops, OutOfMemoryError, tensor, TokenloomError, zeros, type Tensor } from "tokenloom";
import { compile } from "#lib/graph/compile.js";
import { Graph } from "#lib/graph/graph.js";
import { activation } from "#lib/ops/activation.js";
import { report, scale } from "./support.js";

const f32 = (values: readonly number[], ...shape: number[]): Tensor<"f32"> => tensor(Float32Array.from(values), shape);
const filled = (value: number, ...shape: number[]): Tensor<"f32"> => tensor(new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(value), shape);
const noise = (...shape: number[]): Tensor<"f32"> => tensor(Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => Math.sin(i * 12.9898)), shape);
const isNaNs = (values: ArrayLike<number>): boolean => Array.from(values).every(Number.isNaN);

t.test("a query that sees no key: zeros, and a log-sum-exp of minus infinity", async (t) => {
  for (const keys of [1, 31, 32, 33, 200]) {
    const bias = filled(0, 1, 1, 3, keys);
    bias.data.fill(-Infinity, keys, 2 * keys);
    const { out, logSumExp } = await ops.attention(noise(1, 1, 3, 16), noise(1, 1, keys, 16), noise(1, 1, keys, 16), { bias, returnLse: true });
    t.same(Array.from(out.data.subarray(16, 32)), new Array(16).fill(0));
    t.equal(logSumExp.data[1], -Infinity);
    t.ok(out.data.every(Number.isFinite) && Number.isFinite(logSumExp.data[0]!) && Number.isFinite(logSumExp.data[2]!));
  }
  const rows = (await ops.softmax(f32([-Infinity, -Infinity, 0, 0], 2, 2))).out.data;
  t.same(Array.from(rows), [0, 0, 0.5, 0.5]);
});

t.test("a maximum over no rows is refused: it read whatever lay where they would be", async (t) => {
  await t.rejects(ops.landmarkBlocks(zeros([1, 2, 0, 8]), noise(1, 2, 17, 8), { blockSize: 1, topK: 2 }), { name: "ShapeError", op: "reduceRows" });
});

t.test("a row of NaN or infinity spoils only its own row", async (t) => {
  for (const bad of [NaN, Infinity, -Infinity]) {
    const spoiled = (make: () => Tensor<"f32">, width: number): Tensor<"f32"> => {
      const made = make();
      made.data.fill(bad, width, 2 * width);
      return made;
    };
    const same = async (name: string, width: number, run: (x: Tensor<"f32">) => Promise<ArrayLike<number>>, make: () => Tensor<"f32">, outWidth = width): Promise<void> => {
      const right = Array.from(await run(make())), got = Array.from(await run(spoiled(make, width)));
      right.forEach((value, i) => (i >= outWidth && i < 2 * outWidth) || Object.is(got[i], value) || t.fail(`${name}, ${bad}: element ${i} is ${got[i]} instead of ${value}`));
    };
    for (const width of [5, 16, 33]) {
      await same("rmsNorm", width, async (x) => (await ops.rmsNorm(x, filled(1, width))).out.data, () => noise(4, width));
      await same("layerNorm", width, async (x) => (await ops.layerNorm(x, filled(1, width))).out.data, () => noise(4, width));
      await same("softmax", width, async (x) => (await ops.softmax(x)).out.data, () => noise(4, width));
      await same("rowProducts", width, async (x) => (await ops.rowProducts(x, noise(1, 7, width))).data, () => noise(1, 4, width), 7);
      await same("attention", width, async (x) => (await ops.attention(x, noise(1, 1, 40, width), noise(1, 1, 40, width), { causal: true })).out.data, () => noise(1, 1, 4, width));
      await same("quantizeRows", width, async (x) => (await ops.quantizeRows(x, { type: "int8" })).dequantized.data, () => noise(4, width));
      await same("entropy", width, async (x) => (await ops.entropy(x, { logits: true })).data, () => noise(4, width), 1);
    }
  }
  t.ok(isNaNs((await ops.rmsNorm(filled(NaN, 1, 8), filled(1, 8))).out.data), "NaN stays NaN");
});

t.test("choices among NaN and infinities are stable and within range", async (t) => {
  const scores = f32([NaN, Infinity, 1, -Infinity, Infinity, NaN, 2, -0], 1, 8);
  const choices: Record<number, number[]> = { 1: [1], 2: [1, 4], 3: [1, 4, 6], 4: [1, 2, 4, 6], 5: [1, 2, 4, 6, 7], 6: [1, 2, 3, 4, 6, 7] };
  for (const [budget, wanted] of Object.entries(choices)) {
    const { kept } = await ops.keepTop(scores, { budget: Number(budget) });
    t.same(Array.from(kept.data).flatMap((one, i) => (one ? [i] : [])), wanted, `the best ${budget}`);
  }
  for (const bad of [NaN, Infinity, -Infinity]) {
    const { order } = await ops.farthestRows(filled(bad, 1, 9, 5), { keep: 4, start: "alone" });
    t.ok(new Set(order.data).size === 4 && order.data.every((index) => index >= 0 && index < 9), `farthestRows of ${bad}`);
    const { map, counts } = await ops.bipartiteMatch(filled(bad, 1, 9, 5), { merge: 3 });
    t.ok(map.data.every((row) => row >= 0 && row < counts.data[0]!), `bipartiteMatch of ${bad}`);
    const { index } = await ops.closestRows(filled(bad, 1, 3, 5), noise(1, 4, 5));
    t.ok(index.data.every((row) => row >= 0 && row < 4), `closestRows of ${bad}`);
  }
});

t.test("logits of NaN: a typed error from the sampler", async (t) => {
  const tokens = tensor(Int32Array.of(1)), parents = tensor(Int32Array.of(-1));
  for (const options of [{}, { temperature: 1, seed: 1 }, { temperature: 0.7, topK: 5, topP: 0.9, minP: 0.05 }]) {
    await t.rejects(ops.verifyTree(filled(NaN, 1, 40), tokens, parents, options), { code: "TL_NUMERIC" });
    const { accepted } = await ops.verifyTree(noise(1, 40), tokens, parents, options);
    t.ok(accepted.data[0]! >= 0 && accepted.data[0]! < 40);
  }
});

t.test("denormal numbers and minus zero", async (t) => {
  const { out } = await ops.rmsNorm(filled(1e-42, 2, 16), filled(1, 16));
  t.ok(out.data.every(Number.isFinite));
  t.same(Array.from((await ops.softmax(f32([-0, 0], 1, 2))).out.data), [0.5, 0.5]);
  t.ok((await ops.cosineMatrix(filled(1e-30, 1, 2, 8))).data.every(Number.isFinite));
  report("numbers", { kinds: 5, values: "NaN, ±infinity, denormal, −0" });
});

t.test("sizes around 2^31 and 2^32 are planned without a wrap, and refused politely where memory is not there", async (t) => {
  for (const elements of [2 ** 31 - 1, 2 ** 31, 2 ** 32, 2 ** 32 + 1, 2 ** 40]) {
    const graph = new Graph("large"), x = graph.binding("x", "f32", [elements]);
    activation(activation(x, "relu"), "tanh");
    graph.output("y", activation(activation(x, "relu"), "tanh"));
    using compiled = compile(graph);
    t.ok(compiled.plan.bytes >= 4 * elements && compiled.plan.bytes < 4 * elements + 4096, `${elements}: an arena of ${compiled.plan.bytes} bytes`);
    const error = await compiled.run({ bindings: { x: new Float32Array(4), y: new Float32Array(4) } }).catch((caught: unknown) => caught);
    t.ok(error instanceof TokenloomError && ["TL_SHAPE", "TL_MEMORY"].includes(error.code), `${elements}: ${String(error)}`);
  }
  t.throws(() => zeros([2 ** 26, 2 ** 26]), OutOfMemoryError);
  t.throws(() => zeros([2 ** 32, 2 ** 32]), { code: "TL_ARGUMENT" });
  await t.rejects(ops.resizeBilinear(noise(1, 2, 2, 4), { height: 2 ** 24, width: 2 ** 24 }), OutOfMemoryError);
  const before = memory();
  t.equal(before.tensors < 2 ** 30, true);
  let bytes = 0;
  if (scale === "full") {
    // As many elements as an array of Node 20 holds, twice what an int32 counts, one real patch at the end.
    const [height, width, patch] = [65_536, 65_504, 32], pixels = zeros([1, height, width, 1], "u8");
    for (let y = height - patch; y < height; y++) for (let x = width - patch; x < width; x++) pixels.data[y * width + x] = (x + y) & 1;
    const entropies = (await ops.patchEntropy(pixels, { patch, base: 2 })).data;
    t.ok(Math.abs(entropies.at(-1)! - 1) < 1e-6, "the last patch has one bit");
    t.ok(entropies.subarray(0, -1).every((one) => one === 0), "all others none");
    pixels.dispose();
    // More bytes than 32 bits count: the one key that a query looks at lies behind them.
    const keys = 2 ** 24 + 64, [query, key, value] = [zeros([1, 1, 1, 64]), zeros([1, 1, keys, 64]), zeros([1, 1, keys, 16])];
    bytes = key.data.byteLength;
    query.data.fill(1);
    key.data.fill(10, 64 * (keys - 1));
    value.data.fill(3, 16 * (keys - 1));
    using seen = (await ops.attention(query, key, value, { scale: 1 })).out;
    t.ok(bytes > 2 ** 32);
    t.same([...seen.data], new Array(16).fill(3), "the value of the last key");
    for (const one of [query, key, value]) one.dispose();
  }
  report("sizes", { largestPlanned: "2^40 elements", largestComputedBytes: bytes });
});
