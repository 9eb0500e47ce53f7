/**
 * Load, encode, generate with eviction and drafts, save and restore, while the n-th allocation fails. TOKENLOOM_FAIL_ALLOC=n (once) or n+ (from
 * then on) does it for one n and prints how it ended; without it `once.js FIRST STEP MOST` tries n = FIRST, FIRST + STEP … in both ways until the
 * whole goes well, one JSON line for each. Run with --expose-gc.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadModel, memory, OutOfMemoryError, snapKV, tokenRecycling, type EncoderModel, type LanguageModel, type Session } from "tokenloom";
import { native } from "#lib/native.js";

export interface Attempt {
  readonly n: number;
  readonly later: boolean;
  readonly outcome: "whole" | "refused" | "wrong";
  readonly detail?: string;
  /** Allocations made while they could fail. */
  readonly allocations: number;
}

const fixtures = join(process.cwd(), "test", "fixtures"), decoder = join(fixtures, "architectures", "llama3", "model.gguf"), encoder = join(fixtures, "encoders", "vit");
const folder = mkdtempSync(join(tmpdir(), "tokenloom-once-"));
process.on("exit", () => rmSync(folder, { recursive: true, force: true }));
const prompt = Array.from({ length: 40 }, (_, i) => (i * 7) % 100);

async function read(session: Session, ids: readonly number[], tokens: number): Promise<number[]> {
  const all: number[] = [];
  for await (const piece of session.generate(ids, { maxTokens: tokens, ignoreEndOfText: true })) all.push(...piece.tokens);
  return all;
}

/** Prefill in two parts, 8 tokens, eviction by a window's attention, drafts. */
async function generate(model: LanguageModel): Promise<string> {
  using session = model.session({ cache: snapKV({ budget: 24, window: 4 }), draft: tokenRecycling(), draftNodes: 6 });
  const tokens = [...(await read(session, prompt, 4)), ...(await read(session, [3, 4], 4))];
  using fork = session.fork();
  return [...tokens, ...(await read(fork, [5], 2))].join();
}

async function scenario(kept: LanguageModel): Promise<string> {
  const parts = [await generate(kept)];
  using model = await loadModel(decoder, { cacheType: "int8" });
  parts.push(await generate(model));
  using session = model.session();
  parts.push((await read(session, prompt, 3)).join());
  await session.save(join(folder, "saved"));
  using restored = await model.restore(join(folder, "saved"));
  parts.push((await read(restored, [9], 3)).join());
  using images = await loadModel(encoder, { kind: "encoder" }) as EncoderModel;
  const { image } = images.config;
  using encoded = await images.encode({ data: new Uint8Array(image!.width * image!.height * 3).fill(50), width: image!.width, height: image!.height });
  parts.push(encoded.embedding.data.join());
  return parts.join("|");
}

/** memory() once the collector has had its chance, or no more handles than `wanted` are left. */
async function settled(wanted: number): Promise<ReturnType<typeof memory>> {
  for (let i = 0; i < 100 && memory().handles > wanted; i++) {
    globalThis.gc!();
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  return memory();
}

/** `before`: what is held when nothing runs. */
async function attempt(kept: LanguageModel, n: number, later: boolean, right: string, before: ReturnType<typeof memory>): Promise<Attempt> {
  const from = native.failAllocation(n, later);
  let result: string | undefined, error: unknown;
  try {
    result = await scenario(kept);
  } catch (caught) {
    error = caught;
    void (caught as Error).stack; // until it is asked for, an error holds on to what its frames held
  }
  const allocations = native.failAllocation(0, false) - from;
  const done = (outcome: Attempt["outcome"], detail?: string): Attempt => ({ n, later, outcome, allocations, ...(detail !== undefined && { detail }) });
  if (error !== undefined && !(error instanceof OutOfMemoryError)) return done("wrong", `not OutOfMemoryError: ${(error as Error).stack}`);
  if (error === undefined && result !== right) return done("wrong", "another result");
  if ((await generate(kept)) !== right.split("|")[0]) return done("wrong", "the next run differs");
  const after = await settled(before.handles);
  for (const owner of ["handles", "weights", "cache"] as const) if (after[owner] !== before[owner]) return done("wrong", `${owner}: ${before[owner]} before, ${after[owner]} after`);
  return done(error === undefined ? "whole" : "refused");
}

const kept = await loadModel(decoder), right = await scenario(kept), again = await scenario(kept);
if (again !== right) throw new Error("the scenario is not deterministic");
const before = await settled(0), asked = /^(\d+)(\+?)$/.exec(process.env["TOKENLOOM_FAIL_ALLOC"] ?? "");
const print = (made: Attempt): boolean => process.stdout.write(`${JSON.stringify(made)}\n`);
if (asked) {
  print(await attempt(kept, Number(asked[1]), asked[2] === "+", right, before));
} else {
  const [first, step, most] = process.argv.slice(2).map(Number) as [number, number, number];
  for (let n = first; n <= most; n += step) {
    const once = await attempt(kept, n, false, right, before);
    print(once);
    print(await attempt(kept, n, true, right, before));
    if (once.outcome === "whole" && n > once.allocations) break;
  }
}
kept.dispose();
