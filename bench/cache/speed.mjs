// Parts "speed" and "long": what policies cost and what they save. Figures are the best of interleaved rounds; processor time
// beside the clock's, as it hardly depends on what else runs.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { memory, snapKV, streamingLlm } from "tokenloom";
import { number, table, timed } from "../report.mjs";
import { computed, cut, options } from "./sequences.mjs";
import { policies, shares } from "./policies.mjs";

function keepBest(best, key, { ms, cpuMs }) {
  const known = best.get(key) ?? { ms: Infinity, cpuMs: Infinity };
  best.set(key, { ms: Math.min(known.ms, ms), cpuMs: Math.min(known.cpuMs, cpuMs) });
}

async function decode(sequence, tokens) {
  for (let i = 0; i < tokens; i++) await sequence.step(options);
}

/** Ids of a text, the first `tokens`. */
function prompt(model, folder, tokens) {
  return model.tokenize(readFileSync(join(folder, "prose", "alice.txt"), "utf8")).slice(0, tokens);
}

const promptTokens = 1024, decoded = 32, rounds = 3;

export async function speed(model, { folder, log }) {
  const ids = prompt(model, folder, promptTokens), best = new Map(), bytes = new Map();
  const kinds = [["all tokens", undefined], ...Object.entries(policies).map(([name, [make]]) => [name, make])];
  for (let round = 0; round < rounds; round++) {
    for (const [name, make] of kinds) {
      const made = shares.map((share) => [share, make?.({ ratio: 1 - share })]);
      const prefill = await timed(() => computed(model, ids, made[0][1])), base = prefill.result;
      keepBest(best, `${name} prefill`, prefill);
      for (const [share, policy] of make ? made : [[1, undefined]]) {
        const fork = base.fork(base.cached, { threads: model.threads, eviction: policy && model.eviction(policy) });
        keepBest(best, `${name} cut ${share}`, await timed(() => fork.evictIfDue("prefill", options)));
        bytes.set(`${name} ${share}`, fork.cacheStatistics.bytesHeld);
        fork.tokens.push(ids[0]);
        await fork.step(options);
        keepBest(best, `${name} decode ${share}`, await timed(() => decode(fork, decoded)));
        fork.dispose();
      }
      base.dispose();
      log(".");
    }
  }
  const whole = best.get("all tokens prefill");
  return kinds.flatMap(([name, make]) => (make ? shares : [1]).map((share) => {
    const prefill = best.get(`${name} prefill`), selection = best.get(`${name} cut ${share}`), decoding = best.get(`${name} decode ${share}`);
    return {
      policy: name, share, promptTokens, prefill, selection, decode: decoding, bytes: bytes.get(`${name} ${share}`),
      promptTokensPerSecond: (promptTokens / prefill.ms) * 1000, tokensPerSecond: (decoded / decoding.ms) * 1000,
      observationShare: prefill.cpuMs / whole.cpuMs - 1, selectionShare: selection.cpuMs / whole.cpuMs,
    };
  }));
}

export function printSpeed(rows) {
  const percent = (value) => `${number(100 * value, 1)} %`;
  return table(
    ["policy", "tokens kept", "bytes", "prompt tokens/s", "observing, of prefill", "selection, of prefill", "tokens/s", "processor ms a token"],
    rows.map((row) => [
      row.policy, percent(row.share), percent(row.bytes / rows[0].bytes), number(row.promptTokensPerSecond), percent(row.observationShare), percent(row.selectionShare), number(row.tokensPerSecond), number(row.decode.cpuMs / decoded, 2),
    ]),
  );
}

const longTokens = 8000, budget = 512, longDecoded = 12, longRounds = 5;

export async function long(model, { folder, log }) {
  const ids = prompt(model, folder, longTokens), observing = snapKV({ budget, window: 64, decode: false });
  const { result: base, ms } = await timed(() => computed(model, ids, observing));
  log(".");
  const sequences = new Map([["all tokens", base.fork(base.cached, { threads: model.threads })]]);
  for (const policy of [observing, streamingLlm({ budget })]) sequences.set(policy.name, await cut(model, base, policy));
  const best = new Map(), bytes = new Map([...sequences].map(([name, sequence]) => [name, sequence.cacheStatistics.bytesHeld]));
  for (const sequence of sequences.values()) {
    sequence.tokens.push(ids[0]);
    await sequence.step(options);
  }
  for (let round = 0; round < longRounds; round++) {
    for (const [name, sequence] of sequences) keepBest(best, name, await timed(() => decode(sequence, longDecoded)));
    log(".");
  }
  for (const sequence of sequences.values()) sequence.dispose();
  // The only holder of its pages now: what it gives up must go back at once.
  const before = memory().cache;
  await base.evictIfDue("prefill", options);
  const after = memory().cache;
  base.dispose();
  const whole = best.get("all tokens");
  return {
    tokens: longTokens, budget, prefillMs: ms, poolBytesBefore: before, poolBytesAfter: after, poolBytesLeft: memory().cache,
    rows: [...best].map(([name, { ms: took, cpuMs }]) => ({ policy: name, tokensPerSecond: (longDecoded / took) * 1000, cpuMs: cpuMs / longDecoded, ratio: whole.ms / took, cpuRatio: whole.cpuMs / cpuMs, bytes: bytes.get(name) })),
  };
}

export function printLong({ tokens, budget: kept, rows, poolBytesBefore, poolBytesAfter }) {
  const made = rows.map((row) => [row.policy, number(row.tokensPerSecond), `${number(row.ratio, 2)}×`, `${number(row.cpuRatio, 2)}×`, `${number(row.bytes / 2 ** 20, 1)} MiB`]);
  return `${table([`decoding behind ${number(tokens)} tokens, budget ${kept}`, "tokens/s", "against all tokens", "in processor time", "cache"], made)}\n\n` +
    `bytes of the pool: ${number(poolBytesBefore)} before the cut, ${number(poolBytesAfter)} at once behind it (${number((100 * poolBytesAfter) / poolBytesBefore, 1)} %; ${kept} of ${number(tokens)} tokens are ${number((100 * kept) / tokens, 1)} %)`;
}
