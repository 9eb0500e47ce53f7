// Part "endless": 50,000 tokens of one text under StreamingLLM; memory and time a token must not grow.
import { memory, streamingLlm } from "tokenloom";
import { number, table } from "../report.mjs";

const tokens = 50_000, every = 5_000, budget = 512;

export async function endless(model, { log }) {
  const session = model.session({ cache: streamingLlm({ budget }) }), rows = [];
  let written = 0, cpu = process.cpuUsage(), started = performance.now();
  for await (const piece of session.generate("Once upon a time", { maxTokens: tokens, temperature: 1, seed: 1, ignoreEndOfText: true })) {
    const before = Math.floor(written / every);
    written += piece.tokens.length;
    if (Math.floor(written / every) === before) continue;
    globalThis.gc?.();
    const { user, system } = process.cpuUsage(cpu);
    rows.push({ tokens: written, msPerToken: (performance.now() - started) / every, cpuMsPerToken: (user + system) / 1000 / every, cacheBytes: memory().cache, arenaBytes: memory().arena, rss: process.memoryUsage.rss() });
    log(".");
    [cpu, started] = [process.cpuUsage(), performance.now()];
  }
  const { cachedTokens, evictedTokens } = session.stats();
  session.dispose();
  return { budget, cachedTokens, evictedTokens, cacheBytesLeft: memory().cache, rows };
}

export function printEndless({ rows, cachedTokens, evictedTokens }) {
  const made = rows.map((row) => [number(row.tokens), number(row.msPerToken, 2), number(row.cpuMsPerToken, 2), number(row.cacheBytes), number(row.rss / 1e6, 1)]);
  return `${table(["tokens", "ms a token", "processor ms a token", "bytes of cache", "resident MB"], made)}\n\n${number(cachedTokens)} tokens computed, ${number(cachedTokens - evictedTokens)} held`;
}
