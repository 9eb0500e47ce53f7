// npm run bench:cache [-- --part perplexity,needles,speed,long,types,endless,sessions --model FILE --threads 2]
// Evidence for the cache and its policies on a real model, in parts; each prints a table and is kept in bench/results/cache.json.
// Prose and needles are read from data/ in the folder that TOKENLOOM_SHARED names.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { loadModel } from "tokenloom";
import { needles, perplexity, printNeedles, printPerplexity } from "./cache/quality.mjs";
import { endless, printEndless } from "./cache/endless.mjs";
import { sessions, printSessions } from "./cache/sessions.mjs";
import { long, printLong, printSpeed, speed } from "./cache/speed.mjs";
import { cacheTypes, printTypes } from "./cache/types.mjs";
import { commit, machine } from "./report.mjs";

const parts = {
  perplexity: [perplexity, printPerplexity], needles: [needles, printNeedles], speed: [speed, printSpeed], long: [long, printLong], types: [cacheTypes, printTypes], endless: [endless, printEndless], sessions: [sessions, printSessions],
};
const here = dirname(fileURLToPath(import.meta.url));
const { values: flags } = parseArgs({
  options: {
    part: { type: "string", default: Object.keys(parts).join() },
    model: { type: "string", default: "SmolLM2-135M-Instruct.Q4_1.gguf" },
    threads: { type: "string", default: String(Math.min(2, availableParallelism())) },
    out: { type: "string", default: join(here, "results", "cache.json") },
  },
});
const folder = join(process.env.TOKENLOOM_SHARED ?? join(here, "..", "..", "shared"), "data");
const threads = Number(flags.threads), open = (options) => loadModel(flags.model, { offline: true, threads, ...options });
const log = (mark) => process.stderr.write(mark);

for (const part of flags.part.split(",")) {
  if (!parts[part]) throw new Error(`there is no part ${part}, but ${Object.keys(parts).join(", ")}`);
  const [run, print] = parts[part], about = { date: new Date().toISOString(), commit: commit(), machine: machine(), model: flags.model, threads };
  const model = await open();
  const figures = await run(model, { folder, open, threads, log });
  model.dispose();
  log("\n");
  console.log(`\n${part}\n\n${print(figures)}`);
  const known = existsSync(flags.out) ? JSON.parse(readFileSync(flags.out, "utf8")) : {};
  mkdirSync(dirname(flags.out), { recursive: true });
  writeFileSync(flags.out, `${JSON.stringify({ ...known, [part]: { ...about, figures } }, null, 1)}\n`);
}
