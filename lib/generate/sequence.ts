import { ContextOverflowError, DisposedError } from "../errors.js";
import type { CompiledGraph, RunInputs } from "../graph/compile.js";
import { callNative, native, type NativeHandle } from "../native.js";
import { NativeResource } from "../resource.js";
import type { LanguageModel } from "./model.js";
import type { TopTokens } from "../draft/drafter.js";
import { DraftTree } from "../draft/tree.js";
import type { CheckedOptions } from "./options.js";
import { draftNodes, type VerifiedDraft } from "./speculation.js";

/** Tokens a native call computes at most: long enough for full speed, short enough to share the machine fairly. */
export const chunkTokens = 256;

/** A token that a step has drawn, with its natural log-probability. */
export interface Drawn {
  readonly token: number;
  readonly logProb: number;
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

/** Tokens and their cache: the prompt in chunks, then step by step. What a step computed stays; one that fails changes nothing. */
export class Sequence extends NativeResource {
  /** All tokens; between steps the last one is not cached yet. */
  readonly tokens: number[] = [];
  /** How many of them have been computed. */
  cached = 0;
  private readonly memory = new StepMemory();
  private draftMemory: DraftMemory | undefined;

  constructor(private readonly model: LanguageModel, private readonly threads: number | undefined, handle: NativeHandle = callNative(() => native.createCache(model.pool))) {
    super("This session", handle);
  }

  /** A sequence of the first `count` computed tokens that shares their pages. */
  fork(count = this.cached): Sequence {
    const copy = new Sequence(this.model, this.threads, callNative(() => native.forkCache(this.handle, count)));
    copy.tokens.push(...this.tokens.slice(0, count < this.cached ? count : undefined));
    copy.cached = count;
    return copy;
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

  get cacheBytes(): number {
    return callNative(() => native.cacheStatistics(this.handle)).bytesHeld;
  }

  /** Forgets all but the first `count` tokens. */
  keepFirst(count: number): void {
    this.tokens.length = count;
    if (this.cached > count) this.truncate(count);
  }

  private truncate(count: number): void {
    callNative(() => native.truncateCache(this.handle, count));
    this.cached = count;
  }

  /** Computes all tokens but those that the first step takes: nothing but the cache comes of it. Calls `computed` after each chunk. */
  async prefill(options: CheckedOptions, computed: (tokens: number) => void, rest = chunkTokens): Promise<void> {
    // The last token is computed again where all are cached: its logits are needed.
    if (this.cached === this.tokens.length) this.truncate(this.tokens.length - 1);
    while (this.tokens.length - this.cached > rest) {
      const count = Math.min(chunkTokens, this.tokens.length - this.cached - (rest === chunkTokens ? 0 : rest));
      this.fill(count);
      await this.run(await this.model.graphs.prefill, { symbols: { n: count }, bindings: {} }, options);
      this.cached += count;
      computed(count);
    }
  }

  /** Computes what is not cached yet, draws the next token and appends it. */
  async step(options: CheckedOptions): Promise<readonly Drawn[]> {
    const { memory } = this, count = this.tokens.length - this.cached;
    this.checkRoom();
    this.fill(count);
    memory.last[0] = count - 1;
    const history = this.history(options);
    await this.run(
      await this.model.graphs.generate,
      {
        symbols: { n: count, history: history.length },
        bindings: { last: memory.last, history, token: memory.token, logProb: memory.logProb },
        scalars: this.sampler(options),
      },
      options,
    );
    this.cached += count;
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
    for (let i = 0; i < n; i++) positions[i] = this.cached + tree.depths[i]!;
    if (this.draftMemory?.top !== top) this.draftMemory = new DraftMemory(top);
    const { path, accepted, logProb, count, topIndices, topValues, logSumExp } = this.draftMemory;
    const { repeatLastTokens } = options, history = this.history(options);
    await this.run(
      await this.model.graphs.draft(top),
      {
        symbols: { n, history: history.length },
        bindings: { parents: tree.parents, history, path, accepted, logProb, count, ...(top > 0 && { topIndices, topValues, logSumExp }) },
        scalars: { ...this.sampler(options), repeatLastTokens },
      },
      options,
    );
    const drawn = Array.from({ length: count[0]! }, (_, i) => ({ token: accepted[i]!, logProb: logProb[i]! }));
    this.cached += drawn.length;
    for (const { token } of drawn) this.tokens.push(token);
    return {
      drawn, tree, path: path.slice(0, drawn.length), accepted: accepted.slice(0, drawn.length),
      ...(top > 0 && { top: { k: top, indices: topIndices.subarray(0, n * top), values: topValues.subarray(0, n * top), logSumExp: logSumExp.subarray(0, n) } }),
    };
  }

  /** How many tokens the context still has room for, behind those that are there. */
  get room(): number {
    return this.model.contextLength - this.tokens.length;
  }

  private checkRoom(): void {
    if (this.room < 0) throw new ContextOverflowError(`The context of ${this.model.contextLength} tokens is full: nothing was lost, but the session cannot go on without a cache policy`);
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
      positions[i] = this.cached + i;
    }
  }

  private run(graph: CompiledGraph, { symbols, bindings, scalars }: RunInputs, options: CheckedOptions): Promise<void> {
    if (this.model.isDisposed) throw new DisposedError("This session's model");
    const { ids, positions } = this.memory;
    return this.during(() =>
      graph.run({ symbols: symbols!, bindings: { ids, positions, cache: this.handle, ...bindings }, scalars: scalars ?? {} }, { signal: options.signal, threads: this.threads ?? this.model.threads }),
    );
  }
}
