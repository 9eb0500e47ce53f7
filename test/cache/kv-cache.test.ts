import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import t from "tap";
import { h2o, kNorm, KvCache, memory, snapKV, tensor, tova, type CacheType, type KvCacheShape } from "tokenloom";
import { settledMemory } from "../support/leaks.js";
import { scratch } from "../support/paths.js";
import fc from "../support/property.js";
import { columnSums, naiveKeep, norm } from "./reference.js";
import { headRows, keptPositions, randomNumbers, randomStep, type Step } from "./support.js";

const shape: KvCacheShape = { layers: 2, kvHeads: 2, headDim: 40, type: "f32" }, heads = 4;
const steps = (random: () => number, tokens: number): Step[] => [0, 1].map(() => randomStep(random, tokens, shape, heads));

/** What a type may lose: half a unit in the last place of the largest element, and a little. */
const tolerance: Readonly<Record<CacheType, number>> = { f32: 0, f16: 2 ** -11, bf16: 2 ** -8, int8: 0.51 / 127, int4: 1.02 / 15 };

/** x times the Hadamard matrix of the largest power of two that divides its length, block by block. */
function rotated(x: Float32Array): Float32Array {
  const width = x.length & -x.length, bits = (n: number): number => (n === 0 ? 0 : (n & 1) + bits(n >> 1));
  return x.map((_, i) => {
    const block = i - (i % width);
    return x.subarray(block, block + width).reduce((sum, value, j) => sum + (bits((i - block) & j) % 2 ? -value : value), 0) / Math.sqrt(width);
  });
}

t.test("rows come back as they went in, in every type", async (t) => {
  for (const type of Object.keys(tolerance) as CacheType[]) {
    const random = randomNumbers(2), all = [steps(random, 50), steps(random, 1), steps(random, 45)];
    using cache = new KvCache({ ...shape, type });
    for (const step of all) await cache.append(step.map(({ key, value }) => ({ key: tensor(key), value })));
    for (const layer of [0, 1]) {
      for (const head of [0, 1]) {
        const held = cache.read(layer, head);
        for (const [name, got] of [["key", held.keys], ["value", held.values]] as const) {
          const kept = (row: Float32Array): Float32Array => (type === "int4" && name === "key" ? rotated(row) : row); // what is rounded
          const want = all.flatMap((step) => headRows(step[layer]![name], 2, 40, head)).map(kept), read = headRows(got, 1, 40, 0).map(kept);
          const bound = want.map((row) => tolerance[type] * Math.max(...row.map(Math.abs)));
          t.ok(want.every((row, i) => row.every((x, d) => Math.abs(x - read[i]![d]!) <= bound[i]!)), `${type} ${name}`);
        }
        t.same(Array.from(held.positions), Array.from({ length: 96 }, (_, i) => i));
      }
    }
  }
});

t.test("append attends as plain attention does", async (t) => {
  const random = randomNumbers(4), before = steps(random, 40), now = steps(random, 9);
  using cache = new KvCache(shape);
  await cache.append(before.map(({ key, value }) => ({ key, value })));
  const [out] = await cache.append(now);
  t.same(out!.shape, [9, heads, 40]);
  for (const head of [0, 3]) {
    const rows = (name: "key" | "value") => [...headRows(before[0]![name], 2, 40, Math.floor(head / 2)), ...headRows(now[0]![name], 2, 40, Math.floor(head / 2))];
    const weights = columnSums(headRows(now[0]!.query, heads, 40, head).slice(-1), rows("key"));
    const want = Array.from({ length: 40 }, (_, d) => weights.reduce((sum, weight, j) => sum + weight * rows("value")[j]![d]!, 0));
    const got = headRows(out!.data, heads, 40, head)[8]!;
    t.ok(want.every((x, d) => Math.abs(x - got[d]!) < 1e-5));
  }
});

t.test("a fork shares pages and is untouched by what the other does", async (t) => {
  const random = randomNumbers(6), first = steps(random, 100), policy = kNorm({ budget: 33 });
  using cache = new KvCache(shape);
  await cache.append(first);
  const whole = [0, 1].map((head) => cache.read(1, head));
  using fork = cache.fork(), part = cache.fork(40);
  t.equal(fork.stats().bytesShared, cache.stats().bytesHeld);
  t.same(Array.from(part.stats().lengths), [40, 40, 40, 40]);
  t.ok(cache.pageMap()[0]![0]!.every(({ holders }, page) => holders === (page < 2 ? 3 : 2)), "the page map counts holders");
  await cache.evict(policy);
  await cache.rerotate({ theta: 10000, style: "half", dim: 40 });
  await part.append(steps(random, 5));
  for (const head of [0, 1]) t.same(fork.read(1, head), whole[head], "the fork holds what it held");
  t.same(headRows(part.read(1, 0).keys, 1, 40, 0).slice(0, 40), headRows(whole[0]!.keys, 1, 40, 0).slice(0, 40));
  fork.truncate(10);
  t.equal(fork.stats().tokens, 10);
  t.equal(cache.stats().evicted, 4 * 67);
});

t.test("evicted pages go back at once, and the byte limit leaves what is there", async (t) => {
  const random = randomNumbers(8), pageBytes = 192 + 2 * 32 * 40 * 4;
  using cache = new KvCache({ ...shape, byteLimit: 4 * 4 * pageBytes });
  const held = memory().cache;
  await cache.append(steps(random, 128));
  t.equal(memory().cache - held, 16 * pageBytes);
  await t.rejects(cache.append(steps(random, 1)), { name: "OutOfMemoryError" });
  t.equal(cache.stats().tokens, 128);
  await cache.evict(kNorm({ budget: 32 }));
  t.equal(memory().cache - held, 4 * pageBytes);
  await cache.append(steps(random, 90));
  t.equal(cache.stats().tokens, 122);
});

t.test("decoding within a budget: each cut keeps what the formula keeps of what is there", async (t) => {
  for (const [name, policy] of Object.entries({ h2o: h2o({ budget: 40 }), tova: tova({ budget: 40 }), kNorm: kNorm({ budget: 40 }), snapKV: snapKV({ budget: 40, window: 8 }) })) {
    const random = randomNumbers(17);
    using cache = new KvCache(shape);
    /** Of layer 0, head 0: keys that are there, and H2O's sums. */
    let rows: { key: Float32Array; position: number; sum: number }[] = [], position = 0;
    const take = async (tokens: number): Promise<void> => {
      const step = steps(random, tokens);
      await cache.append(step, { observe: policy });
      for (const key of headRows(step[0]!.key, 2, 40, 0)) rows.push({ key, position: position++, sum: 0 });
      const keys = rows.map(({ key }) => key), sums = [0, 1].map((h) => columnSums(headRows(step[0]!.query, heads, 40, h), keys));
      rows = rows.map((row, j) => ({ ...row, sum: row.sum + (sums[0]![j]! + sums[1]![j]!) / 2 }));
    };
    await take(70);
    for (let cut = 0; cut < 4; cut++) {
      await cache.evict(policy);
      t.same(Array.from(cache.stats().lengths), [40, 40, 40, 40], name);
      if (name === "h2o" || name === "kNorm") {
        const kept = naiveKeep(rows.map(({ key, sum }) => (name === "h2o" ? sum : -norm(key))), rows.length, 40, 0, name === "h2o" ? 20 : 0);
        rows = kept.map((j) => rows[j]!);
        t.same(keptPositions(cache)[0], rows.map((row) => row.position), `${name}, cut ${cut}`);
      }
      for (let i = 0; i < 32; i++) await take(1);
    }
  }
});

t.test("any order of appends, cuts, forks and truncations leaves heads as a plain list has them", async (t) => {
  const action = fc.oneof(
    fc.record({ kind: fc.constant("append"), size: fc.integer({ min: 1, max: 40 }) }), fc.record({ kind: fc.constant("keep"), size: fc.integer({ min: 1, max: 999 }) }),
    fc.record({ kind: fc.constant("fork"), size: fc.nat(80) }), fc.record({ kind: fc.constant("truncate"), size: fc.nat(80) }), fc.record({ kind: fc.constant("quantize"), size: fc.nat(60) }),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(action, { maxLength: 12 }), async (actions) => {
      const random = randomNumbers(23), open = [new KvCache(shape)];
      let lists: number[][] = [[], [], [], []];
      for (const { kind, size } of actions) {
        const cache = open.at(-1)!, tokens = Math.max(1, cache.stats().tokens);
        if (kind === "append") {
          const next = cache.stats().nextPosition;
          await cache.append(steps(random, size));
          lists = lists.map((list) => [...list, ...Array.from({ length: size }, (_, i) => next + i)]);
        } else if (kind === "keep") {
          const mask = Uint8Array.from({ length: 4 * tokens }, (_, i) => (((i + 1) * size) % 7 < 4 ? 1 : 0));
          await cache.keep(tensor(mask, [2, 2, tokens]));
          lists = lists.map((list, head) => list.filter((_, j) => mask[head * tokens + j]));
        } else if (kind === "fork") {
          open.push(cache.fork(size));
          lists = lists.map((list) => list.slice(0, size));
        } else if (kind === "truncate") {
          cache.truncate(size);
          lists = lists.map((list) => list.slice(0, size));
        } else await cache.quantize(size, "int8");
      }
      const last = open.at(-1)!;
      assert.deepEqual(lists, [0, 1].flatMap((layer) => keptPositions(last, layer)));
      for (const cache of open) cache.dispose();
    }),
    { numRuns: 40 },
  );
  t.equal((await settledMemory()).cache, 0);
});

t.test("tokens go on in a page that was converted and then cut", async (t) => {
  using cache = new KvCache(shape);
  const random = randomNumbers(29), more = steps(random, 20);
  await cache.append(steps(random, 70));
  await cache.quantize(6, "int8");
  cache.truncate(40); // within the second page, which is int8 now
  await cache.append(more);
  const { keys, positions } = cache.read(1, 0), { headDim, kvHeads } = shape;
  t.equal(positions.length, 60);
  const key = more[1]!.key as Float32Array;
  for (const token of [0, 13, 19]) {
    const want = key.subarray(token * kvHeads * headDim, token * kvHeads * headDim + headDim), most = Math.max(...want.map(Math.abs));
    for (let d = 0; d < headDim; d++) t.ok(Math.abs(keys[(40 + token) * headDim + d]! - want[d]!) <= most / 127);
  }
});

t.test("a saved cache comes back whole; a damaged one is refused", async (t) => {
  const { path } = scratch(t), file = `${path}/cache`, random = randomNumbers(31), policy = h2o({ budget: 70 });
  using cache = new KvCache(shape);
  await cache.append(steps(random, 90), { observe: policy });
  await cache.evict(policy);
  await cache.quantize(30, "int4");
  await cache.save(file);
  {
    using loaded = await KvCache.load(file);
    t.same(loaded.shape, shape);
    for (const layer of [0, 1]) for (const head of [0, 1]) t.same(loaded.read(layer, head), cache.read(layer, head));
    t.same(loaded.stats(), cache.stats());
    const more = steps(randomNumbers(1), 20);
    await loaded.append(more, { observe: policy });
    await cache.append(more, { observe: policy });
    await loaded.evict(policy);
    await cache.evict(policy);
    t.same(keptPositions(loaded), keptPositions(cache), "scores came along");
  }
  const bytes = readFileSync(file), held = memory();
  const refused = async (damage: Uint8Array, message: RegExp): Promise<void> => {
    writeFileSync(file, damage);
    await t.rejects(KvCache.load(file), { name: "ModelFormatError", message });
  };
  const changed = (offset: number, value: number): Uint8Array => Uint8Array.from(bytes, (byte, i) => (i === offset ? value : byte));
  await refused(changed(0, 1), /no saved cache.*offset 0/s);
  await refused(changed(4, 9), /version 9.*offset 4/s);
  await refused(changed(11, 255), /header of.*offset 8/s);
  await refused(changed(12, bytes[12]! ^ 1), /header has another checksum.*offset 12/s);
  await refused(changed(60, 0), /header has another checksum.*offset 12/s);
  await refused(changed(bytes.length - 1, bytes.at(-1)! ^ 1), /layer 1 has another checksum \(offset \d+/);
  for (const length of [0, 5, 11, 30, 2000, bytes.length - 1]) await refused(bytes.subarray(0, length), /damaged/);
  for (let offset = 12; offset < 400; offset += 7) {
    writeFileSync(file, changed(offset, bytes[offset]! ^ 3));
    await t.rejects(KvCache.load(file), { name: "ModelFormatError" }, `byte ${offset}`);
  }
  t.equal(memory().cache, held.cache, "no page is left of what was refused");
  await t.rejects(KvCache.load(`${path}/none`), { code: "ENOENT" });
});

t.test("wrong arguments are named, and nothing changes", async (t) => {
  for (const [argument, options] of Object.entries({ "options.layers": { layers: 0 }, "options.kvHeads": { kvHeads: 1.5 }, "options.headDim": { headDim: -1 }, "options.type": { type: "f8" }, "options.byteLimit": { byteLimit: 0 } })) {
    t.throws(() => new KvCache({ ...shape, ...(options as object) }), { name: "ArgumentError", argument });
  }
  using cache = new KvCache(shape);
  const [good] = steps(randomNumbers(1), 3);
  await t.rejects(cache.append([good!]), { name: "ArgumentError", argument: "layers" });
  await t.rejects(cache.append([good!, { key: good!.key, value: new Float32Array(80) }]), { name: "ArgumentError", argument: "layers[1].value" });
  await t.rejects(cache.append([{ ...good!, query: new Float32Array(3 * 3 * 40) }, good!]), { name: "ArgumentError", argument: "layers[0].query" });
  await t.rejects(cache.append([good!, good!], { positions: new Int32Array(2) }), { name: "ArgumentError", argument: "options.positions" });
  await t.rejects(cache.append([good!, good!], { path: Int32Array.of(1, 1) }), { name: "ArgumentError", argument: "options.path" });
  await t.rejects(cache.keep(tensor(new Uint8Array(4), [2, 2, 1]).reshape([4]) as never), { name: "ArgumentError", argument: "mask" });
  t.throws(() => cache.read(2, 0), { name: "ArgumentError", argument: "layer" });
  t.throws(() => cache.read(0, 2), { name: "ArgumentError", argument: "head" });
  t.throws(() => cache.fork(-1), { name: "ArgumentError", argument: "tokens" });
  await t.rejects(cache.quantize(0, "f16" as never), { name: "ArgumentError", argument: "type" });
  t.equal(cache.stats().tokens, 0);
  cache.dispose();
  t.throws(() => cache.stats(), { name: "DisposedError" });
  await t.rejects(cache.append([good!, good!]), { name: "DisposedError" });
});

t.test("an aborted cut cuts nothing", async (t) => {
  using cache = new KvCache(shape);
  await cache.append(steps(randomNumbers(1), 100));
  await t.rejects(cache.evict(kNorm({ budget: 10 }), { signal: AbortSignal.abort() }), { name: "AbortError" });
  t.equal(cache.stats().tokens, 100);
});

t.test("nothing is left", async (t) => {
  const { handles, cache } = await settledMemory();
  t.same({ handles, cache }, { handles: 0, cache: 0 });
});
