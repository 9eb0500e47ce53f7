import type { PromptFilter } from "../cache/gemfilter.js";
import { checkPolicy, type CachePolicy } from "../cache/policy.js";
import { pageTokens } from "../cache/types.js";
import { commonLength } from "../draft/common.js";
import { checkOptionsObject, numberOption } from "../check.js";
import type { Drafter } from "../draft/drafter.js";
import { DraftTree } from "../draft/tree.js";
import { AbortError, ArgumentError, BusyError, ContextOverflowError, invalidArgument } from "../errors.js";
import { threadCount } from "../schedule.js";
import { checkCallback, checkOptions, checkPrompt, isMessages, type CheckedOptions, type GenerateOptions, type Prompt } from "./options.js";
import type { LanguageModel } from "./model.js";
import { filterPrompt } from "./filter.js";
import { Sequence, type Drawn, type SequenceSettings } from "./sequence.js";
import { draftNodes, Speculation, type DraftStatistics, type Proposal, type VerifiedDraft } from "./speculation.js";
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
  /** Prompt tokens computed; those taken over from the cache, this session's or another's, are not among them. */
  readonly promptTokens: number;
  readonly generatedTokens: number;
  readonly promptMs: number;
  readonly generateMs: number;
  readonly promptTokensPerSecond: number;
  /** Of all tokens but the first, which comes with the prompt. */
  readonly tokensPerSecond: number;
  /** Tokens computed, evicted ones counted. */
  readonly cachedTokens: number;
  /** Those that no layer and head holds any more, by the cache policy. */
  readonly evictedTokens: number;
  readonly cacheBytes: number;
  /** Of these, pages that other sessions hold too. */
  readonly sharedBytes: number;
  /** Where the session drafts. */
  readonly draft: DraftStatistics | undefined;
  readonly finishReason: FinishReason | undefined;
  readonly seed: number | undefined;
}

export interface SessionOptions {
  /** Cores to use; by default the model's. */
  readonly threads?: number | undefined;
  /** What of the cache to keep, behind the prompt and while writing: snapKV({ budget: 512 }), streamingLlm({ budget: 1024 }) … */
  readonly cache?: CachePolicy | undefined;
  /** Leaves tokens of a prompt out before it is computed: gemFilter({ layer: 13, budget: 1024 }). Only of the text a session starts with. */
  readonly filter?: PromptFilter | undefined;
  /** Where the model's cacheBytes are used up: "error" (default) throws OutOfMemoryError, "evict" applies the policy and goes on. */
  readonly whenFull?: "error" | "evict" | undefined;
  /**
   * Guesses tokens ahead and verifies them together: tokenRecycling(), promptLookup() … The text is the same as without, with
   * any sampling options and the same seed.
   */
  readonly draft?: Drafter | undefined;
  /** Verifies always so many nodes, root included, 1 … 64; by default as many as pay, by measured cost and success. */
  readonly draftNodes?: number | undefined;
  /** Sessions take beginnings over from sessions of the same tenant only, so that nobody can tell from the time of a prompt what others asked. One for all by default. */
  readonly tenant?: string | undefined;
  /** Called after each verified draft tree, to look inside. */
  readonly onDraft?: ((draft: VerifiedDraft) => void) | undefined;
}

/** A beginning that two texts share is worth taking over from this many tokens on. */
const leastShared = pageTokens;

function checkSessionOptions(options: SessionOptions, layers: number): SessionOptions {
  checkOptionsObject(options);
  const { cache, whenFull, draft, draftNodes: nodes, onDraft } = options;
  if (cache !== undefined) checkPolicy("options.cache", cache);
  const { filter } = options;
  if (filter !== undefined && typeof (filter as { select?: unknown } | null)?.select !== "function") throw invalidArgument("options.filter", "a prompt filter such as gemFilter({ layer: 13, budget: 1024 })", filter);
  if (filter && filter.layer >= layers) throw invalidArgument("options.filter.layer", `an integer below ${layers}`, filter.layer);
  if (whenFull !== undefined && whenFull !== "error" && whenFull !== "evict") throw invalidArgument("options.whenFull", "'error' or 'evict'", whenFull);
  if (whenFull === "evict" && !cache) throw invalidArgument("options.whenFull", "a cache policy to evict by, in options.cache,", whenFull);
  if (draft !== undefined && typeof (draft as { open?: unknown } | null)?.open !== "function") throw invalidArgument("options.draft", "a drafter such as tokenRecycling()", draft);
  if (options.tenant !== undefined && typeof options.tenant !== "string") throw invalidArgument("options.tenant", "a string", options.tenant);
  numberOption("options.draftNodes", nodes, draftNodes, 1, draftNodes, true);
  checkCallback("options.onDraft", onDraft);
  return options;
}

/** One conversation or text with its own cache. One generation at a time; many sessions may share a model. */
export class Session implements Disposable {
  private sequence: Sequence;
  private readonly threads: number;
  private readonly settings: SequenceSettings;
  private readonly speculation: Speculation | undefined;
  private busy = false;
  private readonly figures = { promptTokens: 0, generatedTokens: 0, promptMs: 0, generateMs: 0, finishReason: undefined as FinishReason | undefined, seed: undefined as number | undefined };

  /** @internal Made by LanguageModel.session(). */
  constructor(private readonly model: LanguageModel, private readonly options: SessionOptions, sequence?: Sequence) {
    const { draft, draftNodes: nodes } = checkSessionOptions(options, model.config.layers.length);
    this.threads = options.threads === undefined ? model.threads : threadCount(options.threads);
    this.settings = { threads: this.threads, eviction: options.cache && model.eviction(options.cache), whenFull: options.whenFull };
    this.speculation = draft && new Speculation(model, draft, nodes, this.threads);
    this.sequence = sequence ?? new Sequence(model, this.settings);
    model.sessions.add(this);
  }

  get isDisposed(): boolean {
    return this.sequence.isDisposed;
  }

  /** Frees the cache, after a running step. Twice is fine. */
  dispose(): void {
    if (this.isDisposed) return;
    this.model.sessions.delete(this);
    this.sequence.dispose();
    this.speculation?.[Symbol.dispose]();
  }

  [Symbol.dispose](): void {
    this.dispose();
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
    void this.sequence.handle;
    return this.pieces(prompt, checked);
  }

  stats(): SessionStatistics {
    const { promptTokens, generatedTokens, promptMs, generateMs } = this.figures;
    const held = this.isDisposed || this.busy ? undefined : this.sequence.cacheStatistics;
    const rate = (tokens: number, ms: number): number => (ms > 0 ? (tokens / ms) * 1000 : 0);
    return {
      ...this.figures, promptTokensPerSecond: rate(promptTokens, promptMs), tokensPerSecond: rate(Math.max(0, generatedTokens - 1), generateMs),
      cachedTokens: this.sequence.cached, cacheBytes: held?.bytesHeld ?? 0, sharedBytes: held?.bytesShared ?? 0,
      evictedTokens: held ? this.sequence.cached - held.tokens : 0, draft: this.speculation?.statistics(),
    };
  }

  /** Where the tokens stand that each layer and head still holds: positions `[layers][kvHeads]`, rising. */
  cachedPositions(): Int32Array[][] {
    if (this.busy) throw new BusyError("This session");
    return this.sequence.cachedPositions();
  }

  /** A second session of the same text: cached pages are shared until one of the two writes to them. */
  fork(): Session {
    if (this.busy) throw new BusyError("This session");
    return new Session(this.model, this.options, this.sequence.fork());
  }

  /** Writes text and cache to a file, for model.restore(): versioned, with checksums. An existing file is replaced whole or not at all. */
  async save(path: string): Promise<void> {
    if (typeof path !== "string" || path === "") throw invalidArgument("path", "a file path", path);
    if (this.busy) throw new BusyError("This session");
    this.busy = true;
    try {
      await this.sequence.save(path);
    } finally {
      this.busy = false;
    }
  }

  /** @internal Called by LanguageModel.restore(). */
  async restore(path: string): Promise<void> {
    const empty = this.sequence;
    this.sequence = await Sequence.restore(path, this.model, this.settings);
    empty.dispose();
  }

  /** Forgets everything; the cache's memory is returned. */
  reset(): void {
    if (this.busy) throw new BusyError("This session");
    this.keepFirst(0);
  }

  private keepFirst(count: number): void {
    this.sequence.keepFirst(count);
    this.speculation?.state.rewind(count);
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
    const { tokenizer } = this.model, { tokens } = this.sequence;
    let ids: readonly number[];
    if (typeof prompt === "string") {
      ids = await tokenizer.encodeAsync(prompt, { bos: tokens.length === 0 && tokenizer.addBos, signal: options.signal });
    } else if (isMessages(prompt)) {
      const rendered = this.model.applyChatTemplate(prompt, { addGenerationPrompt: true });
      ids = await tokenizer.encodeAsync(rendered, { special: true, bos: tokenizer.addBos, signal: options.signal });
      const common = commonLength(ids, tokens);
      this.checkLength(ids.length);
      this.keepFirst(common);
      ids = ids.slice(common);
    } else {
      ids = prompt as readonly number[];
    }
    this.checkLength(tokens.length + ids.length);
    if (tokens.length + ids.length === 0) throw new ArgumentError("prompt", "Expected at least one token for prompt but it is empty and so is the session");
    if (tokens.length === 0 && this.options.filter) ids = await filterPrompt(this.model, this.options.filter, ids, this.threads, options);
    if (tokens.length === 0) ids = this.takeOver(ids);
    for (const id of ids) this.sequence.tokens.push(id);
  }

  /** Starts an empty session from the pages of an open one whose text begins alike; answers what of `ids` is left. */
  private takeOver(ids: readonly number[]): readonly number[] {
    let best = leastShared - 1, from: Session | undefined;
    for (const other of this.model.sessions) {
      if (other === this || other.busy || other.options.tenant !== this.options.tenant || !other.sequence.sharesPrefixes || !this.sequence.sharesPrefixes) continue;
      const common = Math.min(commonLength(ids, other.sequence.tokens), other.sequence.cached);
      if (common > best) [best, from] = [common, other];
    }
    if (!from) return ids;
    const empty = this.sequence;
    this.sequence = from.sequence.fork(best, this.settings);
    empty.dispose();
    return ids.slice(best);
  }

  private checkLength(tokens: number): void {
    if (tokens > this.model.contextLength && !this.options.cache?.rerotate) {
      throw new ContextOverflowError(`The prompt makes ${tokens} tokens but the context holds ${this.model.contextLength}: shorten it, or reset() the session`);
    }
  }

  private async *write(options: CheckedOptions): AsyncIterableIterator<Piece> {
    const { tokenizer } = this.model, ends = new Set(options.ignoreEndOfText ? [] : tokenizer.eosIds), { figures } = this;
    const text = tokenizer.stream(), filter = new StopFilter(options.stop);
    let tokens: number[] = [], logProb = 0, drawn: Drawn[] = [];
    const piece = (shown: string): Piece => {
      const made = { text: shown, tokens, logProb };
      tokens = [];
      logProb = 0;
      return made;
    };
    await this.prefill(options);
    try {
      while (figures.finishReason === undefined) {
        if (figures.generatedTokens >= options.maxTokens) {
          figures.finishReason = "length";
          break;
        }
        if (drawn.length === 0) drawn = [...(await this.step(options))];
        const next = drawn.shift()!;
        figures.generatedTokens++;
        if (ends.has(next.token)) {
          figures.finishReason = "endOfText";
          break;
        }
        tokens.push(next.token);
        logProb += next.logProb;
        const shown = filter.push(text.push(next.token));
        if (filter.found !== undefined) figures.finishReason = "stop";
        if (shown !== "") yield piece(shown);
      }
    } finally {
      if (!this.isDisposed) await this.endDrafts(drawn.length, options);
    }
    if (figures.finishReason === "stop") return;
    const rest = filter.push(text.end()) + filter.end();
    if (rest !== "" || tokens.length > 0) yield piece(rest);
  }

  /** Takes back the last `surplus` tokens, drafts that were right but came behind the end: as if they had never been computed. */
  private async endDrafts(surplus: number, options: CheckedOptions): Promise<void> {
    const { sequence } = this, count = sequence.tokens.length - surplus, before = surplus > 0 ? sequence.beforeDraft() : undefined;
    if (before) {
      // What they attended to was observed: the step is done again without them.
      this.sequence = before;
      await before.draftStep(DraftTree.chain(sequence.tokens.slice(before.tokens.length - 1, count - 1)), { ...options, signal: undefined }, 0).finally(() => sequence.dispose());
    }
    if (surplus > 0) {
      this.keepFirst(count);
      this.sequence.leaveLast();
    }
    this.sequence.forgetDraft();
  }

  private async prefill(options: CheckedOptions): Promise<void> {
    const { figures, sequence } = this, started = performance.now();
    const total = Math.max(1, sequence.tokens.length - sequence.cached);
    await this.speculation?.start();
    await sequence.prefill(options, (count) => {
      figures.promptTokens += count;
      figures.promptMs = performance.now() - started;
      options.onProgress?.({ stage: "prompt", loaded: figures.promptTokens, total });
    });
  }

  /** Computes what is not cached yet and draws the next token, or with drafts several. */
  private async step(options: CheckedOptions): Promise<readonly Drawn[]> {
    const { figures, sequence, speculation } = this, started = performance.now();
    if (figures.generatedTokens === 0) {
      const count = sequence.tokens.length - sequence.cached, goesOn = figures.promptTokens + count === 1;
      if (goesOn) await sequence.evictIfDue("decode", options);
      const drawn = await sequence.step(options);
      // The first step computes the end of the prompt: it counts as prompt time, as in other engines.
      figures.promptTokens += count;
      figures.promptMs += performance.now() - started;
      options.onProgress?.({ stage: "prompt", loaded: figures.promptTokens, total: figures.promptTokens });
      if (!goesOn) await sequence.evictIfDue("prefill", options);
      return drawn;
    }
    await sequence.evictIfDue("decode", options);
    const drawn = speculation ? await this.speculate(speculation, options) : await sequence.step(options);
    figures.generateMs += performance.now() - started;
    return drawn;
  }

  private async speculate(speculation: Speculation, options: CheckedOptions): Promise<readonly Drawn[]> {
    const { sequence } = this, proposal = await speculation.propose(sequence.tokens, (depth) => sequence.draftDepth(depth)), started = performance.now();
    if (!proposal || proposal.plain) {
      sequence.forgetDraft();
      const drawn = await sequence.step(options), forwardMs = performance.now() - started;
      if (!proposal) speculation.skip(forwardMs);
      else this.learn(speculation, proposal, { tree: proposal.tree, path: Int32Array.of(0), accepted: Int32Array.of(drawn[0]!.token) }, forwardMs);
      return drawn;
    }
    const draft = await sequence.draftStep(proposal.tree, options, speculation.state.topTokens);
    this.learn(speculation, proposal, draft, performance.now() - started);
    return draft.drawn;
  }

  private learn(speculation: Speculation, proposal: Proposal, draft: VerifiedDraft, forwardMs: number): void {
    speculation.learn(proposal, draft, forwardMs);
    this.options.onDraft?.(draft);
  }
}
