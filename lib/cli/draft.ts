import { writeFile } from "node:fs/promises";
import type { Drafter, VerifiedDraft } from "../index.js";
import { drafterOf, type DrafterName } from "./drafters.js";
import { drawDrafts } from "./draft-svg.js";
import { openLibrary, openModel, type CommonOptions } from "./library.js";
import { generateOptions, type SamplingFlags } from "./run.js";
import { interruptSignal, printJson, ProgressBar, UsageError, write } from "./terminal.js";

export interface DraftFlags extends CommonOptions, SamplingFlags {
  readonly prompt: string;
  readonly chat?: true;
  readonly drafter: DrafterName;
  readonly nodes?: number;
  readonly svg?: string;
}

/** `tokenloom draft MODEL --prompt TEXT [--svg FILE]`: the same text with and without drafts, and a picture of the trees. */
export async function draft(name: string, flags: DraftFlags): Promise<void> {
  if (flags.prompt === "") throw new UsageError("The prompt is empty");
  const library = await openLibrary(flags), signal = interruptSignal();
  using model = await openModel(library, name, flags, signal);
  const prompt = flags.chat ? [{ role: "user", content: flags.prompt }] : flags.prompt;
  const bar = new ProgressBar(), options = { maxTokens: 128, ...generateOptions(flags), signal, onProgress: bar.update }, seed = options.seed ?? 0;
  const drafts: VerifiedDraft[] = [];
  const generate = async (draft?: Drafter): Promise<{ text: string; stats: ReturnType<import("../index.js").Session["stats"]> }> => {
    using session = model.session({ draft, draftNodes: flags.nodes, onDraft: (step) => drafts.push(step) });
    let text = "";
    for await (const piece of session.generate(prompt, { ...options, seed })) {
      bar.stop();
      text += piece.text;
    }
    return { text, stats: session.stats() };
  };
  const plain = await generate(), drafted = await generate(drafterOf(library, flags.drafter));
  const title = `${model.name}, ${flags.drafter}: ${drafted.stats.generatedTokens} tokens in ${drafted.stats.draft!.steps + 1} steps`;
  if (flags.svg !== undefined) await writeFile(flags.svg, drawDrafts(drafts, (token) => model.detokenize([token], { special: true }), title));
  if (flags.json) {
    await printJson({ text: drafted.text, same: drafted.text === plain.text, plain: plain.stats, drafted: drafted.stats });
    return;
  }
  const { draft: figures, tokensPerSecond } = drafted.stats;
  await write(process.stdout, `${drafted.text}\n\n${title}\n`);
  await write(process.stdout, `${figures!.tokensPerStep.toFixed(2)} tokens and ${figures!.nodesPerStep.toFixed(1)} nodes a step, ${tokensPerSecond.toFixed(1)} tokens/s against ${plain.stats.tokensPerSecond.toFixed(1)} without drafts\n`);
  await write(process.stdout, `the text is ${drafted.text === plain.text ? "the same" : "NOT the same"} as without drafts\n`);
  if (flags.svg !== undefined) await write(process.stdout, `the trees are drawn in ${flags.svg}\n`);
}
