// npm run bench:reduce [-- --runs 7 --threads 2]
// Choosing tokens beside PyTorch as papers publish it (peers/reduce.py), on the same tokens and threads, interleaved, best of `runs`: ToMe's
// matching, DivPrune and k-centre. Both sides must choose the same tokens: what differs is counted. TOKENLOOM_PYTHON names a Python
// with torch and numpy (default python3). Prints times, their ratio, and the time that cores worked with
// its share of a core's multiply-add peak (what others run beside it counts in the first, hardly in the second), and writes
// bench/results/reduce.json.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { ops, systemInfo, tensor } from "tokenloom";
import { machineLimits } from "./limits.mjs";
import { commit, machine, timed } from "./report.mjs";
import { Torch } from "./torch.mjs";

const { values: flags } = parseArgs({ options: { runs: { type: "string", default: "7" }, threads: { type: "string", default: String(systemInfo().cores) } } });
const runs = Number(flags.runs), threads = Number(flags.threads);

/** Normal numbers, each row by itself; or rows around few centres of different sizes, as patches of a picture are. */
function rows(count, width, kind) {
  let state = 1;
  const uniform = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state + 0.5) / 2 ** 32;
  };
  const normal = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  const centres = Array.from({ length: 48 }, () => Float32Array.from({ length: width }, normal));
  const data = new Float32Array(count * width);
  for (let i = 0; i < count; i++) {
    const centre = centres[Math.floor(uniform() ** 2 * 48)], spread = 0.2 + uniform();
    for (let j = 0; j < width; j++) data[i * width + j] = kind === "normal" ? normal() : centre[j] + spread * normal();
  }
  return data;
}

const cases = [
  { title: "ToMe matching", work: "match", tokens: 4096, width: 768, merge: 1024, goal: 1, flops: 2048 * 2048 * 768 * 2, kinds: ["normal"] },
  { title: "ToMe matching", work: "match", tokens: 257, width: 384, merge: 64, goal: 3, flops: 129 * 128 * 384 * 2, kinds: ["normal"] },
  { title: "DivPrune, 10 % kept", work: "diverse", tokens: 4096, width: 768, keep: 410, goal: 10, kinds: ["normal", "picture"] },
  { title: "k-centre, half kept", work: "centres", tokens: 4096, width: 768, keep: 2048, goal: 3, kinds: ["normal", "picture"] },
];

/** Runs a case here: seconds, and what was chosen in the peer's form. */
async function ours({ work, merge, keep }, x) {
  const began = performance.now();
  if (work === "match") {
    const { map, partner, counts } = await ops.bipartiteMatch(x, { merge, threads }), seconds = (performance.now() - began) / 1e3;
    const kept = counts.data[0] - Math.floor(x.shape[1] / 2), merged = [];
    for (let i = 0; i < x.shape[1]; i += 2) if (map.data[i] === kept + partner.data[i]) merged.push([i / 2, partner.data[i]]);
    return { seconds, chosen: merged };
  }
  const { order } = await ops.farthestRows(x, { keep, start: work === "diverse" ? "alone" : { index: 0 }, threads });
  return { seconds: (performance.now() - began) / 1e3, chosen: [...order.data] };
}

/** How many choices differ. Pairs of a matching have no order. */
function differing(work, mine, theirs) {
  if (work !== "match") return mine.filter((token, step) => token !== theirs[0][step]).length;
  const [partners, merged] = theirs, pairs = new Map(merged.map((source, i) => [source, partners[i]]));
  return mine.filter(([source, partner]) => pairs.get(source) !== partner).length;
}

const folder = mkdtempSync(join(tmpdir(), "tokenloom-reduce-")), torch = await Torch.start("reduce.py"), ranOn = machine(), results = [];
try {
  const { flops } = machineLimits(threads), peak = flops && flops * threads;
  console.log(`${cpus()[0].model}, ${threads} threads, ${systemInfo().isa}; peak ${peak ? `${(peak / 1e9).toFixed(0)} GFLOP/s f32` : "unknown"}; PyTorch ${torch.version ?? `left out: ${torch.missing}`}`);
  console.log("\n| what | tokens | data | tokenloom | core time | of a core's peak | PyTorch | ratio | goal | choices that differ |\n|---|---|---|---|---|---|---|---|---|---|");
  for (const one of cases) for (const kind of one.kinds) {
    const data = rows(one.tokens, one.width, kind), file = join(folder, `${kind}-${one.tokens}`), x = tensor(data, [1, one.tokens, one.width]);
    writeFileSync(file, data);
    let mine = Infinity, peer = Infinity, cores = Infinity, differ;
    const slow = one.tokens > 1000 && one.work !== "match", times = slow ? Math.min(runs, 2) : one.tokens > 1000 ? runs : 30 * runs;
    for (let run = 0; run < times + 1; run++) {
      const { result: own, cpuMs } = await timed(() => ours(one, x));
      if (run > 0) {
        mine = Math.min(mine, own.seconds);
        cores = Math.min(cores, cpuMs / 1e3);
      }
      if (!torch.version) continue;
      const theirs = await torch.ask({ ...one, file, threads });
      peer = Math.min(peer, theirs.seconds);
      differ ??= differing(one.work, own.chosen, theirs.chosen);
    }
    const ms = (seconds) => `${(seconds * 1e3).toFixed(seconds < 0.01 ? 3 : 1)} ms`, ratio = torch.version && peer / mine, share = one.flops && flops && one.flops / cores / flops;
    results.push({ title: one.title, tokens: one.tokens, width: one.width, data: kind, seconds: mine, coreSeconds: cores, ofPeak: share, pytorchSeconds: torch.version ? peer : null, ratio, goal: one.goal, differ });
    console.log(`| ${one.title} | ${one.tokens} × ${one.width} | ${kind} | ${ms(mine)} | ${ms(cores)} | ${share ? `${(100 * share).toFixed(0)} %` : ""} | ${torch.version ? ms(peer) : ""} | ${ratio ? `${ratio.toFixed(1)}×` : ""} | ≥ ${one.goal}× | ${differ ?? ""} |`);
  }
  const to = join(dirname(fileURLToPath(import.meta.url)), "results");
  mkdirSync(to, { recursive: true });
  writeFileSync(join(to, "reduce.json"), `${JSON.stringify({ date: new Date().toISOString(), commit: commit(), machine: ranOn, isa: systemInfo().isa, threads, peakFlops: peak, pytorch: torch.version ?? null, rows: results }, null, 1)}\n`);
} finally {
  torch.stop?.();
  rmSync(folder, { recursive: true, force: true });
}
