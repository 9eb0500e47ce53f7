import {
  adaKV, expectedAttention, h2o, keyDiff, kNorm, KvCache, perLayer, protect, pyramidKV, quantizeBeyond, randomEviction, snapKV, streamingLlm, tova, valueNorm, vatp, type CachePolicy, type KvCacheShape,
} from "tokenloom";
import t from "tap";
import { settledMemory } from "../support/leaks.js";
import { columnSums, expectedWeights, keyDiff as keyDistances, naiveAcross, naiveKeep, norm, pooled, rotated } from "./reference.js";
import { headRows, keptPositions, randomNumbers, randomRows, randomStep, type Step } from "./support.js";

const shape: KvCacheShape = { layers: 2, kvHeads: 2, headDim: 24, type: "f32" };
const rope = { theta: 10000, style: "half", dim: 24 } as const;
const heads = 6, tokens = 150, budget = 40;
/** header, then 32 keys and 32 values. */
const pageBytes = 192 + 2 * 32 * 24 * 4;

/** What a head's policy should rank by, from plain formulas. */
interface Seen {
  readonly layer: number;
  readonly head: number;
  readonly keys: readonly Float32Array[];
  readonly values: readonly Float32Array[];
  /** Column sums of the last `queries` queries, averaged over the group's query heads. */
  attention(queries: number, head?: number): number[];
  /** ExpectedAttention's weights, averaged over the group's query heads. */
  expected(options: { sinks: number; future: number; covariance: boolean }): number[];
}

interface Case {
  readonly name: string;
  readonly policy: CachePolicy;
  readonly first?: number;
  readonly last?: number;
  scores?(seen: Seen): number[];
}

const cases: readonly Case[] = [
  { name: "streamingLlm", policy: streamingLlm({ budget, rerotate: false }), first: 4 },
  { name: "h2o", policy: h2o({ budget }), last: 20, scores: (seen) => seen.attention(tokens) },
  { name: "h2o, normalised", policy: h2o({ budget, recent: 0, normalize: "count" }), scores: (seen) => seen.attention(tokens).map((sum, j) => sum / (tokens - j)) },
  { name: "snapKV", policy: snapKV({ budget, window: 16 }), last: 16, scores: (seen) => pooled(seen.attention(16).slice(0, -16), 5, "avg") },
  { name: "snapKV, max", policy: snapKV({ budget, window: 16, kernel: 7, pooling: "max" }), last: 16, scores: (seen) => pooled(seen.attention(16).slice(0, -16), 7, "max") },
  {
    name: "tova", policy: tova({ budget }), last: 1,
    scores: (seen) => seen.keys.map((_, j) => (seen.attention(1, 0)[j]! + seen.attention(1, 1)[j]!) / 2),
  },
  {
    name: "vatp", policy: vatp({ budget, sinks: 3 }), first: 3, last: 20,
    scores: (seen) => seen.attention(tokens).map((sum, j) => sum * seen.values[j]!.reduce((size, x) => size + Math.abs(x), 0)),
  },
  { name: "kNorm", policy: kNorm({ budget }), scores: (seen) => seen.keys.map((key) => -norm(key)) },
  { name: "keyDiff", policy: keyDiff({ budget }), scores: (seen) => keyDistances(seen.keys) },
  { name: "valueNorm", policy: valueNorm({ budget }), scores: (seen) => seen.values.map(norm) },
  { name: "ratio", policy: kNorm({ ratio: 1 - (budget + 0.5) / tokens }), scores: (seen) => seen.keys.map((key) => -norm(key)) },
  { name: "protect", policy: protect(kNorm({ budget }), { first: 5, last: 7 }), first: 5, last: 7, scores: (seen) => seen.keys.map((key) => -norm(key)) },
  {
    name: "expectedAttention", policy: expectedAttention({ budget, futurePositions: 48 }), first: 4,
    scores: (seen) => seen.expected({ sinks: 4, future: 48, covariance: true }).map((weight, j) => weight * norm(seen.values[j]!)),
  },
  {
    name: "expectedAttention, mean", policy: expectedAttention({ budget, futurePositions: 48, covariance: false, valueNorm: false, sinks: 2 }), first: 2,
    scores: (seen) => seen.expected({ sinks: 2, future: 48, covariance: false }),
  },
  {
    name: "perLayer", policy: perLayer([streamingLlm({ budget, rerotate: false, sinks: 0 }), kNorm({ budget })]),
    scores: (seen) => seen.keys.map((key, j) => (seen.layer === 0 ? j : -norm(key))),
  },
];

function seenBy(step: Step, layer: number, head: number): Seen {
  const group = heads / shape.kvHeads, keysOf = (h: number) => headRows(step.key, shape.kvHeads, shape.headDim, h);
  return {
    layer, head, keys: keysOf(head), values: headRows(step.value, shape.kvHeads, shape.headDim, head),
    attention(queries, of = head) {
      const sums = Array.from({ length: group }, (_, g) => columnSums(headRows(step.query, heads, shape.headDim, of * group + g).slice(-queries), keysOf(of)));
      return sums[0]!.map((_, j) => sums.reduce((total, row) => total + row[j]!, 0) / group);
    },
    expected(options) {
      const rows = Array.from({ length: group }, (_, g) => expectedWeights(headRows(step.query, heads, shape.headDim, head * group + g), keysOf(head), options));
      return rows[0]!.map((_, j) => rows.reduce((total, row) => total + row[j]!, 0) / group);
    },
  };
}

t.test("each policy keeps what its formula says, of every layer and head", async (t) => {
  for (const { name, policy, first = 0, last = 0, scores } of cases) {
    for (const threads of [1, 2]) {
      const random = randomNumbers(7), steps = [0, 1].map(() => randomStep(random, tokens, shape, heads));
      using cache = new KvCache(shape);
      const rows = policy.observe.kind === "queries" ? steps.map(({ query, ...rest }) => ({ ...rest, queryBeforeRope: query })) : steps;
      await cache.append(rows, { observe: policy, threads });
      const went = await cache.evict(policy, { threads, rope });
      t.equal(went, shape.layers * shape.kvHeads * (tokens - budget), `${name}: how many went`);
      for (const layer of [0, 1]) {
        const want = [0, 1].map((head) => naiveKeep(scores?.(seenBy(steps[layer]!, layer, head)), tokens, budget, first, last));
        t.same(keptPositions(cache, layer), want, `${name}, layer ${layer}, ${threads} threads`);
        for (const head of [0, 1]) {
          const held = cache.read(layer, head), rows = seenBy(steps[layer]!, layer, head);
          t.same(headRows(held.keys, 1, shape.headDim, 0), want[head]!.map((j) => rows.keys[j]!), "keys are the same bits");
          t.same(headRows(held.values, 1, shape.headDim, 0), want[head]!.map((j) => rows.values[j]!), "values are the same bits");
        }
      }
      t.equal(cache.stats().bytesHeld, shape.layers * shape.kvHeads * Math.ceil(budget / 32) * pageBytes, "pages went back");
    }
  }
});

t.test("pyramidKV's budgets fall from layer to layer", async (t) => {
  const policy = pyramidKV({ budget: 40, window: 8, beta: 4 }), deep = { ...shape, layers: 5 }, random = randomNumbers(3);
  using cache = new KvCache(deep);
  await cache.append(Array.from({ length: 5 }, () => randomStep(random, tokens, deep, heads)), { observe: policy });
  await cache.evict(policy);
  const want = [70, 55, 40, 25, 10];
  t.same(Array.from(cache.stats().lengths), want.flatMap((budget) => [budget, budget]));
  // kvpress 0.5.5, PyramidKVPress(0.5) over 437 tokens and 30 layers, and (0.75), which falls back to equal budgets.
  const allocated = (ratio: number): readonly number[] => pyramidKV({ ratio, window: 64 }).allocate({ layers: 30, kvHeads: 3, tokens: 437 });
  t.same(allocated(0.5).slice(0, 6), [373, 362, 352, 341, 330, 320]);
  t.same(allocated(0.5).slice(-6), [117, 107, 96, 85, 75, 64]);
  t.same([...new Set(allocated(0.75))], [109]);
});

t.test("adaKV divides a layer's budget over its heads", async (t) => {
  const random = randomNumbers(11), steps = [0, 1].map(() => randomStep(random, tokens, shape, heads));
  // One head's values are larger, so that it gets more.
  for (const { value } of steps) for (let i = 0; i < value.length; i++) if (Math.floor(i / shape.headDim) % 2 === 0) value[i] = value[i]! * 2;
  for (const safeguard of [0, 0.2, 1]) {
    using cache = new KvCache(shape);
    await cache.append(steps);
    await cache.evict(adaKV({ policy: valueNorm({ budget }), safeguard }));
    for (const layer of [0, 1]) {
      const scores = [0, 1].map((head) => headRows(steps[layer]!.value, 2, shape.headDim, head).map(norm));
      t.same(keptPositions(cache, layer), naiveAcross(scores, budget, safeguard), `safeguard ${safeguard}, layer ${layer}`);
    }
    t.equal(cache.stats().lengths.reduce((a, b) => a + b, 0), 4 * budget);
  }
});

t.test("randomEviction is decided by its seed", async (t) => {
  const kept = async (seed: number): Promise<number[][]> => {
    using cache = new KvCache(shape);
    const random = randomNumbers(5);
    await cache.append([0, 1].map(() => randomStep(random, tokens, shape, heads)));
    await cache.evict(randomEviction({ budget, seed }));
    return keptPositions(cache);
  };
  const first = await kept(1);
  t.same(await kept(1), first);
  t.notSame(await kept(2), first);
  t.notSame(first[0], first[1], "each head has its own");
});

t.test("streamingLlm without end: a flat cache, dense positions, keys as if they had stood there always", async (t) => {
  const policy = streamingLlm({ budget: 64 }), random = randomNumbers(9), one = { ...shape, layers: 1 }, plain: Float32Array[] = [];
  using cache = new KvCache(one);
  for (let step = 0; step < 40; step++) {
    // The model rotates new keys at the positions that the cache tells it.
    const next = cache.stats().nextPosition, key = randomRows(random, 16, 2, 24), value = randomRows(random, 16, 2, 24);
    plain.push(...headRows(key, 2, 24, 1));
    const turned = Float32Array.from(Array.from({ length: 32 }, (_, row) => rotated(key.subarray(row * 24, (row + 1) * 24), next + Math.floor(row / 2))).flat());
    await cache.append([{ key: turned, value }]);
    if (cache.stats().tokens >= 96) await cache.evict(policy, { rope });
  }
  const { tokens: length, nextPosition } = cache.stats(), held = cache.read(0, 1);
  t.ok(length >= 64 && length < 96);
  t.equal(nextPosition, length);
  t.same(Array.from(held.positions), Array.from({ length }, (_, i) => i));
  const want = [...plain.slice(0, 4), ...plain.slice(4 - length)].flatMap((key, position) => rotated(key, position));
  const worst = want.reduce((most, value, i) => Math.max(most, Math.abs(value - held.keys[i]!)), 0);
  t.ok(worst < 2e-5, `keys differ by at most ${worst}: f32 rounding of twenty rotations`);
});

t.test("quantizeBeyond converts what lies before the recent tokens, alone or behind a policy", async (t) => {
  for (const policy of [quantizeBeyond(undefined, { recent: 40, type: "int8" }), quantizeBeyond(kNorm({ budget: 120 }), { recent: 40, type: "int4" })]) {
    const random = randomNumbers(13);
    using cache = new KvCache(shape);
    await cache.append([0, 1].map(() => randomStep(random, tokens, shape, heads)));
    await cache.evict(policy);
    const pages = cache.pageMap()[1]![0]!.map(({ type }) => type), type = policy.quantize!.type;
    t.same(pages, policy.name === "quantizeBeyond" ? [type, type, type, "f32", "f32"] : [type, type, "f32", "f32"], policy.name);
  }
});

t.test("wrong options are named", async (t) => {
  const wrong: readonly [string, () => unknown][] = [
    ["options", () => snapKV(undefined as never)],
    ["options", () => kNorm({} as never)],
    ["options", () => kNorm({ budget: 5, ratio: 0.5 } as never)],
    ["options.budget", () => kNorm({ budget: 0 })],
    ["options.budget", () => h2o({ budget: 1.5 })],
    ["options.ratio", () => keyDiff({ ratio: 1 })],
    ["options.ratio", () => keyDiff({ ratio: -0.1 })],
    ["options.sinks", () => streamingLlm({ budget: 5, sinks: -1 })],
    ["options.recent", () => h2o({ budget: 5, recent: 0.5 })],
    ["options.sinks", () => vatp({ budget: 5, sinks: 0.5 })],
    ["options.normalize", () => h2o({ budget: 5, normalize: "mean" as never })],
    ["options.window", () => snapKV({ budget: 5, window: 0 })],
    ["options.kernel", () => snapKV({ budget: 5, kernel: 4 })],
    ["options.pooling", () => pyramidKV({ budget: 5, pooling: "min" as never })],
    ["options.beta", () => pyramidKV({ budget: 5, beta: 0 })],
    ["options.safeguard", () => adaKV({ budget: 5, safeguard: 2 })],
    ["options.policy", () => adaKV({ policy: streamingLlm({ budget: 5 }) })],
    ["options.seed", () => randomEviction({ budget: 5, seed: -1 })],
    ["options.futurePositions", () => expectedAttention({ budget: 5, futurePositions: 0 })],
    ["policies", () => perLayer([])],
    ["policies", () => perLayer([snapKV({ budget: 5 }), h2o({ budget: 5 })])],
    ["policy", () => protect(undefined as never)],
    ["options.first", () => protect(kNorm({ budget: 5 }), { first: -1 })],
    ["options.type", () => quantizeBeyond(undefined, { recent: 0, type: "int2" as never })],
  ];
  for (const [argument, make] of wrong) t.throws(make, { name: "ArgumentError", argument }, `${argument}: ${make}`);
});

t.test("a policy that observed nothing says so, and one without rope", async (t) => {
  const random = randomNumbers(1), steps = [0, 1].map(() => randomStep(random, 40, shape, heads));
  using cache = new KvCache(shape);
  await cache.append(steps);
  await t.rejects(cache.evict(snapKV({ budget: 8 })), { name: "ArgumentError", message: /observe: snapKV/ });
  await t.rejects(cache.evict(expectedAttention({ budget: 8 })), { name: "ArgumentError", message: /observe: expectedAttention/ });
  await t.rejects(cache.evict(streamingLlm({ budget: 8 })), { name: "ArgumentError", message: /rotary embedding/ });
  await t.rejects(cache.append(steps.map(({ key, value }) => ({ key, value })), { observe: snapKV({ budget: 8 }) }), { name: "ArgumentError", argument: "layers[0].query" });
  t.equal(cache.stats().tokens, 40);
});

t.test("nothing is left", async (t) => {
  const { handles, cache } = await settledMemory();
  t.same({ handles, cache }, { handles: 0, cache: 0 });
});
