// npm run bench:cuda [-- --runs 5 --only prefill,decode,matmul --tiny]
// Attention and matmul on the GPU beside PyTorch's on the same one (scaled_dot_product_attention, which takes FlashAttention; linear) and what
// the GPU does at best: the speed of a large copy, and of a large bf16 product, measured by PyTorch in the same run.
// A case is a program of 1 and one of `repeats` calls on tensors that lie on the device, each run as one CUDA graph; the difference,
// by repeats − 1, is the time of one call: neither launches nor Node count. Best of `runs`. Writes bench/results/cuda.json.
// --tiny: a few rows of each case, to see on the emulated device (docs/devices.md) that everything works; its times mean nothing.
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { systemInfo, tensor } from "tokenloom";
import { compile } from "#lib/graph/compile.js";
import { Graph } from "#lib/graph/graph.js";
import { native, storageCode } from "#lib/native.js";
import { attention } from "#lib/ops/attention.js";
import { matmul } from "#lib/ops/matmul.js";
import { bf16Bits, noise } from "./random.mjs";
import { commit, machine } from "./report.mjs";
import { Torch } from "./torch.mjs";

const { values: flags } = parseArgs({ options: { runs: { type: "string", default: "5" }, only: { type: "string", default: "prefill,decode,matmul" }, tiny: { type: "boolean", default: false } } });
const { cuda } = systemInfo(), runs = Number(flags.runs), only = new Set(flags.only.split(",")), { tiny } = flags;
if (!cuda.available) {
  console.log(`skip  bench:cuda: there is no CUDA device: ${cuda.reason}`);
  process.exit(0);
}
const repeats = tiny ? 4 : 32, device = "cuda", ranOn = machine();

const stores = {
  f32: (values) => values,
  bf16: bf16Bits,
  f16: (values) => Uint16Array.from(values, (value) => ((new Uint32Array(Float32Array.of(value * 2 ** -112).buffer)[0] >>> 13) & 0x7fff) | (value < 0 ? 0x8000 : 0)),
};
const onDevice = (values, shape, type) => tensor(stores[type](values), shape, type).to(device);

/** Best seconds of one call. `build(graph)` adds one and returns its result; `bindings` are tensors on the device, by name. */
async function secondsOf(build, bindings) {
  const programs = [1, repeats].map((count) => {
    const graph = new Graph("bench"), inputs = Object.fromEntries(Object.entries(bindings).map(([name, { type, shape }]) => [name, graph.binding(name, type, shape)])), outputs = [];
    for (let i = 0; i < count; i++) outputs.push(graph.output(`out${i}`, build(graph, inputs)));
    return { graph: compile(graph), outputs, best: Infinity };
  });
  for (const program of programs) {
    const made = await Promise.all(program.outputs.map(({ dims }) => tensor(new Float32Array(dims.reduce((a, b) => a * b, 1)), dims).to(device)));
    const memory = Object.fromEntries([...Object.entries(bindings), ...made.map((out, i) => [`out${i}`, out])].map(([name, one]) => [name, one.memory]));
    for (let run = -3; run < runs; run++) { // the first ones copy weights and make the graph
      const began = performance.now();
      await program.graph.run({ bindings: memory }, { device });
      if (run >= 0) program.best = Math.min(program.best, (performance.now() - began) / 1e3);
    }
    for (const out of made) out.dispose();
    program.graph.dispose();
  }
  return (programs[1].best - programs[0].best) / (repeats - 1);
}

const rows = [], percent = (x) => `${(100 * x).toFixed(0)} %`;
/** `unit` FLOP/s or B/s; `work` of one call in the same. */
async function row(title, seconds, peerCase, unit, work, limit) {
  const peer = torch.version && peerCase ? await torch.seconds({ ...peerCase, repeats }) : undefined;
  const scale = unit === "TFLOP/s" ? 1e12 : 1e9, rate = work / seconds / scale;
  rows.push({ title, unit, rate, ofLimit: limit && rate * scale / limit, peer: peer && work / peer / scale, ratio: peer && peer / seconds });
  const { ofLimit, peer: peerRate, ratio } = rows.at(-1);
  console.log(`| ${title} | ${rate.toFixed(2)} ${unit} | ${ofLimit ? percent(ofLimit) : ""} | ${peerRate ? peerRate.toFixed(2) : ""} | ${ratio ? `${ratio.toFixed(2)}×` : ""} |`);
}

const torch = await Torch.start("on_gpu.py"), limits = torch.version ? await torch.ask({ kind: "limits" }) : {};
console.log(`${cuda.name}, compute capability ${cuda.computeCapability}; ${limits.flops ? `at best ${(limits.flops / 1e12).toFixed(0)} TFLOP/s bf16, ${(limits.bandwidth / 1e9).toFixed(0)} GB/s` : "its limits are not known"}; PyTorch ${torch.version ?? "left out: no Python with torch that sees a GPU (set TOKENLOOM_PYTHON)"}`);
console.log("\n| case | tokenloom | of the limit | PyTorch | ratio |\n|---|---|---|---|---|");

async function attentionRow(name, shape, causal, unit) {
  const { heads, kvHeads, queries, keys, headDim, type } = shape;
  const bindings = {
    query: await onDevice(noise(heads * queries * headDim, 1), [1, heads, queries, headDim], type), key: await onDevice(noise(kvHeads * keys * headDim, 2), [1, kvHeads, keys, headDim], type),
    value: await onDevice(noise(kvHeads * keys * headDim, 3), [1, kvHeads, keys, headDim], type),
  };
  const seconds = await secondsOf((_, { query, key, value }) => attention(query, key, value, { causal }).out, bindings);
  for (const one of Object.values(bindings)) one.dispose();
  const flops = 4 * heads * headDim * (causal ? (queries * (queries + 1)) / 2 + queries * (keys - queries) : queries * keys), bytes = 2 * kvHeads * keys * headDim * (type === "f32" ? 4 : 2);
  await row(`${name}, ${heads} : ${kvHeads} heads of ${headDim}`, seconds, { kind: "attention", batch: 1, causal, ...shape }, unit, unit === "GB/s" ? bytes : flops, unit === "GB/s" ? limits.bandwidth : limits.flops);
}

if (only.has("prefill")) {
  for (const type of ["bf16", "f16", "f32"]) for (const length of tiny ? [33] : [512, 2048, 8192]) for (const causal of [false, true]) {
    await attentionRow(`${type} ${length} × ${length}${causal ? " causal" : ""}`, { heads: tiny ? 2 : 16, kvHeads: tiny ? 1 : 16, queries: length, keys: length, headDim: tiny ? 64 : 128, type }, causal, "TFLOP/s");
  }
}
if (only.has("decode")) {
  for (const type of ["bf16", "f32"]) for (const keys of tiny ? [70] : [4096, 32768]) {
    await attentionRow(`one query over ${keys} keys, ${type}`, { heads: tiny ? 4 : 32, kvHeads: tiny ? 2 : 8, queries: 1, keys, headDim: tiny ? 32 : 128, type }, false, "GB/s");
  }
}
if (only.has("matmul")) {
  const [outputs, columns] = tiny ? [64, 128] : [4096, 4096];
  for (const type of ["bf16", "f32"]) for (const n of tiny ? [1, 17] : [1, 16, 512, 4096]) {
    const weight = await native.packWeight(noise(outputs * columns, 4), columns, null, storageCode[type], 1, new Int32Array(1)), x = await onDevice(noise(n * columns, 5), [n, columns], "f32");
    const seconds = await secondsOf((graph, inputs) => matmul(inputs.x, graph.weight("weight", { handle: weight.handle, rows: outputs, columns })), { x });
    x.dispose();
    native.release(weight.handle);
    const decode = n <= 16, unit = decode ? "GB/s" : "TFLOP/s";
    await row(`${n} rows × ${type} weight ${outputs} × ${columns}`, seconds, { kind: "matmul", n, rows: outputs, columns, type }, unit, decode ? outputs * columns * (type === "f32" ? 4 : 2) : 2 * n * outputs * columns, decode ? limits.bandwidth : limits.flops);
  }
}
torch.stop?.();
if (!tiny) {
  const folder = join(dirname(fileURLToPath(import.meta.url)), "results");
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "cuda.json"), `${JSON.stringify({ date: new Date().toISOString(), commit: commit(), machine: ranOn, gpu: cuda.name, limits, pytorch: torch.version ?? null, repeats, rows }, null, 1)}\n`);
}
