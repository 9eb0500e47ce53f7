import { invalidArgument } from "../errors.js";
import { expectTensor } from "../graph/evaluate.js";
import type { Value } from "../graph/value.js";
import type { RunOptions } from "../schedule.js";
import type { Tensor } from "../tensor.js";
import * as relatives from "./attention-relatives.js";
import { attention as attentionGraph, type AttentionOptions, type AttentionOutputs } from "./attention.js";
import * as norms from "./norm.js";
import { rope as ropeGraph, ropeFrequencies, ropeTable, type RopeConfig, type RopeScaling } from "./rope.js";
import { run, type Results } from "./run.js";
import { softmax as softmaxGraph } from "./softmax.js";

/** What `attention` returns: `out`, and what the options asked for. */
export type AttentionTensors<Options> = Disposable & { readonly out: Tensor<"f32"> } & (Options extends { returnLse: true } | { columnSums: true | object } ? { readonly logSumExp: Tensor<"f32"> } : unknown) &
  (Options extends { columnSums: true | object } ? { readonly columnSums: Tensor<"f32"> } : unknown) &
  (Options extends { returnScores: true } ? { readonly scores: Tensor<"f32"> } : unknown);

/** Where heads and tokens lie in query, key and value: `[batch, heads, tokens, headDim]`, or tokens before heads. */
export interface AttentionLayout {
  readonly layout?: "heads-first" | "tokens-first";
}

/**
 * Softmax attention in one streaming pass, see the graph form in ops/attention.ts for masks, score modifiers, key and
 * value sources and outputs. query `[batch, heads, queries, headDim]`, key and value `[batch, kvHeads, keys, headDim]`
 * (`layout: "tokens-first"` swaps heads and tokens), f32, f16 or bf16. Errors: ArgumentError, ShapeError, AbortError.
 */
export async function attention<const Options extends AttentionOptions<Tensor> & AttentionLayout & RunOptions = object>(
  query: Tensor, key: Tensor, value: Tensor, options: Options = {} as Options,
): Promise<AttentionTensors<Options>> {
  const made = await run("attention", { query, key, value }, options, (operands, given) => {
    const { layout, ...rest } = given as AttentionOptions<Value> & AttentionLayout;
    if (layout !== undefined && layout !== "heads-first" && layout !== "tokens-first") throw invalidArgument("options.layout", "'heads-first' or 'tokens-first'", layout);
    const order = (operand: Value): Value => (layout === "tokens-first" && operand.rank === 4 ? operand.permute(0, 2, 1, 3) : operand);
    checkAttentionNumbers(rest as AttentionOptions<Value>);
    return attentionGraph(order(operands["query"]!), order(operands["key"]!), order(operands["value"]!), rest as AttentionOptions<Value>) as unknown as Record<string, Value>;
  });
  return made as unknown as AttentionTensors<Options>;
}

function checkAttentionNumbers(options: AttentionOptions<Value> & AttentionOutputs): void {
  const number = (name: string, value: unknown, low: number, whole: boolean): void => {
    if (value !== undefined && (typeof value !== "number" || !Number.isFinite(value) || value < low || (whole && !Number.isSafeInteger(value)))) {
      throw invalidArgument(`options.${name}`, whole ? `an integer of at least ${low}` : "a finite number", value);
    }
  };
  number("scale", options.scale, -Infinity, false);
  number("softcap", options.softcap, 0, false);
  number("window", options.window, 1, true);
  number("sinks", options.sinks, 0, true);
  const { columnSums } = options;
  if (columnSums !== undefined && typeof columnSums !== "boolean" && typeof columnSums?.queries !== "number") throw invalidArgument("options.columnSums", "a boolean or { queries }", columnSums);
  if (typeof columnSums === "object") number("columnSums.queries", columnSums.queries, 0, true);
  for (const [name, value] of Object.entries(options.neighborhood ?? {})) if (name !== "causal") number(`neighborhood.${name}`, value, 0, true);
  for (const [name, value] of Object.entries(options.regionToPoint ?? {})) number(`regionToPoint.${name}`, value, 1, true);
  if (options.quantized && options.quantized.format !== "int8" && options.quantized.format !== "int4") throw invalidArgument("options.quantized.format", "'int8' or 'int4'", (options.quantized as { format: unknown }).format);
}

/** Attention over disjoint sets of keys becomes one, see ops/attention-relatives.ts (arXiv 2412.20501). */
export const mergeStates = (partialOut: Tensor, partialLogSumExp: Tensor, options: RunOptions = {}): Promise<Results<"out" | "logSumExp">> =>
  run("mergeStates", { partialOut, partialLogSumExp }, options, (v) => relatives.mergeStates(v["partialOut"]!, v["partialLogSumExp"]!));

/** Stick-breaking attention (arXiv 2306.04640): `out` and, per query, the `remainder` that no key took. */
export const stickBreaking = (query: Tensor, key: Tensor, value: Tensor, options: relatives.StickBreakingOptions & RunOptions = {}): Promise<Results<"out" | "remainder">> =>
  run("stickBreaking", { query, key, value }, options, (v, o) => relatives.stickBreaking(v["query"]!, v["key"]!, v["value"]!, o));

/** Landmark attention (arXiv 2305.16300): isLandmark u8 `[keys]`. */
export const landmarkAttention = (query: Tensor, key: Tensor, value: Tensor, isLandmark: Tensor<"u8">, options: { readonly scale?: number } & RunOptions = {}): Promise<Results<"out">> =>
  run("landmarkAttention", { query, key, value, isLandmark }, options, (v, o) => relatives.landmarkAttention(v["query"]!, v["key"]!, v["value"]!, v["isLandmark"]!, o));

/** One step of slot attention (arXiv 2006.15055): `out` and `assignment` of keys to slots. */
export const slotAttention = (slots: Tensor, key: Tensor, value: Tensor, options: relatives.SlotAttentionOptions & RunOptions = {}): Promise<Results<"out" | "assignment">> =>
  run("slotAttention", { slots, key, value }, options, (v, o) => relatives.slotAttention(v["slots"]!, v["key"]!, v["value"]!, o));

/** Token–parameter attention (arXiv 2410.23168). */
export const pattention = (x: Tensor, keys: Tensor, values: Tensor, options: { readonly scale?: number } & RunOptions = {}): Promise<Results<"out">> =>
  run("pattention", { x, keys, values }, options, (v, o) => relatives.pattention(v["x"]!, v["keys"]!, v["values"]!, o));

export interface RopeOptions extends RunOptions {
  readonly theta?: number;
  readonly style?: RopeConfig["style"];
  /** How many of headDim's elements rotate; all by default. */
  readonly rotaryDim?: number;
  readonly scaling?: RopeScaling;
}

/** Rotary position embedding (arXiv 2104.09864) of x f32 `[tokens, heads, headDim]` at positions i32 `[tokens]`. */
export const rope = (x: Tensor<"f32">, positions: Tensor<"i32">, options: RopeOptions = {}): Promise<Results<"out">> =>
  run("rope", { x: expectTensor("x", x, "f32"), positions: expectTensor("positions", positions, "i32") }, options, (v, o) => {
    const { theta = 10000, style = "half", rotaryDim = x.shape.at(-1) ?? 0, scaling } = o as RopeOptions;
    if (!Number.isInteger(rotaryDim) || rotaryDim < 2 || rotaryDim % 2 !== 0) throw invalidArgument("options.rotaryDim", "a positive even integer", rotaryDim);
    const table = ropeTable(v["positions"]!, ropeFrequencies({ theta, dim: rotaryDim, ...(scaling && { scaling }) }, Math.max(0, ...positions.data) + 1));
    const copy = v["x"]!.graph.add("add", { inputs: { a: v["x"] }, outputs: { out: { type: "f32", dims: v["x"]!.dims } }, parameters: { scale: 1 } }).out;
    return { out: ropeGraph(copy, table, style) };
  });

/** RMS norm of each row (arXiv 1910.07467): x f32 `[rows, width]`, weight f32 `[width]`. */
export const rmsNorm = (x: Tensor<"f32">, weight: Tensor<"f32">, options: { readonly epsilon?: number } & RunOptions = {}): Promise<Results<"out">> =>
  run("rmsNorm", { x, weight }, options, (v, o) => ({ out: norms.rmsNorm(v["x"]!, v["weight"]!, { epsilon: 1e-5, ...o }) }));

/** Layer norm of each row (arXiv 1607.06450): x f32 `[rows, width]`, weight and bias f32 `[width]`. */
export const layerNorm = (x: Tensor<"f32">, weight: Tensor<"f32">, options: { readonly bias?: Tensor<"f32">; readonly epsilon?: number } & RunOptions = {}): Promise<Results<"out">> =>
  run("layerNorm", { x, weight }, options, (v, o) => {
    const { bias, epsilon = 1e-5 } = o as { bias?: Value; epsilon?: number };
    return { out: norms.layerNorm(v["x"]!, v["weight"]!, bias, { epsilon }) };
  });

/** softmax(x · scale) along the last axis; a row of only −∞ gives zeros. */
export const softmax = (x: Tensor<"f32">, options: { readonly scale?: number } & RunOptions = {}): Promise<Results<"out">> =>
  run("softmax", { x: expectTensor("x", x, "f32") }, options, (v, o) => ({ out: softmaxGraph(v["x"]!, o) }));

export type { Results } from "./run.js";
export { blockRelevance, keepTop, landmarkBlocks, mergeEvicted, poolScores, quantizeRows, type BlockRelevanceOptions, type KeepTopOptions, type Quantized } from "./cache-eager.js";
export { expandTree, recycleUpdate, treeMask, verifySampling, verifyTree, type VerifyTreeOptions } from "./draft-eager.js";
export {
  adaptivePoolGrid, bipartiteMatch, closestRows, convolve, cosineMatrix, densityPeaks, entropy, farthestRows, patchEntropy, proportionalAttention, resizeBilinear, rowProducts, segmentPool, uniqueRows, unmerge,
} from "./reduce-eager.js";
