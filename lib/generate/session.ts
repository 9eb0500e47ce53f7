import { AbortError, ArgumentError, BusyError, ContextOverflowError, DisposedError } from "../errors.js";
import type { CompiledGraph } from "../graph/compile.js";
import { callNative, native, type NativeHandle } from "../native.js";
import { NativeResource } from "../resource.js";
import { checkOptions, checkPrompt, isMessages, type CheckedOptions, type GenerateOptions, type Prompt } from "./options.js";
import type { LanguageModel } from "./model.js";
import { StopFilter } from "./text.js";

/** A piece of generated text: whole characters, the tokens that made it, and their log-probability (natural, summed). */
export interface Piece {
  readonly text: string;
  readonly tokens: readonly number[];
  readonly logProb: number;
}

export type FinishReason = "stop" | "length" | "endOfText" | "aborted";

/** Figures of a session's last generation, and of what it holds. */
export interface SessionStatistics {
  /** Prompt tokens computed; those taken over from the cache are not among them. */
  readonly promptTokens: number;
  readonly generatedTokens: number;
  readonly promptMs: number;
  readonly generateMs: number;
  readonly promptTokensPerSecond: number;
  /** Of all tokens but the first, which comes with the prompt. */
  readonly tokensPerSecond: number;
  readonly cachedTokens: number;
  readonly cacheBytes: number;
  readonly finishReason: FinishReason | undefined;
  readonly seed: number | undefined;
}

export interface SessionOptions {
  /** Cores to use; by default the model's. */
  readonly threads?: number;
}

/** Tokens a native call computes at most: long enough for full speed, short enough to share the machine fairly. */
export const chunkTokens = 256;

/** The memory of one step, reused by all steps of a session. */
class StepMemory {
  readonly ids = new Int32Array(chunkTokens);
  readonly positions = new Int32Array(chunkTokens);
  readonly last = new Int32Array(1);
  readonly token = new Int32Array(1);
  readonly logProb = new Float32Array(1);
}

/** One conversation or text with its own cache. One generation at a time; many sessions may share a model. */
export class Session extends NativeResource {
  /** All tokens, the not yet cached last one included. */
  private readonly tokens: number[] = [];
  private cached = 0;
  private busy = false;
  private readonly memory = new StepMemory();
  private readonly figures = { promptTokens: 0, generatedTokens: 0, promptMs: 0, generateMs: 0, finishReason: undefined as FinishReason | undefined, seed: undefined as number | undefined };

  /** @internal Made by LanguageModel.session(). */
  constructor(private readonly model: LanguageModel, pool: NativeHandle, private readonly threads: number | undefined) {
    super("This session", callNative(() => native.createCache(pool)));
  }

  /**
   * Continues with `prompt`: text or ids are appended to what the session holds, a list of messages is rendered with the
   * model's chat template and takes over the longest common beginning. Iterate to read the answer; leaving the loop ends
   * it. Throws at once for wrong arguments; the iteration throws AbortError, ContextOverflowError, BusyError, DisposedError,
   * OutOfMemoryError or NumericError. What was computed until then stays in the session.
   */
  generate(prompt: Prompt, options?: GenerateOptions): AsyncIterableIterator<Piece> {
    checkPrompt(prompt, this.model.config.vocabulary);
    const checked = checkOptions(options);
    void this.handle;
    return this.pieces(prompt, checked);
  }

  stats(): SessionStatistics {
    const { promptTokens, generatedTokens, promptMs, generateMs } = this.figures;
    const bytes = this.isDisposed || this.busy ? 0 : callNative(() => native.cacheStatistics(this.handle)).bytesHeld;
    const rate = (tokens: number, ms: number): number => (ms > 0 ? (tokens / ms) * 1000 : 0);
    return { ...this.figures, promptTokensPerSecond: rate(promptTokens, promptMs), tokensPerSecond: rate(Math.max(0, generatedTokens - 1), generateMs), cachedTokens: this.cached, cacheBytes: bytes };
  }

  /** Forgets everything; the cache's memory is returned. */
  reset(): void {
    if (this.busy) throw new BusyError("This session");
    this.keepFirst(0);
  }

  private keepFirst(count: number): void {
    this.tokens.length = count;
    if (this.cached > count) {
      callNative(() => native.truncateCache(this.handle, count));
      this.cached = count;
    }
  }

  private async *pieces(prompt: Prompt, options: CheckedOptions): AsyncIterableIterator<Piece> {
    if (this.busy) throw new BusyError("This session");
    this.busy = true;
    Object.assign(this.figures, { promptTokens: 0, generatedTokens: 0, promptMs: 0, generateMs: 0, finishReason: undefined, seed: options.seed });
    try {
      await this.takePrompt(prompt, options);
      yield* this.write(options);
    } catch (error) {
      if (error instanceof AbortError) this.figures.finishReason = "aborted";
      throw error;
    } finally {
      this.busy = false;
    }
  }

  private async takePrompt(prompt: Prompt, options: CheckedOptions): Promise<void> {
    const { tokenizer } = this.model;
    let ids: readonly number[];
    if (typeof prompt === "string") {
      ids = await tokenizer.encodeAsync(prompt, { bos: this.tokens.length === 0 && tokenizer.addBos, signal: options.signal });
    } else if (isMessages(prompt)) {
      const rendered = this.model.applyChatTemplate(prompt, { addGenerationPrompt: true });
      ids = await tokenizer.encodeAsync(rendered, { special: true, bos: tokenizer.addBos, signal: options.signal });
      let common = 0;
      while (common < ids.length && common < this.tokens.length && ids[common] === this.tokens[common]) common++;
      this.checkLength(ids.length);
      this.keepFirst(common);
      ids = ids.slice(common);
    } else {
      ids = prompt as readonly number[];
    }
    this.checkLength(this.tokens.length + ids.length);
    if (this.tokens.length + ids.length === 0) throw new ArgumentError("prompt", "Expected at least one token for prompt but it is empty and so is the session");
    for (const id of ids) this.tokens.push(id);
  }

  private checkLength(tokens: number): void {
    if (tokens > this.model.contextLength) {
      throw new ContextOverflowError(`The prompt makes ${tokens} tokens but the context holds ${this.model.contextLength}: shorten it, or reset() the session`);
    }
  }

  private async *write(options: CheckedOptions): AsyncIterableIterator<Piece> {
    const { tokenizer } = this.model, ends = new Set(options.ignoreEndOfText ? [] : tokenizer.eosIds);
    const text = tokenizer.stream(), filter = new StopFilter(options.stop);
    let tokens: number[] = [], logProb = 0;
    const piece = (shown: string): Piece => {
      const made = { text: shown, tokens, logProb };
      tokens = [];
      logProb = 0;
      return made;
    };
    await this.prefill(options);
    const finish = (reason: FinishReason): void => void (this.figures.finishReason = reason);
    for (;;) {
      if (this.figures.generatedTokens >= options.maxTokens) {
        finish("length");
        break;
      }
      const next = await this.step(options);
      if (ends.has(next.token)) {
        finish("endOfText");
        break;
      }
      tokens.push(next.token);
      logProb += next.logProb;
      const shown = filter.push(text.push(next.token));
      if (filter.found !== undefined) {
        finish("stop");
        if (shown !== "") yield piece(shown);
        return;
      }
      if (shown !== "") yield piece(shown);
    }
    const rest = filter.push(text.end()) + filter.end();
    if (rest !== "" || tokens.length > 0) yield piece(rest);
  }

  /** Computes all tokens but those that the first step takes: nothing but the cache comes of it. */
  private async prefill(options: CheckedOptions): Promise<void> {
    // The last token is computed again where all are cached: its logits are needed.
    if (this.cached === this.tokens.length) this.dropCached(this.tokens.length - 1);
    const begin = this.cached, total = this.tokens.length - begin, started = performance.now();
    while (this.tokens.length - this.cached > chunkTokens) {
      const count = chunkTokens;
      this.fill(count);
      await this.run(await this.model.graphs.prefill, { n: count }, {}, {}, options);
      this.advance(count);
      this.figures.promptTokens += count;
      this.figures.promptMs = performance.now() - started;
      options.onProgress?.({ stage: "prompt", loaded: this.cached - begin, total });
    }
  }

  private dropCached(count: number): void {
    callNative(() => native.truncateCache(this.handle, count));
    this.cached = count;
  }

  private fill(count: number): void {
    const { ids, positions } = this.memory;
    for (let i = 0; i < count; i++) {
      ids[i] = this.tokens[this.cached + i]!;
      positions[i] = this.cached + i;
    }
  }

  private advance(count: number): void {
    this.cached += count;
  }

  /** Computes what is not cached yet and draws the next token. */
  private async step(options: CheckedOptions): Promise<{ token: number; logProb: number }> {
    const { memory, figures } = this, count = this.tokens.length - this.cached, first = figures.generatedTokens === 0;
    if (this.tokens.length > this.model.contextLength) {
      throw new ContextOverflowError(`The context of ${this.model.contextLength} tokens is full: nothing was lost, but the session cannot go on without a cache policy`);
    }
    const started = performance.now();
    this.fill(count);
    memory.last[0] = count - 1;
    const history = Int32Array.from(options.repeatPenalty === 1 || options.repeatLastTokens === 0 ? [] : this.tokens.slice(-options.repeatLastTokens));
    const { temperature, topK, topP, minP, repeatPenalty, seed } = options;
    await this.run(
      await this.model.graphs.generate,
      { n: count, history: history.length },
      { last: memory.last, history, token: memory.token, logProb: memory.logProb },
      { temperature, topK, topP, minP, repeatPenalty, seed, stream: 0, position: this.tokens.length },
      options,
    );
    this.advance(count);
    const token = memory.token[0]!;
    this.tokens.push(token);
    figures.generatedTokens++;
    const elapsed = performance.now() - started;
    // The first step computes the end of the prompt: it counts as prompt time, as in other engines.
    if (first) {
      figures.promptTokens += count;
      figures.promptMs += elapsed;
      options.onProgress?.({ stage: "prompt", loaded: figures.promptTokens, total: figures.promptTokens });
    } else {
      figures.generateMs += elapsed;
    }
    return { token, logProb: memory.logProb[0]! };
  }

  private run(
    graph: CompiledGraph,
    symbols: Record<string, number>,
    bindings: Record<string, Int32Array | Float32Array>,
    scalars: Record<string, number>,
    options: CheckedOptions,
  ): Promise<void> {
    if (this.model.isDisposed) throw new DisposedError("This session's model");
    const { ids, positions } = this.memory;
    return this.during(() =>
      graph.run({ symbols, bindings: { ids, positions, cache: this.handle, ...bindings }, scalars }, { signal: options.signal, threads: this.threads ?? this.model.threads }),
    );
  }
}
