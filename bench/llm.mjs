// npm run bench:llm [-- --model FILE --runs 5 --threads 1,2 --only ours|peer]
// The same GGUF file with this package and with node-llama-cpp (in the folder that TOKENLOOM_PEERS names), interleaved, each
// measurement in a process of its own, best of `runs`. Prints a table and writes bench/results/llm.json.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { locateModel } from "tokenloom";
import { measure } from "./child.mjs";
import { machineLimits } from "./limits.mjs";
import { commit, machine, number } from "./report.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const { values: flags } = parseArgs({
  options: {
    model: { type: "string", default: "SmolLM2-135M-Instruct.Q4_1.gguf" },
    runs: { type: "string", default: "5" },
    threads: { type: "string", default: [...new Set([1, Math.min(2, availableParallelism())])].join() },
    out: { type: "string", default: join(here, "results", "llm.json") },
  },
});

/** What each child measures: a prompt, and tokens after it. */
const cases = [
  { name: "prompt of 512 tokens", promptTokens: 512, tokens: 0, figure: "promptTokensPerSecond" },
  { name: "prompt of 2,048 tokens", promptTokens: 2048, tokens: 0, figure: "promptTokensPerSecond" },
  { name: "decode of 128 tokens after 16", promptTokens: 16, tokens: 128, figure: "decodeTokensPerSecond" },
  { name: "decode of 128 tokens after 1,800", promptTokens: 1800, tokens: 128, figure: "decodeTokensPerSecond" },
];

function peerVersion() {
  const folder = process.env.TOKENLOOM_PEERS;
  if (!folder) return { missing: "TOKENLOOM_PEERS names no folder with node_modules/node-llama-cpp" };
  const file = join(folder, "node_modules", "node-llama-cpp", "package.json");
  return existsSync(file) ? { version: JSON.parse(readFileSync(file, "utf8")).version } : { missing: `there is no ${file}` };
}

/** The best of several answers, figure by figure; memory and delays are the worst seen. */
function best(answers, figure) {
  const all = (name) => answers.map((answer) => answer[name]);
  return {
    tokensPerSecond: Math.max(...all(figure)),
    loadMs: Math.min(...all("loadMs")),
    peakBytes: Math.max(...all("peakBytes")),
    eventLoopDelayMs: Math.max(...all("eventLoopDelayMs")),
    runs: all(figure),
  };
}

const model = await locateModel(flags.model, { offline: true });
const peer = peerVersion();
const programs = ["tokenloom", ...(peer.version ? ["node-llama-cpp"] : [])];
if (peer.missing) console.log(`node-llama-cpp is left out: ${peer.missing}\n`);
const rows = [];
const ranOn = machine();
let details;
const aborts = [];
for (const threads of flags.threads.split(",").map(Number)) {
  for (const { name, promptTokens, tokens, figure } of cases) {
    const answers = Object.fromEntries(programs.map((program) => [program, []]));
    for (let run = 0; run < Number(flags.runs); run++) {
      for (const program of programs) answers[program].push(await measure(`peers/${program}`, { model, threads, promptTokens, tokens, contextTokens: 2304 }));
    }
    details ??= { isa: answers.tokenloom[0].isa, weightBytes: answers.tokenloom[0].weightBytes };
    rows.push({ threads, name, figure, ...Object.fromEntries(programs.map((program) => [program, best(answers[program], figure)])) });
    process.stderr.write(".");
  }
  const { bandwidth } = machineLimits(threads, details.weightBytes);
  for (const row of rows) if (row.threads === threads) row.bandwidth = bandwidth;
  aborts.push({ threads, ...(await measure("abort", { model, threads, rounds: 8 })) });
}
process.stderr.write("\n");

const peerRate = (row) => (row["node-llama-cpp"] ? number(row["node-llama-cpp"].tokensPerSecond) : "–");
const ratio = (row) => (row["node-llama-cpp"] ? `${number(row.tokenloom.tokensPerSecond / row["node-llama-cpp"].tokensPerSecond, 2)}×` : "–");
/** Every weight is read once a token: the share that this alone needs of the speed at which so many bytes can be read again and again. */
const share = (row) => (row.figure === "decodeTokensPerSecond" && row.bandwidth ? `${number(((row.tokenloom.tokensPerSecond * details.weightBytes) / row.bandwidth) * 100)} %` : "–");

console.log(`| threads | tokens/s | tokenloom | node-llama-cpp ${peer.version ?? ""} | ratio | of the memory's read speed |\n|---:|---|---:|---:|---:|---:|`);
for (const row of rows) console.log(`| ${row.threads} | ${row.name} | ${number(row.tokenloom.tokensPerSecond)} | ${peerRate(row)} | ${ratio(row)} | ${share(row)} |`);
console.log(`\n| ${["", ...programs].join(" | ")} |\n|---|${programs.map(() => "---:").join("|")}|`);
const over = (name, pick) => programs.map((program) => pick(rows.map((row) => row[program][name])));
const least = (values) => Math.min(...values);
const most = (values) => Math.max(...values);
console.log(`| load, best | ${over("loadMs", least).map((ms) => `${number(ms)} ms`).join(" | ")} |`);
console.log(`| peak memory, worst | ${over("peakBytes", most).map((bytes) => `${number(bytes / 1e6)} MB`).join(" | ")} |`);
console.log(`| longest event-loop delay | ${over("eventLoopDelayMs", most).map((ms) => `${number(ms, 1)} ms`).join(" | ")} |`);
for (const threads of new Set(rows.map((row) => row.threads))) {
  const { bandwidth } = rows.find((row) => row.threads === threads);
  if (bandwidth) console.log(`\nmemory read with ${threads} thread${threads === 1 ? "" : "s"}: ${number(bandwidth / 1e9, 1)} GB/s`);
}

console.log(`\n| from abort() to the end, longest | while loading | in a prompt of 2,048 tokens | while decoding |\n|---|---:|---:|---:|`);
for (const { threads, loading, prompt, decoding } of aborts) {
  console.log(`| tokenloom, ${threads} thread${threads === 1 ? "" : "s"} | ${[loading, prompt, decoding].map((ms) => `${number(ms, 1)} ms`).join(" | ")} |`);
}

mkdirSync(dirname(flags.out), { recursive: true });
writeFileSync(flags.out, `${JSON.stringify({ date: new Date().toISOString(), commit: commit(), machine: ranOn, model: flags.model, peer: peer.version ?? null, ...details, rows, aborts }, null, 1)}\n`);
