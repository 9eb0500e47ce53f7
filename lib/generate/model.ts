import { basename } from "node:path";
import { Eviction } from "../cache/eviction.js";
import { createPool } from "../cache/pool.js";
import { cacheTypes, type CacheType } from "../cache/types.js";
import type { PromptFilter } from "../cache/gemfilter.js";
import { checkPolicy, type CachePolicy, type Observation } from "../cache/policy.js";
import { deviceOf, type DeviceName } from "../device.js";
import type { DraftText } from "../draft/draft-model.js";
import { EncoderModel } from "../encode/model.js";
import { AbortError, ArgumentError, DisposedError, invalidArgument, ModelFormatError } from "../errors.js";
import type { CompiledGraph } from "../graph/compile.js";
import { describeDecoder } from "../models/architectures.js";
import type { DecoderConfig, DecoderDescription } from "../models/config.js";
import { DecoderGraphs, loadDecoder, type Decoder } from "../models/decoder.js";
import type { EncoderDescription } from "../models/encoder-config.js";
import { loadEncoder } from "../models/encoder-weights.js";
import { EncoderGraphs } from "../models/encoder.js";
import { describeEncoder, encoderArchitecture } from "../models/encoders.js";
import { locateModel } from "../models/fetch.js";
import { GraphCache } from "../models/graph-cache.js";
import type { ModelFile } from "../models/file.js";
import { openModel } from "../models/open.js";
import { WeightLoader, type WeightType } from "../models/weights.js";
import { callNative, native, type NativeHandle } from "../native.js";
import { threadCount } from "../schedule.js";
import { Slicer } from "../slice.js";
import { chatTemplateOf, renderChat, type ChatMessage } from "../tokenizer/template.js";
import { createTokenizer, type EncodeOptions, type Tokenizer } from "../tokenizer/tokenizer.js";
import { checkCallback, checkIds, checkOptions, checkPrompt, mostHistory } from "./options.js";
import { checkOptionsObject, checkSignal } from "../check.js";
import { OpenSessions } from "./open-sessions.js";
import { scoreIds, scoreTokens, type Score, type ScoreOptions } from "./score.js";
import { Session, type SessionOptions } from "./session.js";
import { chunkTokens, Sequence } from "./sequence.js";
import { draftNodes, measureDraftCosts, type DraftCosts } from "./speculation.js";

export interface LoadProgress {
  readonly stage: "fetch" | "read" | "tokenizer" | "weights";
  readonly loaded: number;
  /** 0 where the whole is not known. */
  readonly total: number;
}

export interface LoadOptions {
  readonly onProgress?: ((progress: LoadProgress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Cores to use for loading and, by default, for sessions. */
  readonly threads?: number | undefined;
  /** Where the model runs and its sessions' caches lie; "cpu" unless the environment variable TOKENLOOM_DEVICE names another. ArgumentError where CUDA is off. */
  readonly device?: DeviceName | undefined;
  /** Most tokens a session may hold; by default what the model was trained for. */
  readonly contextLength?: number | undefined;
  /** Element type of cached keys and values; int8 and int4 with scales (arXiv 2303.06865, 2402.02750). Default "f16". */
  readonly cacheType?: CacheType | undefined;
  /** Most bytes that all sessions' caches may hold together; a session that needs more gets OutOfMemoryError. Default: no limit. */
  readonly cacheBytes?: number | undefined;
  /** Never use the network. */
  readonly offline?: boolean | undefined;
  /** What the model has to be: an ArgumentError tells where it is the other. */
  readonly kind?: "language" | "encoder" | undefined;
  /** How an encoder keeps its weights: "f32", "bf16" (half the memory) or "int8" (integer arithmetic); model.weights tells what rounding lost. Default "f32". */
  readonly weights?: WeightType | undefined;
}

/** The graphs of a language model. */
class ModelGraphs extends GraphCache {
  constructor(private readonly build: DecoderGraphs) {
    super();
  }

  prefill(observe?: Observation): Promise<CompiledGraph> {
    return this.once(`prefill ${JSON.stringify(observe)}`, () => this.build.prefill(chunkTokens, observe));
  }
  generate(observe?: Observation): Promise<CompiledGraph> {
    return this.once(`generate ${JSON.stringify(observe)}`, () => this.build.generate(chunkTokens, mostHistory, observe));
  }
  draft(top: number, observe?: Observation): Promise<CompiledGraph> {
    return this.once(`draft ${top} ${JSON.stringify(observe)}`, () => this.build.draft(draftNodes, mostHistory, top, observe));
  }
  filter(filter: PromptFilter): Promise<CompiledGraph> {
    return this.once(`filter ${filter.layer} ${filter.kernel}`, () => this.build.filter(chunkTokens, filter));
  }
  score(top: number): Promise<CompiledGraph> {
    return this.once(`score ${top}`, () => this.build.score(scoreTokens, top));
  }
}

/** A decoder language model in memory: weights, tokenizer, compiled graphs. Made by loadModel(). */
export class LanguageModel implements Disposable {
  readonly kind = "language";
  readonly name: string;
  readonly path: string;
  readonly format: "gguf" | "safetensors";
  readonly config: DecoderConfig;
  readonly tokenizer: Tokenizer;
  /** The template source for conversations, where the model has one. */
  readonly chatTemplate: string | undefined;
  readonly contextLength: number;
  readonly threads: number;
  /** Where the model runs and its sessions' caches lie. */
  readonly device: DeviceName;
  /** Bytes of packed weights. */
  readonly weightBytes: number;
  readonly loadMs: number;
  /** Element type of cached keys and values. */
  readonly cacheType: CacheType;
  /** @internal */
  readonly graphs: ModelGraphs;
  /** @internal */
  readonly pool: NativeHandle;
  private disposed = false;

  /** @internal */
  constructor(parts: { file: ModelFile; decoder: Decoder; loader: WeightLoader; tokenizer: Tokenizer; template: string | undefined; contextLength: number; graphs: ModelGraphs; loadMs: number; options: LoadOptions }) {
    const { file, decoder, loader, tokenizer, template, contextLength, graphs, loadMs, options } = parts;
    const { config } = decoder;
    this.name = config.name === "" ? basename(file.path) : config.name;
    this.path = file.path;
    this.format = file.format;
    this.config = config;
    this.tokenizer = tokenizer;
    this.chatTemplate = template;
    this.contextLength = contextLength;
    this.threads = threadCount(options.threads);
    this.device = deviceOf(options.device);
    this.weightBytes = loader.bytes;
    this.loadMs = loadMs;
    this.loader = loader;
    this.graphs = graphs;
    this.cacheType = options.cacheType ?? "f16";
    this.pool = createPool({ layers: config.layers.length, kvHeads: config.kvHeads, headDim: config.headDim, type: this.cacheType }, options.cacheBytes ?? 0, this.device);
  }
  private readonly loader: WeightLoader;
  /** One a policy, for as long as that is in use: servers make a policy for each session. */
  private readonly evictions = new WeakMap<CachePolicy, Eviction>();
  private evictionsMade: WeakRef<Eviction>[] = [];
  private readonly costs = new Map<string, Promise<DraftCosts>>();
  /** Sessions that are open. @internal */
  readonly sessions = new OpenSessions<Session>();

  get isDisposed(): boolean {
    return this.disposed;
  }

  private check(): void {
    if (this.disposed) throw new DisposedError("This model");
  }

  /**
   * A new, empty session. Sessions share the weights, and the cache pages of beginnings that their texts have in common with a
   * session that is still open.
   */
  session(options: SessionOptions = {}): Session {
    this.check();
    return new Session(this, options);
  }

  /**
   * A session that session.save() wrote, with the options of a new one. Throws ModelFormatError for damaged files and those of another
   * version, ArgumentError for those of another model or another kind of cache policy.
   */
  async restore(path: string, options: SessionOptions = {}): Promise<Session> {
    if (typeof path !== "string" || path === "") throw invalidArgument("path", "a file path", path);
    const session = this.session(options);
    try {
      await session.restore(path);
      return session;
    } catch (error) {
      session.dispose();
      throw error;
    }
  }

  /** What tells this model from others: its shape and the size of its packed weights. @internal */
  get fingerprint(): string {
    const { architecture, vocabulary, layers, heads, kvHeads, headDim } = this.config;
    return [architecture, this.name, vocabulary, layers.length, heads, kvHeads, headDim, this.cacheType].join("/");
  }

  /** A policy compiled for this model. @internal */
  eviction(policy: CachePolicy): Eviction {
    let eviction = this.evictions.get(policy);
    if (!eviction) {
      const { layers, heads, kvHeads, headDim, contextLength } = this.config;
      const shape = { layers: layers.length, heads, kvHeads, headDim, mostTokens: this.contextLength + chunkTokens, contextLength };
      eviction = new Eviction(policy, { ...shape, windows: layers.map(({ window }) => window), rope: layers.map(({ rope }) => rope) });
      this.evictions.set(policy, eviction);
      this.evictionsMade = [...this.evictionsMade.filter((made) => made.deref() !== undefined), new WeakRef(eviction)];
    }
    return eviction;
  }

  /** A text of this model for draftModel(). @internal */
  draftText(): DraftText {
    this.check();
    const sequence = new Sequence(this, { threads: this.threads }), options = checkOptions({ seed: 0 });
    return {
      tokens: sequence.tokens,
      get bytes() {
        return sequence.cacheStatistics.bytesHeld;
      },
      keepFirst: (count) => sequence.keepFirst(count),
      next: (tokens, k) => sequence.peek(tokens, k, options),
      [Symbol.dispose]: () => sequence.dispose(),
    };
  }

  /** What a step over a draft tree costs: see measureDraftCosts(). Measured at first use. @internal */
  draftCosts(threads: number, top: number): Promise<DraftCosts> {
    const key = `${threads} ${top}`;
    let costs = this.costs.get(key);
    if (!costs) this.costs.set(key, (costs = measureDraftCosts(this, threads, top)));
    costs.catch(() => this.costs.delete(key));
    return costs;
  }

  /** Token ids of a text. `special` also recognises special tokens written out in it (off: they are plain text). */
  tokenize(text: string, options?: EncodeOptions): number[] {
    this.check();
    if (typeof text !== "string") throw invalidArgument("text", "a string", text);
    return this.tokenizer.encode(text, options);
  }

  /** The text of token ids; special tokens are left out unless `special`. */
  detokenize(ids: readonly number[], options?: { readonly special?: boolean }): string {
    this.check();
    if (!Array.isArray(ids)) throw invalidArgument("ids", "an array of token ids", ids);
    checkIds("ids", ids, this.config.vocabulary);
    return this.tokenizer.decode(ids, options);
  }

  /** The text that the model's template makes of a conversation. Throws where the model has no template. */
  applyChatTemplate(messages: readonly ChatMessage[], options: { readonly addGenerationPrompt?: boolean } = {}): string {
    this.check();
    checkPrompt(messages, this.config.vocabulary);
    if (this.chatTemplate === undefined) throw new ModelFormatError("The model has no chat template: pass plain text instead of messages", { file: this.path });
    const { tokenizer } = this;
    return renderChat(this.chatTemplate, messages, { addGenerationPrompt: options.addGenerationPrompt ?? false, bosToken: tokenizer.bosToken, eosToken: tokenizer.eosToken });
  }

  /** What the model predicts along a given text: log-probabilities, largest logits, perplexity. */
  async score(input: string | readonly number[], options: ScoreOptions = {}): Promise<Score> {
    this.check();
    const { top = 20 } = checkOptionsObject(options);
    if (!Number.isInteger(top) || top < 1 || top > Math.min(1024, this.config.vocabulary)) throw invalidArgument("options.top", `an integer from 1 to ${Math.min(1024, this.config.vocabulary)}`, top);
    if (options.cache !== undefined) checkPolicy("options.cache", options.cache);
    checkSignal("options.signal", options.signal);
    checkCallback("options.onProgress", options.onProgress);
    checkPrompt(input, this.config.vocabulary);
    const ids = typeof input === "string" ? await this.tokenizer.encodeAsync(input, { bos: this.tokenizer.addBos, signal: options.signal }) : input;
    const { after = 0, cache } = options, least = cache ? 1 : 0;
    if (!Number.isInteger(after) || after < least || after >= Math.max(1, ids.length)) throw invalidArgument("options.after", `an integer from ${least} to ${ids.length - 1}`, after);
    return scoreIds(this, ids, top, options);
  }

  /** Frees the weights once no run uses them. Sessions of this model cannot go on. */
  dispose(): void {
    if (this.disposed) return;
    this.disposed = true;
    this.graphs.dispose();
    for (const eviction of this.evictionsMade) eviction.deref()?.dispose();
    this.loader.release();
    native.release(this.pool);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Promise.all that fails only when none runs any more: nobody works on what is freed then. */
async function allSettled<T extends unknown[]>(...work: { [K in keyof T]: Promise<T[K]> }): Promise<T> {
  const failed = (await Promise.allSettled(work)).find((result) => result.status === "rejected");
  if (failed) throw (failed as PromiseRejectedResult).reason;
  return Promise.all(work) as Promise<T>;
}

function checkLoadOptions(options: LoadOptions): void {
  checkOptionsObject(options);
  checkSignal("options.signal", options.signal);
  checkCallback("options.onProgress", options.onProgress);
  threadCount(options.threads);
  deviceOf(options.device, "options.device");
  const { cacheType, contextLength, cacheBytes, kind, weights } = options;
  if (kind !== undefined && kind !== "language" && kind !== "encoder") throw invalidArgument("options.kind", "'language' or 'encoder'", kind);
  if (weights !== undefined && weights !== "f32" && weights !== "bf16" && weights !== "int8") throw invalidArgument("options.weights", "'f32', 'bf16' or 'int8'", weights);
  if (cacheType !== undefined && !Object.hasOwn(cacheTypes, cacheType)) throw invalidArgument("options.cacheType", "'f32', 'f16', 'bf16', 'int8' or 'int4'", cacheType);
  if (contextLength !== undefined && (!Number.isSafeInteger(contextLength) || contextLength < 1)) throw invalidArgument("options.contextLength", "a positive integer", contextLength);
  if (cacheBytes !== undefined && (!Number.isSafeInteger(cacheBytes) || cacheBytes < 1)) throw invalidArgument("options.cacheBytes", "a positive integer", cacheBytes);
}

/**
 * Loads a model from a GGUF file, a safetensors file or folder, or by a known name such as "smollm2-135m-instruct", which
 * is looked for in TOKENLOOM_MODELS and the user's cache folder and fetched if it is in neither. What comes is a LanguageModel, or an
 * EncoderModel for BERT, ViT, DINOv2, CLIP, SigLIP and their kin; `kind` tells which, and `options.kind` asks for one. Weights are repacked
 * for this machine's instruction set off the event loop. Throws ModelFormatError for files that break their format, lack tensors or
 * have an unknown architecture.
 */
export function loadModel(nameOrPath: string, options: LoadOptions & { readonly kind: "encoder" }): Promise<EncoderModel>;
export function loadModel<Model extends LanguageModel | EncoderModel = LanguageModel>(nameOrPath: string, options?: LoadOptions): Promise<Model>;
export async function loadModel(nameOrPath: string, options: LoadOptions = {}): Promise<LanguageModel | EncoderModel> {
  if (typeof nameOrPath !== "string" || nameOrPath === "") throw invalidArgument("nameOrPath", "a path or a known model name", nameOrPath);
  checkLoadOptions(options);
  const { signal, onProgress } = options;
  if (signal?.aborted) throw new AbortError(signal.reason);
  const info = callNative(() => native.info());
  if (!info.requestedIsaIsValid) throw invalidArgument("TOKENLOOM_ISA", `one of ${info.available.join(", ")}`, process.env["TOKENLOOM_ISA"]);
  const path = await locateModel(nameOrPath, { signal, offline: options.offline, onProgress: onProgress && (({ loaded, total }) => onProgress({ stage: "fetch", loaded, total })) });
  const started = performance.now();
  onProgress?.({ stage: "read", loaded: 0, total: 0 });
  const file = await openModel(path, { signal });
  const slicer = new Slicer(signal);
  await slicer.pause();
  const encoder = encoderArchitecture(file), kind = encoder ? "encoder" : "language";
  if (options.kind !== undefined && options.kind !== kind) throw new ArgumentError("options.kind", `Expected ${options.kind === "encoder" ? "an encoder" : "a language model"} but ${path} is ${encoder ? "an encoder" : "a language model"}`);
  const description = encoder ? await describeEncoder(encoder, file, slicer) : describeDecoder(file);
  const total = [...file.tensors.values()].reduce((sum, tensor) => sum + tensor.byteLength, 0);
  await slicer.pause();
  const loader = new WeightLoader(file, { signal, threads: options.threads, weightType: options.weights, onBytes: (loaded) => onProgress?.({ stage: "weights", loaded: Math.min(loaded, total), total }) });
  try {
    const parts = { file, loader, options, started };
    return await ("names" in description ? finishEncoder(description, parts) : finishLanguageModel(description, parts));
  } catch (error) {
    loader.release();
    throw error;
  }
}

interface LoadParts {
  readonly file: ModelFile;
  readonly loader: WeightLoader;
  readonly options: LoadOptions;
  readonly started: number;
}

/** The tokenizer is made of JavaScript in small slices, on the event loop's core, while the others pack weights. */
async function tokenizerBeside({ file, loader, options: { signal, onProgress } }: LoadParts): Promise<Tokenizer> {
  onProgress?.({ stage: "tokenizer", loaded: 0, total: 0 });
  loader.leaveCore = true;
  await new Slicer(signal).pause();
  return createTokenizer(file, { signal }).finally(() => (loader.leaveCore = false));
}

async function finishEncoder(description: EncoderDescription, parts: LoadParts): Promise<EncoderModel> {
  const { file, loader, options, started } = parts, made = description.config.image ? Promise.resolve(undefined) : tokenizerBeside(parts);
  const [encoder, tokenizer] = await allSettled(loadEncoder(description, loader), made);
  loader.finish();
  return new EncoderModel({ file, config: description.config, build: new EncoderGraphs(encoder), loader, tokenizer, loadMs: performance.now() - started, threads: options.threads, device: options.device });
}

async function finishLanguageModel(description: DecoderDescription, parts: LoadParts): Promise<LanguageModel> {
  const { file, loader, options, started } = parts, made = tokenizerBeside(parts);
  const [decoder, tokenizer, template] = await allSettled(loadDecoder(description, loader, new Slicer(options.signal)), made, chatTemplateOf(file));
  loader.finish();
  const contextLength = Math.min(options.contextLength ?? Infinity, description.config.contextLength);
  const graphs = new ModelGraphs(new DecoderGraphs(decoder, contextLength));
  // So that the first token does not wait for them; one after the other, or their slices would add up.
  await graphs.generate();
  await graphs.prefill();
  return new LanguageModel({ file, decoder, loader, tokenizer, template, contextLength, graphs, loadMs: performance.now() - started, options });
}
