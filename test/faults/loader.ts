/** A child process that loads the files it is told of and runs one step of each model: test/faults/mutants.test.ts. */
import { readFileSync, writeFileSync } from "node:fs";
import { loadModel, TokenloomError, type EncoderModel, type LanguageModel } from "tokenloom";

export interface Loaded {
  readonly outcome: "ran" | "refused" | "untyped";
  /** An error's class, message and whether it says where. */
  readonly error?: { readonly name: string; readonly code: string; readonly message: string; readonly placed: boolean };
  readonly cpuMs: number;
  /** How far the process grew beyond what it had before, at its peak, until the file was refused or loaded. */
  readonly peakBytes: number;
}

const status = (key: string): number => Number(new RegExp(`^${key}:\\s+(\\d+)`, "m").exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? 0) * 1024;

/** Bytes above the resident set as it stood when this was called; 0 where the system does not tell. */
function watchPeak(): () => number {
  if (process.platform !== "linux") return () => 0;
  writeFileSync("/proc/self/clear_refs", "5");
  const before = status("VmRSS");
  return () => Math.max(0, status("VmHWM") - before);
}

async function step(model: LanguageModel | EncoderModel): Promise<void> {
  using held = model;
  if (held.kind === "encoder") {
    const { image } = held.config;
    if (image && image.width * image.height > 1 << 24) return;
    await held.encode(image ? { data: new Uint8Array(image.width * image.height * 3).fill(77), width: image.width, height: image.height } : "a b c", { threads: 1 });
    return;
  }
  using session = held.session({ threads: 1 });
  for await (const piece of session.generate([1, 2, 3].map((id) => id % held.config.vocabulary), { maxTokens: 1 })) void piece;
  held.detokenize(held.tokenize("Once upon a time 1984"));
}

async function load(path: string): Promise<Loaded> {
  const peak = watchPeak(), started = process.cpuUsage();
  let peakBytes = 0;
  const spent = (): number => {
    const { user, system } = process.cpuUsage(started);
    return (user + system) / 1000;
  };
  try {
    const model = await loadModel<LanguageModel | EncoderModel>(path, { offline: true, threads: 1 });
    peakBytes = peak();
    const cpuMs = spent();
    await step(model);
    return { outcome: "ran", cpuMs, peakBytes };
  } catch (error) {
    peakBytes ||= peak();
    const { name, message, stack } = error as Error, typed = error instanceof TokenloomError;
    const placed = ["offset", "tensor", "file"].some((key) => (error as Record<string, unknown>)[key] !== undefined);
    return { outcome: typed ? "refused" : "untyped", error: { name, code: typed ? error.code : "", message: typed ? message : String(stack), placed }, cpuMs: spent(), peakBytes };
  }
}

process.on("message", (path: string) => void load(path).then((loaded) => process.send!(loaded)));
process.on("disconnect", () => process.exit(0));
process.send!("ready");
