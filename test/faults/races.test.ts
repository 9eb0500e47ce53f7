import t from "tap";
import { DisposedError, loadModel, memory, ops, tensor, TokenloomError, zeros } from "tokenloom";
import { settledMemory } from "../support/leaks.js";
import { randomOptions, randomPrompt, read } from "./sessions.js";
import { child, Random, report, sanitizedEnvironment, scriptPath, sizesOf } from "./support.js";

t.test("dispose of a model, session or tensor during a call, in any order, twice: the call ends properly", { timeout: 3_600_000 }, async (t) => {
  const { races } = sizesOf("races") as { races: number }, random = new Random(10), sample = tensor(new Float32Array(2 * 64 * 16).fill(0.1), [1, 2, 64, 16]);
  (await ops.attention(sample, sample, sample)).out.dispose(); // the graph of a single op is kept for the next call
  const kept = memory().handles, counts = { races, ended: 0, disposed: 0 };
  const pause = (): Promise<void> => new Promise((resolve) => (random.chance(0.5) ? setImmediate(resolve) : setTimeout(resolve, random.below(6))));
  const race = async (i: number): Promise<void> => {
    const model = await loadModel("tiny"), sessions = [0, 1, 2].map(() => model.session(randomOptions(random)));
    const x = tensor(new Float32Array(2 * 64 * 16).fill(0.1), [1, 2, 64, 16]);
    const calls: Promise<unknown>[] = [
      ...sessions.map((session) => read(session, randomPrompt(random), { maxTokens: 12 })), ops.attention(x, x, x).then(({ out }) => out.dispose()), model.score("Once upon a time"),
      read(sessions[0]!, "busy"), loadModel("tiny").then((other) => other.dispose()),
    ];
    const settled = Promise.allSettled(calls), victims: { dispose(): void }[] = [...sessions, model, x, zeros([4])].sort(() => random.next() - 0.5);
    for (const victim of victims) {
      if (random.chance(0.7)) await pause();
      victim.dispose();
      if (random.chance(0.3)) victim.dispose();
    }
    for (const result of await settled) {
      if (result.status === "fulfilled") counts.ended++;
      else if (result.reason instanceof DisposedError) counts.disposed++;
      else if (!(result.reason instanceof TokenloomError && result.reason.code === "TL_BUSY")) t.fail(`race ${i}: ${(result.reason as Error).stack}`);
    }
  };
  for (let i = 0; i < races; i += 4) await Promise.all([0, 1, 2, 3].map((k) => race(i + k)));
  t.ok(counts.ended > 0 && counts.disposed > 0, JSON.stringify(counts));
  t.match(await settledMemory(), { handles: kept, weights: 0, cache: 0 });
  report("races", counts);
});

t.test("the same under AddressSanitizer", { timeout: 3_600_000 }, async (t) => {
  const env = sanitizedEnvironment();
  if (env === undefined) return t.comment("the addon with AddressSanitizer is not built: node scripts/build-faults.mjs");
  if (process.env["TOKENLOOM_PREBUILD"] === env["TOKENLOOM_PREBUILD"]) return t.comment("this is that run");
  const { code, signal, stdout, stderr } = await child(["--expose-gc", scriptPath("races.test")], { env: { ...env, TAP_TIMEOUT: "3600" }, timeout: 3_600_000 });
  t.match({ code, signal }, { code: 0, signal: null }, `${stdout.slice(-2000)}${stderr.slice(-3000)}`);
  return undefined;
});
