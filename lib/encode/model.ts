import { basename } from "node:path";
import { deviceOf, type DeviceName } from "../device.js";
import { ArgumentError, ContextOverflowError, describe, DisposedError } from "../errors.js";
import type { CompiledGraph } from "../graph/compile.js";
import type { EncoderConfig } from "../models/encoder-config.js";
import { keptTokens, type EncoderGraphs } from "../models/encoder.js";
import type { ModelFile } from "../models/file.js";
import { GraphCache } from "../models/graph-cache.js";
import type { WeightLoader, WeightType } from "../models/weights.js";
import type { Bytes } from "../native.js";
import { threadCount } from "../schedule.js";
import { throwIfAborted } from "../slice.js";
import { disposable, tensor, type Tensor } from "../tensor.js";
import type { Tokenizer } from "../tokenizer/tokenizer.js";
import { checkImage, toPixels, type ImageInput } from "./image.js";
import { checkEncodeOptions, type CheckedEncodeOptions, type EncodeModelOptions } from "./options.js";

/** Tokens of texts that one run takes, at least one text; and how many texts. */
const runTokens = 1024, runTexts = 256;
/** Images that one run takes: more would only take memory. */
const runImages = 8;
/** Graphs kept for reductions and outputs not asked for lately. */
const mostGraphs = 16;

/** What a text or an image became. All tensors are of this result alone. */
export interface Encoding extends Disposable {
  /** One vector for the whole, f32 `[dimension]`. */
  readonly embedding: Tensor<"f32">;
  /** Tokens that were left, f32 `[tokens, width]`, behind the last norm. */
  readonly tokens: Tensor<"f32">;
  /** How many of the input's tokens each one stands for, f32 `[tokens]`. */
  readonly sizes: Tensor<"f32">;
  /** The row of `tokens` that each of the input's tokens is in, i32 `[input tokens]`; −1 where it was dropped. */
  readonly source: Tensor<"i32">;
  /** Of models with a saliency head: f32 `[height, width]`, 0 … 1. */
  readonly saliency?: Tensor<"f32">;
  /** Where asked for: f32 `[tokens, width]` before the first block and behind each one. */
  readonly hiddenStates?: readonly Tensor<"f32">[];
}

/** The input of one run: sequences laid end to end. */
interface Packed {
  /** Tokens of each sequence. */
  readonly lengths: readonly number[];
  readonly bindings: Readonly<Record<string, Bytes>>;
}

class Graphs extends GraphCache {
  constructor(private readonly build: EncoderGraphs, private readonly most: number, private readonly mostSequences: number) {
    super(mostGraphs);
  }

  encode({ reduce, pool, normalize, saliency, hiddenStates }: CheckedEncodeOptions, reducedLayers: readonly boolean[]): Promise<CompiledGraph> {
    const key = JSON.stringify([pool, normalize, saliency, hiddenStates, reduce?.key, reducedLayers]);
    return this.once(key, () => this.build.encode({ reduce, pool, normalize, saliency, hiddenStates, reducedLayers }, this.most, this.mostSequences));
  }
}

/** 0, then the sums of the lengths so far. */
function boundsOf(lengths: readonly number[]): Int32Array {
  const bounds = new Int32Array(lengths.length + 1);
  lengths.forEach((length, i) => (bounds[i + 1] = bounds[i]! + length));
  return bounds;
}

/** A model that turns texts, or images, into vectors. Made by loadModel(). */
export class EncoderModel implements Disposable {
  readonly kind = "encoder";
  readonly name: string;
  readonly path: string;
  readonly format = "safetensors";
  readonly config: EncoderConfig;
  /** Of text models. */
  readonly tokenizer: Tokenizer | undefined;
  readonly threads: number;
  /** Where encode() runs unless its options say otherwise. */
  readonly device: DeviceName;
  /** Element type of the weights in memory, and what rounding to it lost: root mean square by that of the weights, 0 where nothing was rounded. */
  readonly weights: { readonly type: WeightType; readonly relativeError: number };
  readonly weightBytes: number;
  readonly loadMs: number;
  private readonly graphs: Graphs;
  private readonly loader: WeightLoader;
  private disposed = false;

  /** @internal */
  constructor(parts: { file: ModelFile; config: EncoderConfig; build: EncoderGraphs; loader: WeightLoader; tokenizer: Tokenizer | undefined; loadMs: number; threads: number | undefined; device: DeviceName | undefined }) {
    const { file, config, build, loader, tokenizer, loadMs, threads, device } = parts;
    this.name = config.name === "" ? basename(file.path) : config.name;
    this.path = file.path;
    this.config = config;
    this.tokenizer = tokenizer;
    this.threads = threadCount(threads);
    this.device = deviceOf(device);
    this.weights = { type: loader.weightType, relativeError: loader.relativeError };
    this.weightBytes = loader.bytes;
    this.loadMs = loadMs;
    this.loader = loader;
    this.graphs = new Graphs(build, config.image ? runImages : Math.max(runTokens, config.contextLength!), runTexts);
  }

  get isDisposed(): boolean {
    return this.disposed;
  }

  private check(): void {
    if (this.disposed) throw new DisposedError("This model");
  }

  /**
   * Texts, or images, as vectors. An array is a batch: texts of different lengths are packed, not padded, and no result depends on its
   * neighbours. Several calls may run at once. Throws ArgumentError (a wrong or unreadable input), ContextOverflowError (a text that is too
   * long and not to be cut), AbortError, DisposedError.
   */
  encode(input: string | ImageInput, options?: EncodeModelOptions): Promise<Encoding>;
  encode(input: readonly (string | ImageInput)[], options?: EncodeModelOptions): Promise<Encoding[]>;
  async encode(input: string | ImageInput | readonly (string | ImageInput)[], options: EncodeModelOptions = {}): Promise<Encoding | Encoding[]> {
    this.check();
    const checked = checkEncodeOptions(options, this.config), inputs = Array.isArray(input) ? (input as readonly (string | ImageInput)[]) : [input as string | ImageInput];
    const nameOf = (index: number): string => (Array.isArray(input) ? `input[${index}]` : "input");
    inputs.forEach((one, index) => (this.config.image ? checkImage(nameOf(index), one) : checkText(nameOf(index), one)));
    const results: Encoding[] = [];
    const run = async (packed: Packed): Promise<void> => void results.push(...(await this.run(packed, checked)));
    try {
      if (this.config.image) await this.encodeImages(inputs, nameOf, checked, run);
      else await this.encodeTexts(inputs as readonly string[], nameOf, checked, run);
    } catch (error) {
      for (const result of results) result[Symbol.dispose]();
      throw error;
    }
    return Array.isArray(input) ? results : results[0]!;
  }

  private async encodeTexts(texts: readonly string[], nameOf: (index: number) => string, options: CheckedEncodeOptions, run: (packed: Packed) => Promise<void>): Promise<void> {
    const ids: number[][] = [];
    for (const [index, text] of texts.entries()) ids.push(await this.tokenize(nameOf(index), text, options));
    for (let first = 0, last = 0; first < ids.length; first = last) {
      for (let tokens = 0; last < ids.length && last - first < runTexts && (last === first || tokens + ids[last]!.length <= runTokens); last++) tokens += ids[last]!.length;
      const part = ids.slice(first, last), lengths = part.map(({ length }) => length);
      await run({ lengths, bindings: { ids: Int32Array.from(part.flat()), positions: Int32Array.from(lengths.flatMap((length) => Array.from({ length }, (_, i) => i))) } });
    }
  }

  private async tokenize(name: string, text: string, { truncate, signal }: CheckedEncodeOptions): Promise<number[]> {
    const tokenizer = this.tokenizer!, limit = this.config.contextLength!, ids = await tokenizer.encodeAsync(text, { bos: true, eos: true, signal });
    if (ids.length <= limit) return ids;
    if (!truncate) throw new ContextOverflowError(`Expected at most ${limit} tokens for ${name} but it has ${ids.length}: cut it, or pass truncate: true`);
    const end = tokenizer.encode("", { eos: true });
    return [...ids.slice(0, limit - end.length), ...end];
  }

  private async encodeImages(images: readonly ImageInput[], nameOf: (index: number) => string, { signal }: CheckedEncodeOptions, run: (packed: Packed) => Promise<void>): Promise<void> {
    const image = this.config.image!, { height, width, prefix, patch } = image, bytes = height * width * 3, tokens = prefix + (height / patch) * (width / patch);
    for (let first = 0; first < images.length; first += runImages) {
      const part = images.slice(first, first + runImages), pixels = new Uint8Array(part.length * bytes);
      throwIfAborted(signal);
      await Promise.all(part.map(async (one, i) => pixels.set(await toPixels(nameOf(first + i), one, image), i * bytes)));
      await run({ lengths: part.map(() => tokens), bindings: { pixels, places: Int32Array.from({ length: part.length * tokens }, (_, i) => i % tokens) } });
    }
  }

  private async run({ lengths, bindings }: Packed, options: CheckedEncodeOptions): Promise<Encoding[]> {
    const { layers, width, dimension, image } = this.config, { reduce, signal, threads = this.threads, device = this.device, saliency, hiddenStates } = options;
    const kept = keptTokens(reduce, layers, lengths), sum = (counts: readonly number[]): number => counts.reduce((total, count) => total + count, 0);
    this.check();
    const graph = await this.graphs.encode(options, kept.map((counts) => counts !== undefined));
    const reduced = kept.some((counts) => counts !== undefined), bounds = boundsOf(lengths), sequences = lengths.length, all = sum(lengths);
    // Before the first block, and behind each.
    const behind = [lengths];
    for (const counts of kept) behind.push(counts ?? behind.at(-1)!);
    const rows = sum(behind.at(-1)!), symbols: Record<string, number> = { sequences, n: all };
    const memory: Record<string, Bytes> = { ...bindings, bounds, single: Int32Array.from({ length: sequences + 1 }, (_, i) => i), embedding: new Float32Array(sequences * dimension), tokens: new Float32Array(rows * width) };
    kept.forEach((counts, layer) => counts && (symbols[`rows${layer}`] = sum(counts)));
    if (reduced) Object.assign(memory, { sizes: new Float32Array(rows), source: new Int32Array(all), newBounds: new Int32Array(sequences + 1) });
    if (saliency) memory["saliency"] = new Float32Array(sequences * image!.height * image!.width);
    if (hiddenStates) behind.forEach((counts, i) => (memory[`hidden${i}`] = new Float32Array(sum(counts) * width)));
    await graph.run({ symbols, bindings: memory }, { signal, threads, device });
    const hiddenBounds = hiddenStates ? behind.map(boundsOf) : [];
    return lengths.map((_, sequence) => encodingOf(sequence, memory, bounds, this.config, reduced, hiddenBounds));
  }

  /** Frees the weights once no run uses them. */
  dispose(): void {
    if (this.disposed) return;
    this.disposed = true;
    this.graphs.dispose();
    this.loader.release();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

function checkText(name: string, text: unknown): void {
  if (typeof text !== "string") throw new ArgumentError(name, `Expected a string for ${name}, since this model reads texts, but received ${describe(text)}`);
}

/** One sequence's part of a run's memory. */
function encodingOf(sequence: number, memory: Readonly<Record<string, Bytes>>, bounds: Int32Array, config: EncoderConfig, reduced: boolean, hiddenBounds: readonly Int32Array[]): Encoding {
  const { width, dimension, image } = config, f32 = (name: string): Float32Array => memory[name] as Float32Array;
  const left = reduced ? (memory["newBounds"] as Int32Array) : bounds, begin = left[sequence]!, tokens = left[sequence + 1]! - begin, original = bounds[sequence + 1]! - bounds[sequence]!;
  const rowsOf = (name: string, from: number, count: number): Tensor<"f32"> => tensor(f32(name).slice(from * width, (from + count) * width), [count, width]);
  const pixels = image ? image.height * image.width : 0;
  const hiddenStates = hiddenBounds.map((at, i) => rowsOf(`hidden${i}`, at[sequence]!, at[sequence + 1]! - at[sequence]!));
  return disposable({
    embedding: tensor(f32("embedding").slice(sequence * dimension, (sequence + 1) * dimension), [dimension]),
    tokens: rowsOf("tokens", begin, tokens),
    sizes: tensor(reduced ? f32("sizes").slice(begin, begin + tokens) : new Float32Array(tokens).fill(1), [tokens]),
    source: tensor(reduced ? (memory["source"] as Int32Array).slice(bounds[sequence], bounds[sequence + 1]) : Int32Array.from({ length: original }, (_, i) => i), [original]),
    ...(memory["saliency"] && { saliency: tensor(f32("saliency").slice(sequence * pixels, (sequence + 1) * pixels), [image!.height, image!.width]) }),
    ...(hiddenStates.length > 0 && { hiddenStates }),
  });
}
