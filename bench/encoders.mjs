// npm run bench:encoders [-- --runs 5 --threads 2 --only images,texts]
// DINOv2-S and MiniLM beside onnxruntime-node and PyTorch on the same weights and threads, interleaved, best of `runs`. TOKENLOOM_PEERS is
// a folder with onnxruntime-node, TOKENLOOM_PYTHON a Python with torch, transformers and onnx (which exports the models); a peer that is
// missing is left out with its reason. Beside rates stands the time that cores worked, which others that run at the time hardly change. TOKENLOOM_MODELS holds all-MiniLM-L6-v2, TOKENLOOM_SHARED the DINOv2 model and images.
// Texts come as strings here and as token ids, padded, at the peers; images as decoded pixels. Writes bench/results/encoders.json.
import { fork } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { loadModel, systemInfo, toMe } from "tokenloom";
import { agreement } from "#lib/cli/see.js";
import { machineLimits } from "./limits.mjs";
import { commit, machine, timed } from "./report.mjs";
import { Torch } from "./torch.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const { values: flags } = parseArgs({ options: { runs: { type: "string", default: "5" }, threads: { type: "string", default: String(systemInfo().cores) }, only: { type: "string", default: "images,texts" } } });
const runs = Number(flags.runs), threads = Number(flags.threads), only = new Set(flags.only.split(","));
const shared = process.env.TOKENLOOM_SHARED ?? join("..", "shared"), dino = join(shared, "models", "dinov2-small-saliency.safetensors"), miniLm = join(process.env.TOKENLOOM_MODELS ?? "", "all-MiniLM-L6-v2");
const folder = mkdtempSync(join(tmpdir(), "tokenloom-encoders-")), rows = [], ranOn = machine();

/** onnxruntime in a process of its own: its run() blocks the event loop. */
class Onnx {
  static async start() {
    const child = fork(join(here, "peers", "onnxruntime.mjs"), { stdio: ["ignore", "ignore", "ignore", "ipc"], serialization: "advanced" });
    const first = await new Promise((resolve) => {
      child.once("message", resolve);
      child.once("exit", () => resolve({ missing: "no onnxruntime-node (set TOKENLOOM_PEERS)" }));
    });
    return Object.assign(new Onnx(), { child, ...first });
  }
  async ask(request) {
    const answer = new Promise((resolve) => this.child.once("message", resolve));
    this.child.send(request);
    return answer;
  }
  stop() {
    if (this.child.connected) this.child.disconnect();
  }
}

const torch = await Torch.start("encoders.py"), onnx = await Onnx.start();

/** The peer's times, or undefined, its reason told once. */
const told = new Set();
async function timesOf(peer, name, request) {
  if (!peer.version || told.has(`${name} ${request.title}`)) return undefined;
  const answer = await peer.ask(request);
  if (answer.seconds !== undefined) return answer;
  told.add(`${name} ${request.title}`);
  console.log(`${name} left out of ${request.title}: ${answer.error}`);
  return undefined;
}

/** ONNX of a model, made by PyTorch. */
async function exported(kind, model, extra) {
  if (!torch.version || !onnx.version) return undefined;
  const path = join(folder, `${kind}.onnx`), answer = await torch.ask({ kind, model, ...extra, export: path });
  if (answer.error) console.log(`onnxruntime left out of ${kind}s: ${answer.error}`);
  return answer.error ? undefined : path;
}

/** All sides by turns; a first round warms up. `mine` are ways to run here, by name. */
async function compare({ title, count, mine, torchCase, onnxCase, goals }) {
  const best = {}, cores = {}, least = (into, name, time) => (into[name] = Math.min(into[name] ?? Infinity, time));
  for (let run = 0; run <= runs; run++) {
    for (const [name, work] of Object.entries(mine)) {
      const { ms, cpuMs } = await timed(work);
      if (run > 0) {
        least(best, name, ms / 1e3);
        least(cores, name, cpuMs / 1e3);
      }
    }
    const peers = { onnxruntime: onnxCase && (await timesOf(onnx, "onnxruntime", { ...onnxCase, title, threads })), PyTorch: await timesOf(torch, "PyTorch", { ...torchCase, title, threads }) };
    for (const [name, times] of Object.entries(peers)) {
      if (run === 0 || times === undefined) continue;
      least(best, name, times.seconds);
      least(cores, name, times.coreSeconds);
    }
  }
  const rate = (name) => (best[name] === undefined ? undefined : count / best[name]), ratio = (of, name, peer) => (of[peer] === undefined ? undefined : of[peer] / of[name]);
  for (const name of Object.keys(mine)) {
    const row = { title, how: name, rate: rate(name), seconds: best[name], coreSeconds: cores[name], onnxruntime: rate("onnxruntime"), pytorch: rate("PyTorch"), ofOnnxruntime: ratio(best, name, "onnxruntime"), ofPytorch: ratio(best, name, "PyTorch"), coreOfOnnxruntime: ratio(cores, name, "onnxruntime"), coreOfPytorch: ratio(cores, name, "PyTorch"), goal: goals[name] ?? null };
    rows.push(row);
    const show = (x, digits = 1) => (x === undefined ? "" : x.toFixed(digits)), times = (x) => (x === undefined ? "" : `${x.toFixed(2)}×`);
    console.log(`| ${title} | ${name} | ${show(row.rate)} | ${show(row.onnxruntime)} | ${show(row.pytorch)} | ${times(row.ofOnnxruntime)} | ${times(row.ofPytorch)} | ${times(row.coreOfOnnxruntime)} | ${times(row.coreOfPytorch)} | ${goals[name] ?? ""} |`);
  }
}

async function images() {
  const vit = await loadModel(dino, { kind: "encoder", threads });
  const rounded = await loadModel(dino, { kind: "encoder", threads, weights: "int8" });
  const files = ["astronaut", "brick", "chelsea", "coffee"].map((name) => join(shared, "data", "images", "224", `${name}.png`)), { default: sharp } = await import("sharp");
  const pixels = await Promise.all(files.map(async (file) => ({ data: new Uint8Array(await sharp(file).removeAlpha().raw().toBuffer()), width: 224, height: 224 })));
  const agree = [];
  for (const [how, model, options] of [["ToMe 13 a layer", vit, { reduce: toMe(13) }], ["int8", rounded, {}], ["int8, ToMe 13 a layer", rounded, { reduce: toMe(13) }]]) {
    const found = await Promise.all(pixels.map(async (one) => agreement(await vit.encode(one), await model.encode(one, options))));
    agree.push({ how, pearsonMean: found.reduce((sum, x) => sum + x, 0) / found.length, pearsonLeast: Math.min(...found), images: files.length });
  }
  for (const batch of [8, 1]) {
    const data = Array.from({ length: batch }, (_, i) => pixels[i % pixels.length]), plain = { saliency: false };
    const numbers = Float32Array.from({ length: batch * 3 * 224 * 224 }, (_, i) => Math.sin(i)), path = await exported("image", dino, { batch: 2 });
    await compare({
      title: `DINOv2-S, batch ${batch}, images/s`, count: batch,
      mine: {
        "f32": () => vit.encode(data, plain), "ToMe 13 a layer": () => vit.encode(data, { ...plain, reduce: toMe(13) }),
        "int8": () => rounded.encode(data, plain), "int8, ToMe 13 a layer": () => rounded.encode(data, { ...plain, reduce: toMe(13) }),
      },
      torchCase: { kind: "image", model: dino, batch }, onnxCase: path && { model: path, feeds: { x: { type: "float32", data: numbers, dims: [batch, 3, 224, 224] } } },
      goals: batch === 8 ? { f32: "≥ 1.5× onnxruntime", "ToMe 13 a layer": "≥ 3.5× onnxruntime" } : {},
    });
  }
  console.log("\n| saliency against f32 without reduction | Pearson, mean | least |\n|---|---|---|");
  for (const { how, pearsonMean, pearsonLeast } of agree) console.log(`| ${how} | ${pearsonMean.toFixed(4)} | ${pearsonLeast.toFixed(4)} |`);
  console.log(`\nint8 rounds weights by ${(100 * rounded.weights.relativeError).toFixed(2)} % of their norm; weights take ${(vit.weightBytes / 1e6).toFixed(0)} and ${(rounded.weightBytes / 1e6).toFixed(0)} MB.\n`);
  return agree;
}

async function texts() {
  const model = await loadModel(miniLm, { kind: "encoder", threads });
  const rounded = await loadModel(miniLm, { kind: "encoder", threads, weights: "int8" });
  const prose = readFileSync(join(shared, "data", "prose", "alice.txt"), "utf8").split("\n").filter((line) => line.length > 20);
  const mixed = prose.slice(0, 32).map((line, i) => line.slice(0, [40, 90, 160, 320][i % 4]));
  const path = await exported("text", miniLm, { ids: [[101, 1037, 102], [101, 1037, 1037, 102]] });
  for (const [title, batch, goal] of [["MiniLM, 32 sentences of mixed length, sentences/s", mixed, "≥ 2×"], ["MiniLM, one sentence, sentences/s", [mixed[1]], "≥ 1.5×"]]) {
    const ids = batch.map((text) => model.tokenizer.encode(text, { bos: true, eos: true })), longest = Math.max(...ids.map(({ length }) => length));
    const padded = ids.map((row) => [...row, ...new Array(longest - row.length).fill(0)]).flat(), mask = ids.map((row) => [...row.map(() => 1), ...new Array(longest - row.length).fill(0)]).flat();
    const dims = [batch.length, longest];
    await compare({
      title: `${title} (${ids.reduce((sum, { length }) => sum + length, 0)} tokens)`, count: batch.length, mine: { f32: () => model.encode(batch), int8: () => rounded.encode(batch) },
      torchCase: { kind: "text", model: miniLm, ids }, onnxCase: path && { model: path, feeds: { x: { type: "int64", data: padded, dims }, mask: { type: "int64", data: mask, dims } } }, goals: { f32: goal },
    });
  }
}

try {
  const { flops } = machineLimits(threads), peak = flops && flops * threads;
  console.log(`${cpus()[0].model}, ${threads} threads, ${systemInfo().isa}; peak ${peak ? `${(peak / 1e9).toFixed(0)} GFLOP/s f32` : "unknown"}; onnxruntime-node ${onnx.version ?? `left out: ${onnx.missing}`}; PyTorch ${torch.version ?? `left out: ${torch.missing}`}`);
  console.log("\n| what | tokenloom | rate | onnxruntime | PyTorch | of onnxruntime | of PyTorch | core time: of onnxruntime | of PyTorch | goal |\n|---|---|---|---|---|---|---|---|---|---|");
  const missing = [["images", dino], ["texts", miniLm]].filter(([part, path]) => only.has(part) && !existsSync(path));
  for (const [part, path] of missing) console.log(`${part} left out: there is no ${path}`);
  if (only.has("texts") && existsSync(miniLm)) await texts();
  const agreement = only.has("images") && existsSync(dino) ? await images() : undefined;
  mkdirSync(join(here, "results"), { recursive: true });
  writeFileSync(join(here, "results", "encoders.json"), `${JSON.stringify({ date: new Date().toISOString(), commit: commit(), machine: ranOn, isa: systemInfo().isa, threads, peakFlops: peak, onnxruntime: onnx.version ?? null, pytorch: torch.version ?? null, rows, agreement }, null, 1)}\n`);
} finally {
  torch.stop?.();
  onnx.stop();
  rmSync(folder, { recursive: true, force: true });
}
