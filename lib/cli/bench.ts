import { peakMemoryBytes } from "./peak-memory.js";
import type { LanguageModel } from "../index.js";
import { openLibrary, openModel, type CommonOptions } from "./library.js";
import { formatBytes, formatRate, interruptSignal, printJson, table, UsageError, write } from "./terminal.js";

export interface BenchFlags extends CommonOptions {
  readonly promptTokens?: number;
  readonly tokens: number;
  readonly context?: number;
  readonly runs: number;
}

/** Ids spread over the vocabulary: what they say does not matter to the time they take. */
function syntheticPrompt(length: number, vocabulary: number): number[] {
  const first = Math.floor(vocabulary / 8);
  return Array.from({ length }, (_, index) => first + ((index * 37) % (vocabulary - 2 * first)));
}

interface Measured {
  readonly promptTokensPerSecond: number;
  readonly tokensPerSecond: number;
}

/** One prompt and `tokens` steps after it: the first token comes with the prompt, so the steps are counted from there. */
async function measure(model: LanguageModel, promptTokens: number, tokens: number, signal: AbortSignal): Promise<Measured> {
  using session = model.session();
  const prompt = syntheticPrompt(promptTokens, model.config.vocabulary);
  const began = performance.now();
  let first: number | undefined;
  let last = began;
  let count = 0;
  for await (const piece of session.generate(prompt, { maxTokens: tokens + 1, ignoreEndOfText: true, signal })) {
    last = performance.now();
    if (first === undefined) first = last;
    else count += piece.tokens.length;
  }
  const start = first ?? last;
  return { promptTokensPerSecond: (promptTokens / (start - began)) * 1e3, tokensPerSecond: count === 0 ? Number.NaN : (count / (last - start)) * 1e3 };
}

async function best(runs: number, run: () => Promise<Measured>): Promise<Measured> {
  let promptTokensPerSecond = 0;
  let tokensPerSecond = Number.NaN;
  for (let index = 0; index < runs; index++) {
    const measured = await run();
    promptTokensPerSecond = Math.max(promptTokensPerSecond, measured.promptTokensPerSecond);
    tokensPerSecond = Number.isNaN(tokensPerSecond) ? measured.tokensPerSecond : Math.max(tokensPerSecond, measured.tokensPerSecond);
  }
  return { promptTokensPerSecond, tokensPerSecond };
}

/** `tokenloom bench MODEL` */
export async function bench(name: string, flags: BenchFlags): Promise<void> {
  for (const [option, value, least] of [["--prompt-tokens", flags.promptTokens, 1], ["--tokens", flags.tokens, 1], ["--context", flags.context, 0], ["--runs", flags.runs, 1]] as const) {
    if (value !== undefined && value < least) throw new UsageError(`Expected an integer of at least ${least} for ${option} but received ${value}`);
  }
  const library = await openLibrary(flags);
  const signal = interruptSignal();
  using model = await openModel(library, name, flags, signal);
  const { isa, cores } = library.systemInfo();
  const promptTokens = flags.promptTokens ?? Math.max(1, Math.min(512, model.contextLength - 2));
  const context = flags.context ?? Math.max(0, Math.min(1800, model.contextLength - flags.tokens - 1));
  const short = await best(flags.runs, () => measure(model, promptTokens, 1, signal));
  const decode = await best(flags.runs, () => measure(model, Math.min(16, promptTokens), flags.tokens, signal));
  const long = context === 0 ? undefined : await best(flags.runs, () => measure(model, context, flags.tokens, signal));
  const result = {
    promptTokensPerSecond: short.promptTokensPerSecond,
    decodeTokensPerSecond: decode.tokensPerSecond,
    ...(long === undefined ? {} : { decodeAfterContextTokensPerSecond: long.tokensPerSecond }),
    loadMs: model.loadMs,
    peakRssBytes: peakMemoryBytes(),
    threads: flags.threads ?? cores,
    isa,
  };
  if (flags.json) return printJson(result);
  const rows: [string, string][] = [
    [`prompt of ${promptTokens} tokens`, formatRate(result.promptTokensPerSecond)],
    [`decode, ${flags.tokens} tokens after a short prompt`, formatRate(result.decodeTokensPerSecond)],
    ...(long === undefined ? [] : [[`decode, ${flags.tokens} tokens after ${context}`, formatRate(long.tokensPerSecond)] as [string, string]]),
    ["load", `${result.loadMs.toFixed(0)} ms`],
    ["peak memory", formatBytes(result.peakRssBytes)],
    ["threads, instruction set", `${result.threads}, ${isa}`],
  ];
  await write(process.stdout, `${table(["", ""], rows).trimStart()}\n`);
}
