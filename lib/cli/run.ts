import type { ChatMessage, GenerateOptions, LanguageModel, Session, SessionOptions } from "../index.js";
import { parsePolicy } from "./cache.js";
import { chat } from "./chat.js";
import { drafterOf, type DrafterName } from "./drafters.js";
import { openLibrary, openModel, type CommonOptions, type Library } from "./library.js";
import { formatRate, interruptSignal, isAbort, printJson, ProgressBar, readStandardInput, UsageError, write } from "./terminal.js";

export interface SamplingFlags {
  readonly temperature?: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly minP?: number;
  readonly repeatPenalty?: number;
  readonly seed?: number;
  readonly maxTokens?: number;
  readonly stop?: readonly string[];
}

export interface RunFlags extends CommonOptions, SamplingFlags {
  readonly chat?: true;
  readonly system?: string;
  readonly cache?: string;
  readonly draft?: DrafterName;
}

/** What of a session the flags ask for. Drafts give a policy no attention to look at, so it then works behind the prompt only. */
function sessionOptions(library: Library, { cache, draft }: RunFlags): SessionOptions {
  const policy = cache === undefined ? undefined : parsePolicy(library, cache, true);
  const conflict = policy && draft !== undefined && policy.when.decode && policy.observe.kind !== "none";
  return { cache: conflict ? parsePolicy(library, cache!) : policy, draft: draft === undefined ? undefined : drafterOf(library, draft) };
}

/** Only what was given: everything else keeps the library's default. */
export function generateOptions(flags: SamplingFlags): GenerateOptions {
  const { temperature, topK, topP, minP, repeatPenalty, seed, maxTokens, stop } = flags;
  const given = Object.entries({ temperature, topK, topP, minP, repeatPenalty, seed, maxTokens, stop }).filter(([, value]) => value !== undefined);
  return Object.fromEntries(given) as GenerateOptions;
}

/** `tokenloom run MODEL [prompt]` */
export async function run(name: string, argument: string | undefined, flags: RunFlags): Promise<void> {
  const asChat = flags.chat === true || flags.system !== undefined;
  const prompt = argument ?? (process.stdin.isTTY ? undefined : (await readStandardInput()).replace(/\r?\n$/, ""));
  if (prompt === "") throw new UsageError("The prompt is empty");
  if (prompt === undefined && flags.json) throw new UsageError("--json needs a prompt");
  const library = await openLibrary(flags);
  if (prompt === undefined) {
    using model = await openModel(library, name, flags);
    await chat(model, { input: process.stdin, output: process.stdout, system: flags.system, session: sessionOptions(library, flags), options: generateOptions(flags) });
    return;
  }
  const signal = interruptSignal();
  using model = await openModel(library, name, flags, signal);
  const messages: ChatMessage[] = [...(flags.system === undefined ? [] : [{ role: "system", content: flags.system }]), { role: "user", content: prompt }];
  using session = model.session(sessionOptions(library, flags));
  const bar = new ProgressBar();
  const options = { ...generateOptions(flags), signal, onProgress: bar.update };
  await answer(model, session, asChat ? messages : prompt, options, flags, bar);
}

async function answer(model: LanguageModel, session: Session, prompt: string | ChatMessage[], options: GenerateOptions, flags: RunFlags, bar: ProgressBar): Promise<void> {
  const ids: number[] = [];
  let text = "";
  try {
    for await (const piece of session.generate(prompt, options)) {
      bar.stop();
      ids.push(...piece.tokens);
      text += piece.text;
      if (!flags.json) await write(process.stdout, piece.text);
    }
  } catch (error) {
    // What was written so far is the answer; the exit code says that it was cut.
    if (!isAbort(error)) throw error;
    process.exitCode = 130;
  } finally {
    bar.stop();
  }
  const stats = session.stats();
  if (stats.finishReason === "aborted") process.exitCode = 130;
  if (flags.json) {
    const bos = model.tokenizer.addBos;
    const promptIds = typeof prompt === "string" ? model.tokenize(prompt, { bos }) : model.tokenize(model.applyChatTemplate(prompt, { addGenerationPrompt: true }), { special: true, bos });
    await printJson({ text, ids, promptIds, stats });
    return;
  }
  await write(process.stdout, "\n");
  if (flags.verbose) {
    process.stderr.write(
      `${stats.promptTokens} prompt tokens at ${formatRate(stats.promptTokensPerSecond)}, ` +
        `${stats.generatedTokens} generated at ${formatRate(stats.tokensPerSecond)}, ended by ${stats.finishReason ?? "nothing"}\n`,
    );
  }
}
