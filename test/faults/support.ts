import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/** One row of the table of fault evidence: test/faults/rows.json, which scripts/soak.mjs reads too. */
interface Row {
  readonly name: string;
  readonly small: Readonly<Record<string, number>>;
  readonly full: Readonly<Record<string, number>>;
}

const root = process.cwd();
const rows = JSON.parse(readFileSync(join(root, "test", "faults", "rows.json"), "utf8")) as Row[];

/** "full" under `npm run soak`, else "small". */
export const scale = process.env["TOKENLOOM_FAULTS"] === "full" ? "full" : "small";

/** How much a row's test is to do. */
export function sizesOf(name: string): Readonly<Record<string, number>> {
  const row = rows.find((each) => each.name === name);
  if (!row) throw new Error(`test/faults/rows.json has no row ${name}`);
  return row[scale];
}

/** Leaves a row's figures in build/faults/, where scripts/soak.mjs finds them. */
export function report(name: string, figures: Readonly<Record<string, number | string>>): void {
  sizesOf(name);
  const folder = join(root, "build", "faults");
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, `${name}.json`), `${JSON.stringify({ name, scale, figures })}\n`);
}

/** Numbers in [0, 1) that follow from the seed alone (splitmix32). */
export class Random {
  constructor(private state: number) {}

  next(): number {
    this.state = (this.state + 0x9e3779b9) | 0;
    let z = this.state;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return ((z ^ (z >>> 15)) >>> 0) / 2 ** 32;
  }

  below(count: number): number {
    return Math.floor(this.next() * count);
  }

  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)]!;
  }

  chance(probability: number): boolean {
    return this.next() < probability;
  }
}

export interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs Node on a script or on code until it ends; `during` may send signals meanwhile. */
export function child(args: readonly string[], options: { env?: Readonly<Record<string, string>>; during?: (process: ReturnType<typeof spawn>) => void; timeout?: number } = {}): Promise<Ended> {
  const started = spawn(process.execPath, args, { cwd: root, env: { ...process.env, ...options.env }, stdio: ["ignore", "pipe", "pipe"] });
  options.during?.(started);
  let stdout = "", stderr = "";
  started.stdout.on("data", (text: Buffer) => (stdout += text.toString()));
  started.stderr.on("data", (text: Buffer) => (stderr += text.toString()));
  const timer = setTimeout(() => started.kill("SIGKILL"), options.timeout ?? 600_000);
  return new Promise((resolve, reject) => {
    started.on("error", reject);
    started.on("close", (code, signal) => {
      clearTimeout(timer);
      resolve({ code, signal, stdout, stderr });
    });
  });
}

/** A compiled script of this folder. */
export function scriptPath(name: string): string {
  return join(root, "build", "test", "faults", `${name}.js`);
}

/**
 * The environment in which Node uses the addon built with AddressSanitizer and UndefinedBehaviorSanitizer (`node scripts/build-faults.mjs`),
 * whose reports end the process with code 99; undefined where it has not been built.
 */
export function sanitizedEnvironment(): Record<string, string> | undefined {
  const folder = join(root, "build", "addon-asan"), library = join(folder, "libasan.txt");
  if (!existsSync(library)) return undefined;
  return {
    TOKENLOOM_PREBUILD: folder, LD_PRELOAD: readFileSync(library, "utf8").trim(),
    ASAN_OPTIONS: "detect_leaks=0:exitcode=99:alloc_dealloc_mismatch=0:allocator_may_return_null=1:detect_stack_use_after_return=0",
    UBSAN_OPTIONS: "halt_on_error=1:print_stacktrace=1:exitcode=99",
  };
}
