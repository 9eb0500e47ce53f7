import { checkOptionsObject } from "../check.js";
import type { DeviceName } from "../device.js";
import { ArgumentError, invalidArgument } from "../errors.js";
import { compile, type CompiledGraph } from "../graph/compile.js";
import { expectTensor } from "../graph/evaluate.js";
import { Graph } from "../graph/graph.js";
import type { Value } from "../graph/value.js";
import { callNative, dtypeCode, native, type Bytes, type CacheStatistics, type NativeHandle } from "../native.js";
import { cacheAppend, cachedAttention } from "../ops/cache.js";
import { cacheObserve, queryStatistics, statisticsOfLayer, statisticsWidth } from "../ops/cache-policy.js";
import type { RopeConfig } from "../ops/rope.js";
import { NativeResource } from "../resource.js";
import { schedule, type RunOptions } from "../schedule.js";
import { tensor, Tensor } from "../tensor.js";
import { Eviction, rotationGraph } from "./eviction.js";
import { Scoring, type ScoringShape } from "./scoring.js";
import type { PromptFilter } from "./gemfilter.js";
import { loadCache, saveCache } from "./file.js";
import { createPool } from "./pool.js";
import { cacheTypes, pageTokens, type CacheType } from "./types.js";
import { checkChoice, checkInteger, observedSums, type CachePolicy, type Observation } from "./policy.js";

export interface KvCacheShape {
  readonly layers: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** What keys and values are kept as; int8 has a scale a token, int4 scale and minimum for each 16 dimensions, of rotated keys. */
  readonly type: CacheType;
}

export interface KvCacheOptions extends KvCacheShape {
  /** Bytes of pages that this cache and its forks may hold; none by default. */
  readonly byteLimit?: number;
  /** Where the pages lie and runs on them go; "cpu" unless the environment variable TOKENLOOM_DEVICE names another. */
  readonly device?: DeviceName | undefined;
}

type Rows = Tensor<"f32"> | Float32Array;

/** One layer's rows of a step. */
export interface KvRows {
  /** `[tokens, kvHeads, headDim]`, after RoPE. */
  readonly key: Rows;
  /** `[tokens, kvHeads, headDim]`. */
  readonly value: Rows;
  /** `[tokens, heads, headDim]`, after RoPE: the step attends, and a policy may observe it. */
  readonly query?: Rows;
  /** `[tokens, heads, headDim]`, before RoPE: for policies that observe queries. */
  readonly queryBeforeRope?: Rows;
}

export interface AppendOptions extends RunOptions {
  /** Where the tokens stand, i32 `[tokens]`; behind the last one by default. */
  readonly positions?: Int32Array;
  /** The policy, or what it wants to see. */
  readonly observe?: Observation | CachePolicy;
  /** Multiplies query · key; 1/√headDim. */
  readonly scale?: number;
  /** The rows are nodes of a draft tree, of which only these stay, in rising order (arXiv 2305.09781). */
  readonly path?: Int32Array;
}

export interface EvictOptions extends RunOptions {
  /** The keys' rotary embedding: policies with `rerotate`, and expectedAttention, need it. */
  readonly rope?: RopeConfig;
}

export interface KvCacheStatistics extends CacheStatistics {
  /** Tokens that policies removed, summed over layers and heads. */
  readonly evicted: number;
}

/** A page of 32 tokens. */
export interface CachePage {
  readonly type: CacheType;
  /** How many caches hold it. */
  readonly holders: number;
  readonly positions: Int32Array;
}

const typeNames = Object.keys(cacheTypes) as CacheType[];

/** Sizes of compiled graphs: the next power of two, so that a growing cache compiles rarely. */
const roomFor = (tokens: number): number => Math.max(256, 2 ** Math.ceil(Math.log2(Math.max(1, tokens))));

/**
 * A paged key/value cache (arXiv 2309.06180) by itself, for models of your own or for measuring policies: pages of 32 tokens
 * for each layer and key/value head, lengths for each head. Sessions of a LanguageModel have one inside.
 */
export class KvCache extends NativeResource {
  readonly shape: KvCacheShape;
  private readonly graphs = new Map<string, CompiledGraph>();
  private readonly evictions = new Map<CachePolicy, { readonly room: number; readonly heads: number; readonly rope: string; readonly eviction: Eviction }>();
  private statistics: Float32Array | undefined;
  private heads: number;
  private evicted = 0;
  /** Of the token to come; the cache itself does not know it where the newest tokens were evicted. */
  private nextPosition = 0;
  private observing = false;

  /** Throws ArgumentError for sizes below 1 and unknown types. */
  constructor(options: KvCacheOptions, /** @internal */ from?: { readonly handle: NativeHandle; readonly like: KvCache }) {
    const shape = checkShape(options);
    super("This cache", from?.handle ?? createHandle(shape, options.byteLimit ?? 0, options.device));
    this.shape = shape;
    this.heads = from?.like.heads ?? shape.kvHeads;
    if (!from) return;
    this.observing = from.like.observing;
    this.evicted = from.like.evicted;
    const { tokens, nextPosition } = callNative(() => native.cacheStatistics(from.handle));
    this.nextPosition = tokens < from.like.stats().tokens ? nextPosition : from.like.nextPosition;
    this.statistics = from.like.statistics?.slice();
  }

  /**
   * Appends rows of all layers. With queries it attends as a model's step does and returns each layer's output
   * `[tokens, heads, headDim]`; what `observe` asks for is kept for evict(). All or nothing: after an error (ArgumentError,
   * ShapeError, OutOfMemoryError at the byte limit, AbortError, BusyError) the cache is as before.
   */
  async append(layers: readonly KvRows[], options: AppendOptions = {}): Promise<Tensor<"f32">[]> {
    const { shape } = this, { observe, path, scale = 1 / Math.sqrt(shape.headDim), signal, threads } = options;
    if (!Array.isArray(layers) || layers.length !== shape.layers) throw invalidArgument("layers", `keys and values of ${shape.layers} layers`, layers);
    const observation: Observation = observe === undefined ? { kind: "none" } : "observe" in observe ? observe.observe : observe;
    const bindings: Record<string, Bytes | NativeHandle> = { cache: this.handle };
    const first = layers[0] as KvRows, n = rowsOf("layers[0].key", first?.key, shape.kvHeads * shape.headDim).tokens, attends = first.query !== undefined;
    const heads = this.headsOf(first.query ?? first.queryBeforeRope, n), positions = options.positions ?? Int32Array.from({ length: n }, (_, i) => this.nextPosition + i);
    const outputs = attends ? layers.map(() => new Float32Array(n * heads * shape.headDim)) : [];
    for (const [i, layer] of layers.entries()) {
      const add = (name: "key" | "value" | "query" | "queryBeforeRope", wanted: boolean, count: number): void => {
        if (!wanted) return;
        const { data, tokens } = rowsOf(`layers[${i}].${name}`, layer?.[name], count * shape.headDim);
        if (tokens !== n) throw invalidArgument(`layers[${i}].${name}`, `${n} tokens`, `${tokens} tokens`);
        bindings[`${name}${i}`] = data;
      };
      add("key", true, shape.kvHeads);
      add("value", true, shape.kvHeads);
      add("query", attends, heads);
      add("queryBeforeRope", observation.kind === "queries", heads);
      if (attends) bindings[`out${i}`] = outputs[i]!;
    }
    if (!attends && (observation.kind === "window" || observation.kind === "all")) throw invalidArgument("layers[0].query", `queries, which '${observation.kind}' observes,`, undefined);
    if (!(positions instanceof Int32Array) || positions.length !== n) throw invalidArgument("options.positions", `an Int32Array of ${n} positions`, positions);
    if (path !== undefined) checkPath(path, n);
    if (observation.kind !== "none") this.startObserving(observation, heads);
    const before = callNative(() => native.cacheStatistics(this.handle));
    bindings["positions"] = positions;
    if (path) Object.assign(bindings, { path: Int32Array.from({ length: n }, (_, i) => path[i] ?? 0), count: Int32Array.of(path.length) });
    if (observation.kind === "queries") bindings["statistics"] = this.statistics!;
    const graph = this.appendGraph({ heads, scale, observation, attends, path: path !== undefined, room: roomFor(before.tokens + n), most: roomFor(n) });
    await this.during(() => graph.run({ symbols: { n }, bindings, scalars: { skip: observation.kind === "queries" ? Math.max(0, observation.sinks - this.nextPosition) : 0 } }, { signal, threads }));
    this.nextPosition = (path ? path.map((row) => positions[row]!) : positions).reduce((next, position) => Math.max(next, position + 1), this.nextPosition);
    return outputs.map((data) => tensor(data, [n, heads, shape.headDim]));
  }

  /** What one head holds, as f32: keys and values `[length, headDim]`, positions `[length]`. */
  read(layer: number, head: number): { readonly keys: Float32Array; readonly values: Float32Array; readonly positions: Int32Array } {
    const { layers, kvHeads, headDim } = this.shape;
    if (checkInteger("layer", layer, 0) >= layers) throw invalidArgument("layer", `an integer below ${layers}`, layer);
    if (checkInteger("head", head, 0) >= kvHeads) throw invalidArgument("head", `an integer below ${kvHeads}`, head);
    const length = this.stats().lengths[layer * kvHeads + head]!;
    const held = { keys: new Float32Array(length * headDim), values: new Float32Array(length * headDim), positions: new Int32Array(length) };
    callNative(() => native.readCache(this.handle, layer, head, held.keys, held.values, held.positions));
    return held;
  }

  stats(): KvCacheStatistics {
    return { ...callNative(() => native.cacheStatistics(this.handle)), nextPosition: this.nextPosition, evicted: this.evicted };
  }

  /** The pages of each layer and head. */
  pageMap(): CachePage[][][] {
    const { layers, kvHeads } = this.shape;
    return Array.from({ length: layers }, (_, layer) => Array.from({ length: kvHeads }, (_, head) => {
      const { positions } = this.read(layer, head), pages = callNative(() => native.cachePages(this.handle, layer, head));
      return Array.from({ length: Math.ceil(positions.length / pageTokens) }, (_, page) => ({
        type: typeNames.find((type) => dtypeCode[cacheTypes[type]] === pages[2 * page])!, holders: pages[2 * page + 1]!, positions: positions.subarray(page * pageTokens, (page + 1) * pageTokens),
      }));
    }));
  }

  /** A cache of the first `tokens` tokens (all by default) of each head; pages are shared until one of both writes to them. */
  fork(tokens: number = Number.MAX_SAFE_INTEGER): KvCache {
    checkInteger("tokens", tokens, 0);
    return new KvCache(this.shape, { handle: callNative(() => native.forkCache(this.handle, tokens)), like: this });
  }

  /** Keeps the first `tokens` tokens of each head; pages behind them are freed. */
  truncate(tokens: number): void {
    checkInteger("tokens", tokens, 0);
    if (tokens >= this.stats().tokens) return;
    callNative(() => native.truncateCache(this.handle, tokens));
    this.nextPosition = this.pastPosition();
  }

  /**
   * Cuts the cache as the policy says and frees what is not needed; answers how many tokens went, summed over layers and
   * heads. Errors: ArgumentError where the policy observes
   * what append() was not told to, OutOfMemoryError, AbortError (nothing was cut), BusyError.
   */
  async evict(policy: CachePolicy, options: EvictOptions = {}): Promise<number> {
    this.checkObserved(policy);
    const before = this.stats(), eviction = this.evictionOf(policy, roomFor(before.tokens), options.rope);
    await this.during(() => eviction.run(this.handle, { signal: options.signal, threads: options.threads, statistics: this.statistics, seen: this.nextPosition }));
    if (policy.rerotate) this.nextPosition = this.pastPosition();
    return this.countEvicted(before);
  }

  /** What a policy ranks the tokens by: f32 `[kvHeads, tokens]` (or `[1, tokens]`) of each layer, −∞ behind a head's length. */
  async scores(policy: CachePolicy, options: EvictOptions = {}): Promise<Tensor<"f32">[]> {
    this.checkObserved(policy);
    const { layers } = this.shape, { tokens, nextPosition } = this.stats();
    const graph = new Graph("scores"), scoring = new Scoring(graph, policy, this.modelShape(options.rope), tokens, nextPosition);
    const rows = Array.from({ length: layers }, (_, layer) => {
      const scored = scoring.score(layer);
      if (!scored) throw new ArgumentError("policy", `Expected a policy with scores for layer ${layer} but ${policy.name} has none`);
      graph.output(`scores${layer}`, scored);
      return scored.dims[0] as number;
    });
    const made = rows.map((count) => new Float32Array(count * tokens));
    using compiled = compile(graph, { cache: { binding: scoring.cache } });
    const bindings: Record<string, Bytes | NativeHandle> = { cache: this.handle, ...scoring.bindings(nextPosition, this.statistics) };
    for (const [layer, data] of made.entries()) bindings[`scores${layer}`] = data;
    await this.during(() => compiled.run({ bindings }, options));
    return made.map((data, layer) => tensor(data, [rows[layer]!, tokens]));
  }

  /** A prompt filter's choice by query f32 `[1, heads, headDim]`, after RoPE: which tokens are to be computed anew, in order, and the scores f32 `[1, tokens]`. */
  async filter(filter: PromptFilter, query: Tensor<"f32">, options: RunOptions = {}): Promise<{ readonly indices: Int32Array; readonly scores: Tensor<"f32"> }> {
    const { layers, kvHeads } = this.shape, { tokens } = this.stats();
    if (filter.layer >= layers) throw invalidArgument("filter.layer", `an integer below ${layers}`, filter.layer);
    const graph = new Graph(filter.name), cache = graph.binding("cache", "cache", []), kept = graph.binding("kept", "u8", [tokens]);
    const made = filter.score(graph.binding("query", "f32", expectTensor("query", query, "f32").shape), { cache, layer: filter.layer, kvHeads, tokens });
    filter.select(made, kept, filter.budget(tokens), tokens);
    graph.output("scores", made);
    using compiled = compile(graph, { cache: { binding: cache } });
    const mask = new Uint8Array(tokens), scores = new Float32Array(tokens);
    await this.during(() => compiled.run({ bindings: { cache: this.handle, kept: mask, query: query.data, scores } }, options));
    return { indices: Int32Array.from(Array.from(mask.keys()).filter((token) => mask[token])), scores: tensor(scores, [1, tokens]) };
  }

  /** Keeps the tokens with a 1 in mask u8 `[layers, kvHeads, tokens]`, tokens = those of the longest head or more. Returns how many went. */
  async keep(mask: Tensor<"u8">, options: RunOptions & { /** @internal */ readonly dense?: boolean } = {}): Promise<number> {
    const { layers, kvHeads } = this.shape, before = this.stats(), { dense = false, signal, threads } = options;
    if (!(mask instanceof Tensor) || mask.type !== "u8" || mask.shape.length !== 3 || mask.shape[0] !== layers || mask.shape[1] !== kvHeads || mask.shape[2]! < before.tokens) {
      throw invalidArgument("mask", `a u8 tensor [${layers}, ${kvHeads}, ${before.tokens} or more]`, mask);
    }
    const graph = this.graph(`keep ${dense}`, () => {
      const made = new Graph("keep"), cache = made.binding("cache", "cache", []), tokens = made.symbol("tokens", 2 ** 31);
      const kept = made.binding("kept", "u8", [{ symbol: tokens, multiply: layers * kvHeads, add: 0 }]);
      return compile(made, { cache: { binding: cache, kept: { mask: kept, tokens, dense } } });
    });
    await this.during(() => graph.run({ symbols: { tokens: mask.shape[2]! }, bindings: { cache: this.handle, kept: mask.data } }, { signal, threads }));
    return this.countEvicted(before);
  }

  /** Rotates all keys to dense positions: the longest head's tokens stand at 0, 1, 2 …, shorter heads end where it ends. */
  async rerotate(rope: RopeConfig, options: RunOptions = {}): Promise<void> {
    const { layers, kvHeads } = this.shape, tokens = Math.max(1, this.stats().tokens);
    using all = tensor(new Uint8Array(layers * kvHeads * tokens).fill(1), [layers, kvHeads, tokens]);
    await this.keep(all, { ...options, dense: true });
    using rotation = rotationGraph({ layers, rope: new Array<RopeConfig>(layers).fill(rope), mostTokens: tokens });
    await this.during(() => rotation.run({ bindings: { cache: this.handle } }, { threads: options.threads }));
    this.nextPosition = this.pastPosition();
  }

  /** Converts the pages before each head's last `recent` tokens. */
  async quantize(recent: number, type: "int8" | "int4", options: RunOptions = {}): Promise<void> {
    checkInteger("recent", recent, 0);
    checkChoice("type", type, ["int8", "int4"]);
    await this.during(() => schedule(() => native.requantizeCache(this.handle, recent, dtypeCode[cacheTypes[type]]), options));
  }

  /** Writes the cache to a file. */
  async save(path: string): Promise<void> {
    await this.during(() => saveCache(path, this.handle, { ...this.shape, heads: this.heads, observing: this.observing, evicted: this.evicted, extra: { nextPosition: this.nextPosition } }, this.statistics));
  }

  /** Reads what save() wrote. Errors: ModelFormatError for a damaged file or one of another version; errors of the file system. */
  static async load(path: string, options: { readonly byteLimit?: number } = {}): Promise<KvCache> {
    let extra: unknown;
    const loaded = await loadCache(path, ({ heads, observing, evicted, extra: given, ...shape }) => {
      const cache = new KvCache({ ...shape, ...options });
      if (observing) callNative(() => native.observeCache(cache.handle));
      extra = given?.["nextPosition"];
      Object.assign(cache, { heads, observing, evicted });
      return cache;
    });
    loaded.nextPosition = Math.max(loaded.pastPosition(), Number.isSafeInteger(extra) ? (extra as number) : 0);
    return loaded;
  }

  /** @internal */
  restoreStatistics(statistics: Float32Array): void {
    this.statistics = statistics;
  }

  override dispose(): void {
    super.dispose();
    for (const graph of this.graphs.values()) graph.dispose();
    for (const { eviction } of this.evictions.values()) eviction.dispose();
    this.graphs.clear();
    this.evictions.clear();
  }

  /** One more than the largest position that is there. */
  private pastPosition(): number {
    return callNative(() => native.cacheStatistics(this.handle)).nextPosition;
  }

  private countEvicted(before: CacheStatistics): number {
    const total = (lengths: Int32Array): number => lengths.reduce((sum, length) => sum + length, 0);
    const went = total(before.lengths) - total(this.stats().lengths);
    this.evicted += went;
    return went;
  }

  /** Query heads by the length of n queries; without queries, as before. */
  private headsOf(query: Rows | undefined, n: number): number {
    if (query === undefined) return this.heads;
    const { kvHeads, headDim } = this.shape, { tokens: heads } = rowsOf("layers[0].query", query, n * headDim);
    if (heads % kvHeads !== 0) throw invalidArgument("layers[0].query", `a multiple of ${kvHeads} heads`, `${heads} heads`);
    if (this.statistics && heads !== this.heads) throw invalidArgument("layers[0].query", `${this.heads} heads as before`, `${heads} heads`);
    return heads;
  }

  private startObserving(observation: Observation, heads: number): void {
    this.heads = heads;
    if (observation.kind === "queries") this.statistics ??= new Float32Array(this.shape.layers * heads * statisticsWidth(this.shape.headDim));
    else if (!this.observing) {
      callNative(() => native.observeCache(this.handle));
      this.observing = true;
    }
  }

  private checkObserved({ name, observe }: CachePolicy): void {
    const seen = observe.kind === "none" || (observe.kind === "queries" ? this.statistics !== undefined : this.observing);
    if (!seen) throw new ArgumentError("policy", `Expected the tokens to be appended with { observe: ${name} }, which ranks them by what it observes`);
  }

  private evictionOf(policy: CachePolicy, room: number, rope: RopeConfig | undefined): Eviction {
    const known = this.evictions.get(policy), key = JSON.stringify(rope ?? null);
    if (known && known.room >= room && known.heads === this.heads && known.rope === key) return known.eviction;
    known?.eviction.dispose();
    this.evictions.delete(policy);
    const eviction = new Eviction(policy, { ...this.modelShape(rope), mostTokens: room });
    this.evictions.set(policy, { room, heads: this.heads, rope: key, eviction });
    return eviction;
  }

  private modelShape(rope: RopeConfig | undefined): ScoringShape {
    const { layers, kvHeads, headDim } = this.shape;
    return { layers, kvHeads, heads: this.heads, headDim, ...(rope && { rope: new Array<RopeConfig>(layers).fill(rope) }) };
  }

  private graph(key: string, build: () => CompiledGraph): CompiledGraph {
    let graph = this.graphs.get(key);
    if (!graph) this.graphs.set(key, (graph = build()));
    return graph;
  }

  private appendGraph(plan: AppendPlan): CompiledGraph {
    const { shape } = this, { heads, observation, attends } = plan;
    const sums = observedSums(observation, { heads, kvHeads: shape.kvHeads });
    // The room matters only to column sums, which are the graph's one value as long as the cache.
    return this.graph(JSON.stringify(sums ? plan : { ...plan, room: 0 }), () => {
      const graph = new Graph("append"), n = graph.symbol("n", plan.most), cache = graph.binding("cache", "cache", []), skip = graph.scalar("skip");
      const rows = (name: string, count: number) => graph.binding(name, "f32", [n, count, shape.headDim]);
      const statistics = observation.kind === "queries" ? statisticsBinding(graph, shape, heads) : undefined;
      for (let layer = 0; layer < shape.layers; layer++) {
        cacheAppend(rows(`key${layer}`, shape.kvHeads), rows(`value${layer}`, shape.kvHeads), cache, layer);
        if (statistics) queryStatistics(rows(`queryBeforeRope${layer}`, heads), statisticsOfLayer(statistics, layer), { skip });
        if (!attends) continue;
        const { out, columnSums } = cachedAttention(rows(`query${layer}`, heads), cache, { layer, scale: plan.scale, ...(sums && { columnSums: { queries: sums.queries, keys: plan.room } }) });
        if (columnSums) cacheObserve(columnSums, cache, { layer, scale: sums!.scale, accumulate: sums!.accumulate });
        graph.output(`out${layer}`, out);
      }
      const positions = graph.binding("positions", "i32", [n]);
      const accepted = plan.path ? { path: graph.binding("path", "i32", [n]), count: graph.binding("count", "i32", [1]) } : undefined;
      return compile(graph, { cache: { binding: cache, newTokens: n, positions, ...(accepted && { accepted }) } });
    });
  }
}

interface AppendPlan {
  readonly heads: number;
  readonly scale: number;
  readonly observation: Observation;
  readonly attends: boolean;
  readonly path: boolean;
  /** Of any head, and of one step: what memory is planned for. */
  readonly room: number;
  readonly most: number;
}

function checkShape(options: KvCacheOptions): KvCacheShape {
  checkOptionsObject(options, "an object with layers, kvHeads, headDim and type");
  const { layers, kvHeads, headDim, type, byteLimit } = options;
  for (const [name, value] of Object.entries({ layers, kvHeads, headDim })) if (checkInteger(`options.${name}`, value, 1) > 65536) throw invalidArgument(`options.${name}`, "an integer of at most 65536", value);
  checkChoice("options.type", type, typeNames);
  if (byteLimit !== undefined) checkInteger("options.byteLimit", byteLimit, 1);
  return { layers, kvHeads, headDim, type };
}

function createHandle(shape: KvCacheShape, byteLimit: number, device: DeviceName | undefined): NativeHandle {
  const pool = createPool(shape, byteLimit, device);
  try {
    return callNative(() => native.createCache(pool));
  } finally {
    native.release(pool); // the caches hold it
  }
}

/** f32 rows of `width` numbers a token. */
function rowsOf(name: string, rows: unknown, width: number): { readonly data: Float32Array; readonly tokens: number } {
  const data = rows instanceof Tensor ? rows.data : rows;
  if (!(data instanceof Float32Array) || data.length === 0 || data.length % width !== 0) throw invalidArgument(name, `f32 rows of ${width} numbers`, rows);
  return { data, tokens: data.length / width };
}

function checkPath(path: unknown, n: number): void {
  if (!(path instanceof Int32Array) || path.length > n || !path.every((row, i) => row < n && row >= 0 && (i === 0 || row > path[i - 1]!))) {
    throw invalidArgument("options.path", `an Int32Array of rising rows below ${n}`, path);
  }
}

function statisticsBinding(graph: Graph, { layers, headDim }: KvCacheShape, heads: number): Value {
  return graph.binding("statistics", "f32", [layers, heads, statisticsWidth(headDim)]);
}
