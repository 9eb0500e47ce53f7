import assert from "node:assert/strict";
import t from "tap";
import { deleteGate, globalCom2, ops, pyramidDrop, tensor, textGuided, tokenPacker, vFlowOpt, vqNearest, type Tensor } from "tokenloom";
import { cosine, exactRows, flat, noise, squared, worst, type Rows } from "../reduce/reference.js";
import fc from "../support/property.js";

const threeD = (...batch: Rows[]): Tensor<"f32"> => tensor(flat(...batch), [batch.length, batch[0]!.length, batch[0]![0]!.length]);
const argument = (name: string) => ({ name: "ArgumentError", argument: name });
const product = (x: Rows, y: Rows): number[] => x.flatMap((a) => y.map((b) => a.reduce((sum, v, i) => sum + v * b[i]!, 0)));

t.test("rowProducts and cosineMatrix: any shapes, one y for all entries, either side across", async () => {
  await fc.assert(
    fc.asyncProperty(fc.integer({ min: 0, max: 30 }), fc.integer({ min: 1, max: 40 }), fc.integer({ min: 1, max: 300 }), fc.constantFrom(1, 2), async (n, m, width, threads) => {
      const a = noise(n + 1, width, n), b = noise(n + 1, width, m + 100), y = noise(m, width, width), bias = noise(1, m, 7)[0]!;
      const shared = await ops.rowProducts(threeD(a, b), threeD(y), { bias: tensor(Float32Array.from(bias)), threads });
      assert.ok(worst(shared.data, [...product(a, y), ...product(b, y)].map((v, i) => v + bias[i % m]!)) < 1e-5);
      const across = y[0]!.map((_, column) => y.map((row) => row[column]!));
      assert.ok(worst((await ops.rowProducts(threeD(a), threeD(across), { transposed: true, threads })).data, product(a, y)) < 1e-5);
      assert.ok(worst((await ops.cosineMatrix(threeD(a), threeD(y), { threads })).data, a.flatMap((row) => y.map((other) => cosine(row, other)))) < 1e-5);
    }),
    { numRuns: 40 },
  );
});

t.test("closestRows: the first of the closest", async () => {
  await fc.assert(
    fc.asyncProperty(exactRows(40), exactRows(50), async (x, y) => {
      for (const distance of ["cosine", "euclidean"] as const) {
        const near = (a: number[], b: number[]): number => (distance === "cosine" ? cosine(a, b) : -squared(a, b)), want = x.map((a) => y.map((b) => near(a, b)));
        const { index, best } = await ops.closestRows(threeD(x), threeD(y), { distance });
        assert.deepEqual([...index.data], want.map((row) => row.indexOf(Math.max(...row))));
        assert.deepEqual([...best.data].map((v) => v + 0), want.map((row) => Math.max(...row) + 0));
      }
    }),
    { numRuns: 60 },
  );
});

t.test("segmentPool: segments by hand", async (t) => {
  const x = threeD([[1], [2], [5], [7], [9]], [[1], [2], [3], [4], [6]]), boundary = tensor(Uint8Array.of(0, 1, 0, 0, 0, 1, 1, 0, 0, 1), [2, 5]);
  const pooled = async (mark: "end" | "start", reduce: "mean" | "sum" | "max" | "first" | "last") => [...(await ops.segmentPool(x, boundary, { mark, reduce })).out.data];
  t.same(await pooled("end", "mean"), [1.5, 7, 0, 1, 2, Math.fround(13 / 3)]);
  t.same(await pooled("end", "last"), [2, 9, 0, 1, 2, 6]);
  t.same(await pooled("start", "sum"), [1, 23, 0, 1, 9, 6]);
  t.same(await pooled("start", "first"), [1, 2, 0, 1, 2, 6]);
  t.same(await pooled("start", "max"), [1, 9, 0, 1, 4, 6]);
  const { counts, lengths, segment } = await ops.segmentPool(x, boundary);
  t.same([[...counts.data], [...lengths.data], [...segment.data]], [[2, 3], [2, 3, 0, 1, 1, 3], [0, 0, 1, 1, 1, 0, 1, 2, 2, 2]]);
});

t.test("convolve, resizeBilinear, entropy, patchEntropy: the formulas", async (t) => {
  const x = noise(2 * 4, 5, 1), weight = noise(3 * 2 * 3, 3, 2), bias = [0.1, -0.2, 0.3];
  const at = (c: number, y: number, col: number): number => x[c * 4 + y]?.[col] ?? 0;
  const want = [0, 1, 2].flatMap((o) => [0, 1, 2, 3].flatMap((y) => [0, 1, 2, 3, 4].map((col) => {
    let sum = bias[o]!;
    for (let c = 0; c < 2; c++) for (let dy = -1; dy < 2; dy++) for (let dx = -1; dx < 2; dx++) if (y + dy >= 0 && y + dy < 4) sum += at(c, y + dy, col + dx) * weight[(o * 2 + c) * 3 + dy + 1]![dx + 1]!;
    return Math.max(sum, 0);
  })));
  const convolved = await ops.convolve(tensor(flat(x), [1, 2, 4, 5]), tensor(flat(weight), [3, 2, 3, 3]), tensor(Float32Array.from(bias)), { relu: true });
  t.ok(worst(convolved.data, want) < 1e-5);
  t.same([...(await ops.resizeBilinear(tensor(Float32Array.of(0, 4), [1, 1, 2, 1]), { height: 1, width: 4 })).data], [0, 1, 3, 4]);
  t.ok(worst((await ops.entropy(tensor(Float32Array.of(0.5, 0.25, 0.25, 0), [1, 4]), { base: 2 })).data, [1.5]) < 1e-6);
  t.ok(worst((await ops.entropy(tensor(Float32Array.of(3, 3, 3), [3]), { logits: true, normalize: true })).data, [1]) < 1e-6);
  t.ok(worst((await ops.patchEntropy(tensor(Uint8Array.of(1, 1, 9, 200, 7, 7, 7, 7), [1, 2, 4, 1]), { patch: 2, base: 2 })).data, [1, 1.5]) < 1e-6);
});

t.test("vqNearest copies codes", async (t) => {
  const made = await vqNearest(threeD([[1, 0], [0, 3], [0, 0]]), tensor(Float32Array.of(2, 0, 0, 2, 0, 2), [3, 2]));
  t.same([[...made.index.data], [...made.distance.data], [...made.tokens.data]], [[0, 1, 0], [1, 1, 4], [2, 0, 0, 2, 2, 0]]);
});

t.test("arguments are checked", async (t) => {
  const x = threeD(noise(6, 4, 1)), query = tensor(flat(noise(2, 4, 2)), [1, 2, 4]), key = tensor(flat(noise(12, 4, 3)), [1, 2, 6, 4]);
  await t.rejects(ops.rowProducts(x, threeD(noise(3, 5, 1))), { name: "ShapeError" });
  await t.rejects(ops.closestRows(x, x, { distance: "manhattan" as never }), argument("options.distance"));
  await t.rejects(ops.bipartiteMatch(x, { merge: -1 }), argument("options.merge"));
  await t.rejects(ops.segmentPool(x, tensor(new Uint8Array(5), [1, 5])), { name: "ShapeError" });
  await t.rejects(ops.entropy(x, { base: 1 }), argument("options.base"));
  await t.rejects(ops.convolve(tensor(new Float32Array(4), [1, 1, 2, 2]), tensor(new Float32Array(4), [1, 1, 2, 2]), tensor(new Float32Array(1))), argument("weight"));
  await t.rejects(ops.farthestRows(x, { keep: 2, start: "any" as never }), argument("options.start"));
  await t.rejects(pyramidDrop(x, query, key, { imageStart: 3, imageTokens: 9 }), argument("options.imageTokens"));
  await t.rejects(pyramidDrop(x, query, key, { imageStart: 0, imageTokens: 4, ratios: [0.5, 1] }), argument("options.ratios"));
  await t.rejects(textGuided(query, key, { height: 2, width: 3, tilesHeight: 1, tilesWidth: 1 } as never), argument("options"));
  await t.rejects(globalCom2(x, tensor(new Float32Array(6), [1, 6]), tensor(new Float32Array(16), [1, 1, 4, 4]), tensor(new Float32Array(4), [1, 1, 4]), { rows: 1, cols: 1, grid: 2 }), argument("thumb"));
  await t.rejects(vFlowOpt(x, tensor(new Float32Array(36), [1, 1, 6, 6]), tensor(new Float32Array(6), [1, 6]), { keepRatios: [2] }), argument("options.keepRatios"));
  await t.rejects(deleteGate(x, { weight: tensor(new Float32Array(4)), bias: tensor(new Float32Array(1)) }, { k: 1 }), argument("options.k"));
  await t.rejects(tokenPacker(x, x, {} as never, { grid: 3, scale: 2, heads: 1 }), argument("options.scale"));
});
