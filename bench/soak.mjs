// node bench/soak.mjs [--tokens 1000000] [--seed 1]
// Small generations on the tiny model, several sessions at once, a third of them aborted at a random moment. Prints memory
// at intervals; fails when native memory or handles are left at the end or the process has grown by more than 8 MB in the second half.
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { loadModel, memory } from "tokenloom";
import { randomNumbers } from "./random.mjs";

// Again with a young generation that cannot grow: V8 would take up to 48 MB for it in the course of such a run.
const self = fileURLToPath(import.meta.url);
if (!globalThis.gc) process.exit(spawnSync(process.execPath, ["--expose-gc", "--max-semi-space-size=1", self, ...process.argv.slice(2)], { stdio: "inherit" }).status ?? 1);

const { values: flags } = parseArgs({
  options: { tokens: { type: "string", default: "1000000" }, seed: { type: "string", default: "1" }, model: { type: "string", default: fileURLToPath(new URL("../models/tiny.gguf", import.meta.url)) } },
});
const wanted = Number(flags.tokens);
const atOnce = 4;
const growthLimit = 8e6;

const random = randomNumbers(Number(flags.seed));
const between = (low, high) => low + Math.floor(random() * (high - low + 1));
const model = await loadModel(flags.model);
let begin;
let done = 0;
let aborted = 0;
let generations = 0;

/** One short life of a session: one to three generations, then dispose. */
async function live() {
  const session = model.session();
  for (let turn = between(1, 3); turn > 0; turn--) {
    const prompt = Array.from({ length: between(1, 60) }, () => between(3, model.config.vocabulary - 1));
    const controller = new AbortController();
    const maxTokens = between(1, 60);
    const stopAt = random() < 1 / 3 ? between(0, maxTokens) : Infinity;
    if (stopAt === 0) setTimeout(() => controller.abort(), random() * 5);
    let seen = 0;
    try {
      for await (const piece of session.generate(prompt, { maxTokens, temperature: random() < 0.5 ? 0 : 1, seed: between(0, 1e6), ignoreEndOfText: true, signal: controller.signal })) {
        seen += piece.tokens.length;
        if (seen >= stopAt) controller.abort();
      }
    } catch (error) {
      if (error.name !== "AbortError") throw error;
      aborted++;
    }
    const { promptTokens, generatedTokens } = session.stats();
    done += promptTokens + generatedTokens;
    generations++;
  }
  session.dispose();
}

async function worker(until) {
  while (done < until) await live();
}

function resident() {
  globalThis.gc();
  return process.memoryUsage.rss();
}

function report(label) {
  const { cache, arena, handles } = memory();
  const rss = resident();
  console.log(`${label.padStart(9)} tokens, ${generations} generations, ${aborted} aborted: cache ${cache} B, arena ${arena} B, ${handles} handles, RSS ${(rss / 1e6).toFixed(1)} MB`);
  return rss;
}

const steps = 10;
let warm;
for (let step = 1; step <= steps; step++) {
  await Promise.all(Array.from({ length: atOnce }, () => worker((wanted * step) / steps)));
  const rss = report(String(done));
  // The first half fills free lists, compiles code and grows the heap to its working size.
  if (step === steps / 2) [warm, begin] = [rss, memory()];
}
const grown = resident() - warm;
const left = memory();
model.dispose();
const problems = [
  ...(left.cache > begin.cache ? [`${left.cache - begin.cache} bytes of cache are left`] : []),
  ...(left.handles > begin.handles ? [`${left.handles - begin.handles} handles are left`] : []),
  ...(grown > growthLimit ? [`the process grew by ${(grown / 1e6).toFixed(1)} MB in the second half`] : []),
  ...(memory().weights > 0 ? [`${memory().weights} bytes of weights are left after dispose()`] : []),
];
console.log(problems.length === 0 ? `no growth: ${(grown / 1e6).toFixed(1)} MB in the second half` : problems.join("; "));
process.exitCode = problems.length === 0 ? 0 : 1;
