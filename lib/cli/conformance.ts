import { fork, type ChildProcess } from "node:child_process";
import { readdir, stat } from "node:fs/promises";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { Command, CommanderError, InvalidArgumentError } from "commander";
import type { Reply, Request } from "./conformance/worker.js";
import { fail, quietOnBrokenPipe, UsageError } from "./terminal.js";

interface Flags {
  readonly skipUnknown?: true;
  readonly isa?: string;
  readonly threads: readonly number[];
}

const workerFlag = "--conformance-worker";

/** Every .safetensors file under `path`, in the order of names. */
async function filesOf(path: string): Promise<string[]> {
  if (!(await stat(path)).isDirectory()) return [path];
  const entries = await readdir(path, { recursive: true, withFileTypes: true });
  return entries.filter((entry) => entry.isFile() && entry.name.endsWith(".safetensors")).map((entry) => join(entry.parentPath, entry.name)).sort();
}

/** A child process on one instruction set; after a crash the next file gets a new one. */
class Target {
  readonly isa: string;
  #child: ChildProcess | undefined;

  constructor(isa: string) {
    this.isa = isa;
  }

  async run(request: Request): Promise<Reply> {
    const child = (this.#child ??= fork(fileURLToPath(import.meta.url), [workerFlag], { env: { ...process.env, TOKENLOOM_ISA: this.isa } }));
    try {
      return await new Promise<Reply>((resolve) => {
        child.once("message", (reply) => resolve(reply as Reply));
        child.once("exit", (code, signal) => {
          this.#child = undefined;
          resolve({ status: "failed", detail: `the process ended with ${signal ?? `code ${code}`}` });
        });
        child.send(request);
      });
    } finally {
      child.removeAllListeners();
    }
  }

  stop(): void {
    this.#child?.disconnect();
  }
}

interface Count {
  passed: number;
  failed: number;
  skipped: number;
}

async function runAll(path: string, files: readonly string[], targets: readonly Target[], flags: Flags): Promise<Count> {
  const count: Count = { passed: 0, failed: 0, skipped: 0 };
  for (const file of files) {
    const name = relative(path, file) || file;
    const began = performance.now();
    const problems: string[] = [];
    let unknown = false;
    for (const target of targets) {
      const reply = await target.run({ path: file, threads: flags.threads });
      if (reply.status === "passed") continue;
      problems.push(reply.status === "unknown" ? reply.detail : `${target.isa}: ${reply.detail}`);
      unknown = reply.status === "unknown";
      if (unknown) break;
    }
    const ms = (performance.now() - began).toFixed(0);
    if (problems.length === 0) {
      count.passed++;
      console.log(`ok    ${name} (${targets.map(({ isa }) => isa).join(", ")}; ${ms} ms)`);
    } else if (unknown && flags.skipUnknown) {
      count.skipped++;
      console.log(`skip  ${name}: ${problems.join("; ")}`);
    } else {
      count.failed++;
      console.log(`FAIL  ${name}: ${problems.join("; ")}`);
    }
  }
  return count;
}

async function main(path: string, flags: Flags): Promise<void> {
  const files = await filesOf(path);
  if (files.length === 0) throw new UsageError(`There is no .safetensors file in ${path}`);
  const { systemInfo } = await import("../index.js");
  const { availableIsas } = systemInfo();
  if (flags.isa !== undefined && !availableIsas.includes(flags.isa)) throw new UsageError(`This machine or build has no ${flags.isa}: choose one of ${availableIsas.join(", ")}`);
  const targets = (flags.isa === undefined ? availableIsas : [flags.isa]).map((isa) => new Target(isa));
  try {
    const { passed, failed, skipped } = await runAll(path, files, targets, flags);
    if (skipped > 0) console.log(`${skipped} skipped`);
    console.log(`${passed} passed, ${failed} failed`);
    process.exitCode = failed === 0 ? 0 : 1;
  } finally {
    for (const target of targets) target.stop();
  }
}

/** The child's side: files come one by one until the parent lets go. */
async function serve(): Promise<void> {
  const { runFile } = await import("./conformance/worker.js");
  process.on("message", (request: Request) => void runFile(request).then((reply) => process.send?.(reply)));
  process.on("disconnect", () => process.exit(0));
}

function threadCounts(text: string): number[] {
  const counts = text.split(",").map(Number);
  if (!counts.every((count) => Number.isInteger(count) && count >= 1)) throw new InvalidArgumentError("Expected integers separated by commas.");
  return counts;
}

quietOnBrokenPipe();
try {
  if (process.argv[2] === workerFlag) await serve();
  else {
    await new Command("conformance")
      .description("Runs conformance vectors (safetensors files with in.*, out.*, and metadata op, params, tol) through the public interface.")
      .argument("<dir>", "folder of vectors, or one file")
      .option("--skip-unknown", "do not count files whose op is not known as failures")
      .option("--isa <name>", "only this instruction set (default: each that this machine has)")
      .option("--threads <list>", "numbers of threads between which outputs have to be bit-identical", threadCounts, [1, 2])
      .action(main)
      .exitOverride()
      .parseAsync();
  }
} catch (error) {
  if (error instanceof CommanderError) process.exitCode = error.exitCode === 0 ? 0 : 2;
  else fail(error, true);
}
