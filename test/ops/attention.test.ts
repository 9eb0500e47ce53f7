import assert from "node:assert/strict";
import t from "tap";
import { AbortError, alibiSlopes, ArgumentError, ops, ShapeError, tensor, zeros, type AttentionOptions, type Tensor } from "tokenloom";
import { settledMemory } from "../support/leaks.js";
import fc from "../support/property.js";

interface Shape { batch: number; kvHeads: number; group: number; queries: number; keys: number; headDim: number }

function random(length: number, seed: number, scale = 1): Float32Array {
  let state = (seed * 2654435761) >>> 0;
  return Float32Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state / 2 ** 31 - 1) * scale;
  });
}

/** What a case does to a score, and whether a key is seen, written as the formula says: all in double. */
interface Reference {
  score?: (s: number, at: { b: number; h: number; i: number; j: number; p: number }) => number;
  seen?: (at: { b: number; h: number; i: number; j: number; p: number }) => boolean;
  /** exp of logits that join the denominator only. */
  extra?: (h: number) => number | undefined;
}

function reference({ batch, kvHeads, group, queries, keys, headDim }: Shape, q: Float32Array, k: Float32Array, v: Float32Array, { score, seen, extra }: Reference) {
  const heads = kvHeads * group, out = new Float64Array(batch * heads * queries * headDim), lse = new Float64Array(batch * heads * queries), sums = new Float64Array(batch * heads * keys);
  for (let b = 0; b < batch; b++) for (let h = 0; h < heads; h++) for (let i = 0; i < queries; i++) {
    const row = (b * heads + h) * queries + i, base = (b * kvHeads + Math.floor(h / group)) * keys, p = keys - queries + i;
    const scores: number[] = [];
    for (let j = 0; j < keys; j++) {
      let s = 0;
      for (let d = 0; d < headDim; d++) s += q[row * headDim + d]! * k[(base + j) * headDim + d]!;
      s /= Math.sqrt(headDim);
      const at = { b, h, i, j, p };
      scores.push(seen && !seen(at) ? -Infinity : score ? score(s, at) : s);
    }
    const joined = extra?.(h), max = Math.max(...scores, joined ?? -Infinity);
    const total = max === -Infinity ? 0 : scores.reduce((sum, s) => sum + Math.exp(s - max), joined === undefined ? 0 : Math.exp(joined - max));
    lse[row] = total === 0 ? -Infinity : max + Math.log(total);
    scores.forEach((s, j) => {
      if (s === -Infinity) return;
      const weight = Math.exp(s - lse[row]!);
      sums[(b * heads + h) * keys + j]! += weight;
      for (let d = 0; d < headDim; d++) out[row * headDim + d]! += weight * v[(base + j) * headDim + d]!;
    });
  }
  return { out, lse, sums };
}

function worst(got: ArrayLike<number>, want: ArrayLike<number>): number {
  let most = 0;
  for (let i = 0; i < want.length; i++) {
    if (got[i] === want[i]) continue;
    const error = Math.abs(got[i]! - want[i]!) / (1 + Math.abs(want[i]!));
    most = Math.max(most, Number.isNaN(error) ? Infinity : error);
  }
  return got.length === want.length ? most : Infinity;
}

const shapes = fc.record({
  batch: fc.integer({ min: 1, max: 2 }), kvHeads: fc.integer({ min: 1, max: 2 }), group: fc.integer({ min: 1, max: 3 }),
  queries: fc.oneof(fc.constant(0), fc.constant(1), fc.integer({ min: 2, max: 70 })), keys: fc.oneof(fc.constant(0), fc.constant(1), fc.integer({ min: 2, max: 150 })),
  headDim: fc.oneof(fc.constantFrom(1, 32, 64, 128), fc.integer({ min: 1, max: 140 })),
});

const masks = fc.oneof(
  fc.constant<[AttentionOptions<Tensor>, Reference]>([{}, {}]),
  fc.constant<[AttentionOptions<Tensor>, Reference]>([{ causal: true }, { seen: ({ j, p }) => j <= p }]),
  fc.tuple(fc.integer({ min: 1, max: 60 }), fc.nat(6), fc.boolean()).map(([window, sinks, causal]): [AttentionOptions<Tensor>, Reference] => [
    { window, sinks, causal }, { seen: ({ j, p }) => (causal ? j <= p && (p - j < window || j < sinks) : Math.abs(p - j) < window || j < sinks) },
  ]),
  fc.double({ min: 0.5, max: 30, noNaN: true }).map((cap): [AttentionOptions<Tensor>, Reference] => [{ causal: true, softcap: cap }, { score: (s) => cap * Math.tanh(s / cap), seen: ({ j, p }) => j <= p }]),
  fc.constant<[AttentionOptions<Tensor>, Reference]>([{ offByOne: true, causal: true }, { seen: ({ j, p }) => j <= p, extra: () => 0 }]),
);

t.test("random shapes and masks follow the formula, in any number of threads", async () => {
  await fc.assert(
    fc.asyncProperty(shapes, masks, fc.nat(1000), fc.boolean(), async (shape, [options, formula], seed, tokensFirst) => {
      const { batch, kvHeads, group, queries, keys, headDim } = shape, heads = kvHeads * group;
      const q = random(batch * heads * queries * headDim, seed + 1, 3), k = random(batch * kvHeads * keys * headDim, seed + 2, 3), v = random(batch * kvHeads * keys * headDim, seed + 3);
      const lay = (data: Float32Array, h: number, n: number): Tensor => {
        if (!tokensFirst) return tensor(data, [batch, h, n, headDim]);
        const swapped = new Float32Array(data.length);
        for (let b = 0; b < batch; b++) for (let a = 0; a < h; a++) for (let i = 0; i < n; i++) {
          swapped.set(data.subarray(((b * h + a) * n + i) * headDim, ((b * h + a) * n + i + 1) * headDim), ((b * n + i) * h + a) * headDim);
        }
        return tensor(swapped, [batch, n, h, headDim]);
      };
      const wanted = reference(shape, q, k, v, formula);
      const all = { ...options, returnLse: true, columnSums: true, layout: tokensFirst ? "tokens-first" : "heads-first" } as const;
      using one = await ops.attention(lay(q, heads, queries), lay(k, kvHeads, keys), lay(v, kvHeads, keys), { ...all, threads: 1 });
      using two = await ops.attention(lay(q, heads, queries), lay(k, kvHeads, keys), lay(v, kvHeads, keys), { ...all, threads: 2 });
      const got = one as unknown as { out: Tensor; logSumExp: Tensor; columnSums: Tensor };
      assert.ok(worst(got.out.data, wanted.out) < 2e-5 && worst(got.logSumExp.data, wanted.lse) < 2e-5 && worst(got.columnSums.data, wanted.sums) < 1e-4, JSON.stringify({ shape, options, tokensFirst }));
      return Buffer.from(one.out.data.buffer).equals(Buffer.from(two.out.data.buffer));
    }),
    { numRuns: 60, seed: 3 },
  );
});

t.test("a query's result does not depend on the queries beside it", async (t) => {
  const [heads, keys, headDim] = [2, 200, 64], q = random(heads * 50 * headDim, 1), k = tensor(random(keys * headDim, 2), [1, 1, keys, headDim]), v = tensor(random(keys * headDim, 3), [1, 1, keys, headDim]);
  const { out } = await ops.attention(tensor(q, [1, heads, 50, headDim]), k, v);
  for (const i of [0, 17, 49]) {
    const alone = Float32Array.from([...q.subarray(i * headDim, (i + 1) * headDim), ...q.subarray((50 + i) * headDim, (51 + i) * headDim)]);
    const single = await ops.attention(tensor(alone, [1, heads, 1, headDim]), k, v);
    for (let h = 0; h < heads; h++) t.same(single.out.data.slice(h * headDim, (h + 1) * headDim), out.data.slice((h * 50 + i) * headDim, (h * 50 + i + 1) * headDim));
  }
});

t.test("slopes, dense bias and sink logits, alone and together", async (t) => {
  const shape = { batch: 1, kvHeads: 2, group: 2, queries: 9, keys: 40, headDim: 32 }, heads = 4;
  const q = random(heads * 9 * 32, 4), k = random(2 * 40 * 32, 5), v = random(2 * 40 * 32, 6), bias = random(9 * 40, 7, 2), sinks = random(heads, 8, 2), slopes = alibiSlopes(heads);
  const wanted = reference(shape, q, k, v, { score: (s, { h, i, j, p }) => s - slopes[h]! * Math.abs(p - j) + bias[i * 40 + j]!, seen: ({ j, p }) => j <= p, extra: (h) => sinks[h] });
  using got = await ops.attention(tensor(q, [1, heads, 9, 32]), tensor(k, [1, 2, 40, 32]), tensor(v, [1, 2, 40, 32]), {
    causal: true, slopes: tensor(slopes), bias: tensor(bias, [1, 1, 9, 40]), sinkLogits: tensor(sinks), returnLse: true,
  });
  t.ok(worst(got.out.data, wanted.out) < 2e-5);
  t.ok(worst(got.logSumExp.data, wanted.lse) < 2e-5);
});

t.test("relative positions of DeBERTa follow the formula", async (t) => {
  const [heads, queries, keys, headDim, spread] = [2, 7, 7, 16, 5], shape = { batch: 1, kvHeads: heads, group: 1, queries, keys, headDim };
  const q = random(heads * queries * headDim, 1), k = random(heads * keys * headDim, 2), v = random(heads * keys * headDim, 3);
  const toPosition = random(heads * queries * spread, 4), toContent = random(heads * keys * spread, 5);
  const index = Int32Array.from({ length: queries + keys - 1 }, (_, at) => Math.min(spread - 1, Math.max(0, at - (keys - 1) + 2)));
  const scale = 1 / Math.sqrt(headDim);
  const wanted = reference(shape, q, k, v, {
    score: (s, { h, i, j }) => s + scale * (toPosition[(h * queries + i) * spread + index[i - j + keys - 1]!]! + toContent[(h * keys + j) * spread + index[i - j + keys - 1]!]!),
  });
  using got = await ops.attention(tensor(q, [1, heads, queries, headDim]), tensor(k, [1, heads, keys, headDim]), tensor(v, [1, heads, keys, headDim]), {
    relative: { contentToPosition: tensor(toPosition, [1, heads, queries, spread]), positionToContent: tensor(toContent, [1, heads, keys, spread]), index: tensor(index) },
  });
  t.ok(worst(got.out.data, wanted.out) < 2e-5);
});

t.test("f16 and bf16 operands are the numbers that they stand for", async (t) => {
  const [queries, keys, headDim] = [5, 33, 40];
  const bits = (length: number, seed: number): Uint16Array => Uint16Array.from(new Uint32Array(random(length, seed).buffer), (word) => word >>> 16);
  const value = (stored: Uint16Array): Float32Array => new Float32Array(Uint32Array.from(stored, (word) => word << 16).buffer);
  const [q, k, v] = [bits(queries * headDim, 1), bits(keys * headDim, 2), bits(keys * headDim, 3)] as const;
  const wanted = reference({ batch: 1, kvHeads: 1, group: 1, queries, keys, headDim }, value(q), value(k), value(v), {});
  using got = await ops.attention(tensor(q, [1, 1, queries, headDim], "bf16"), tensor(k, [1, 1, keys, headDim], "bf16"), tensor(v, [1, 1, keys, headDim], "bf16"));
  t.ok(worst(got.out.data, wanted.out) < 2e-5);
});

t.test("a row of NaN spoils only its own row", async (t) => {
  const q = random(3 * 32, 1), k = tensor(random(20 * 32, 2), [1, 1, 20, 32]), v = tensor(random(20 * 32, 3), [1, 1, 20, 32]);
  const clean = await ops.attention(tensor(q, [1, 1, 3, 32]), k, v, { causal: true });
  const broken = q.slice();
  broken.fill(NaN, 32, 64);
  const got = await ops.attention(tensor(broken, [1, 1, 3, 32]), k, v, { causal: true });
  t.ok(got.out.data.subarray(32, 64).every(Number.isNaN));
  t.same([...got.out.data.subarray(0, 32), ...got.out.data.subarray(64)], [...clean.out.data.subarray(0, 32), ...clean.out.data.subarray(64)]);
});

t.test("wrong operands: op, argument, dimension, expected and received are told", async (t) => {
  const q = zeros([1, 4, 3, 8]), k = zeros([1, 2, 5, 8]), v = zeros([1, 2, 5, 8]);
  const wrong: [Promise<unknown>, RegExp][] = [
    [ops.attention(q, zeros([1, 3, 5, 8]), zeros([1, 3, 5, 8])), /attention: Expected dimension 1 of query to be a multiple of the 3 key heads/],
    [ops.attention(q, zeros([1, 2, 5, 9]), v), /attention: Expected dimension -1 of key to be 8 but received key f32 \[1, 2, 5, 9\]/],
    [ops.attention(q, k, zeros([1, 2, 6, 8])), /attention: Expected dimension 2 of value to be 5/],
    [ops.attention(zeros([4, 3, 8]), k, v), /Expected rank 4 for query/],
    [ops.attention(zeros([1, 1, 1, 513]), zeros([1, 1, 1, 513]), zeros([1, 1, 1, 513])), /head dimensions from 1 to 512/],
    [ops.attention(q, k, v, { bias: zeros([1, 1, 3, 4]) }), /Expected dimension 3 of bias to be 5/],
    [ops.attention(q, k, v, { slopes: zeros([3]) }), /Expected dimension 0 of slopes to be 4/],
    [ops.attention(q, k, v, { tree: zeros([3, 2], "i32"), quantized: { format: "int8", keyScale: zeros([1, 2, 5]), valueScale: zeros([1, 2, 5]) } }), /Expected i8 or u8 for key/],
    [ops.attention(q, zeros([1, 2, 2, 8]), zeros([1, 2, 2, 8]), { tree: zeros([3, 2], "i32") }), /at least the 3 nodes/],
    [ops.mergeStates(zeros([2, 1, 1, 3, 4]), zeros([2, 1, 1, 2])), /Expected dimension 3 of partialLogSumExp/],
    [ops.pattention(zeros([1, 2, 3]), zeros([5, 4]), zeros([5, 2])), /Expected dimension 1 of keys/],
  ];
  for (const [promise, message] of wrong) await t.rejects(promise, { name: "ShapeError", message });
  await t.rejects(ops.attention(q, k, v, { window: 0 }), { name: "ArgumentError", message: /options\.window/ });
  await t.rejects(ops.attention(q, k, v, { scale: NaN }), ArgumentError);
  await t.rejects(ops.attention("q" as unknown as Tensor, k, v), { name: "ArgumentError", message: /Expected a tensor for query/ });
  await t.rejects(ops.attention(q, k, v, { threads: 0 }), ArgumentError);
  await t.rejects(ops.attention(q, k, v, { signal: AbortSignal.abort() }), AbortError);
  const gone = zeros([1, 2, 5, 8]);
  gone.dispose();
  await t.rejects(ops.attention(q, k, gone), { name: "DisposedError" });
  // @ts-expect-error options that exclude each other do not compile
  const both: AttentionOptions<Tensor> = { causal: true, tree: zeros([3, 2], "i32") };
  t.ok(both);
  t.ok(ShapeError.prototype instanceof Error);
});

t.test("nothing is left behind but the graphs kept for the next call", async (t) => {
  t.ok((await settledMemory()).handles <= 64);
});
