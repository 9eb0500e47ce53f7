import { fork, type ChildProcess } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t, { type Test as T } from "tap";
import { encoderFolder, tinyBert } from "../support/encoders.js";
import { scratch } from "../support/paths.js";
import type { Loaded } from "./loader.js";
import { layoutOfGguf, mutateGguf } from "./mutate-gguf.js";
import { mutateJson, mutateSafetensors, readSafetensors } from "./mutate-safetensors.js";
import { Random, report, sanitizedEnvironment, scriptPath, sizesOf } from "./support.js";

const architectures = join(process.cwd(), "test", "fixtures", "architectures");
const folder = mkdtempSync(join(tmpdir(), "tokenloom-mutants-"));
t.after(() => rmSync(folder, { recursive: true, force: true }));

/** A loader counts as hung after so many looks in vain, this far apart: the bar is processor time, but one that sleeps for ever uses none. */
const mostLooks = 6, betweenLooks = 30_000;

/** Whether a process is stopped, as by SIGSTOP: then its silence means nothing. */
function isStopped(pid: number | undefined): boolean {
  try {
    return readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]!.startsWith("T");
  } catch {
    return false;
  }
}

interface Lost {
  readonly outcome: "died" | "hung";
  readonly how: string;
}

/** Loads one file after another in a process of its own; a new one where that dies. */
class Loader implements Disposable {
  private process: ChildProcess | undefined;

  constructor(private readonly env: Readonly<Record<string, string>>) {}

  async load(path: string): Promise<Loaded | Lost> {
    const process = (this.process ??= await this.start());
    return new Promise((resolve) => {
      const done = (result: Loaded | Lost): void => {
        clearInterval(timer);
        process.removeAllListeners();
        resolve(result);
      };
      let looks = 0;
      const timer = setInterval(() => {
        if (isStopped(process.pid) || ++looks < mostLooks) return;
        process.kill("SIGKILL");
        this.process = undefined;
        done({ outcome: "hung", how: `no answer in ${mostLooks * betweenLooks} ms` });
      }, betweenLooks);
      process.once("message", (loaded) => done(loaded as Loaded));
      process.once("exit", (code, signal) => {
        this.process = undefined;
        done({ outcome: "died", how: `code ${code}, signal ${signal}` });
      });
      process.send(path);
    });
  }

  private start(): Promise<ChildProcess> {
    const started = fork(scriptPath("loader"), { env: { ...process.env, ...this.env }, execArgv: [] });
    return new Promise((resolve, reject) => {
      started.once("message", () => resolve(started));
      started.once("exit", (code) => reject(new Error(`the loader ended with code ${code} before it began`)));
    });
  }

  [Symbol.dispose](): void {
    this.process?.kill("SIGKILL");
  }
}

interface Written {
  readonly path: string;
  readonly what: string;
  readonly reject: boolean;
  readonly bytes: number;
}

type Maker = (random: Random) => Written;

function ggufMaker(): Maker {
  const sources = readdirSync(architectures).map((name) => readFileSync(join(architectures, name, "model.gguf"))).map((bytes) => ({ bytes, layout: layoutOfGguf(bytes) }));
  return (random) => {
    const { bytes, layout } = random.pick(sources), { bytes: mutant, what, reject } = mutateGguf(bytes, layout, random), path = join(folder, "mutant.gguf");
    writeFileSync(path, mutant);
    return { path, what, reject, bytes: mutant.length };
  };
}

function safetensorsMaker(): Maker {
  const bert = tinyBert(scratch(t));
  const folders = [...readdirSync(architectures).map((name) => join(architectures, name)), ...["vit", "clip", "siglip", "dinov2"].map((name) => join(encoderFolder, name)), bert];
  const sources = folders.map((from) => ({ from, weights: readSafetensors(readFileSync(join(from, "model.safetensors"))), others: ["config.json", "tokenizer.json"].filter((name) => existsSync(join(from, name))) }));
  return (random) => {
    const { from, weights, others } = random.pick(sources), path = join(folder, "mutant"), other = random.chance(0.4) ? random.pick(others) : undefined;
    rmSync(path, { recursive: true, force: true });
    mkdirSync(path);
    for (const name of ["config.json", "tokenizer.json", "model.safetensors", "preprocessor_config.json"]) if (existsSync(join(from, name))) copyFileSync(join(from, name), join(path, name));
    if (other !== undefined) {
      const { text, what } = mutateJson(readFileSync(join(from, other), "utf8"), random);
      writeFileSync(join(path, other), text);
      return { path, what: `${other}: ${what}`, reject: false, bytes: text.length + weights.data.length };
    }
    const { bytes, what, reject } = mutateSafetensors(weights, random);
    writeFileSync(join(path, "model.safetensors"), bytes);
    return { path, what, reject, bytes: bytes.length };
  };
}

/** Bars of rows 1 and 2: what a file may cost until it is refused or loaded. */
const mostCpuMs = 2000, mostBytes = (size: number): number => (64 << 20) + 2 * size;

async function run(t: T, make: Maker, count: number, seed: number, env: Readonly<Record<string, string>>, bars: boolean): Promise<Record<string, number>> {
  using loader = new Loader(env);
  const random = new Random(seed), counts = { mutants: count, refused: 0, ran: 0, mostCpuMs: 0, mostMiB: 0 };
  await loader.load(join(folder, "absent.gguf")); // what the process needs once is no file's fault
  for (let i = 0; i < count; i++) {
    const { path, what, reject, bytes } = make(random), result = await loader.load(path), where = `mutant ${i} of seed ${seed}: ${what}`;
    if ("how" in result) {
      t.fail(`${where}: ${result.outcome}, ${result.how}`);
      continue;
    }
    if (result.outcome === "untyped") t.fail(`${where}: ${result.error?.message}`);
    if (reject && result.outcome === "ran") t.fail(`${where}: was accepted`);
    if (reject && result.outcome === "refused" && (result.error!.name !== "ModelFormatError" || !result.error!.placed)) t.fail(`${where}: ${result.error!.name} without a place: ${result.error!.message}`);
    counts[result.outcome === "ran" ? "ran" : "refused"]++;
    if (!bars) continue;
    if (result.cpuMs > mostCpuMs) t.fail(`${where}: took ${result.cpuMs} ms`);
    if (result.peakBytes > mostBytes(bytes)) t.fail(`${where}: grew by ${result.peakBytes} bytes for a file of ${bytes}`);
    counts.mostCpuMs = Math.max(counts.mostCpuMs, Math.round(result.cpuMs));
    counts.mostMiB = Math.max(counts.mostMiB, Math.round(result.peakBytes / 2 ** 20));
  }
  return counts;
}

const makers = { gguf: ggufMaker(), safetensors: safetensorsMaker() };
const sanitized = sanitizedEnvironment();
for (const [name, make] of Object.entries(makers)) {
  t.test(`mutants of ${name} files: refused with a place, or they run; none crashes, hangs or grows`, { timeout: 3_600_000 }, async (t) => {
    const { mutants, sanitized: under } = sizesOf(name) as { mutants: number; sanitized: number };
    const counts = await run(t, make, mutants, 20261128, {}, true);
    t.ok(counts["refused"]! > 0 && counts["ran"]! > 0, JSON.stringify(counts));
    if (sanitized) Object.assign(counts, { sanitized: (await run(t, make, under, 7, sanitized, false))["mutants"] });
    else t.comment("the addon with AddressSanitizer is not built: node scripts/build-faults.mjs");
    report(name, counts);
  });
}
