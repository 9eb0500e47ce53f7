import { readFile } from "node:fs/promises";
import type { Encoding, LoadOptions, Pooling } from "../index.js";
import { openEncoder, openLibrary, type CommonOptions } from "./library.js";
import { readReduction } from "./reductions.js";
import { interruptSignal, printJson, readStandardInput, UsageError, write } from "./terminal.js";

export interface EmbedFlags extends CommonOptions {
  readonly reduce?: string;
  readonly pool?: Pooling;
  readonly weights?: LoadOptions["weights"];
  readonly truncate?: true;
}

/** `tokenloom embed MODEL [FILE…]`: a vector a line, or with --json one object with all of them. */
export async function embed(name: string, files: readonly string[], flags: EmbedFlags): Promise<void> {
  const library = await openLibrary(flags), make = flags.reduce === undefined ? undefined : readReduction(library, flags.reduce);
  const signal = interruptSignal();
  using model = await openEncoder(library, name, flags, signal);
  const inputs = model.config.image ? files : await readLines(files);
  if (inputs.length === 0) throw new UsageError(model.config.image ? "Expected at least one image" : "Expected at least one line of text");
  const options = { signal, reduce: make?.(model.config.layers), pool: flags.pool, truncate: flags.truncate ?? false, ...(model.config.saliency && { saliency: false }) };
  const started = performance.now(), results = await model.encode(inputs, options), ms = performance.now() - started;
  if (flags.json) await printJson({ model: model.name, dimension: model.config.dimension, embeddings: results.map((result, i) => describe(inputs[i]!, result)) });
  else for (const { embedding } of results) await write(process.stdout, `${Array.from(embedding.data, (value) => Number(value.toPrecision(7))).join(" ")}\n`);
  if (flags.verbose) process.stderr.write(`${results.length} in ${ms.toFixed(1)} ms, ${results.reduce((sum, { source }) => sum + source.data.length, 0)} tokens\n`);
}

function describe(input: string, { embedding, tokens, source }: Encoding): unknown {
  return { input, tokens: source.data.length, tokensLeft: tokens.shape[0], embedding: Array.from(embedding.data) };
}

/** Texts, one a line; empty lines are none. */
async function readLines(files: readonly string[]): Promise<string[]> {
  if (files.length > 1) throw new UsageError("Expected one file of texts for a text model");
  const text = files[0] === undefined || files[0] === "-" ? await readStandardInput() : await readFile(files[0], "utf8");
  return text.split(/\r?\n/).filter((line) => line.trim() !== "");
}
