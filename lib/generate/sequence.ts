import type { Eviction } from "../cache/eviction.js";
import { loadCache, saveCache } from "../cache/file.js";
import type { Observation } from "../cache/policy.js";
import type { TopTokens } from "../draft/drafter.js";
import { DraftTree } from "../draft/tree.js";
import { ArgumentError, ContextOverflowError, DisposedError, ModelFormatError, OutOfMemoryError } from "../errors.js";
import type { CompiledGraph, RunInputs } from "../graph/compile.js";
import { callNative, native, type CacheStatistics, type NativeHandle } from "../native.js";
import { statisticsWidth } from "../ops/cache-policy.js";
import { NativeResource } from "../resource.js";
import type { LanguageModel } from "./model.js";
import type { CheckedOptions } from "./options.js";
import { draftNodes, type VerifiedDraft } from "./speculation.js";

/** Tokens a native call computes at most: long enough for full speed, short enough to share the machine fairly. */
export const chunkTokens = 256;

/** A token that a step has drawn, with its natural log-probability. */
export interface Drawn {
  readonly token: number;
  readonly logProb: number;
}

/** What a scoring step writes: `[n, top]` logits and ids, `[n]` log-sum-exps and log-probabilities. */
export interface ScoreRows {
  readonly values: Float32Array;
  readonly indices: Int32Array;
  readonly logSumExp: Float32Array;
  readonly logProb: Float32Array;
}

export interface SequenceSettings {
  readonly threads: number;
  readonly eviction?: Eviction | undefined;
  /** Where the pool is full: evict and go on, or fail. */
  readonly whenFull?: "evict" | "error" | undefined;
}

interface SavedSequence {
  readonly model: string;
  readonly tokens: readonly number[];
  readonly cached: number;
  readonly position: number;
  readonly sinceEviction?: number;
  readonly observed: boolean;
}

/** The memory of one step, reused by all steps of a sequence. */
class StepMemory {
  readonly ids = new Int32Array(chunkTokens);
  readonly positions = new Int32Array(chunkTokens);
  readonly last = new Int32Array(1);
  readonly token = new Int32Array(1);
  readonly logProb = new Float32Array(1);
}

/** What a draft step writes besides. */
class DraftMemory {
  readonly path = new Int32Array(draftNodes);
  readonly accepted = new Int32Array(draftNodes);
  readonly logProb = new Float32Array(draftNodes);
  readonly count = new Int32Array(1);
  readonly topIndices: Int32Array;
  readonly topValues: Float32Array;
  readonly logSumExp = new Float32Array(draftNodes);
  constructor(readonly top: number) {
    this.topIndices = new Int32Array(draftNodes * top);
    this.topValues = new Float32Array(draftNodes * top);
  }
}

/** Where a sequence stands. */
interface SequenceState {
  readonly cached: number;
  readonly position: number;
  readonly sinceEviction: number | undefined;
  readonly observed: boolean;
}

/** A cache of the first `count` tokens of another (absent: all), whose pages it shares. */
function sharedPages(handle: NativeHandle, count = Number.MAX_SAFE_INTEGER): NativeHandle {
  return callNative(() => native.forkCache(handle, count));
}

/** A sequence's cache as it was, its pages shared. */
class Checkpoint extends NativeResource {
  constructor(handle: NativeHandle, readonly tokens: number, readonly state: SequenceState) {
    super("This session", handle);
  }
}

/** Tokens and their cache: the prompt in chunks, then step by step. What a step computed stays; one that fails changes nothing. */
export class Sequence extends NativeResource {
  /** All tokens, evicted ones too; between steps the last one is not cached yet. */
  readonly tokens: number[] = [];
  /** How many of them have been computed. */
  cached = 0;
  /** Where the next token stands: behind the computed ones, or nearer where keys were rotated together. */
  private position = 0;
  /** Tokens computed since the last eviction; undefined: nothing was ever evicted. */
  private sinceEviction: number | undefined;
  /** Whether attention has been observed since then. */
  private observed = false;
  private readonly statistics: Float32Array | undefined;
  private readonly memory = new StepMemory();
  private draftMemory: DraftMemory | undefined;
  /** Before the last draft step, where attention is observed: what dropped tokens attended to cannot be taken back. */
  private checkpoint: Checkpoint | undefined;

  constructor(private readonly model: LanguageModel, private readonly settings: SequenceSettings, handle: NativeHandle = callNative(() => native.createCache(model.pool))) {
    super("This session", handle);
    const { observe } = this, { layers, heads, headDim } = model.config;
    if (this.observesSums) callNative(() => native.observeCache(handle));
    if (observe?.kind === "queries") this.statistics = new Float32Array(layers.length * heads * statisticsWidth(headDim));
  }

  private get observe(): Observation | undefined {
    const observe = this.settings.eviction?.observe;
    return observe?.kind === "none" ? undefined : observe;
  }

  /** Whether tokens before the last ones have been given up. */
  get isCut(): boolean {
    return this.sinceEviction !== undefined;
  }

  /** Whether a new sequence may start from this one's first tokens, and from another's under the same settings. */
  get sharesPrefixes(): boolean {
    return !this.isCut && (this.observe === undefined || this.observe.kind === "window");
  }

  /** A sequence that shares this one's pages: of all its tokens, or of the first `count` computed ones and no others. */
  fork(count?: number, settings = this.settings): Sequence {
    const { state } = this, copy = this.continued(sharedPages(this.handle, count), count, count === undefined ? state : { ...state, cached: count, position: count }, settings);
    if (this.statistics) copy.statistics?.set(this.statistics);
    return copy;
  }

  /** The first `tokens` tokens (absent: all) over a cache that stands at `state`. */
  private continued(handle: NativeHandle, tokens: number | undefined, state: SequenceState, settings = this.settings): Sequence {
    const copy = new Sequence(this.model, settings, handle);
    copy.tokens.push(...this.tokens.slice(0, tokens));
    return Object.assign(copy, state);
  }

  private get state(): SequenceState {
    const { cached, position, sinceEviction, observed } = this;
    return { cached, position, sinceEviction, observed };
  }

  /** This sequence before its last draft step, where attention is observed; else undefined. */
  beforeDraft(): Sequence | undefined {
    const { checkpoint } = this;
    return checkpoint && this.continued(sharedPages(checkpoint.handle), checkpoint.tokens, checkpoint.state);
  }

  /** What beforeDraft() would need is given up. */
  forgetDraft(): void {
    this.checkpoint?.dispose();
    this.checkpoint = undefined;
  }

  override dispose(): void {
    this.forgetDraft();
    super.dispose();
  }

  /** Writes tokens and cache to a file, for restore(). */
  save(path: string): Promise<void> {
    const { tokens, cached, model } = this, { layers, heads, kvHeads, headDim } = model.config;
    const extra = { model: model.fingerprint, tokens, ...this.state };
    const saved = { layers: layers.length, heads, kvHeads, headDim, type: model.cacheType, observing: this.observesSums, evicted: cached - this.cacheStatistics.tokens, extra };
    return this.during(() => saveCache(path, this.handle, saved, this.statistics));
  }

  /** What save() wrote, for the same model and the same kind of policy. */
  static restore(path: string, model: LanguageModel, settings: SequenceSettings): Promise<Sequence> {
    return loadCache(path, ({ extra, observing }) => {
      const state = extra as unknown as SavedSequence | undefined, size = model.config.vocabulary;
      const whole = (value: unknown, most: number): boolean => Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) <= most;
      const sound = Array.isArray(state?.tokens) && state.tokens.every((token) => whole(token, size - 1)) && whole(state.cached, state.tokens.length) && whole(state.position, state.cached) &&
        (state.sinceEviction === undefined || whole(state.sinceEviction, state.cached)) && typeof state.observed === "boolean";
      if (!sound) throw new ModelFormatError("This file holds a cache but no session", { offset: 12, file: path });
      if (state.model !== model.fingerprint) throw new ArgumentError("path", `Expected a session of this model for path but it was saved by another: ${state.model} instead of ${model.fingerprint}`);
      const sequence = new Sequence(model, settings);
      if (sequence.observesSums !== observing) {
        sequence.dispose();
        throw new ArgumentError("options.cache", `Expected a cache policy that observes attention ${observing ? "as that of the saved session" : "no more than that of the saved session"} does`);
      }
      for (const token of state.tokens) sequence.tokens.push(token);
      const { cached, position, sinceEviction, observed } = state;
      return Object.assign(sequence, { cached, position, sinceEviction, observed });
    });
  }

  /** @internal */
  restoreStatistics(statistics: Float32Array): void {
    this.statistics?.set(statistics.subarray(0, this.statistics.length));
  }

  private get observesSums(): boolean {
    return this.observe?.kind === "window" || this.observe?.kind === "all";
  }

  get cacheStatistics(): CacheStatistics {
    return callNative(() => native.cacheStatistics(this.handle));
  }

  /** Tokens of each layer and head; statistics without their walk over all pages. */
  private get lengths(): Int32Array {
    return callNative(() => native.cacheLengths(this.handle));
  }

  cachedPositions(): Int32Array[][] {
    const { layers, kvHeads } = this.model.config, { lengths } = this;
    return layers.map((_, layer) => Array.from({ length: kvHeads }, (_, head) => {
      const positions = new Int32Array(lengths[layer * kvHeads + head]!);
      callNative(() => native.readCache(this.handle, layer, head, null, null, positions));
      return positions;
    }));
  }

  /** Forgets all but the first `count` tokens. Where some of those have been evicted, they are computed anew. */
  keepFirst(count: number): void {
    const surplus = this.cached - count;
    this.forgetDraft();
    this.tokens.length = count;
    if (surplus <= 0) return;
    if (this.sinceEviction === undefined) this.truncate(count);
    else if (surplus <= this.sinceEviction) this.dropLast(surplus);
    else this.forget();
  }

  private truncate(count: number): void {
    callNative(() => native.truncateCache(this.handle, count));
    this.cached = this.position = count;
  }

  private dropLast(count: number): void {
    callNative(() => native.dropCache(this.handle, count));
    this.cached -= count;
    this.position -= count;
    if (this.sinceEviction !== undefined) this.sinceEviction -= count;
  }

  private forget(): void {
    this.truncate(0);
    this.sinceEviction = undefined;
    this.observed = false;
    this.statistics?.fill(0);
  }

  /** Appends `tokens`, computes all and gives the `top` largest logits behind the last one: nothing is drawn. */
  async peek(tokens: readonly number[], top: number, options: CheckedOptions): Promise<TopTokens> {
    for (const token of tokens) this.tokens.push(token);
    const { length } = this.tokens;
    await this.prefill(options, () => undefined, 1);
    const { top: found } = await this.draftStep(DraftTree.chain([this.tokens.at(-1)!]), options, top);
    this.tokens.length = length;
    return found!;
  }

  /** Computes all tokens but the last `rest`, which a step takes: nothing but the cache comes of it. Calls `computed` after each chunk. */
  async prefill(options: CheckedOptions, computed: (tokens: number) => void, rest?: number): Promise<void> {
    this.leaveLast();
    const { observe } = this, window = observe?.kind === "window" ? observe.queries : 1;
    for (;;) {
      const left = this.tokens.length - this.cached, most = await this.mostOf(left, options);
      if (left <= (rest ?? most)) break;
      // What a window of queries observes must lie in one step.
      const count = Math.min(most, left - Math.min(rest ?? window, most));
      this.fill(count);
      await this.run(await this.model.graphs.prefill(observe?.kind === "window" ? undefined : observe), { symbols: { n: count }, bindings: {} }, options, observe?.kind !== "window");
      this.advance(count);
      computed(count);
    }
  }

  /** How many of the tokens that are left the next step may take. Evicts where positions run out and the policy can give them back. */
  private async mostOf(left: number, options: CheckedOptions): Promise<number> {
    const { eviction } = this.settings, { contextLength } = this.model;
    if (!eviction?.policy.rerotate) return chunkTokens;
    if (this.cached > 0 && this.position + Math.min(left, chunkTokens) > contextLength) await this.evict(eviction, options);
    if (this.position >= contextLength) throw new ContextOverflowError(`The cache policy keeps ${this.position} tokens and the context holds ${contextLength}: give it a smaller budget`);
    return Math.min(chunkTokens, contextLength - this.position);
  }

  /** The last token is not to be cached, as between steps: its logits are needed. */
  leaveLast(): void {
    if (this.cached < this.tokens.length) return;
    const token = this.tokens.at(-1)!;
    this.keepFirst(this.tokens.length - 1);
    this.tokens.push(token);
  }

  /** Computes what is not cached yet, draws the next token and appends it. */
  async step(options: CheckedOptions): Promise<readonly Drawn[]> {
    const { memory } = this, count = this.tokens.length - this.cached;
    this.checkRoom();
    this.fill(count);
    memory.last[0] = count - 1;
    const history = this.history(options);
    await this.run(
      await this.model.graphs.generate(this.observe),
      { symbols: { n: count, history: history.length }, bindings: { last: memory.last, history, token: memory.token, logProb: memory.logProb }, scalars: this.sampler(options) },
      options,
      true,
    );
    this.advance(count);
    this.tokens.push(memory.token[0]!);
    return [{ token: memory.token[0]!, logProb: memory.logProb[0]! }];
  }

  /**
   * One forward pass over a tree whose root is the last token: the accepted path stays in the cache, the tokens drawn along it
   * are appended. They are those that step() would have drawn one by one. `top`: how many of the largest logits of each node
   * to give back.
   */
  async draftStep(tree: DraftTree, options: CheckedOptions, top: number): Promise<VerifiedDraft & { readonly drawn: readonly Drawn[] }> {
    const { ids, positions } = this.memory, n = tree.size;
    this.checkRoom();
    ids.set(tree.tokens);
    for (let i = 0; i < n; i++) positions[i] = this.position + tree.depths[i]!;
    if (this.draftMemory?.top !== top) this.draftMemory = new DraftMemory(top);
    const { path, accepted, logProb, count, topIndices, topValues, logSumExp } = this.draftMemory;
    const { repeatLastTokens } = options, history = this.history(options), observe = this.observesSums ? this.observe : undefined;
    const graph = await this.model.graphs.draft(top, observe);
    this.forgetDraft();
    if (observe) this.checkpoint = new Checkpoint(sharedPages(this.handle), this.tokens.length, this.state);
    await this.run(
      graph,
      {
        symbols: { n, history: history.length },
        bindings: { parents: tree.parents, history, path, accepted, logProb, count, ...(top > 0 && { topIndices, topValues, logSumExp }) },
        scalars: { ...this.sampler(options), repeatLastTokens, ...(observe && { counted: this.gathers ? 2 ** 30 : 1 }) },
      },
      options,
      observe !== undefined,
    );
    const drawn = Array.from({ length: count[0]! }, (_, i) => ({ token: accepted[i]!, logProb: logProb[i]! }));
    this.advance(drawn.length);
    for (const { token } of drawn) this.tokens.push(token);
    return {
      drawn, tree, path: path.slice(0, drawn.length), accepted: accepted.slice(0, drawn.length),
      ...(top > 0 && { top: { k: top, indices: topIndices.subarray(0, n * top), values: topValues.subarray(0, n * top), logSumExp: logSumExp.subarray(0, n) } }),
    };
  }

  /** Computes what is not cached yet, one token for each of `targets`: their log-probabilities, and the `top` largest logits behind each token. */
  async scoreStep(targets: Int32Array, top: number, options: CheckedOptions): Promise<ScoreRows> {
    const n = targets.length;
    const rows = { values: new Float32Array(n * top), indices: new Int32Array(n * top), logSumExp: new Float32Array(n), logProb: new Float32Array(n) };
    this.fill(n);
    await this.run(await this.model.graphs.score(top), { symbols: { n }, bindings: { targets, ...rows } }, options, false);
    this.advance(n);
    return rows;
  }

  /** Evicts what the policy wants to be evicted now: behind a prompt, or between steps. */
  async evictIfDue(phase: "prefill" | "decode", options: CheckedOptions): Promise<void> {
    const { eviction } = this.settings;
    if (!eviction) return;
    const tokens = eviction.tokensOf(this.lengths);
    if (eviction.due(tokens, phase, phase === "prefill" ? tokens : 1)) await this.evict(eviction, options);
  }

  private async evict(eviction: Eviction, options: CheckedOptions): Promise<void> {
    this.forgetDraft(); // its pages would not go back
    await this.during(() => eviction.run(this.handle, { signal: options.signal, threads: this.settings.threads, statistics: this.statistics, seen: this.position }));
    this.sinceEviction = 0;
    this.observed = false;
    if (eviction.policy.rerotate) this.position = this.cacheStatistics.nextPosition;
  }

  /** How deep a draft may go, `most` at most, so that eviction comes where it comes without drafts. */
  draftDepth(most: number): number {
    const { eviction } = this.settings, room = Math.max(0, Math.min(most, this.room));
    if (!eviction) return room;
    const tokens = eviction.tokensOf(this.lengths);
    for (let depth = 0; depth < room; depth++) if (eviction.due(tokens + depth + 1, "decode", 1)) return depth;
    return room;
  }

  /** How many tokens the context still has room for, behind those that are there. */
  get room(): number {
    return this.model.contextLength - this.position - (this.tokens.length - this.cached);
  }

  private checkRoom(): void {
    if (this.room >= 0) return;
    const advice = this.settings.eviction ? "its cache policy frees memory but not positions: one with rerotate, such as streamingLlm(), goes on without end" : "the session cannot go on without a cache policy such as streamingLlm()";
    throw new ContextOverflowError(`The context of ${this.model.contextLength} tokens is full: nothing was lost, but ${advice}`);
  }

  private history({ repeatPenalty, repeatLastTokens }: CheckedOptions): Int32Array {
    return Int32Array.from(repeatPenalty === 1 || repeatLastTokens === 0 ? [] : this.tokens.slice(-repeatLastTokens));
  }

  private sampler({ temperature, topK, topP, minP, repeatPenalty, seed }: CheckedOptions): Record<string, number> {
    return { temperature, topK, topP, minP, repeatPenalty, seed, stream: 0, position: this.tokens.length };
  }

  private fill(count: number): void {
    const { ids, positions } = this.memory;
    for (let i = 0; i < count; i++) {
      ids[i] = this.tokens[this.cached + i]!;
      positions[i] = this.position + i;
    }
  }

  private advance(count: number): void {
    this.cached += count;
    this.position += count;
    if (this.sinceEviction !== undefined) this.sinceEviction += count;
  }

  /** What an observing graph needs besides. */
  private observation(): RunInputs {
    const { observe, statistics } = this;
    if (observe?.kind === "queries") return { bindings: { statistics: statistics! }, scalars: { skip: Math.max(0, observe.sinks - this.cached) } };
    return { bindings: {}, scalars: { accumulate: Number(observe?.kind === "all" || (this.gathers && this.observed)) } };
  }

  /** Whether what steps of one token observe adds up. A window of one replaces what was seen before; longer ones gather the queries since the last eviction. */
  private get gathers(): boolean {
    const { observe } = this;
    return observe?.kind === "all" || (observe?.kind === "window" && observe.queries > 1 && this.isCut);
  }

  private async run(graph: CompiledGraph, inputs: RunInputs, options: CheckedOptions, observing: boolean): Promise<void> {
    if (this.model.isDisposed) throw new DisposedError("This session's model");
    const { ids, positions } = this.memory, watch = observing && this.observe !== undefined;
    const seen = watch ? this.observation() : undefined;
    const once = (): Promise<void> =>
      this.during(() =>
        graph.run(
          { symbols: inputs.symbols!, bindings: { ids, positions, cache: this.handle, ...inputs.bindings, ...seen?.bindings }, scalars: { ...inputs.scalars, ...seen?.scalars } },
          { signal: options.signal, threads: this.settings.threads, device: this.model.device },
        ),
      );
    try {
      await once();
    } catch (error) {
      const { eviction, whenFull } = this.settings;
      if (!(error instanceof OutOfMemoryError) || whenFull !== "evict" || !eviction || this.cached === 0) throw error;
      const before = this.position;
      await this.evict(eviction, options);
      for (let i = 0; i < positions.length; i++) positions[i]! += this.position - before;
      await once();
    }
    this.observed ||= watch;
  }
}
