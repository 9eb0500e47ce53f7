import { h2o, KvCache, snapKV, streamingLlm, tova, type CachePolicy, type KvCacheShape } from "tokenloom";
import t from "tap";
import { settledMemory } from "../support/leaks.js";
import { columnSums, naiveKeep, pooled } from "./reference.js";
import { headRows, keptPositions, randomNumbers, randomStep, type Step } from "./support.js";

const shape: KvCacheShape = { layers: 2, kvHeads: 2, headDim: 24, type: "f32" };
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
];

function seenBy(step: Step, layer: number, head: number): Seen {
  const group = heads / shape.kvHeads, keysOf = (h: number) => headRows(step.key, shape.kvHeads, shape.headDim, h);
  return {
    layer, head, keys: keysOf(head), values: headRows(step.value, shape.kvHeads, shape.headDim, head),
    attention(queries, of = head) {
      const sums = Array.from({ length: group }, (_, g) => columnSums(headRows(step.query, heads, shape.headDim, of * group + g).slice(-queries), keysOf(of)));
      return sums[0]!.map((_, j) => sums.reduce((total, row) => total + row[j]!, 0) / group);
    },
  };
}

t.test("each policy keeps what its formula says, of every layer and head", async (t) => {
  for (const { name, policy, first = 0, last = 0, scores } of cases) {
    for (const threads of [1, 2]) {
      const random = randomNumbers(7), steps = [0, 1].map(() => randomStep(random, tokens, shape, heads));
      using cache = new KvCache(shape);
      await cache.append(steps, { observe: policy, heads, threads });
      const went = await cache.evict(policy, { threads });
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
  const { handles, cache } = await settledMemory();
  t.same({ handles, cache }, { handles: 0, cache: 0 });
});
