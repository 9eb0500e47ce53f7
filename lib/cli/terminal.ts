import { once } from "node:events";
import { SingleBar, type Options as BarOptions } from "cli-progress";

/** A command was used in a way it does not support: exit code 2. */
export class UsageError extends Error {}

/** A reader that went away (`tokenloom run … | head -1`) ends the program without a word. */
export function quietOnBrokenPipe(): void {
  for (const stream of [process.stdout, process.stderr]) {
    stream.on("error", (error: NodeJS.ErrnoException) => {
      if (error.code !== "EPIPE") throw error;
      process.exit(process.exitCode ?? 0);
    });
  }
}

/** One line on standard error; sets the exit code: 2 for wrong usage, 130 after Ctrl-C, 1 for everything else. */
export function fail(error: unknown, verbose: boolean): void {
  const text = error instanceof Error ? error.message : String(error);
  const detail = verbose && error instanceof Error ? `\n${error.stack ?? ""}` : "";
  if (isAbort(error)) process.exitCode = 130;
  else {
    process.exitCode = error instanceof UsageError ? 2 : 1;
    process.stderr.write(`tokenloom: ${text.replace(/\s*\n\s*/g, " ")}${detail}\n`);
  }
}

export function isAbort(error: unknown): boolean {
  return error instanceof Error && error.name === "AbortError";
}

/** Writes and, where the reader is slow, waits for it. */
export async function write(stream: NodeJS.WritableStream, text: string): Promise<void> {
  if (!stream.write(text)) await once(stream, "drain");
}

export async function printJson(value: unknown): Promise<void> {
  await write(process.stdout, `${JSON.stringify(value)}\n`);
}

/** All of standard input as UTF-8. */
export async function readStandardInput(): Promise<string> {
  const parts: Buffer[] = [];
  for await (const part of process.stdin) parts.push(part as Buffer);
  return Buffer.concat(parts).toString("utf8");
}

/** The first Ctrl-C (or SIGTERM) aborts the signal, the next one ends the process. */
export function interruptSignal(): AbortSignal {
  const controller = new AbortController();
  for (const name of ["SIGINT", "SIGTERM"] as const) {
    process.on(name, () => {
      if (controller.signal.aborted) process.exit(130);
      controller.abort(new Error(name));
    });
  }
  return controller.signal;
}

interface Progress {
  readonly stage: string;
  readonly loaded: number;
  readonly total: number;
}

const stageLabels: Readonly<Record<string, string>> = {
  fetch: "Fetching the model",
  read: "Reading the header",
  tokenizer: "Building the tokenizer",
  weights: "Reading the weights",
  prompt: "Reading the prompt",
  score: "Scoring",
};

/** Stages shorter than this show no bar. */
const quietMs = 300;

/** A progress bar on standard error, only where that is a terminal. Call `stop` before printing anything else there. */
export class ProgressBar {
  readonly #stream = process.stderr;
  #bar: SingleBar | undefined;
  #stage: string | undefined;
  #began = 0;

  readonly update = (progress: Progress): void => {
    if (!this.#stream.isTTY) return;
    if (progress.stage !== this.#stage) {
      this.stop();
      this.#stage = progress.stage;
      this.#began = performance.now();
    }
    const inBytes = progress.stage === "fetch" || progress.stage === "weights";
    const scale = inBytes ? 1e6 : 1;
    if (this.#bar === undefined && performance.now() - this.#began > quietMs && progress.loaded < progress.total) this.#bar = this.#start(progress, inBytes, scale);
    this.#bar?.setTotal(Math.ceil(progress.total / scale));
    this.#bar?.update(Math.floor(progress.loaded / scale));
  };

  stop(): void {
    this.#bar?.stop();
    this.#bar = undefined;
    this.#stage = undefined;
  }

  #start(progress: Progress, inBytes: boolean, scale: number): SingleBar {
    const options: BarOptions = {
      format: `${stageLabels[progress.stage] ?? progress.stage} [{bar}] {value}/{total}${inBytes ? " MB" : ""}`,
      stream: this.#stream,
      clearOnComplete: true,
      hideCursor: true,
      barCompleteChar: "=",
      barIncompleteChar: " ",
    };
    const bar = new SingleBar(options);
    bar.start(Math.ceil(progress.total / scale), Math.floor(progress.loaded / scale));
    return bar;
  }
}

/** Columns padded to their widest cell; numbers to the right. */
export function table(header: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  const cells = [header, ...rows].map((row) => row.map(String));
  const widths = header.map((_, column) => Math.max(...cells.map((row) => (row[column] ?? "").length)));
  const numeric = header.map((_, column) => rows.length > 0 && rows.every((row) => typeof row[column] === "number"));
  return cells
    .map((row) => row.map((cell, column) => (numeric[column] ? cell.padStart(widths[column] ?? 0) : cell.padEnd(widths[column] ?? 0))).join("  ").trimEnd())
    .join("\n");
}

/** 98400000 → "98.4 MB". */
export function formatBytes(bytes: number): string {
  if (bytes < 1e3) return `${bytes} B`;
  for (const [unit, size] of [["kB", 1e3], ["MB", 1e6], ["GB", 1e9]] as const) {
    if (bytes < size * 1e3 || unit === "GB") return `${(bytes / size).toFixed(1)} ${unit}`;
  }
  return `${bytes} B`;
}

export function formatRate(tokensPerSecond: number): string {
  return Number.isFinite(tokensPerSecond) ? `${tokensPerSecond.toFixed(tokensPerSecond < 100 ? 1 : 0)} tokens/s` : "too short to measure";
}
