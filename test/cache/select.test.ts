import assert from "node:assert/strict";
import t from "tap";
import { ops, tensor } from "tokenloom";
import fc from "../support/property.js";
import { naiveAcross, naiveKeep, pooled } from "./reference.js";

/** Few different values, so that ties are the rule; −∞ and both zeros among them. */
const score = fc.oneof(fc.constantFrom(0, -0, 1, -1, 0.5, -Infinity, 3e38, 1e-40), fc.float({ noNaN: true, noDefaultInfinity: true }));
const matrix = fc.tuple(fc.integer({ min: 1, max: 4 }), fc.integer({ min: 1, max: 90 })).chain(([heads, tokens]) => fc.array(fc.array(score, { minLength: tokens, maxLength: tokens }), { minLength: heads, maxLength: heads }));

const flat = (rows: readonly (readonly number[])[]): Float32Array => Float32Array.from(rows.flat());
/** As f32 is: what was no f32 before is rounded. */
const rounded = (rows: readonly (readonly number[])[]): number[][] => rows.map((row) => Array.from(Float32Array.from(row), (x) => x + 0));
const keptOf = (mask: Uint8Array, tokens: number): number[][] =>
  Array.from({ length: mask.length / tokens }, (_, head) => Array.from({ length: tokens }, (_, j) => j).filter((j) => mask[head * tokens + j]));

t.test("keepTop chooses what sorting chooses", async () => {
  await fc.assert(
    fc.asyncProperty(matrix, fc.nat(100), fc.nat(20), fc.nat(20), fc.constantFrom(1, 2), async (rows, budget, first, last, threads) => {
      const tokens = rows[0]!.length, { kept } = await ops.keepTop(tensor(flat(rows), [rows.length, tokens]), { budget, first, last, threads });
      assert.deepEqual(keptOf(kept.data, tokens), rounded(rows).map((row) => naiveKeep(row, tokens, budget, first, last)));
    }),
    { numRuns: 150 },
  );
});

t.test("keepTop across heads chooses what sorting chooses, in each batch entry", async () => {
  await fc.assert(
    fc.asyncProperty(matrix, fc.nat(60), fc.constantFrom(0, 0.2, 0.5, 1), async (rows, budget, safeguard) => {
      const tokens = rows[0]!.length, twice = [...rows, ...[...rows].reverse()];
      const { kept } = await ops.keepTop(tensor(flat(twice), [2, rows.length, tokens]), { budget, acrossHeads: { safeguard } });
      const want = [naiveAcross(rounded(rows), budget, safeguard), naiveAcross(rounded([...rows].reverse()), budget, safeguard)];
      assert.deepEqual(keptOf(kept.data, tokens), want.flat());
    }),
    { numRuns: 150 },
  );
});

t.test("NaN comes last", async (t) => {
  const { kept } = await ops.keepTop(tensor(Float32Array.of(NaN, -Infinity, 5, NaN, 1), [1, 5]), { budget: 3 });
  t.same(keptOf(kept.data, 5), [[1, 2, 4]]);
});

t.test("poolScores is the plain window, whatever its width", async () => {
  const small = fc.integer({ min: -50, max: 50 });
  await fc.assert(
    fc.asyncProperty(fc.array(small, { minLength: 1, maxLength: 80 }), fc.nat(6), fc.nat(10), fc.constantFrom("avg", "max"), async (row, reach, last, kind) => {
      const kernel = 2 * reach + 1, { out } = await ops.poolScores(tensor(Float32Array.from(row), [1, row.length]), { kernel, kind: kind as "avg" | "max", last });
      const counted = row.slice(0, Math.max(0, row.length - last)), want = [...pooled(counted, kernel, kind as "avg" | "max"), ...new Array<number>(row.length - counted.length).fill(-Infinity)];
      assert.ok(want.every((value, j) => value === out.data[j] || Math.abs(value - out.data[j]!) < 1e-5 * Math.max(1, Math.abs(value))), `${kind} ${kernel} of ${row.length}`);
    }),
    { numRuns: 100 },
  );
});

t.test("wrong arguments are named", async (t) => {
  const x = tensor(new Float32Array(6), [2, 3]);
  await t.rejects(ops.keepTop(x, { budget: -1 }), { name: "ArgumentError", argument: "options.budget" });
  await t.rejects(ops.keepTop(x, undefined as never), { name: "ArgumentError", argument: "options" });
  await t.rejects(ops.keepTop(tensor(new Float32Array(3)), { budget: 1 }), { name: "ArgumentError", argument: "scores" });
  await t.rejects(ops.keepTop(x, { budget: 1, acrossHeads: { safeguard: 2 } }), { name: "ArgumentError", argument: "options.acrossHeads.safeguard" });
  await t.rejects(ops.poolScores(x, { kernel: 2, kind: "avg" }), { name: "ArgumentError", argument: "options.kernel" });
  await t.rejects(ops.poolScores(x, { kernel: 3, kind: "min" as never }), { name: "ArgumentError", argument: "options.kind" });
  await t.rejects(ops.quantizeRows(x, { type: "int2" as never }), { name: "ArgumentError", argument: "options.type" });
  await t.rejects(ops.mergeEvicted(x, x, x as never), { name: "ArgumentError" });
  await t.rejects(ops.blockRelevance(x, x, { blockSize: 0 }), { name: "ArgumentError" });
});
