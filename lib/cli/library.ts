import { ProgressBar, UsageError } from "./terminal.js";
import type { EncoderModel, LanguageModel, LoadOptions } from "../index.js";

export type Library = typeof import("../index.js");

/** What every command understands. */
export interface CommonOptions {
  readonly threads?: number;
  readonly isa?: string;
  readonly offline?: true;
  readonly json?: true;
  readonly verbose?: true;
}

/** Loads the library on the instruction set asked for: the addon reads TOKENLOOM_ISA once, when it is loaded. */
export async function openLibrary(options: CommonOptions): Promise<Library> {
  if (options.isa !== undefined) process.env["TOKENLOOM_ISA"] = options.isa;
  const library = await import("../index.js");
  const { isa, availableIsas } = library.systemInfo();
  if (options.isa !== undefined && options.isa !== isa) {
    throw new UsageError(`This machine or build has no ${options.isa}: choose one of ${availableIsas.join(", ")}`);
  }
  return library;
}

export async function openModel(library: Library, name: string, options: CommonOptions, signal?: AbortSignal): Promise<LanguageModel> {
  const bar = new ProgressBar();
  return library.loadModel(name, { ...loadOptions(options, bar, signal), kind: "language" }).finally(() => bar.stop());
}

export async function openEncoder(library: Library, name: string, options: CommonOptions & Pick<LoadOptions, "weights">, signal?: AbortSignal): Promise<EncoderModel> {
  const bar = new ProgressBar();
  return library.loadModel(name, { ...loadOptions(options, bar, signal), kind: "encoder", weights: options.weights }).finally(() => bar.stop());
}

function loadOptions({ offline, threads }: CommonOptions, bar: ProgressBar, signal: AbortSignal | undefined): LoadOptions {
  return { onProgress: bar.update, offline: offline ?? false, threads, signal };
}
