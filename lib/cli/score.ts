import { readFile } from "node:fs/promises";
import { openLibrary, openModel, type CommonOptions } from "./library.js";
import { interruptSignal, printJson, ProgressBar, readStandardInput, UsageError, write } from "./terminal.js";

export interface ScoreFlags extends CommonOptions {
  readonly file?: string;
  readonly ids?: string;
  readonly top: number;
}

/** `tokenloom score MODEL --file TEXT | --ids JSON` */
export async function score(name: string, flags: ScoreFlags): Promise<void> {
  const input = flags.ids === undefined ? await readText(flags.file ?? "-") : await readIds(flags.ids);
  const library = await openLibrary(flags);
  const signal = interruptSignal();
  using model = await openModel(library, name, flags, signal);
  const bar = new ProgressBar();
  const onProgress = (progress: { loaded: number; total: number }): void => bar.update({ ...progress, stage: "score" });
  const result = await model.score(input, { top: flags.top, signal, onProgress }).finally(() => bar.stop());
  if (flags.json) {
    await printJson({ ids: result.ids, perplexity: result.perplexity, top_ids: result.topIds, top_logits: result.topLogits });
    return;
  }
  const bits = Math.log2(result.perplexity);
  await write(process.stdout, `${result.ids.length} tokens, perplexity ${result.perplexity.toFixed(4)}, ${bits.toFixed(3)} bits a token\n`);
}

async function readText(path: string): Promise<string> {
  return path === "-" ? readStandardInput() : readFile(path, "utf8");
}

/** A JSON array of integers, given as it is or as the path of a file. */
async function readIds(source: string): Promise<number[]> {
  const text = source.trimStart().startsWith("[") ? source : await readText(source);
  let ids: unknown;
  try {
    ids = JSON.parse(text);
  } catch (cause) {
    throw new UsageError(`Expected a JSON array of token ids for --ids but received what is not JSON: ${text.slice(0, 40)}`, { cause });
  }
  if (!Array.isArray(ids) || !ids.every((id) => Number.isInteger(id))) throw new UsageError("Expected a JSON array of integers for --ids");
  return ids as number[];
}
