import {
  adaptivePool, adaptivePrune, correlationGuided, crossAttentionCompress, deleteGate, divPrune, dpcKnn, eVit, explanationConv, globalCom2, inactiveHeads, matryoshkaPool, ops, pMod, pModRatios,
  pyramidCounts, pyramidDrop, reduceTokens, tensor, textGuided, toDre, tokenPacker, tokenTransforming, toMe, toMeSd, vFlowOpt, vqNearest, type CrossAttentionLayer, type Linear, type Norm, type Reduced,
  type SegmentPoolOptions, type Tensor,
} from "../../index.js";
import { tensorOf, type NamedTensor, type Operation, type Outputs, type Vector } from "./vector.js";

type Float = Tensor<"f32">;
type Result = Tensor | Int32Array | Float32Array | Uint8Array | undefined;
type Results = Readonly<Record<string, Result>>;

const has = (vector: Vector, name: string): boolean => vector.tensors.has(`in.${name}`);
function given<T extends Tensor = Float>(vector: Vector, name: string): T {
  const { data, shape } = tensorOf(vector, `in.${name}`);
  return tensor(data, shape) as unknown as T;
}
const maybe = (vector: Vector, name: string): Float | undefined => (has(vector, name) ? given(vector, name) : undefined);
const parameter = <T>(vector: Vector, name: string, fallback?: T): T => (vector.params[name] ?? fallback) as T;
/** Those of the named parameters that the vector has. */
const some = (vector: Vector, ...names: string[]): object => Object.fromEntries(names.filter((name) => vector.params[name] !== undefined).map((name) => [name, vector.params[name]]));

/** Marked tokens of each row, padded with −1. */
function indexOf(kept: Tensor): Tensor<"i32"> {
  const [batch, tokens] = kept.shape as [number, number], lists = Array.from({ length: batch }, (_, b) => Array.from({ length: tokens }, (_, i) => i).filter((i) => kept.data[b * tokens + i]));
  const width = Math.max(0, ...lists.map((list) => list.length)), data = new Int32Array(batch * width).fill(-1);
  lists.forEach((list, b) => data.set(list, b * width));
  return tensor(data, [batch, width]);
}

const logOf = (sizes: Float): Float => tensor(sizes.data.map(Math.log), sizes.shape);

/** The keys a result is asked for by scores: those of the largest, in falling order. */
function byScore(vector: Vector, made: Reduced, index: Tensor<"i32">, first: number): { x: Promise<Float>; index: Tensor<"i32"> } {
  const scores = given(vector, "scores"), [batch, keep] = index.shape as [number, number], rows = made.tokens.shape[1]!, n = scores.shape[1]!;
  const order = Array.from({ length: batch }, (_, b) => Array.from({ length: keep }, (_, i) => i).sort((i, j) => scores.data[b * n + index.data[b * keep + j]!]! - scores.data[b * n + index.data[b * keep + i]!]! || i - j));
  const places = order.map((list) => [...Array.from({ length: first }, (_, i) => i), ...list.map((i) => i + first), ...Array.from({ length: rows - first - keep }, (_, i) => first + keep + i)]);
  return { x: ops.unmerge(made.tokens, tensor(Int32Array.from(places.flat()), [batch, rows])), index: tensor(Int32Array.from(order.flatMap((list, b) => list.map((i) => index.data[b * keep + i]!))), [batch, keep]) };
}

/** Without the first `count` columns. */
function behind(index: Tensor<"i32">, count: number): Tensor<"i32"> {
  const [rows, columns] = index.shape as [number, number];
  return tensor(Int32Array.from({ length: rows * (columns - count) }, (_, i) => index.data[Math.floor(i / (columns - count)) * columns + count + (i % (columns - count))]!), [rows, columns - count]);
}

async function farthest(vector: Vector, reduced: Promise<Reduced>, options: Parameters<typeof ops.farthestRows>[1], threads: number) {
  const x = given(vector, "x"), made = await reduced, { order } = await ops.farthestRows(x, { ...options, threads });
  return { order, index: indexOf(made.kept!), x: made.tokens, made };
}

async function kCentre(vector: Vector, threads: number): Promise<Results> {
  const x = given(vector, "x"), distance = parameter<"cosine" | "euclidean">(vector, "metric"), keep = parameter<number>(vector, "keep"), objective = parameter<"maxmin" | "maxsum">(vector, "objective", "maxmin");
  const start = parameter<"score" | "index">(vector, "start"), first = parameter<number>(vector, "first", 0), scores = maybe(vector, "scores");
  const reduction = toDre({ keep, start, distance, objective, ...(start === "index" && { first }) });
  const made = await farthest(vector, reduceTokens(reduction, x, { ...(scores && { scores }), threads }), { keep, distance, objective, start: start === "score" ? { scores: scores! } : { index: first } }, threads);
  const { map, best } = await ops.bipartiteMatch(x, { merge: x.shape[1]!, destinations: made.made.kept!, distance, threads });
  const [batch, n] = map.shape as [number, number];
  const radius = Float32Array.from({ length: batch }, (_, b) => {
    const all = Array.from(best.data.subarray(b * n, (b + 1) * n)).filter((value) => value !== -Infinity);
    return all.length === 0 ? 0 : Math.max(...all.map((value) => (distance === "cosine" ? 1 - value : Math.sqrt(-value))));
  });
  return { order: made.order, index: made.index, x: made.x, assign: map, radius };
}

async function dpc(vector: Vector, threads: number): Promise<Results> {
  const x = given(vector, "x"), weights = maybe(vector, "weights"), k = parameter<number>(vector, "k", 5);
  const made = await reduceTokens(dpcKnn({ keep: parameter(vector, "clusters"), k }), x, { ...(weights && { scores: weights, sizes: weights }), threads });
  const { density } = await ops.densityPeaks(x, { k, threads });
  return { density, centers: indexOf(made.kept!), assign: made.source, x: made.tokens, size: made.sizes };
}

async function topkPrune(vector: Vector, threads: number): Promise<Results> {
  const classToken = parameter(vector, "classToken", false), fuse = parameter<"none" | "weightedSum" | "weightedMean">(vector, "fuse", "none"), first = Number(classToken);
  const made = await reduceTokens(eVit({ ...some(vector, "keep", "keepRate", "recycle"), classToken, fuse }), given(vector, "x"), { scores: given(vector, "scores"), threads });
  const index = behind(indexOf(made.kept!), first);
  if (vector.params["order"] !== "score") return { x: made.tokens, index };
  const sorted = byScore(vector, made, index, first);
  return { x: await sorted.x, index: sorted.index };
}

async function transform(vector: Vector, threads: number): Promise<Results> {
  const x = given(vector, "x");
  if (vector.params["mode"] === "matrix") return { x: await ops.rowProducts(given(vector, "w"), x, { transposed: true, threads }) };
  const metric = given(vector, "metric"), size = maybe(vector, "size"), temperature = parameter<number>(vector, "temperature", 0.1);
  const made = await reduceTokens(tokenTransforming({ keep: parameter(vector, "keep"), temperature }), x, { metric, scores: given(vector, "scores"), ...(size && { sizes: size }), threads });
  const anchors = indexOf(made.kept!), cosines = await ops.cosineMatrix(await ops.unmerge(metric, anchors, { threads }), metric, { threads });
  const n = x.shape[1]!, logits = tensor(cosines.data.map((c, i) => c / temperature + (size ? Math.log(size.data[Math.floor(i / (n * anchors.shape[1]!)) * n + (i % n)]!) : 0)), cosines.shape);
  return { anchors, w: (await ops.softmax(logits, { threads })).out, x: made.tokens };
}

async function correlation(vector: Vector, threads: number): Promise<Results> {
  const key = given(vector, "key"), threshold = parameter<number>(vector, "threshold", 0.8), [batch, n] = key.shape as [number, number];
  const made = await reduceTokens(correlationGuided({ threshold, ...some(vector, "merge") }), given(vector, "x"), { metric: key, scores: given(vector, "clsAttn"), threads });
  const { unique } = await ops.uniqueRows(key, { threshold, threads });
  return { unique, density: Float32Array.from(made.counts, (count) => count / n), index: indexOf(made.kept!), count: Int32Array.from({ length: batch }, (_, b) => made.counts[b]!), x: made.tokens };
}

async function matryoshka(vector: Vector, threads: number): Promise<Results> {
  const results: Record<string, Result> = {};
  for (const tokens of parameter<number[]>(vector, "tokens")) results[`t${tokens}`] = (await reduceTokens(matryoshkaPool({ grid: parameter(vector, "grid"), tokens }), given(vector, "x"), { threads })).tokens;
  return results;
}

const linear = (vector: Vector, name: string): Linear => ({ weight: given(vector, `${name}.w`), ...(has(vector, `${name}.b`) && { bias: given(vector, `${name}.b`) }) });
const norm = (vector: Vector, name: string): Norm => ({ weight: given(vector, `${name}.w`), bias: given(vector, `${name}.b`) });

/** One of the parts stacked in a weight and its bias. */
function part(vector: Vector, weight: string, bias: string, index: number, parts: number): Linear {
  const w = given(vector, weight), b = given(vector, bias), rows = w.shape[0]! / parts, columns = w.shape[1]!;
  return { weight: tensor(w.data.slice(index * rows * columns, (index + 1) * rows * columns), [rows, columns]), bias: tensor(b.data.slice(index * rows, (index + 1) * rows), [rows]) };
}

async function packer(vector: Vector, threads: number): Promise<Results> {
  const projected = (index: number): Linear => part(vector, "attn.inW", "attn.inB", index, 3);
  const made = await tokenPacker(given(vector, "x"), given(vector, "multi"), {
    query: linear(vector, "q"), queryNorm: norm(vector, "lnq"), key: [linear(vector, "k1"), linear(vector, "k2")], keyNorm: norm(vector, "lnk"),
    value: [linear(vector, "v1"), linear(vector, "v2")], valueNorm: norm(vector, "lnv"),
    attention: { query: projected(0), key: projected(1), value: projected(2), out: part(vector, "attn.outW", "attn.outB", 0, 1) }, mlp: [linear(vector, "mlp1"), linear(vector, "mlp2")],
  }, { grid: parameter(vector, "grid"), scale: parameter(vector, "scale"), heads: parameter(vector, "heads"), epsilon: parameter(vector, "eps", 1e-6), threads });
  return { attn: made.attended, x: made.tokens };
}

async function crossAttention(vector: Vector, threads: number): Promise<Results> {
  const layers: CrossAttentionLayer[] = [];
  for (let l = 0; has(vector, `${l}.q.w`); l++) {
    const of = (name: string): Linear => linear(vector, `${l}.${name}`), ofNorm = (name: string): Norm => norm(vector, `${l}.${name}`);
    layers.push({
      norm: ofNorm("norm1"), keyNorm: ofNorm("normk"), query: of("q"), key: of("k"), value: of("v"), out: of("o"), feedForwardNorm: ofNorm("norm2"), gate: of("w1"), up: of("w3"), innerNorm: ofNorm("ffnln"), down: of("w2"),
    });
  }
  const end = maybe(vector, "eos"), { h, w, rows, cols, heads, ffnEps = 1e-6 } = vector.params as Record<string, number>;
  const made = await crossAttentionCompress(given(vector, "global"), given(vector, "crops"), { layers, projection: linear(vector, "fc"), ...(end && { end }) }, {
    height: h!, width: w!, rows: rows!, cols: cols!, heads: heads!, innerEpsilon: ffnEps, threads,
  });
  return { x: made.tokens };
}

async function adaptive(vector: Vector, threads: number): Promise<Results> {
  const thresholds = has(vector, "thetaR")
    ? { redundancy: given(vector, "thetaR"), spatial: given(vector, "thetaS") }
    : { projection: norm(vector, "proj"), redundancy: norm(vector, "headR"), spatial: norm(vector, "headS") };
  const made = await adaptivePrune(given(vector, "x"), given(vector, "logits"), given(vector, "cross"), {
    gridHeight: parameter(vector, "gridH"), gridWidth: parameter(vector, "gridW"), ...some(vector, "rate", "lambda"), thresholds, threads,
  });
  const { scores, spatial, index, counts, tokens, source } = made;
  return { scores, spatial, thetaR: made.thresholds.redundancy, thetaS: made.thresholds.spatial, keep: marked(source), index, count: counts, x: tokens };
}

/** u8 of who has a place. */
const marked = (source: Tensor<"i32">): Tensor => tensor(Uint8Array.from(source.data, (row) => Number(row >= 0)), source.shape);

async function entropies(vector: Vector, threads: number): Promise<Results> {
  const options = { ...some(vector, "base", "normalize"), threads };
  if (vector.params["mode"] === "pixels") return { entropy: await ops.patchEntropy(given<Tensor<"u8">>(vector, "pixels"), { patch: parameter(vector, "patch"), ...some(vector, "base"), threads }) };
  return { entropy: await ops.entropy(given(vector, "x"), { ...options, logits: vector.params["mode"] === "logits" }) };
}

const runs: Readonly<Record<string, (vector: Vector, threads: number) => Promise<Results>>> = {
  "reduce.cosine-matrix": async (vector, threads) => ({ sim: await ops.cosineMatrix(given(vector, "a"), maybe(vector, "b"), { threads }) }),
  "reduce.entropy": entropies,
  "reduce.head-inactive-mask": async (vector, threads) => ({
    ...(await inactiveHeads(given(vector, "attn"), { visualStart: parameter(vector, "visualStart"), visualCount: parameter(vector, "visualCount"), ...some(vector, "threshold", "vote"), threads })),
  }),
  "reduce.proportional-attention": async (vector, threads) => ({ o: await ops.proportionalAttention(given(vector, "q"), given(vector, "k"), given(vector, "v"), given(vector, "size"), { threads }) }),
  "reduce.tome": async (vector, threads) => {
    const sizes = maybe(vector, "size");
    const made = await reduceTokens(toMe({ perLayer: parameter(vector, "r"), classToken: false, ...some(vector, "classToken", "distillToken") }), given(vector, "x"), { metric: given(vector, "metric"), ...(sizes && { sizes }), threads });
    return { x: made.tokens, size: made.sizes, logSize: logOf(made.sizes), map: made.source };
  },
  "reduce.unmerge": async (vector, threads) => ({ x: await ops.unmerge(given(vector, "x"), given<Tensor<"i32">>(vector, "map"), { threads }) }),
  "reduce.random-bipartite2d": async (vector, threads) => {
    const own = has(vector, "dst") ? { destinations: [...tensorOf(vector, "in.dst").data] } : { strideX: parameter<number>(vector, "sx"), strideY: parameter<number>(vector, "sy") };
    const made = await reduceTokens(toMeSd({ width: parameter(vector, "w"), height: parameter(vector, "h"), perLayer: parameter(vector, "r"), ...own }), given(vector, "x"), { metric: given(vector, "metric"), threads });
    return { x: made.tokens, map: made.source, unmerged: await ops.unmerge(made.tokens, made.source, { threads }) };
  },
  "reduce.dpc-knn": dpc,
  "reduce.transform": transform,
  "reduce.segment-mean": async (vector, threads) => {
    const { out, segment, lengths, counts } = await ops.segmentPool(given(vector, "x"), given<Tensor<"u8">>(vector, "boundary"), { ...(some(vector, "mark", "reduce") as SegmentPoolOptions), threads });
    return { x: out, segment, length: lengths, count: counts };
  },
  "reduce.topk-prune": topkPrune,
  "reduce.max-min-diversity": async (vector, threads) => {
    const x = given(vector, "x"), ratio = parameter<number | undefined>(vector, "ratio");
    const reduced = await reduceTokens(divPrune(ratio === undefined ? { keep: parameter<number>(vector, "keep") } : { keepRate: ratio }), x, { threads });
    const { order, index, x: rows } = await farthest(vector, Promise.resolve(reduced), { keep: reduced.counts[0]!, start: "alone" }, threads);
    return { order, index, x: rows };
  },
  "reduce.kcenter": kCentre,
  "reduce.pyramid-drop": async (vector, threads) => {
    const { imageStart, imageTokens, ratios, stage } = vector.params as { imageStart: number; imageTokens: number; ratios: number[]; stage: number };
    const made = await pyramidDrop(given(vector, "x"), given(vector, "q"), given(vector, "k"), { imageStart, imageTokens, ratios, stage, threads }), counts = pyramidCounts(imageTokens, ratios);
    const [batch, keys] = made.scores.shape as [number, number], n = counts[stage]!;
    const scores = tensor(Float32Array.from({ length: batch * n }, (_, i) => made.scores.data[Math.floor(i / n) * keys + imageStart + (i % n)]!), [batch, n]);
    return { scores, index: tensor(Int32Array.from(made.kept.flat()), [batch, made.kept[0]!.length]), x: made.tokens, counts: Int32Array.from(counts) };
  },
  "reduce.globalcom2": async (vector, threads) => {
    const made = await globalCom2(given(vector, "thumb"), given(vector, "thumbAttn"), given(vector, "crops"), given(vector, "cropAttn"), {
      rows: parameter(vector, "rows"), cols: parameter(vector, "cols"), grid: parameter(vector, "grid"), ...some(vector, "ratio", "temperature", "imageWidth", "imageHeight"), threads,
    });
    return { thumbIndex: made.thumbIndex, scales: made.scales, counts: tensor(made.cropCounts, made.scales.shape), cropIndex: made.cropIndex, x: made.tokens, count: made.counts };
  },
  "reduce.vflowopt": async (vector, threads) => {
    const made = await vFlowOpt(given(vector, "x"), given(vector, "attn"), given(vector, "entropy"), { keepRatios: parameter(vector, "keepRatios"), ...some(vector, "t", "alpha", "recycle"), threads });
    return { importance: made.importance, index: made.index, stageCounts: made.stageCounts, x: made.tokens };
  },
  "reduce.correlation-guided": correlation,
  "reduce.explanation-conv": async (vector, threads) => {
    const layers = [];
    for (let l = 0; has(vector, `conv${l}.w`); l++) layers.push(norm(vector, `conv${l}`));
    return { ...(await explanationConv(given(vector, "attn"), layers, { height: parameter(vector, "h"), width: parameter(vector, "w"), keep: parameter(vector, "keep"), threads })) };
  },
  "reduce.spatial-augmented": adaptive,
  "reduce.p-mod": async (vector, threads) => {
    const bias = maybe(vector, "router.b");
    const made = await pMod(given(vector, "x"), given(vector, "branch"), given(vector, "residual"), given<Tensor<"u8">>(vector, "target"), { weight: given(vector, "router.w"), ...(bias && { bias }) }, {
      ratio: parameter(vector, "ratio"), ...some(vector, "gateScale", "gateBias"), threads,
    });
    const { layers, average, max, min } = { layers: 32, average: 0.5, max: 0.85, min: 0.15, ...vector.params };
    return { weights: made.weights, kept: made.kept, x: made.out, ratios: Float32Array.from(pModRatios(layers, { average, maximum: max, minimum: min })) };
  },
  "reduce.text-guided": async (vector, threads) => {
    const { h, w, tilesH, tilesW, ratio, threshold, select } = vector.params as Record<string, number> & { select: string };
    const made = await textGuided(given(vector, "q"), given(vector, "k"), {
      height: h!, width: w!, tilesHeight: tilesH!, tilesWidth: tilesW!, ...some(vector, "maxTiles"), ...((select as unknown) === "ratio" ? { ratio: ratio! } : { threshold: threshold! }), threads,
    });
    return { scores: made.scores, index: made.index, count: made.counts, tiles: made.tiles, tileKeep: made.tileKeep };
  },
  "reduce.delete-gate": async (vector, threads) => {
    const norm = maybe(vector, "norm.w"), padding = has(vector, "pad") ? given<Tensor<"u8">>(vector, "pad") : undefined;
    const made = await deleteGate(given(vector, "x"), { weight: given(vector, "w"), bias: given(vector, "b"), ...(norm && { norm }) }, {
      ...some(vector, "k", "threshold"), epsilon: parameter(vector, "eps", 1e-6), ...(padding && { padding }), threads,
    });
    return { gate: made.gate, keep: marked(made.source), index: made.index, count: made.counts, x: made.tokens };
  },
  "reduce.matryoshka-pool": matryoshka,
  "reduce.adaptive-pool": async (vector, threads) => {
    const { h, w, outH, outW } = vector.params as Record<string, number>;
    return { x: (await reduceTokens(adaptivePool({ height: h!, width: w!, outHeight: outH!, outWidth: outW! }), given(vector, "x"), { threads })).tokens };
  },
  "reduce.tokenpacker": packer,
  "reduce.cross-attn-compress": crossAttention,
  "reduce.vq-nearest": async (vector, threads) => {
    const made = await vqNearest(given(vector, "x"), given(vector, "codebook"), { metric: parameter(vector, "metric", "l2"), threads });
    return { index: made.index, x: made.tokens, distance: made.distance };
  },
};

function collect(results: Results): Outputs {
  const outputs = new Map<string, NamedTensor>();
  for (const [name, value] of Object.entries(results)) {
    if (value === undefined || typeof value !== "object" || !("data" in value || ArrayBuffer.isView(value))) continue;
    outputs.set(`out.${name}`, "data" in value ? { shape: value.shape, data: value.data as NamedTensor["data"] } : { shape: [value.length], data: value });
  }
  return outputs;
}

export const reduceOperations: Readonly<Record<string, Operation>> = Object.fromEntries(
  Object.entries(runs).map(([name, run]) => [name, { run: async (vector: Vector, { threads }: { readonly threads: number }) => collect(await run(vector, threads)) }]),
);
