import { spawn, type ChildProcess } from "node:child_process";
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** The repository's folder: compiled tests lie below it. */
export const root = findRoot(dirname(fileURLToPath(import.meta.url)));
export const tiny = join(root, "models", "tiny.gguf");

function findRoot(folder: string): string {
  return existsSync(join(folder, "package-lock.json")) ? folder : findRoot(dirname(folder));
}

export interface Finished {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface ProgramOptions {
  /** Text for standard input; without it there is none. */
  readonly input?: string;
  readonly env?: Record<string, string | undefined>;
  /** Called with what came on standard output so far. */
  readonly onOutput?: (output: string, child: ChildProcess) => void;
}

/** Runs a program of this package, given by its path from the root, to its end. */
export function runProgram(path: string, args: readonly string[], { input, env = {}, onOutput }: ProgramOptions = {}): Promise<Finished> {
  const child = spawn(process.execPath, [join(root, path), ...args], {
    cwd: root,
    env: { ...process.env, ...env },
    stdio: [input === undefined ? "ignore" : "pipe", "pipe", "pipe"],
  });
  child.stdin?.end(input);
  return new Promise((resolve, reject) => {
    let stdout = "";
    let stderr = "";
    child.stdout?.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
      onOutput?.(stdout, child);
    });
    child.stderr?.setEncoding("utf8").on("data", (text: string) => void (stderr += text));
    child.once("error", reject);
    child.once("close", (code, signal) => resolve({ code, signal, stdout, stderr }));
  });
}

export const tokenloom = (args: readonly string[], options?: ProgramOptions): Promise<Finished> => runProgram("dist/esm/cli/main.js", args, options);

/** Whether a text is one line, as errors have to be. */
export const isOneLine = (text: string): boolean => /^[^\n]+\n$/.test(text);
