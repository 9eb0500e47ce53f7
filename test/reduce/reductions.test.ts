import assert from "node:assert/strict";
import t from "tap";
import {
  adaptivePool, correlationGuided, divPrune, dpcKnn, eVit, matryoshkaPool, ops, reduceTokens, tensor, toDre, tokenTransforming, toMe, toMeSd, type Reduced, type Reduction, type ReduceOptions,
} from "tokenloom";
import { settledMemory } from "../support/leaks.js";
import fc from "../support/property.js";
import { cosine, exactRows, falling, farthest, firstOf, flat, merged, noise, squared, toMeMap, worst, type Rows } from "./reference.js";

const threeD = (...batch: Rows[]) => tensor(flat(...batch), [batch.length, batch[0]!.length, batch[0]![0]!.length]);
const twoD = (...batch: number[][]) => tensor(Float32Array.from(batch.flat()), [batch.length, batch[0]!.length]);
const ones = (n: number): number[] => new Array<number>(n).fill(1);
const keptOf = (made: Reduced): number[] => [...made.kept!.data].flatMap((mark, i) => (mark ? [i] : []));

t.test("toMe merges what the plain matching merges; ties and zeros included, in any number of threads", async () => {
  await fc.assert(
    fc.asyncProperty(exactRows(40), fc.nat(25), fc.boolean(), fc.boolean(), fc.constantFrom(1, 2), async (metric, r, classToken, distillToken, threads) => {
      const n = metric.length, x = noise(n, 5, n + r), sizes = noise(n, 1, r).map(([v]) => Math.fround(Math.abs(v!) + 0.5));
      using made = await reduceTokens(toMe({ perLayer: r, classToken, distillToken }), threeD(x), { metric: threeD(metric), sizes: twoD(sizes), threads });
      const merges = Math.max(0, Math.min(r, Math.floor((n - Number(classToken) - Number(distillToken)) / 2))), map = merges === 0 ? x.map((_, i) => i) : toMeMap(metric, r, classToken, distillToken);
      assert.deepEqual([...made.source.data], map);
      assert.equal(made.counts[0], n - merges);
      assert.ok(worst(made.tokens.data, merged(x, map, sizes, n - merges).flat()) < 1e-5);
      assert.ok(worst(made.sizes.data, Array.from({ length: n - merges }, (_, row) => map.reduce((sum, place, i) => sum + (place === row ? sizes[i]! : 0), 0))) < 1e-6);
    }),
    { numRuns: 120 },
  );
});

t.test("matching of floats that tie nowhere: batches, long rows, long sequences", async (t) => {
  for (const [n, width] of [[257, 64], [130, 100], [33, 769], [2, 3], [3, 1], [1, 4]] as const) {
    const a = noise(n, width, n), b = noise(n, width, n + 1);
    using made = await reduceTokens(toMe({ perLayer: Math.floor(n / 4), classToken: false }), threeD(a, b));
    const want = [a, b].map((rows) => (n < 4 ? rows.map((_, i) => i) : toMeMap(rows, Math.floor(n / 4), false, false)));
    t.same([...made.source.data], want.flat(), `${n} × ${width}`);
  }
});

t.test("reductions chain: source and sizes speak of the original tokens, unmerge gives them back", async (t) => {
  const x = noise(64, 6, 1);
  using first = await reduceTokens(toMe(20), threeD(x));
  using second = await reduceTokens(toMe(10), first.tokens, { sizes: first.sizes, source: first.source });
  using third = await reduceTokens(divPrune({ keep: 12 }), second.tokens, { sizes: second.sizes, source: second.source });
  t.same([...second.counts], [34]);
  t.equal(second.sizes.data.reduce((sum, size) => sum + size, 0), 64, "sizes count every token once");
  t.same([...second.source.data], [...first.source.data].map((row) => [...second.source.data][[...first.source.data].indexOf(row)]), "what was together stays together");
  t.ok(worst(second.tokens.data, merged(x, [...second.source.data], ones(64), 34).flat()) < 1e-5, "a merged token is the mean of all its original tokens");
  using back = await ops.unmerge(third.tokens, third.source);
  third.source.data.forEach((row, token) => {
    const got = [...back.data.subarray(token * 6, token * 6 + 6)];
    t.same(got, row < 0 ? [0, 0, 0, 0, 0, 0] : [...third.tokens.data.subarray(row * 6, row * 6 + 6)]);
  });
});

t.test("toMeSd merges into the corner of each cell, as a plain mean", async (t) => {
  const metric = noise(30, 7, 3), x = noise(30, 4, 4), destinations = [0, 2, 4, 12, 14, 16];
  using made = await reduceTokens(toMeSd({ width: 6, height: 5, perLayer: 11 }), threeD(x), { metric: threeD(metric), sizes: twoD(noise(30, 1, 5).map(([v]) => Math.abs(v!) + 1)) });
  const sources = x.map((_, i) => i).filter((i) => !destinations.includes(i));
  const partner = sources.map((i) => firstOf(destinations.map((j) => cosine(metric[i]!, metric[j]!)), (a, b) => a > b));
  const gone = new Set(falling(sources.map((i, row) => cosine(metric[i]!, metric[destinations[partner[row]!]!]!))).slice(0, 11));
  const kept = sources.filter((_, row) => !gone.has(row)), map = x.map((_, i) => (destinations.includes(i) ? kept.length + destinations.indexOf(i) : kept.includes(i) ? kept.indexOf(i) : kept.length + partner[sources.indexOf(i)]!));
  t.same([...made.source.data], map);
  t.ok(worst(made.tokens.data, merged(x, map, ones(30), 19).flat()) < 1e-5);
});

t.test("eVit keeps the best in order, copied, and fuses the others", async (t) => {
  const x = noise(21, 6, 7), scores = noise(21, 1, 8).map(([v]) => Math.abs(v!));
  const stay = [0, ...falling(scores.slice(1)).slice(0, 14).map((i) => i + 1).sort((a, b) => a - b)], others = x.map((_, i) => i).filter((i) => !stay.includes(i));
  using made = await reduceTokens(eVit({ keepRate: 0.7 }), threeD(x), { scores: twoD(scores) });
  t.same(keptOf(made), stay);
  t.same([...made.tokens.data.subarray(0, 15 * 6)], stay.flatMap((i) => x[i]!), "copies");
  t.ok(worst(made.tokens.data.subarray(15 * 6), x[0]!.map((_, c) => others.reduce((sum, i) => sum + scores[i]! * x[i]![c]!, 0))) < 1e-5);
  t.same([...made.source.data], x.map((_, i) => (stay.includes(i) ? stay.indexOf(i) : 15)));
  using runs = await reduceTokens(eVit({ keepRate: 0.7, fuse: "weightedMean", recycle: 4 }), threeD(x), { scores: twoD(scores) });
  t.same(others.map((i) => runs.source.data[i]), [15, 15, 16, 16, 17, 18], "six tokens in four runs, longer ones first");
  using dropped = await reduceTokens(eVit({ keep: 3, fuse: "none", classToken: false }), threeD(x), { scores: twoD(scores) });
  t.equal([...dropped.source.data].filter((row) => row < 0).length, 18);
});

for (const [name, reduction, distance, sum] of [
  ["divPrune", (keep: number) => divPrune({ keep }), (a: number[], b: number[]) => 1 - cosine(a, b), false],
  ["toDre, cosine", (keep: number) => toDre({ keep, start: "index", first: 0 }), (a: number[], b: number[]) => 1 - cosine(a, b), false],
  ["toDre, Euclidean", (keep: number) => toDre({ keep, start: "index", distance: "euclidean" }), (a: number[], b: number[]) => Math.sqrt(squared(a, b)), false],
  ["toDre, largest sum", (keep: number) => toDre({ keep, start: "index", objective: "maxsum" }), (a: number[], b: number[]) => 1 - cosine(a, b), true],
] as const) {
  t.test(`${name}: the lazy choice is the plain one, to the last tie`, async () => {
    await fc.assert(
      fc.asyncProperty(exactRows(60), fc.double({ min: 0, max: 1, noNaN: true }), fc.constantFrom(1, 2), async (x, share, threads) => {
        const keep = Math.max(1, Math.floor(share * x.length)), want = farthest(x, keep, distance, name === "divPrune" ? undefined : 0, sum);
        using made = await reduceTokens(reduction(keep), threeD(x), { threads });
        assert.deepEqual(keptOf(made), [...want].sort((a, b) => a - b));
        assert.deepEqual([...made.tokens.data], [...want].sort((a, b) => a - b).flatMap((i) => x[i]!));
      }),
      { numRuns: 80 },
    );
  });
}

t.test("farthestRows gives the order of choice: floats, several hundred tokens, several batch entries", async (t) => {
  const batch = [noise(500, 24, 11), noise(500, 24, 12), noise(500, 24, 13)];
  for (const threads of [1, 2]) {
    const { order } = await ops.farthestRows(threeD(...batch), { keep: 200, start: "alone", threads });
    t.same([...order.data], batch.flatMap((x) => farthest(x, 200, (a, b) => 1 - cosine(a, b), undefined, false)));
  }
});

t.test("dpcKnn: centres and clusters of the definition", async (t) => {
  const x = noise(48, 6, 21), k = 5, n = x.length, weights = noise(48, 1, 22).map(([v]) => Math.fround(Math.abs(v!)));
  const far = x.map((a) => x.map((b) => squared(a, b) / 6)), density = far.map((row) => Math.exp(-[...row].sort((a, b) => a - b).slice(0, k).reduce((sum, d) => sum + d, 0) / k));
  const denser = (j: number, i: number): boolean => density[j]! > density[i]! || (density[j] === density[i] && j < i);
  const score = far.map((row, i) => {
    const above = row.filter((_, j) => denser(j, i));
    return density[i]! * Math.sqrt(above.length > 0 ? Math.min(...above) : Math.max(...far.flat()));
  });
  const centres = falling(score).slice(0, 9).sort((a, b) => a - b), map = far.map((row, i) => (centres.includes(i) ? centres.indexOf(i) : firstOf(centres.map((c) => row[c]!), (a, b) => a < b)));
  using made = await reduceTokens(dpcKnn({ keep: 9, k }), threeD(x), { scores: twoD(weights) });
  t.same(keptOf(made), centres);
  t.same([...made.source.data], map);
  t.ok(worst(made.tokens.data, merged(x, map, weights, 9).flat()) < 1e-5);
  const { density: got } = await ops.densityPeaks(threeD(x), { k });
  t.ok(worst(got.data, density) < 1e-5);
  t.equal(n, 48);
});

t.test("correlationGuided keeps as many tokens as are unique", async () => {
  await fc.assert(
    fc.asyncProperty(exactRows(30, 6), fc.boolean(), async (key, merge) => {
      const n = key.length, x = noise(n, 3, n), scores = noise(n, 1, n + 9).map(([v]) => Math.fround(Math.abs(v!) + 0.1)), unique: number[] = [];
      key.forEach((row, i) => unique.every((j) => !(cosine(row, key[j]!) > 0.7)) && unique.push(i));
      const kept = falling(scores).slice(0, unique.length).sort((a, b) => a - b);
      using made = await reduceTokens(correlationGuided({ threshold: 0.7, merge }), threeD(x), { metric: threeD(key), scores: twoD(scores) });
      assert.deepEqual(keptOf(made), kept);
      const map = x.map((_, i) => (kept.includes(i) ? kept.indexOf(i) : merge ? firstOf(kept.map((j) => cosine(key[i]!, key[j]!)), (a, b) => a > b) : -1));
      assert.deepEqual([...made.source.data], map);
      assert.ok(worst(made.tokens.data, merged(x, map, merge ? scores : ones(n), kept.length).flat()) < 1e-5);
    }),
    { numRuns: 60 },
  );
});

t.test("tokenTransforming mixes all tokens of a sequence by softmax, wide rows too", async (t) => {
  for (const width of [5, 600]) {
    const x = noise(19, width, 31), metric = noise(19, 6, 32), scores = noise(19, 1, 33).map(([v]) => v!), sizes = x.map((_, i) => 1 + (i % 3));
    const anchors = falling(scores).slice(0, 7).sort((a, b) => a - b);
    const want = anchors.map((i) => {
      const weights = x.map((_, j) => Math.exp(cosine(metric[i]!, metric[j]!) / 0.1) * sizes[j]!), total = weights.reduce((sum, w) => sum + w, 0);
      return x[0]!.map((_, c) => weights.reduce((sum, w, j) => sum + (w / total) * x[j]![c]!, 0));
    });
    using made = await reduceTokens(tokenTransforming({ keep: 7 }), threeD(x, x), { metric: threeD(metric, metric), scores: twoD(scores, scores), sizes: twoD(sizes, sizes) });
    t.same([...made.tokens.shape], [2, 7, width]);
    t.ok(worst(made.tokens.data, [...want, ...want].flat()) < 1e-4, `width ${width}`);
  }
});

t.test("grids: adaptive windows, nested squares, and their sources", async (t) => {
  const x = noise(70, 3, 41);
  using made = await reduceTokens(adaptivePool({ height: 7, width: 10, outHeight: 3, outWidth: 4 }), threeD(x));
  const span = (i: number, size: number, out: number): number[] => Array.from({ length: Math.ceil(((i + 1) * size) / out) - Math.floor((i * size) / out) }, (_, j) => Math.floor((i * size) / out) + j);
  const want = Array.from({ length: 12 }, (_, at) => {
    const members = span(Math.floor(at / 4), 7, 3).flatMap((y) => span(at % 4, 10, 4).map((c) => x[y * 10 + c]!));
    return members[0]!.map((_, c) => members.reduce((sum, row) => sum + row[c]!, 0) / members.length);
  });
  t.ok(worst(made.tokens.data, want.flat()) < 1e-5);
  t.equal(made.sizes.data.reduce((sum, size) => sum + size, 0), 70);
  using same = await reduceTokens(adaptivePool({ height: 7, width: 10, outHeight: 7, outWidth: 10 }), threeD(x));
  t.same([...same.tokens.data], x.flat(), "to the same grid: the same tokens");
  using squares = await reduceTokens(matryoshkaPool({ grid: 7, tokens: 9 }), threeD(noise(49, 3, 42)));
  t.same([...squares.source.data.subarray(0, 7)], [0, 0, 1, 1, 2, 2, -1], "what fills no window is dropped");
});

t.test("what keeps everything changes nothing; a batch's entries do not see each other", async (t) => {
  const x = noise(24, 6, 51), other = noise(24, 6, 52), scores = noise(24, 1, 53).map(([v]) => v!);
  for (const reduction of [toMe(0), eVit({ keepRate: 1 }), divPrune({ keep: 24 }), dpcKnn({ keep: 24 }), toDre({ keepRate: 1, start: "index" })]) {
    using made = await reduceTokens(reduction, threeD(x), { scores: twoD(scores) });
    t.same([...made.tokens.data], x.flat(), reduction.name);
  }
  for (const reduction of [toMe(7), eVit({ keep: 5 }), divPrune({ keep: 9 }), dpcKnn({ keep: 6 }), toDre({ keep: 8 }), correlationGuided({ threshold: 0.1 }), tokenTransforming({ keep: 4 })] as Reduction[]) {
    using alone = await reduceTokens(reduction, threeD(x), { scores: twoD(scores) });
    using together = await reduceTokens(reduction, threeD(other, x), { scores: twoD(scores, scores) });
    const width = together.tokens.shape[1]! * 6, count = alone.tokens.size;
    t.same([...together.tokens.data.subarray(width, width + count)], [...alone.tokens.data], reduction.name);
    t.same([...together.source.data.subarray(24)], [...alone.source.data]);
  }
});

t.test("arguments are checked", async (t) => {
  const x = threeD(noise(9, 4, 1)), scores = twoD(ones(9)), argument = (name: string) => ({ name: "ArgumentError", argument: name });
  t.throws(() => toMe(-1), argument("options.perLayer"));
  t.throws(() => toMe({ perLayer: 1.5 }), argument("options.perLayer"));
  t.throws(() => toMe({ perLayer: [1, -2] }), argument("options.perLayer[1]"));
  t.throws(() => toMe({ perLayer: 3, classToken: 1 as never }), argument("options.classToken"));
  t.throws(() => eVit({} as never), argument("options"));
  t.throws(() => eVit({ keepRate: 1.2 }), argument("options.keepRate"));
  t.throws(() => eVit({ keep: 3, recycle: 2 }), argument("options.recycle"), "an option that has no effect");
  t.throws(() => toDre({ keep: 3, first: 2 }), argument("options.first"), "an option that has no effect");
  t.throws(() => toMeSd({ width: 4, height: 4, perLayer: 2, destinations: [16] }), argument("options.destinations"));
  t.throws(() => toMeSd({ width: 4, height: 4, perLayer: 2, destinations: [1], strideX: 2 }), argument("options.strideX"));
  t.throws(() => matryoshkaPool({ grid: 24, tokens: 100 }), argument("options.tokens"));
  t.throws(() => dpcKnn({ keep: 2, k: 0 }), argument("options.k"));
  const rejects = (reduction: Reduction, options: ReduceOptions, error: { name: string; argument: string }) => t.rejects(reduceTokens(reduction, x, options), error);
  await rejects(eVit({ keep: 3 }), {}, argument("options.scores"));
  await rejects(toMe(2), { metric: threeD(noise(8, 4, 1)) }, { name: "ShapeError", argument: "options.metric" });
  await rejects(toMe({ perLayer: [1, 2, 3] }), { layer: 0, layers: 4 }, argument("options.perLayer"));
  await rejects(toMe(2), { layer: 1, layers: 1 }, argument("options.layer"));
  await rejects(toMeSd({ width: 4, height: 2, perLayer: 2 }), {}, argument("tokens"));
  await rejects({} as Reduction, { scores }, argument("reduction"));
  await t.rejects(ops.unmerge(x, tensor(Int32Array.of(9), [1, 1])), { name: "ArgumentError", argument: "source" });
  await t.rejects(ops.farthestRows(x, { keep: 10, start: "alone" }), argument("options.keep"));
});

t.test("nothing native is left", async (t) => {
  const { handles, cache } = await settledMemory();
  t.same({ handles: handles > 64, cache }, { handles: false, cache: 0 }, "only the graphs that single calls keep");
});
