// npm run bench:attention [-- --runs 7 --threads 2 --only prefill,decode,tree,variants]
// ops.attention beside PyTorch's scaled_dot_product_attention on the same shapes and threads, interleaved, best of `runs`.
// TOKENLOOM_PYTHON names a Python with torch (default python3); without one the peer's columns are left out with a reason.
// Prints GFLOP/s and the fraction of this machine's multiply-add peak, or GB/s and the fraction of its read bandwidth, both
// measured in the same run, and writes bench/results/attention.json.
import { mkdirSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { memory, ops, systemInfo, tensor } from "tokenloom";
import { machineLimits } from "./limits.mjs";
import { bf16Bits, noise } from "./random.mjs";
import { commit, machine } from "./report.mjs";
import { Torch } from "./torch.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const { values: flags } = parseArgs({ options: { runs: { type: "string", default: "7" }, threads: { type: "string", default: String(systemInfo().cores) }, only: { type: "string", default: "prefill,decode,tree,variants" } } });
const ranOn = machine(), runs = Number(flags.runs), threads = Number(flags.threads);

/** Element types: how floats are stored, and bytes an element. */
const stores = {
  f32: { bytes: 4, make: (values, shape) => tensor(values, shape) },
  bf16: { bytes: 2, make: (values, shape) => tensor(bf16Bits(values), shape, "bf16") },
  int8: { bytes: 1, make: (values, shape) => tensor(Int8Array.from(values, (value) => Math.round(value * 127)), shape) },
};

function operands({ batch, heads, kvHeads, queries, keys, headDim, type }) {
  const query = noise(batch * heads * queries * headDim, 1), rest = [batch, kvHeads, keys, headDim], count = batch * kvHeads * keys * headDim;
  const { make } = stores[type], scale = tensor(new Float32Array(batch * kvHeads * keys).fill(1 / 127), [batch, kvHeads, keys]);
  return {
    query: stores[type === "int8" ? "f32" : type].make(query, [batch, heads, queries, headDim]), key: make(noise(count, 2), rest), value: make(noise(count, 3), rest),
    options: type === "int8" ? { quantized: { format: "int8", keyScale: scale, valueScale: scale } } : {},
  };
}

async function ours({ query, key, value, options }) {
  const began = performance.now();
  const made = await ops.attention(query, key, value, { ...options, threads });
  const seconds = (performance.now() - began) / 1e3;
  made[Symbol.dispose]();
  return seconds;
}

/** Best seconds of each side, measured by turns. */
async function compare(shape, extra, torch) {
  const given = operands(shape), all = { ...given, options: { ...given.options, ...extra } };
  let mine = Infinity, peer = Infinity;
  for (let run = 0; run < runs + 1; run++) {
    const seconds = await ours(all);
    if (run > 0) mine = Math.min(mine, seconds);
    if (torch?.version && shape.type !== "int8") peer = Math.min(peer, await torch.seconds({ ...shape, causal: extra.causal ?? false, threads }));
  }
  return { mine, peer: Number.isFinite(peer) ? peer : undefined };
}

const percent = (x) => `${(100 * x).toFixed(0)} %`;
const rows = [];
function row(title, figures) {
  rows.push({ title, ...figures });
  console.log(`| ${title} | ${figures.rate} | ${figures.ofLimit ?? ""} | ${figures.peer ?? ""} | ${figures.ratio ?? ""} |`);
}

const torch = await Torch.start("attention.py");
const { flops, bandwidth } = machineLimits(threads), peak = flops && flops * threads;
console.log(`${cpus()[0].model}, ${threads} threads, ${systemInfo().isa}; peak ${peak ? `${(peak / 1e9).toFixed(0)} GFLOP/s f32` : "unknown"}, read ${bandwidth ? `${(bandwidth / 1e9).toFixed(1)} GB/s` : "unknown"}; PyTorch ${torch.version ?? `left out: ${torch.missing}`}`);
console.log("\n| case | tokenloom | of the limit | PyTorch | ratio |\n|---|---|---|---|---|");
const only = new Set(flags.only.split(","));
const base = { batch: 1, heads: 8, kvHeads: 8, headDim: 64, type: "f32" };

if (only.has("prefill")) {
  for (const type of ["f32", "bf16"]) for (const length of [512, 2048, 4096]) for (const causal of [false, true]) {
    const shape = { ...base, type, queries: length, keys: length };
    const { mine, peer } = await compare(shape, { causal }, torch);
    const work = 4 * base.heads * base.headDim * (causal ? (length * (length + 1)) / 2 : length * length);
    row(`${type} ${length} × ${length}${causal ? " causal" : ""}`, { rate: `${(work / mine / 1e9).toFixed(0)} GFLOP/s`, ofLimit: peak && percent(work / mine / peak), peer: peer && `${(work / peer / 1e9).toFixed(0)}`, ratio: peer && `${(peer / mine).toFixed(2)}×` });
  }
}
if (only.has("decode")) {
  for (const type of ["f32", "bf16", "int8"]) for (const keys of [4096, 32768]) {
    const shape = { ...base, heads: 32, kvHeads: 8, headDim: 128, type, queries: 1, keys };
    const { mine, peer } = await compare(shape, {}, torch);
    const bytes = 2 * shape.kvHeads * keys * shape.headDim * stores[type].bytes;
    row(`one query over ${keys} cached, ${type}, 32 : 8 heads`, { rate: `${(bytes / mine / 1e9).toFixed(1)} GB/s`, ofLimit: bandwidth && percent(bytes / mine / bandwidth), peer: peer && (bytes / peer / 1e9).toFixed(1), ratio: peer && `${(peer / mine).toFixed(2)}×` });
  }
}
/** A chain of nodes: each sees all before it, so all lower bits are set. */
const chain = (nodes) => tensor(Int32Array.from({ length: nodes * 2 * Math.ceil(nodes / 64) }, (_, at) => {
  const words = 2 * Math.ceil(nodes / 64), i = Math.floor(at / words), bits = i + 1 - 32 * (at % words);
  return bits >= 32 ? -1 : bits <= 0 ? 0 : 2 ** bits - 1 | 0;
}), [nodes, 2 * Math.ceil(nodes / 64)]);
if (only.has("tree")) {
  let single;
  for (const nodes of [1, 8, 16, 60]) {
    const shape = { ...base, heads: 32, headDim: 128, queries: nodes, keys: 4096 };
    const { mine } = await compare(shape, { tree: chain(nodes) });
    single ??= mine;
    const work = 4 * shape.heads * shape.headDim * nodes * 4096;
    row(`${nodes} draft nodes over 4096 cached, f32`, { rate: `${(work / mine / 1e9).toFixed(0)} GFLOP/s`, ofLimit: peak && percent(work / mine / peak), ratio: `${(mine / single).toFixed(2)}× one node` });
  }
}
if (only.has("variants")) {
  const shape = { ...base, queries: 2048, keys: 2048 }, given = operands(shape);
  const pages = 2048 / 32, table = tensor(Int32Array.from({ length: 8 * pages }, (_, i) => i), [1, 8, pages]), lengths = tensor(new Int32Array(8).fill(2048), [1, 8]);
  const paged = { ...given, key: given.key.reshape([8 * pages, 32, 64]), value: given.value.reshape([8 * pages, 32, 64]), options: { paged: { blockTable: table, lengths } } };
  const cases = { "column sums": { ...given, options: { columnSums: true } }, "column sums of the last 64": { ...given, options: { columnSums: { queries: 64 } } }, "soft cap": { ...given, options: { softcap: 50 } }, paged };
  const draft = operands({ ...base, queries: 64, keys: 4096 });
  for (const [name, variant] of [...Object.entries(cases), ["tree mask", { ...draft, options: { tree: chain(64) } }]]) {
    const against = name === "tree mask" ? draft : given;
    let plain = Infinity, mine = Infinity;
    for (let run = 0; run < runs + 1; run++) {
      plain = Math.min(plain, await ours(against));
      mine = Math.min(mine, await ours(variant));
    }
    row(`${name}, ${name === "tree mask" ? "64 × 4096" : "2048 × 2048"} f32`, { rate: `${(mine * 1e3).toFixed(1)} ms`, ratio: `${(mine / plain).toFixed(2)}× the plain loop` });
  }
}
console.log(`\nNative memory beside operands and results: ${memory().arena + memory().scratch} bytes, whatever the number of keys and queries.`);
mkdirSync(join(here, "results"), { recursive: true });
writeFileSync(join(here, "results", "attention.json"), `${JSON.stringify({ date: new Date().toISOString(), commit: commit(), machine: ranOn, isa: systemInfo().isa, threads, peakFlops: peak, bandwidth, pytorch: torch.version ?? null, rows }, null, 1)}\n`);
torch.stop?.();
