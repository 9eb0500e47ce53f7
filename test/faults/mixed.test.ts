import { monitorEventLoopDelay } from "node:perf_hooks";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { AbortError, loadModel, memory, ops, tensor } from "tokenloom";
import { settledMemory } from "../support/leaks.js";
import { randomOptions, randomPrompt } from "./sessions.js";
import { Random, report, sizesOf } from "./support.js";

/** The value below which so large a share of them lies. */
const quantile = (values: readonly number[], share: number): number => [...values].sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor(share * values.length))] ?? 0;

t.test("a mixed load without end: gaps between tokens and memory stay as they were", { timeout: 7_200_000 }, async (t) => {
  const { minutes, clients } = sizesOf("mixed") as { minutes: number; clients: number }, random = new Random(22), model = await loadModel("tiny");
  const started = performance.now(), end = started + 60_000 * minutes, window = (end - started) / 6, delay = monitorEventLoopDelay({ resolution: 1 });
  const gaps: { at: number; ms: number }[] = [], sizes: number[] = [];
  let generations = 0, tokens = 0, aborts = 0;

  const client = async (): Promise<void> => {
    while (performance.now() < end) {
      using session = model.session(randomOptions(random));
      const controller = new AbortController(), most = 4 + random.below(60), stop = random.chance(0.2) ? random.below(most) : Infinity;
      let last = 0, seen = 0;
      try {
        for await (const piece of session.generate(randomPrompt(random), { maxTokens: most, temperature: random.pick([0, 1]), seed: random.below(1000), signal: controller.signal })) {
          const now = performance.now();
          if (last > 0) gaps.push({ at: now, ms: (now - last) / Math.max(1, piece.tokens.length) });
          seen += piece.tokens.length;
          tokens += piece.tokens.length;
          if (seen >= stop) controller.abort();
          if (random.chance(0.02)) await sleep(random.below(30));
          last = performance.now();
        }
      } catch (error) {
        if (!(error instanceof AbortError)) throw error;
        aborts++;
      }
      generations++;
    }
  };
  const others = async (): Promise<void> => {
    const x = tensor(new Float32Array(4 * 128 * 32).fill(0.1), [1, 4, 128, 32]);
    while (performance.now() < end) {
      (await ops.attention(x, x, x, { causal: true })).out.dispose();
      await model.score(randomPrompt(random));
      (await loadModel("tiny")).dispose();
      globalThis.gc!();
      sizes.push(process.memoryUsage().rss);
      await sleep(Math.min(5000, window / 20));
    }
  };
  delay.enable();
  await Promise.all([...Array.from({ length: clients }, client), others()]);
  delay.disable();
  // The first sixth warms up; then the first and the last sixth are compared.
  const between = (from: number, to: number): number[] => gaps.filter(({ at }) => at >= started + from * window && at < started + to * window).map(({ ms }) => ms);
  const early = quantile(between(1, 2), 0.99), late = quantile(between(5, 6), 0.99);
  const sixth = Math.floor(sizes.length / 6), mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);
  const [before, after] = [mean(sizes.slice(sixth, 2 * sixth)), mean(sizes.slice(-Math.max(1, sixth)))];
  t.equal(memory().cache, 0);
  model.dispose();
  t.match(await settledMemory(), { weights: 0, cache: 0 });
  t.ok(generations > 0 && aborts > 0);
  if (minutes >= 5) t.ok(after < 1.05 * before, `resident set ${before} → ${after}`);
  report("mixed", {
    minutes, generations, tokens, aborts, p99GapFirstMs: +early.toFixed(1), p99GapLastMs: +late.toFixed(1), residentChangePercent: +(100 * (after / before - 1)).toFixed(1),
    p99DelayMs: +(delay.percentile(99) / 1e6).toFixed(1),
  });
});
