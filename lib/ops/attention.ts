import { invalidArgument, ShapeError } from "../errors.js";
import { dimMax, dimText } from "../graph/dims.js";
import type { OutputPlan } from "../graph/graph.js";
import { Value } from "../graph/value.js";
import { expectDim, expectRank, expectType, fixedDim } from "./check.js";

/** Which keys a query sees. The kinds exclude each other. Query i of n stands at position p = keys − n + i. */
export type AttentionMask<T> =
  /** All keys; with `causal` those at j ≤ p; with `window` those with |p − j| < window, and the first `sinks` always (2309.17453). */
  | { readonly causal?: boolean; readonly window?: number; readonly sinks?: number; readonly blocks?: never; readonly tree?: never; readonly neighborhood?: never; readonly regionToPoint?: never }
  /** Block-sparse (1904.10509): mask u8 `[1 | heads, ⌈queries / query⌉, ⌈keys / key⌉]`, 1 = seen; and causal where asked. */
  | { readonly blocks: { readonly mask: T; readonly query: number; readonly key: number }; readonly causal?: boolean; readonly window?: never; readonly sinks?: never; readonly tree?: never; readonly neighborhood?: never; readonly regionToPoint?: never }
  /** Draft tree (2305.09781): i32 `[nodes, words]`, bit j of row i set where node i sees node j; keys before the last `nodes` are seen by all. */
  | { readonly tree: T; readonly causal?: never; readonly window?: never; readonly sinks?: never; readonly blocks?: never; readonly neighborhood?: never; readonly regionToPoint?: never }
  /** An image within text (2410.06169): its tokens `start …` form a grid and see the text before and their neighbours within `radius`; text rows are causal. */
  | { readonly neighborhood: { readonly start: number; readonly height: number; readonly width: number; readonly radius: number; readonly causal?: boolean }; readonly causal?: never; readonly window?: never; readonly sinks?: never; readonly blocks?: never; readonly tree?: never; readonly regionToPoint?: never }
  /** Region to point (TokenPacker, 2407.02392): query (y, x) of a height × width grid sees its factor × factor keys. */
  | { readonly regionToPoint: { readonly height: number; readonly width: number; readonly factor: number }; readonly causal?: never; readonly window?: never; readonly sinks?: never; readonly blocks?: never; readonly tree?: never; readonly neighborhood?: never };

/** How keys and values are stored. */
export type AttentionSource<T> =
  | { readonly paged?: never; readonly quantized?: never; readonly ragged?: never }
  /** key, value `[pages, pageSize, headDim]`, blockTable i32 `[batch, kvHeads, blocks]`, lengths i32 `[batch, kvHeads]` (2309.06180). */
  | { readonly paged: { readonly blockTable: T; readonly lengths: T }; readonly quantized?: never; readonly ragged?: never }
  /** key, value i8 or u8 with scales f32 `[batch, kvHeads, keys]`: x = q · scale. */
  | { readonly quantized: { readonly format: "int8"; readonly keyScale: T; readonly valueScale: T }; readonly paged?: never; readonly ragged?: never }
  /** Two elements a byte (2402.02750), scales and minima f32 `[batch, kvHeads, keys, ⌈headDim / 32⌉]`: x = minimum + q · scale. */
  | { readonly quantized: { readonly format: "int4"; readonly keyScale: T; readonly keyMinimum: T; readonly valueScale: T; readonly valueMinimum: T }; readonly paged?: never; readonly ragged?: never }
  /** Sequences end to end along the tokens of batch 1: bounds i32 `[sequences + 1]` (2307.08691). */
  | { readonly ragged: { readonly cuQuery: T; readonly cuKey: T }; readonly paged?: never; readonly quantized?: never };

/** What happens to a score between query · key and softmax, in this order. */
export interface AttentionScores<T> {
  /** Multiplies query · key. Default 1 / sqrt(headDim). */
  readonly scale?: number;
  /** c · tanh(s / c) (2408.00118). */
  readonly softcap?: number;
  /** Disentangled relative positions (DeBERTa, 2006.03654): s + scale · (contentToPosition[i][x] + positionToContent[j][x]), x = index[i − j + keys − 1]. */
  readonly relative?: { readonly contentToPosition: T; readonly positionToContent: T; readonly index: T };
  /** ALiBi (2108.12409): s − slope · |p − j|; f32 `[heads]`, see alibiSlopes(). */
  readonly slopes?: T;
  /** Added: f32 `[1 | batch, 1 | heads, 1 | queries, keys]`; −∞ hides a key. log(sizes) gives ToMe's proportional attention. */
  readonly bias?: T;
  /** A logit a head that joins the denominator only (2508.10925): f32 `[heads]`. */
  readonly sinkLogits?: T;
  /** A logit of 0 joins the denominator. */
  readonly offByOne?: boolean;
}

export interface AttentionOutputs {
  /** Also log Σ exp(s), f32 `[batch, heads, queries]`. */
  readonly returnLse?: boolean;
  /** Also each key's weights summed over the last `queries` queries (all by default), f32 `[batch, heads, keys]`: no matrix exists. */
  readonly columnSums?: boolean | { readonly queries: number };
  /** Also the logits, f32 `[batch, heads, queries, keys]`: for inspection, they take queries × keys memory. */
  readonly returnScores?: boolean;
}

export type AttentionOptions<T> = AttentionMask<T> & AttentionSource<T> & AttentionScores<T> & AttentionOutputs;

export interface AttentionResult<T> {
  /** f32 `[batch, heads, queries, headDim]`; zeros where a query sees no key. */
  readonly out: T;
  /** −∞ where a query sees no key. */
  readonly logSumExp?: T;
  readonly columnSums?: T;
  readonly scores?: T;
}

const maskShapes = { none: 0, blocks: 1, tree: 2, neighborhood: 3, regionToPoint: 4 } as const;

function maskParameters(options: AttentionOptions<Value>): Record<string, number> {
  const { blocks, tree, neighborhood, regionToPoint } = options;
  const shape = blocks ? "blocks" : tree ? "tree" : neighborhood ? "neighborhood" : regionToPoint ? "regionToPoint" : "none";
  return {
    maskShape: maskShapes[shape],
    blockQuery: blocks?.query ?? 0,
    blockKey: blocks?.key ?? 0,
    gridStart: neighborhood?.start ?? 0,
    gridHeight: neighborhood?.height ?? regionToPoint?.height ?? 0,
    gridWidth: neighborhood?.width ?? regionToPoint?.width ?? 0,
    radius: neighborhood?.radius ?? 0,
    causalGrid: neighborhood?.causal ? 1 : 0,
    factor: regionToPoint?.factor ?? 0,
  };
}

interface Sizes {
  readonly batch: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly queries: number;
  readonly keys: number;
  readonly headDim: number;
  readonly valueDim: number;
}

function sizesOf(query: Value, key: Value, value: Value, options: AttentionOptions<Value>): Sizes {
  const op = "attention", { paged, quantized } = options;
  for (const [name, operand] of [["query", query], ["key", key], ["value", value]] as const) {
    expectRank(op, name, operand, paged && name !== "query" ? 3 : 4);
    if (quantized && name !== "query") expectType(op, name, operand, "i8", "u8");
    else expectType(op, name, operand, "f32", "f16", "bf16");
  }
  const size = (name: string, operand: Value, axis: number): number => fixedDim(op, name, operand, axis);
  const [batch, heads, queries, headDim] = [0, 1, 2, 3].map((axis) => size("query", query, axis)) as [number, number, number, number];
  const kvHeads = paged ? size("paged.blockTable", paged.blockTable, 1) : size("key", key, 1);
  const keys = paged ? size("paged.blockTable", paged.blockTable, 2) * size("key", key, 1) : size("key", key, 2);
  const packed = quantized?.format === "int4";
  const valueDim = packed ? headDim : size("value", value, -1);
  if (kvHeads < 1 || heads % kvHeads !== 0) throw new ShapeError(op, "query", `attention: Expected dimension 1 of query to be a multiple of the ${kvHeads} key heads but received ${query}`);
  expectDim(op, "key", key, -1, packed ? Math.ceil(headDim / 2) : headDim);
  if (headDim < 1 || headDim > 512 || valueDim < 1 || valueDim > 512) throw new ShapeError(op, "query", `attention: Expected head dimensions from 1 to 512 but received ${query} and ${value}`);
  if (!paged) {
    expectDim(op, "key", key, 0, batch);
    [batch, kvHeads, keys].forEach((dim, axis) => expectDim(op, "value", value, axis, dim));
  } else {
    [0, 1].forEach((axis) => expectDim(op, "value", value, axis, size("key", key, axis)));
    expectDim(op, "paged.blockTable", paged.blockTable, 0, batch);
    [batch, kvHeads].forEach((dim, axis) => expectDim(op, "paged.lengths", paged.lengths, axis, dim));
  }
  return { batch, heads, kvHeads, queries, keys, headDim, valueDim };
}

/** A dim that is either 1, for all, or the full size. */
function expectBroadcast(argument: string, value: Value, axis: number, full: number): void {
  const dim = value.dims[axis]!;
  if (dim !== 1 && dim !== full) throw new ShapeError("attention", argument, `attention: Expected dimension ${axis} of ${argument} to be 1 or ${full} but received ${value} (${dimText(dim)})`);
}

function checkExtras(options: AttentionOptions<Value>, sizes: Sizes): void {
  const op = "attention", { batch, heads, kvHeads, queries, keys, headDim } = sizes;
  const { bias, slopes, sinkLogits, relative, blocks, tree, neighborhood, regionToPoint, ragged, quantized } = options;
  const exact = (argument: string, value: Value, dims: readonly number[], ...types: Parameters<typeof expectType>[3][]): void => {
    expectType(op, argument, value, ...(types.length > 0 ? types : ["f32" as const]));
    expectRank(op, argument, value, dims.length);
    dims.forEach((dim, axis) => expectDim(op, argument, value, axis, dim));
  };
  if (bias) {
    expectType(op, "bias", bias, "f32");
    expectRank(op, "bias", bias, 4);
    [batch, heads, queries].forEach((dim, axis) => expectBroadcast("bias", bias, axis, dim));
    expectDim(op, "bias", bias, 3, keys);
  }
  if (slopes) exact("slopes", slopes, [heads]);
  if (sinkLogits) exact("sinkLogits", sinkLogits, [heads]);
  if (relative) {
    const width = fixedDim(op, "relative.contentToPosition", relative.contentToPosition, -1);
    exact("relative.contentToPosition", relative.contentToPosition, [batch, heads, queries, width]);
    exact("relative.positionToContent", relative.positionToContent, [batch, heads, keys, width]);
    exact("relative.index", relative.index, [Math.max(0, queries + keys - 1)], "i32");
  }
  if (blocks) {
    expectType(op, "blocks.mask", blocks.mask, "u8");
    expectRank(op, "blocks.mask", blocks.mask, 3);
    if (!(blocks.query >= 1) || !(blocks.key >= 1)) throw new ShapeError(op, "blocks", `attention: Expected block sizes of at least 1 but received ${blocks.query} and ${blocks.key}`);
    expectBroadcast("blocks.mask", blocks.mask, 0, heads);
    expectDim(op, "blocks.mask", blocks.mask, 1, Math.ceil(queries / blocks.query));
    expectDim(op, "blocks.mask", blocks.mask, 2, Math.ceil(keys / blocks.key));
  }
  if (tree) {
    exact("tree", tree, [queries, 2 * Math.ceil(queries / 64)], "i32");
    if (keys < queries) throw new ShapeError(op, "key", `attention: Expected at least the ${queries} nodes of the tree among the keys but received ${keys}`);
  }
  if (neighborhood && (queries !== keys || neighborhood.start + neighborhood.height * neighborhood.width > keys)) {
    throw new ShapeError(op, "neighborhood", `attention: Expected queries = keys and a grid within them but received ${queries} queries, ${keys} keys and a grid of ${neighborhood.height} × ${neighborhood.width} at ${neighborhood.start}`);
  }
  if (regionToPoint) {
    const { height, width, factor } = regionToPoint;
    if (queries !== height * width || keys !== queries * factor * factor) throw new ShapeError(op, "regionToPoint", `attention: Expected ${height * width} queries and ${height * width * factor * factor} keys but received ${queries} and ${keys}`);
  }
  if (ragged) {
    expectType(op, "ragged.cuQuery", ragged.cuQuery, "i32");
    exact("ragged.cuKey", ragged.cuKey, [fixedDim(op, "ragged.cuQuery", ragged.cuQuery, 0)], "i32");
    if (batch !== 1) throw new ShapeError(op, "query", `attention: Expected batch 1 for ragged sequences but received ${batch}`);
  }
  if (quantized?.format === "int8") for (const name of ["keyScale", "valueScale"] as const) exact(`quantized.${name}`, quantized[name], [batch, kvHeads, keys]);
  else if (quantized) for (const name of ["keyScale", "keyMinimum", "valueScale", "valueMinimum"] as const) exact(`quantized.${name}`, quantized[name], [batch, kvHeads, keys, Math.ceil(headDim / 32)]);
}

/**
 * Softmax attention in one streaming pass (arXiv 2205.14135): query `[batch, heads, queries, headDim]` over key and value
 * `[batch, kvHeads, keys, headDim]`, f32, f16 or bf16; query head h reads key head h / (heads / kvHeads). Weights are
 * softmax(modify(scale · q·k)) over the keys that the mask lets a query see. Sums are in f32, nothing of size
 * queries × keys is stored, and results depend neither on threads nor on how queries are grouped into calls.
 */
export function attention(query: Value, key: Value, value: Value, options: AttentionOptions<Value> = {}): AttentionResult<Value> {
  const sizes = sizesOf(query, key, value, options);
  checkExtras(options, sizes);
  const { batch, heads, queries, keys, headDim, valueDim } = sizes;
  const { quantized, columnSums, relative } = options;
  const four = quantized?.format === "int4" ? quantized : undefined;
  const outputs: Record<string, OutputPlan> = { out: { type: "f32", dims: [batch, heads, queries, valueDim] } };
  if (options.returnLse || columnSums) outputs["logSumExp"] = { type: "f32", dims: [batch, heads, queries] };
  if (columnSums) outputs["columnSums"] = { type: "f32", dims: [batch, heads, keys] };
  if (options.returnScores) outputs["scores"] = { type: "f32", dims: [batch, heads, queries, keys] };
  return query.graph.add("attention", {
    inputs: {
      query, key, value, bias: options.bias, slopes: options.slopes, sinks: options.sinkLogits,
      contentToPosition: relative?.contentToPosition, positionToContent: relative?.positionToContent, relativeIndex: relative?.index,
      mask: options.blocks?.mask ?? options.tree, cuQuery: options.ragged?.cuQuery, cuKey: options.ragged?.cuKey,
      blockTable: options.paged?.blockTable, lengths: options.paged?.lengths,
      keyScale: quantized?.keyScale, keyMinimum: four?.keyMinimum, valueScale: quantized?.valueScale, valueMinimum: four?.valueMinimum,
    },
    outputs,
    parameters: {
      causal: options.causal ? 1 : 0, scale: options.scale ?? 1 / Math.sqrt(headDim), softcap: options.softcap ?? 0,
      window: options.window ?? 0, sinkTokens: options.sinks ?? 0, offByOne: options.offByOne ? 1 : 0,
      columnQueries: typeof columnSums === "object" ? columnSums.queries : queries,
      quantized: quantized === undefined ? 0 : quantized.format === "int8" ? 1 : 2,
      ...maskParameters(options),
    },
  }) as unknown as AttentionResult<Value>;
}

export interface PackedAttentionOptions {
  /** i32 `[sequences + 1]`, where queries are others than the keys. */
  readonly queryBounds?: Value | undefined;
  /** f32 `[keys]`, added to the logits of each key. */
  readonly bias?: Value | undefined;
  /** Also each key's weights summed over the last query of its sequence, f32 `[heads, keys]`. */
  readonly lastWeights?: boolean;
  readonly scale?: number;
}

/**
 * Attention within each of several sequences that lie end to end, none padded: query f32 `[queries, heads, headDim]`, key
 * `[keys, heads, headDim]`, value `[keys, heads, valueDim]`, bounds i32 `[sequences + 1]` → f32 `[queries, heads, valueDim]`. Counts may be symbolic.
 */
export function packedAttention(query: Value, key: Value, value: Value, bounds: Value, options: PackedAttentionOptions = {}): { readonly out: Value; readonly weights?: Value } {
  const op = "attention", { queryBounds = bounds, bias, lastWeights = false } = options, { graph } = query;
  for (const [name, operand] of [["query", query], ["key", key], ["value", value]] as const) expectRank(op, name, operand, 3);
  const heads = fixedDim(op, "query", query, 1), headDim = fixedDim(op, "query", query, 2), keys = key.dims[0]!;
  /** `[tokens, heads, dim]` as the kernel reads it: `[1, heads, tokens, dim]`. */
  const seen = ({ type, dims, storage, strides, offset }: Value): Value =>
    new Value(graph, type, [1, dims[1]!, dims[0]!, dims[2]!], storage, [0, strides[1]!, strides[0]!, strides[2]!], offset);
  const out = graph.buffer("attended", "f32", [query.dims[0]!, heads, fixedDim(op, "value", value, 2)]), view = seen(out);
  const outputs: Record<string, OutputPlan> = { out: { type: "f32", dims: view.dims, into: view } };
  let weights: Value | undefined;
  if (lastWeights) {
    const most = dimMax(keys), mostQueries = dimMax(query.dims[0]!);
    const sums = graph.buffer("weights", "f32", [heads, most]), lse = graph.buffer("logSumExp", "f32", [heads, mostQueries]);
    weights = new Value(graph, "f32", [heads, keys], sums.storage, [most, 1]);
    outputs["columnSums"] = { type: "f32", dims: [1, heads, keys], into: new Value(graph, "f32", [1, heads, keys], sums.storage, [0, most, 1]) };
    outputs["logSumExp"] = { type: "f32", dims: [1, heads, query.dims[0]!], into: new Value(graph, "f32", [1, heads, query.dims[0]!], lse.storage, [0, mostQueries, 1]) };
  }
  graph.add(op, {
    inputs: {
      query: seen(query), key: seen(key), value: seen(value), cuQuery: queryBounds, cuKey: bounds,
      bias: bias && new Value(graph, "f32", [1, 1, 1, keys], bias.storage, [0, 0, 0, 1], bias.offset),
    },
    outputs,
    parameters: {
      causal: 0, scale: options.scale ?? 1 / Math.sqrt(headDim), softcap: 0, window: 0, sinkTokens: 0, offByOne: 0, columnQueries: 1, quantized: 0,
      ...maskParameters({}),
    },
  });
  return { out, ...(weights && { weights }) };
}

/** ALiBi's slopes for any number of heads (arXiv 2108.12409): a power of two first, every second of twice as many for the rest. */
export function alibiSlopes(heads: number): Float32Array {
  if (!Number.isInteger(heads) || heads < 1 || heads > 65_536) throw invalidArgument("heads", "an integer from 1 to 65536", heads);
  const power = 2 ** Math.floor(Math.log2(heads));
  return Float32Array.from({ length: heads }, (_, i) => (i < power ? 2 ** ((-8 * (i + 1)) / power) : 2 ** ((-8 * (2 * (i - power) + 1)) / (2 * power))));
}
