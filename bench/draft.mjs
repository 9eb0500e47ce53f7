// npm run bench:draft [-- --model FILE --runs 3 --threads 2 --tokens 256 --kinds chat,code --drafters tokenRecycling,combine]
// Every drafter over four kinds of prompts, greedy, against plain decoding, with node-llama-cpp's own predictors (in the folder
// that TOKENLOOM_PEERS names) beside its own plain decoding; interleaved, each in a process of its own, best of `runs`.
// Drafters have seen one prompt of each other kind before (their state is meant to be kept). Writes bench/results/draft.json.
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { loadModel, locateModel } from "tokenloom";
import { measure } from "./child.mjs";
import { kinds } from "./peers/draft-prompts.mjs";
import { commit, machine, number, table } from "./report.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const all = ["tokenRecycling", "promptLookup", "suffixLookup", "lookahead", "draftModel", "combine"];
const { values: flags } = parseArgs({
  options: {
    model: { type: "string", default: "SmolLM2-135M-Instruct.Q4_1.gguf" },
    runs: { type: "string", default: "3" },
    threads: { type: "string", default: String(Math.min(2, availableParallelism())) },
    tokens: { type: "string", default: "256" },
    kinds: { type: "string", default: Object.keys(kinds).join() },
    drafters: { type: "string", default: all.join() },
    out: { type: "string", default: join(here, "results", "draft.json") },
  },
});
const threads = Number(flags.threads), tokens = Number(flags.tokens), drafters = ["none", ...flags.drafters.split(",")];
const path = await locateModel(flags.model, { offline: true });
const peerFolder = process.env.TOKENLOOM_PEERS && join(process.env.TOKENLOOM_PEERS, "node_modules", "node-llama-cpp");
const peers = peerFolder && existsSync(peerFolder) ? ["none", "lookup", "draft"] : [];
if (peers.length === 0) console.log("node-llama-cpp is left out: TOKENLOOM_PEERS names no folder with node_modules/node-llama-cpp\n");

const tokenizer = await loadModel(path, { offline: true });
const idsOf = (prompt) => tokenizer.tokenize(tokenizer.applyChatTemplate([{ role: "user", content: prompt }], { addGenerationPrompt: true }), { special: true, bos: tokenizer.tokenizer.addBos });
const ranOn = machine(), rows = [];
for (const kind of flags.kinds.split(",")) {
  const prompts = kinds[kind], warm = Object.entries(kinds).filter(([name]) => name !== kind).map(([, [first]]) => first);
  const ours = new Map(), theirs = new Map();
  for (let run = 0; run < Number(flags.runs); run++) {
    for (const drafter of drafters) {
      const got = await measure("peers/draft-tokenloom", { model: path, threads, drafter, prompts, warm: drafter === "none" ? [] : warm, tokens });
      if (!ours.has(drafter) || got.tokensPerSecond > ours.get(drafter).tokensPerSecond) ours.set(drafter, got);
    }
    for (const drafter of peers) {
      const got = await measure("peers/draft-node-llama-cpp", { model: path, threads, drafter, promptIds: prompts.map(idsOf), tokens });
      if (!theirs.has(drafter) || got.tokensPerSecond > theirs.get(drafter).tokensPerSecond) theirs.set(drafter, got);
    }
    process.stderr.write(".");
  }
  const plain = ours.get("none");
  for (const [drafter, got] of ours) {
    if (JSON.stringify(got.ids) !== JSON.stringify(plain.ids)) throw new Error(`${drafter} changed the text of ${kind}`);
    const { ids: _, ...figures } = got;
    rows.push({ kind, engine: "tokenloom", drafter, ...figures, speedUp: got.tokensPerSecond / plain.tokensPerSecond });
  }
  for (const [drafter, got] of theirs) rows.push({ kind, engine: "node-llama-cpp", drafter, ...got, speedUp: got.tokensPerSecond / theirs.get("none").tokensPerSecond });
}
tokenizer.dispose();
process.stderr.write("\n");

const columns = ["prompts", "engine", "drafts", "tokens/s", "speed-up", "tokens a step", "nodes a step", "time in drafts", "state"];
console.log(table(columns, rows.map((row) => {
  const share = row.draftMs === undefined ? "–" : `${number((100 * row.draftMs) / (row.draftMs + row.forwardMs), 1)} %`;
  const state = row.stateBytes === undefined ? "–" : `${number(row.stateBytes / 1024)} KiB`;
  return [row.kind, row.engine, row.drafter, number(row.tokensPerSecond), `${number(row.speedUp, 2)}×`, number(row.tokensPerStep, 2), number(row.nodesPerStep, 1), share, state];
})));
const mean = (engine, drafter) => {
  const own = rows.filter((row) => row.engine === engine && row.drafter === drafter);
  return Math.exp(own.reduce((sum, row) => sum + Math.log(row.speedUp), 0) / own.length);
};
const means = (engine, names) => names.slice(1).map((drafter) => [`${engine}, ${drafter}`, `${number(mean(engine, drafter), 2)}×`]);
console.log(`\n${table(["mean speed-up (geometric)", ""], [...means("tokenloom", drafters), ...means("node-llama-cpp", peers)])}`);
mkdirSync(dirname(flags.out), { recursive: true });
writeFileSync(flags.out, `${JSON.stringify({ date: new Date().toISOString(), commit: commit(), machine: ranOn, model: flags.model, threads, tokens, rows }, null, 1)}\n`);
