import { monitorEventLoopDelay } from "node:perf_hooks";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { AbortError, loadModel, memory, type GenerateOptions } from "tokenloom";
import { modelPath, SMOLLM2 } from "../support/paths.js";
import { alone, randomPrompt, read, type Text } from "./sessions.js";
import { Random, report, scale, sizesOf } from "./support.js";

const real = scale === "full" ? modelPath(SMOLLM2) : undefined;
const { sessions, tokens } = sizesOf("serving") as { sessions: number; tokens: number };
const model = await loadModel(real ?? "tiny");
t.after(() => model.dispose());

interface Client {
  readonly prompt: string;
  readonly options: GenerateOptions;
  readonly kind: "plain" | "slow" | "aborts" | "leaves";
  readonly after: number;
}

function client(random: Random, i: number): Client {
  return { prompt: randomPrompt(random), options: { maxTokens: tokens, seed: i, temperature: random.pick([0, 0.8]) }, kind: random.pick(["plain", "plain", "slow", "aborts", "leaves"]), after: 1 + random.below(tokens - 1) };
}

t.test("many sessions at once: each its own text, in turn, with bounded memory and a free event loop", { timeout: 3_600_000 }, async (t) => {
  const random = new Random(64), clients = Array.from({ length: sessions }, (_, i) => client(random, i)), expected: Text[] = [];
  for (const { prompt, options } of clients) expected.push(await alone(model, prompt, options));
  const delay = monitorEventLoopDelay({ resolution: 1 }), progress = new Array<number>(sessions).fill(0);
  let mostAhead = 0, first: number[] | undefined, mostCache = 0;
  delay.enable();
  const texts = await Promise.all(clients.map(async ({ prompt, options, kind, after }, i) => {
    using session = model.session();
    const controller = new AbortController();
    let text = "";
    try {
      for await (const piece of session.generate(prompt, { ...options, signal: controller.signal })) {
        text += piece.text;
        progress[i]! += piece.tokens.length;
        mostAhead = Math.max(mostAhead, session.stats().generatedTokens - progress[i]!);
        mostCache = Math.max(mostCache, memory().cache);
        if (kind === "slow") {
          const before = session.stats().generatedTokens;
          await sleep(random.below(20));
          mostAhead = Math.max(mostAhead, session.stats().generatedTokens - before);
        }
        if (kind === "aborts" && progress[i]! >= after) controller.abort();
        if (kind === "leaves" && progress[i]! >= after) break;
      }
    } catch (error) {
      if (!(error instanceof AbortError && kind === "aborts")) t.fail(`session ${i}: ${(error as Error).stack}`);
    }
    if (kind === "plain" && progress[i]! >= tokens) first ??= [...progress];
    return text;
  }));
  delay.disable();
  for (const [i, text] of texts.entries()) {
    const { kind } = clients[i]!, right = expected[i]!.text;
    t.ok(kind === "plain" || kind === "slow" ? text === right : right.startsWith(text), `session ${i}, ${kind}: the text it has alone`);
  }
  const plain = (first ?? progress).filter((_, i) => clients[i]!.kind === "plain" && expected[i]!.tokens.length >= tokens), least = Math.min(...plain);
  t.ok(first === undefined || least >= tokens / 4, `when the first was done with ${tokens} tokens, the last had ${least}`);
  t.ok(mostAhead <= 1, `nobody is served further ahead of its reader than a token: ${mostAhead}`);
  t.equal(memory().cache, 0, "all pages went back");
  const p99 = delay.percentile(99) / 1e6, figures = { sessions, tokens: progress.reduce((a, b) => a + b, 0), leastOfFirst: least, mostAhead, mostCacheMiB: +(mostCache / 2 ** 20).toFixed(1), p99DelayMs: +p99.toFixed(1), longestDelayMs: +(delay.max / 1e6).toFixed(1) };
  t.comment(JSON.stringify(figures));
  report("serving", { model: real ? "SmolLM2-135M" : "tiny", ...figures });
});

t.test("a stream waits for its reader, is free where the reader leaves, and does nothing for an aborted signal", async (t) => {
  using session = model.session();
  const stream = session.generate("Once upon a time", { maxTokens: 30 })[Symbol.asyncIterator]();
  const piece = await stream.next();
  const written = session.stats().generatedTokens;
  await sleep(100);
  t.equal(session.stats().generatedTokens, written, "nothing is written that nobody asked for");
  t.equal(piece.done, false);
  await stream.return!();
  t.ok((await read(session, " and", { maxTokens: 2 })).tokens.length > 0, "free at once");
  using fresh = model.session();
  await t.rejects(read(fresh, "Once upon a time", { signal: AbortSignal.abort() }), AbortError);
  t.match(fresh.stats(), { promptTokens: 0, cachedTokens: 0, cacheBytes: 0, generatedTokens: 0 });
  const never = fresh.generate("Once upon a time");
  void never;
  fresh.dispose();
  report("streams", { writtenAhead: 0, nativeWorkForAbortedSignal: 0 });
});
