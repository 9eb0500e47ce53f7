import { readFile, writeFile } from "node:fs/promises";
import type { Budget, CachePolicy, GenerateOptions } from "../index.js";
import { drawCache } from "./cache-svg.js";
import { openLibrary, openModel, type CommonOptions, type Library } from "./library.js";
import { interruptSignal, printJson, ProgressBar, UsageError, write } from "./terminal.js";

export interface CacheFlags extends CommonOptions {
  readonly prompt?: string;
  readonly promptFile?: string;
  readonly policy: string;
  readonly svg?: string;
  readonly maxTokens: number;
}

/** By the name that `--policy` and `--cache` take. */
const policies: Readonly<Record<string, (library: Library, budget: Budget, rerotate: boolean) => CachePolicy>> = {
  streaming: ({ streamingLlm }, budget, rerotate) => streamingLlm({ ...budget, rerotate }), h2o: ({ h2o }, budget) => h2o(budget), tova: ({ tova }, budget) => tova(budget),
  snapkv: ({ snapKV }, budget) => snapKV(budget), pyramidkv: ({ pyramidKV }, budget) => pyramidKV(budget), adakv: ({ adaKV }, budget) => adaKV(budget),
  knorm: ({ kNorm }, budget) => kNorm(budget), keydiff: ({ keyDiff }, budget) => keyDiff(budget), expected: ({ expectedAttention }, budget) => expectedAttention(budget),
  valuenorm: ({ valueNorm }, budget) => valueNorm(budget), random: ({ randomEviction }, budget) => randomEviction({ ...budget, seed: 0 }),
};

/** `snapkv:256` keeps 256 tokens a head, `snapkv:25%` a quarter of the prompt's; `writing`: also while the answer is written, without end where the policy can. */
export function parsePolicy(library: Library, text: string, writing = false): CachePolicy {
  const [, name, amount, percent] = /^([a-z0-9]+):(\d+(?:\.\d+)?)(%?)$/.exec(text) ?? [];
  const make = name === undefined || !Object.hasOwn(policies, name) ? undefined : policies[name];
  if (!make) throw new UsageError(`Expected a policy such as snapkv:256 or snapkv:25%, one of ${Object.keys(policies).join(", ")}, but received ${text}`);
  return make(library, percent === "%" ? { ratio: 1 - Number(amount) / 100 } : { budget: Number(amount), decode: writing }, writing);
}

/** `tokenloom cache MODEL --prompt-file FILE --policy NAME:BUDGET [--svg FILE]`: what of a prompt a policy keeps, and what it costs. */
export async function cache(name: string, flags: CacheFlags): Promise<void> {
  if ((flags.prompt === undefined) === (flags.promptFile === undefined)) throw new UsageError("Expected one of --prompt and --prompt-file");
  const prompt = flags.prompt ?? (await readFile(flags.promptFile!, "utf8"));
  if (prompt === "") throw new UsageError("The prompt is empty");
  const library = await openLibrary(flags), signal = interruptSignal(), policy = parsePolicy(library, flags.policy);
  using model = await openModel(library, name, flags, signal);
  const bar = new ProgressBar(), options: GenerateOptions = { maxTokens: flags.maxTokens, ignoreEndOfText: true, signal, onProgress: bar.update };
  const read = async (cachePolicy: CachePolicy | undefined): Promise<{ text: string; bytes: number; kept: Int32Array[][]; tokens: number }> => {
    using session = model.session({ cache: cachePolicy });
    let text = "", first: { bytes: number; kept: Int32Array[][]; tokens: number } | undefined;
    for await (const piece of session.generate(prompt, { ...options, maxTokens: 1 })) text += piece.text;
    const { cacheBytes: bytes, cachedTokens: tokens } = session.stats();
    first = { bytes, tokens, kept: session.cachedPositions() };
    if (flags.maxTokens > 1) for await (const piece of session.generate("", { ...options, maxTokens: flags.maxTokens - 1 })) text += piece.text;
    bar.stop();
    return { text, ...first };
  };
  const full = await read(undefined), cut = await read(policy);
  const title = `${model.name}, ${flags.policy}: ${full.tokens} tokens, ${(cut.bytes / 1e6).toFixed(2)} MB of ${(full.bytes / 1e6).toFixed(2)} MB kept`;
  if (flags.svg !== undefined) await writeFile(flags.svg, drawCache(cut.kept, full.tokens, title));
  if (flags.json) {
    await printJson({ policy: policy.name, tokens: full.tokens, bytes: cut.bytes, fullBytes: full.bytes, text: cut.text, fullText: full.text, kept: cut.kept.map((heads) => heads.map((positions) => [...positions])) });
    return;
  }
  await write(process.stdout, `${title}\n\nfull cache:   ${full.text}\n${policy.name}: ${cut.text}\n`);
  if (flags.svg !== undefined) await write(process.stdout, `\nwhat stayed is drawn in ${flags.svg}\n`);
}
