import { ops, tensor, type Tensor } from "tokenloom";
import type { Random } from "./support.js";

/** A valid call of a public op: its arguments, options last. */
export interface Call {
  readonly name: string;
  readonly args: unknown[];
}

/** Sizes around vectors' ends: 1, one less and one more than 4, 8, 16, 32, and odd tails. */
const lengths = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 64, 65];
const small = [1, 2, 3, 4, 5, 7, 8, 9, 17, 33];

class Maker {
  /** `empty`: how often a dim is 0. */
  constructor(private readonly random: Random, private readonly empty: number) {}

  size(): number {
    return this.random.chance(this.empty) ? 0 : this.random.pick(small);
  }
  width(): number {
    return this.random.chance(this.empty) ? 0 : this.random.pick(lengths);
  }
  below(count: number): number {
    return this.random.below(count);
  }
  pick<T>(from: readonly T[]): T {
    return this.random.pick(from);
  }
  maybe<T extends object>(value: T): T | object {
    return this.random.chance(0.5) ? value : {};
  }
  f32(...shape: number[]): Tensor<"f32"> {
    return tensor(Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => 4 * this.random.next() - 2), shape);
  }
  positive(...shape: number[]): Tensor<"f32"> {
    return tensor(Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => 0.05 + this.random.next()), shape);
  }
  /** Rows that sum to 1. */
  distribution(rows: number, columns: number): Tensor<"f32"> {
    const made = this.positive(rows, columns), { data } = made;
    for (let row = 0; row < rows; row++) {
      const part = data.subarray(row * columns, (row + 1) * columns), sum = part.reduce((a, b) => a + b, 0);
      part.forEach((value, i) => (part[i] = value / sum));
    }
    return made;
  }
  i32(most: number, ...shape: number[]): Tensor<"i32"> {
    return tensor(Int32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => this.random.below(most)), shape);
  }
  u8(most: number, ...shape: number[]): Tensor<"u8"> {
    return tensor(Uint8Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => this.random.below(most)), shape);
  }
  /** Parents of a draft tree of n nodes. */
  parents(n: number): Tensor<"i32"> {
    return tensor(Int32Array.from({ length: n }, (_, i) => (i === 0 ? -1 : this.random.below(i))));
  }
}

type Make = (m: Maker) => unknown[];

function attention(m: Maker): unknown[] {
  const batch = m.pick([1, 2]), kvHeads = m.pick([1, 2]), heads = kvHeads * m.pick([1, 2, 3]), queries = m.width(), keys = queries + m.below(40), headDim = m.pick([1, 3, 8, 15, 16, 17, 32, 64]);
  const mask = m.pick<object>([{}, { causal: true }, { causal: true, window: 1 + m.below(keys) }, { causal: true, window: 1 + m.below(keys), sinks: m.below(4) }]);
  const scores = { ...m.maybe({ softcap: 5 }), ...m.maybe({ bias: m.f32(1, heads, queries, keys) }), ...m.maybe({ slopes: m.positive(heads) }), ...m.maybe({ sinkLogits: m.f32(heads) }), ...m.maybe({ offByOne: true }) };
  const outputs = { ...m.maybe({ returnLse: true }), ...m.maybe({ columnSums: m.pick([true, { queries: 1 + m.below(queries) }]) }), ...m.maybe({ returnScores: true }) };
  return [m.f32(batch, heads, queries, headDim), m.f32(batch, kvHeads, keys, headDim), m.f32(batch, kvHeads, keys, m.pick([headDim, 5])), { ...mask, ...scores, ...outputs }];
}

function keyValue(m: Maker, options: (heads: number) => object = () => ({})): unknown[] {
  const batch = m.pick([1, 2]), heads = m.pick([1, 2, 4]), queries = m.size(), keys = queries + m.below(20), headDim = m.pick([1, 5, 8, 16, 33]);
  return [m.f32(batch, heads, queries, headDim), m.f32(batch, heads, keys, headDim), m.f32(batch, heads, keys, headDim), options(heads)];
}

const makers: Readonly<Record<string, Make>> = {
  attention,
  mergeStates: (m) => {
    const parts = m.pick([1, 2, 3]), heads = m.pick([1, 2]), queries = m.size(), dim = m.width();
    return [m.f32(parts, 1, heads, queries, dim), m.f32(parts, 1, heads, queries), {}];
  },
  stickBreaking: (m) => keyValue(m, () => ({ ...m.maybe({ attendCurrent: true }), ...m.maybe({ remainder: "current-value" }) })),
  landmarkAttention: (m) => {
    const [query, key, value] = keyValue(m) as Tensor[], keys = key!.shape[2]!;
    return [query, key, value, m.u8(2, keys), {}];
  },
  slotAttention: (m) => {
    const [query, key, value] = keyValue(m) as Tensor[];
    return [query, key, value, { ...m.maybe({ softmaxOver: "heads-slots" }) }];
  },
  pattention: (m) => {
    const inputs = m.width(), n = m.width();
    return [m.f32(1, m.size(), inputs), m.f32(n, inputs), m.f32(n, m.width()), {}];
  },
  rope: (m) => {
    const tokens = m.size(), headDim = 2 * m.pick([1, 2, 4, 8, 9, 32]);
    return [m.f32(tokens, m.pick([1, 3]), headDim), m.i32(1000, tokens), { style: m.pick(["half", "interleaved"]) }];
  },
  rmsNorm: (m) => {
    const width = m.width();
    return [m.f32(m.size(), width), m.f32(width), {}];
  },
  layerNorm: (m) => {
    const width = m.width();
    return [m.f32(m.size(), width), m.f32(width), m.maybe({ bias: m.f32(width) })];
  },
  softmax: (m) => [m.f32(m.size(), m.width()), m.maybe({ scale: 0.7 })],
  keepTop: (m) => {
    const tokens = m.width();
    return [m.f32(m.pick([1, 3]), tokens), { budget: m.below(tokens + 1), first: m.below(3), last: m.below(3), ...m.maybe({ acrossHeads: { safeguard: 0.2 } }) }];
  },
  poolScores: (m) => [m.f32(m.size(), m.width()), { kernel: m.pick([1, 3, 5, 7]), kind: m.pick(["avg", "max"]), last: 0 }],
  quantizeRows: (m) => [m.f32(m.size(), m.width()), { type: m.pick(["int8", "int4"]) }],
  mergeEvicted: (m) => {
    const tokens = m.width(), dim = m.width();
    return [m.f32(2, tokens, dim), m.f32(2, tokens, dim), m.u8(2, 2, tokens), {}];
  },
  landmarkBlocks: (m) => {
    const dim = m.pick([4, 8, 17]), blockSize = m.pick([1, 3, 8]);
    return [m.f32(1, 2, m.size(), dim), m.f32(1, 2, blockSize * m.size() + m.below(blockSize), dim), { blockSize, topK: m.below(4) }];
  },
  blockRelevance: (m) => {
    const tokens = m.width(), dim = m.pick([4, 8, 17]);
    return [m.f32(2, tokens, dim), m.f32(1, tokens, dim), { blockSize: m.pick([1, 4, 7]), ...m.maybe({ causal: false }), ...m.maybe({ symmetric: true }) }];
  },
  recycleUpdate: (m) => {
    const vocabulary = m.pick([20, 64, 65]), k = m.pick([1, 4, 8]), n = m.size();
    return [m.i32(vocabulary, vocabulary, k), m.i32(vocabulary, n), m.f32(n, vocabulary), {}];
  },
  expandTree: (m) => {
    const vocabulary = 40, k = 4, n = m.size();
    return [m.i32(vocabulary, vocabulary, k), m.i32(vocabulary, 1), m.parents(n), m.i32(k, n), {}];
  },
  treeMask: (m) => [m.parents(m.width()), m.maybe({ past: m.below(100) })],
  verifyTree: (m) => {
    const vocabulary = m.pick([17, 64]), n = m.size();
    return [m.f32(n, vocabulary), m.i32(vocabulary, n), m.parents(n), {}];
  },
  verifySampling: (m) => {
    const vocabulary = m.pick([5, 33]), n = m.size(), random = { uniform: m.positive(n), uniformFinal: m.positive(1), ...m.maybe({ draft: m.distribution(n, vocabulary) }) };
    for (const one of [random.uniform, random.uniformFinal]) one.data.forEach((value, i) => (one.data[i] = Math.min(0.99, value * 0.9)));
    return [m.i32(vocabulary, n), m.parents(n), m.distribution(n, vocabulary), random, {}];
  },
  adaptivePoolGrid: (m) => [m.f32(m.pick([1, 2]), m.size(), m.size(), m.width()), { height: m.size(), width: m.size() }, {}],
  resizeBilinear: (m) => [m.f32(m.pick([1, 2]), m.size(), m.size(), m.width()), { height: m.size(), width: m.size() }, {}],
  bipartiteMatch: (m) => [m.f32(2, m.width(), m.width()), { merge: m.below(8), ...m.maybe({ classToken: true }), distance: m.pick(["cosine", "euclidean"]) }],
  closestRows: (m) => {
    const width = m.width();
    return [m.f32(2, m.width(), width), m.f32(m.pick([1, 2]), m.width(), width), { distance: m.pick(["cosine", "euclidean"]) }];
  },
  convolve: (m) => {
    const inputs = m.pick([1, 3]), outputs = m.pick([1, 2, 5]), k = m.pick([1, 3, 5]);
    return [m.f32(1, inputs, m.size(), m.size()), m.f32(outputs, inputs, k, k), m.f32(outputs), m.maybe({ relu: true })];
  },
  cosineMatrix: (m) => {
    const width = m.width();
    return [m.f32(1, m.width(), width), m.f32(1, m.width(), width), {}];
  },
  densityPeaks: (m) => [m.f32(2, m.width(), m.width()), { k: m.pick([1, 3, 5]) }],
  entropy: (m) => [m.distribution(m.size(), m.width()), m.maybe({ normalize: true })],
  farthestRows: (m) => {
    const tokens = m.width();
    return [m.f32(1, tokens, m.width()), { keep: m.below(tokens + 1), start: m.pick<unknown>(["alone", { index: m.below(tokens) }]), objective: m.pick(["maxmin", "maxsum"]) }];
  },
  patchEntropy: (m) => {
    const patch = m.pick([1, 2, 4]);
    return [m.u8(256, 1, patch * m.pick([1, 3]), patch * m.pick([1, 2]), 3), { patch }];
  },
  proportionalAttention: (m) => {
    const tokens = m.width(), dim = m.pick([4, 16, 17]);
    return [m.f32(1, 2, m.size(), dim), m.f32(1, 2, tokens, dim), m.f32(1, 2, tokens, dim), m.positive(1, tokens), {}];
  },
  rowProducts: (m) => {
    const width = m.width(), rows = m.width();
    return [m.f32(2, m.width(), width), m.f32(m.pick([1, 2]), rows, width), { ...m.maybe({ cosine: true }), ...m.maybe({ bias: m.f32(rows) }) }];
  },
  segmentPool: (m) => {
    const tokens = m.width();
    return [m.f32(2, tokens, m.width()), m.u8(2, 2, tokens), { mark: m.pick(["end", "start"]), reduce: m.pick(["mean", "sum", "max", "first", "last"]) }];
  },
  uniqueRows: (m) => [m.f32(1, m.width(), m.width()), { threshold: 0.5 }],
  unmerge: (m) => {
    const rows = m.width();
    return [m.f32(1, rows, m.width()), m.i32(rows, 1, m.width()), {}];
  },
};

/** All functions of `ops`. */
export const opNames = Object.keys(ops).sort();
/** Those that no call is made up for here: a test fails where one is missing. */
export const missingOps = opNames.filter((name) => !Object.hasOwn(makers, name));

export function makeCall(name: string, random: Random, empty = 0): Call {
  return { name, args: makers[name]!(new Maker(random, empty)) };
}

export function runCall({ name, args }: Call): Promise<unknown> {
  return Promise.resolve().then(() => (ops as unknown as Record<string, (...given: unknown[]) => unknown>)[name]!(...args));
}
