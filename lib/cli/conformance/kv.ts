import {
  expectedAttention, gemFilter, h2o, keyDiff, kNorm, KvCache, ops, pyramidKV, snapKV, streamingLlm, tensor, tova, type CachePolicy, type KvRows, type Tensor,
} from "../../index.js";
import { tensorOf, type NamedTensor, type Operation, type Outputs, type Vector } from "./vector.js";

type Results = Readonly<Record<string, NamedTensor>>;
type Run = (vector: Vector, threads: number) => Promise<Results>;

const floats = (vector: Vector, name: string): Float32Array => tensorOf(vector, `in.${name}`).data as Float32Array;
const shapeOf = (vector: Vector, name: string): number[] => [...tensorOf(vector, `in.${name}`).shape];
const given = (vector: Vector, name: string): Tensor<"f32"> => tensor(floats(vector, name), shapeOf(vector, name));
const number = (vector: Vector, name: string): number => vector.params[name] as number;
const named = ({ shape, data }: Tensor): NamedTensor => ({ shape, data: data as Float32Array });
const concat = (parts: readonly Float32Array[]): Float32Array => Float32Array.from(parts.flatMap((part) => [...part]));

/** One batch entry (and layer) of `[…, heads, tokens, headDim]`, tokens from … to, as rows `[tokens, heads, headDim]`. */
function rows(vector: Vector, name: string, entry: number, from = 0, to?: number): Float32Array {
  const data = floats(vector, name), [heads, tokens, headDim] = shapeOf(vector, name).slice(-3) as [number, number, number], end = to ?? tokens;
  const made = new Float32Array((end - from) * heads * headDim);
  for (let h = 0; h < heads; h++) for (let i = from; i < end; i++) {
    const at = ((entry * heads + h) * tokens + i) * headDim;
    made.set(data.subarray(at, at + headDim), ((i - from) * heads + h) * headDim);
  }
  return made;
}

interface Filling {
  readonly layers?: number;
  readonly policy?: CachePolicy;
  /** in.q stands before RoPE. */
  readonly beforeRope?: boolean;
  readonly threads: number;
}

/** A cache that holds one batch entry of all layers: tokens before the queries first, then the step that is observed. */
async function filled(vector: Vector, batch: number, { layers = 1, policy, beforeRope = false, threads }: Filling): Promise<KvCache> {
  const shape = shapeOf(vector, "k"), [kvHeads, tokens, headDim] = shape.slice(-3) as [number, number, number], batches = shape.at(-4)!;
  const cache = new KvCache({ layers, kvHeads, headDim, type: "f32" });
  const queries = policy && policy.observe.kind !== "none" ? shapeOf(vector, "q") : undefined, first = tokens - (queries?.at(-2) ?? 0);
  const values = vector.tensors.has("in.v") ? "v" : "k";
  const step = (from: number, to: number, observed: boolean): KvRows[] => Array.from({ length: layers }, (_, layer) => {
    const entry = layer * batches + batch, query = observed && { [beforeRope ? "queryBeforeRope" : "query"]: rows(vector, "q", entry) };
    return { key: rows(vector, "k", entry, from, to), value: rows(vector, values, entry, from, to), ...query };
  });
  if (first > 0) await cache.append(step(0, first, false), { threads });
  if (queries && policy) await cache.append(step(first, tokens, true), { observe: policy, threads });
  return cache;
}

/** What a layer holds: keys, values and positions packed head after head. */
function held(cache: KvCache, layer = 0): { keys: Float32Array; values: Float32Array; positions: Int32Array; counts: Int32Array } {
  const heads = Array.from({ length: cache.shape.kvHeads }, (_, head) => cache.read(layer, head));
  return {
    keys: concat(heads.map(({ keys }) => keys)), values: concat(heads.map(({ values }) => values)),
    positions: Int32Array.from(heads.flatMap(({ positions }) => [...positions])), counts: Int32Array.from(heads, ({ positions }) => positions.length),
  };
}

/** Caches of all batch entries as the vectors' outputs; every head keeps as many tokens. */
function batched(caches: readonly KvCache[], layer = 0): { indices: NamedTensor; k: NamedTensor; v: NamedTensor } {
  const all = caches.map((cache) => held(cache, layer)), { kvHeads, headDim } = caches[0]!.shape, shape = [caches.length, kvHeads, all[0]!.counts[0]!];
  return {
    indices: { shape, data: Int32Array.from(all.flatMap(({ positions }) => [...positions])) },
    k: { shape: [...shape, headDim], data: concat(all.map(({ keys }) => keys)) }, v: { shape: [...shape, headDim], data: concat(all.map(({ values }) => values)) },
  };
}

const ropeOf = (vector: Vector) => {
  const { theta = 10000, style = "half", rotaryDim = shapeOf(vector, "k").at(-1)!, scaling } = vector.params as { theta?: number; style?: "half" | "interleaved"; rotaryDim?: number; scaling?: never };
  return { theta, style, dim: rotaryDim, ...(scaling != null && { scaling }) };
};

/** A policy behind one prompt. `scored`: which tokens' scores the vector states. */
function evicted(make: (vector: Vector) => CachePolicy, options: { readonly scored?: (vector: Vector, tokens: number) => readonly [number, number]; readonly beforeRope?: boolean } = {}): Run {
  return async (vector, threads) => {
    const policy = make(vector), rope = ropeOf(vector), caches: KvCache[] = [], scores: Float32Array[] = [];
    let scoreShape: number[] = [];
    try {
      for (let batch = 0; batch < shapeOf(vector, "k")[0]!; batch++) {
        const cache = await filled(vector, batch, { policy, beforeRope: options.beforeRope ?? false, threads });
        caches.push(cache);
        if (options.scored) {
          const [made] = await cache.scores(policy, { rope, threads }), [count, tokens] = made!.shape as [number, number], [from, to] = options.scored(vector, tokens);
          for (let row = 0; row < count; row++) scores.push(made!.data.slice(row * tokens + from, row * tokens + to));
          scoreShape = count === 1 ? [to - from] : [count, to - from];
        }
        await cache.evict(policy, { rope, threads });
      }
      return { ...batched(caches), ...(options.scored && { scores: { shape: [caches.length, ...scoreShape], data: concat(scores) } }) };
    } finally {
      for (const cache of caches) cache.dispose();
    }
  };
}

/** Tokens that a mask u8 `[batch, kvHeads, tokens]` keeps, of caches that hold in.k and in.v. */
async function keptOf(vector: Vector, mask: Uint8Array, threads: number): Promise<KvCache[]> {
  const [batches, kvHeads, tokens] = shapeOf(vector, "k") as [number, number, number], caches: KvCache[] = [];
  for (let batch = 0; batch < batches; batch++) {
    const cache = await filled(vector, batch, { threads });
    caches.push(cache);
    await cache.keep(tensor(mask.slice(batch * kvHeads * tokens, (batch + 1) * kvHeads * tokens), [1, kvHeads, tokens]), { threads });
  }
  return caches;
}

/** A mask of in.indices: `[batch, kvHeads, n]`, or packed with in.counts. */
function maskOf(vector: Vector): Uint8Array {
  const [batches, kvHeads, tokens] = shapeOf(vector, "k") as [number, number, number], indices = tensorOf(vector, "in.indices"), counts = vector.tensors.get("in.counts")?.data;
  const mask = new Uint8Array(batches * kvHeads * tokens);
  for (let head = 0, at = 0; head < batches * kvHeads; head++) {
    const count = counts?.[head] ?? indices.shape.at(-1)!;
    for (const index of indices.data.subarray(at, at + count)) mask[head * tokens + index] = 1;
    at += count;
  }
  return mask;
}

const packed = (caches: readonly KvCache[]) => {
  const all = caches.map((cache) => held(cache)), { kvHeads, headDim } = caches[0]!.shape;
  const positions = Int32Array.from(all.flatMap((one) => [...one.positions])), shape = [positions.length, headDim];
  return {
    counts: { shape: [caches.length, kvHeads], data: Int32Array.from(all.flatMap((one) => [...one.counts])) }, indices: { shape: [positions.length], data: positions },
    k: { shape, data: concat(all.map(({ keys }) => keys)) }, v: { shape, data: concat(all.map(({ values }) => values)) },
  };
};

/** Which elements of a mask are set. */
const chosen = (mask: Uint8Array): Int32Array => Int32Array.from(Array.from(mask.keys()).filter((i) => mask[i]));

async function pyramid(vector: Vector, threads: number): Promise<Results> {
  const layers = shapeOf(vector, "k")[0]!, { budget, window, kernel, pooling, beta } = vector.params as { budget: number; window: number; kernel: number; pooling: "avg" | "max"; beta: number };
  const policy = pyramidKV({ budget, window, kernel, pooling, beta });
  using cache = await filled(vector, 0, { layers, policy, threads });
  await cache.evict(policy, { threads });
  const results: Record<string, NamedTensor> = { budgets: { shape: [layers], data: Int32Array.from({ length: layers }, (_, layer) => cache.read(layer, 0).positions.length) } };
  for (let layer = 0; layer < layers; layer++) for (const [name, value] of Object.entries(batched([cache], layer))) results[`${name}.${layer}`] = value;
  return results;
}

async function filteredPrompt(vector: Vector, threads: number): Promise<Results> {
  const tokens = tensorOf(vector, "in.tokens").data, [, heads, , headDim] = shapeOf(vector, "q") as [number, number, number, number];
  using cache = await filled(vector, 0, { threads });
  const { indices, scores } = await cache.filter(gemFilter({ layer: 0, budget: number(vector, "budget"), kernel: number(vector, "kernel") }), tensor(rows(vector, "q", 0), [1, heads, headDim]), { threads });
  return { indices: { shape: [1, indices.length], data: indices }, scores: named(scores), tokens: { shape: [1, indices.length], data: indices.map((index) => tokens[index]!) } };
}

async function acrossHeads(vector: Vector, threads: number): Promise<Results> {
  const { kept } = await ops.keepTop(given(vector, "scores"), { budget: number(vector, "budget"), acrossHeads: { safeguard: number(vector, "safeguard") }, threads });
  return packed(await keptOf(vector, kept.data, threads));
}

async function heavyHitters(vector: Vector, threads: number): Promise<Results> {
  const { budget, recent, normalize } = vector.params as { budget: number; recent: number; normalize?: "none" | "count" };
  if (!vector.tensors.has("in.scores")) return evicted(() => h2o({ budget, recent, normalize: normalize ?? "none" }), { scored: (_, tokens) => [0, tokens] })(vector, threads);
  const { kept } = await ops.keepTop(given(vector, "scores"), { budget, last: recent, threads });
  return batched(await keptOf(vector, kept.data, threads));
}

async function quantized(vector: Vector, type: "int8" | "int4", threads: number): Promise<Results> {
  const { q, scale, minimum, dequantized } = await ops.quantizeRows(given(vector, "x"), { type, threads });
  return { q: named(q), scale: named(scale), dequantized: named(dequantized), ...(minimum && { min: named(minimum) }) };
}

async function landmarks(vector: Vector, threads: number): Promise<Results> {
  const [batches, kvHeads, tokens] = shapeOf(vector, "k") as [number, number, number], blockSize = number(vector, "blockSize");
  const { scores, kept } = await ops.landmarkBlocks(given(vector, "q"), given(vector, "k"), { blockSize, topK: number(vector, "topK"), threads }), count = scores.shape[2]!;
  const mask = Uint8Array.from({ length: batches * kvHeads * tokens }, (_, i) => {
    const block = Math.floor((i % tokens) / blockSize);
    return block >= count ? 1 : kept.data[Math.floor(i / tokens) * count + block]!;
  });
  const blocks = Array.from({ length: batches * kvHeads }, (_, head) => [...chosen(kept.data.slice(head * count, (head + 1) * count))]);
  return { ...batched(await keptOf(vector, mask, threads)), scores: named(scores), blocks: { shape: [batches, kvHeads, blocks[0]!.length], data: Int32Array.from(blocks.flat()) } };
}

async function relevantBlocks(vector: Vector, threads: number): Promise<Results> {
  const [, kvHeads, tokens] = shapeOf(vector, "k") as [number, number, number], { blockSize, threshold, causal, symmetric, scale } = vector.params as { blockSize: number; threshold: number | null; causal: boolean; symmetric: boolean; scale?: number };
  const heads = (name: string): Tensor<"f32"> => tensor(floats(vector, name), shapeOf(vector, name).slice(1));
  const { scores, kept } = await ops.blockRelevance(heads("q"), heads("k"), { blockSize, causal, symmetric, ...(scale !== undefined && { scale }), ...(threshold !== null && { threshold }), threads });
  const mask = Uint8Array.from({ length: kvHeads * tokens }, (_, i) => kept.data[Math.floor((i % tokens) / blockSize)]!), blocks = chosen(kept.data);
  const { indices, k, v } = batched(await keptOf(vector, mask, threads)), positions = indices.data.slice(0, indices.shape[2]) as Int32Array;
  return { k, v, scores: { shape: [1, scores.size], data: scores.data }, blocks: { shape: [blocks.length], data: blocks }, indices: { shape: [positions.length], data: positions } };
}

async function merged(vector: Vector, threads: number): Promise<Results> {
  const mask = maskOf(vector), { out } = await ops.mergeEvicted(given(vector, "k"), given(vector, "v"), tensor(mask, shapeOf(vector, "k").slice(0, 3)), { threshold: number(vector, "threshold"), threads });
  const changed: Vector = { ...vector, tensors: new Map([...vector.tensors, ["in.v", named(out)]]) };
  const { k, v } = batched(await keptOf(changed, mask, threads));
  return { k, v };
}

async function rerotated(vector: Vector, threads: number): Promise<Results> {
  const caches = await keptOf(vector, maskOf(vector), threads);
  for (const cache of caches) await cache.rerotate(ropeOf(vector), { threads });
  return { k: batched(caches).k };
}

/** Drafted rows lie behind `past` ones; the accepted path stays. */
async function commitPath(vector: Vector, threads: number): Promise<Results> {
  const past = number(vector, "past"), path = tensorOf(vector, "in.path").data as Int32Array, [kvHeads, tokens, headDim] = shapeOf(vector, "cache") as [number, number, number];
  using cache = new KvCache({ layers: 1, kvHeads, headDim, type: "f32" });
  const step = (from: number, to: number): KvRows[] => [{ key: rows(vector, "cache", 0, from, to), value: rows(vector, "cache", 0, from, to) }];
  await cache.append(step(0, past), { threads });
  await cache.append(step(past, tokens), { path, positions: Int32Array.from({ length: tokens - past }, (_, i) => past + i), threads });
  const { keys, positions } = held(cache), length = past + path.length, own = positions.subarray(0, length);
  return {
    cache: { shape: [kvHeads, length, headDim], data: keys }, length: { shape: [1], data: Int32Array.of(cache.stats().tokens) },
    src: { shape: [path.length], data: own.slice(past) }, dst: { shape: [path.length], data: path.map((_, i) => past + i) },
  };
}

const budgetOf = (vector: Vector): { budget: number } => ({ budget: number(vector, "budget") });

const runs: Readonly<Record<string, Run>> = {
  "kv.streaming-llm": evicted((vector) => streamingLlm({ ...budgetOf(vector), sinks: number(vector, "sinks"), rerotate: false })),
  "kv.h2o": heavyHitters,
  "kv.tova": evicted((vector) => tova({ ...budgetOf(vector), keepLast: vector.params["keepLast"] !== false }), { scored: (_, tokens) => [0, tokens] }),
  "kv.snapkv": evicted((vector) => {
    const { window, kernel, pooling } = vector.params as { window: number; kernel: number; pooling: "avg" | "max" };
    return snapKV({ ...budgetOf(vector), window, kernel, pooling });
  }, { scored: (vector, tokens) => [0, tokens - number(vector, "window")] }),
  "kv.pyramidkv": pyramid,
  "kv.knorm": evicted((vector) => kNorm(budgetOf(vector)), { scored: (_, tokens) => [0, tokens] }),
  "kv.expected-attention": evicted((vector) => {
    const { sinks, futurePositions, covariance, valueNorm, epsilon } = vector.params as { sinks: number; futurePositions: number; covariance: boolean; valueNorm: boolean; epsilon: number };
    return expectedAttention({ ...budgetOf(vector), sinks, futurePositions, covariance, valueNorm, epsilon });
  }, { beforeRope: true, scored: (vector, tokens) => [number(vector, "sinks"), tokens] }),
  "kv.keydiff": evicted((vector) => keyDiff(budgetOf(vector)), { scored: (_, tokens) => [0, tokens] }),
  "kv.gemfilter": filteredPrompt,
  "kv.adakv": acrossHeads,
  "kv.rerotate": rerotated,
  "kv.compact": async (vector, threads) => packed(await keptOf(vector, maskOf(vector), threads)),
  "kv.quantize-int8": (vector, threads) => quantized(vector, "int8", threads),
  "kv.quantize-int4": (vector, threads) => quantized(vector, "int4", threads),
  "kv.landmark-retrieve": landmarks,
  "kv.merge": merged,
  "kv.lemo-threshold": relevantBlocks,
  "draft.cache-commit": commitPath,
};

export const kvOperations: Readonly<Record<string, Operation>> = Object.fromEntries(
  Object.entries(runs).map(([op, run]) => [op, {
    run: async (vector: Vector, { threads }: { readonly threads: number }): Promise<Outputs> =>
      new Map(Object.entries(await run(vector, threads)).map(([name, value]) => [`out.${name}`, value])),
  }]),
);
