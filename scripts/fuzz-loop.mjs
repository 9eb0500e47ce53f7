// One target's fuzzing loop, in a process of its own: `fuzz-loop.mjs TARGET SECONDS FOLDER CORPUS…`. Inputs that reach code (a block of a function
// of dist/esm, as V8 counts them) that none before reached are kept and changed further. Writes FOLDER/current before each input, so that
// who started this finds the culprit of a crash or a hang; prints one JSON line of figures at its end. SECONDS are of processor time.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { Session } from "node:inspector/promises";
import { createHash } from "node:crypto";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const [name, seconds, folder, ...corpora] = process.argv.slice(2);
const root = fileURLToPath(new URL("..", import.meta.url));
const mostBytes = 16384, mostCpuMs = 2000, batch = 16;
const read = (from) => (existsSync(from) ? readdirSync(from).map((file) => readFileSync(join(from, file))) : []);

const session = new Session();
session.connect();
await session.post("Profiler.enable");
await session.post("Profiler.startPreciseCoverage", { callCount: false, detailed: true });
const { run } = await import("../test/fuzz/targets.mjs");

const known = new Set();
/** Blocks reached since the last call. */
async function blocks() {
  const { result } = await session.post("Profiler.takePreciseCoverage"), reached = new Set();
  for (const { scriptId, url, functions } of result) {
    if (!url.includes("/dist/esm/") && !url.includes("/@huggingface/")) continue;
    for (const { ranges } of functions) {
      // Blocks that were not entered are listed with a count of 0 inside of those that were.
      for (const { startOffset, endOffset, count } of ranges) if (count > 0) reached.add(`${scriptId} ${startOffset} ${endOffset} ${ranges.length}`);
      for (const { startOffset, endOffset, count } of ranges) if (count === 0) reached.add(`${scriptId} not ${startOffset} ${endOffset} ${ranges[0].startOffset}`);
    }
  }
  return reached;
}

/** Whether these are not all known; they are from now on. */
function learn(reached) {
  const before = known.size;
  for (const block of reached) known.add(block);
  return known.size > before;
}

const below = (count) => Math.floor(Math.random() * count), pick = (from) => from[below(from.length)];
const numbers = [0n, 1n, 2n, 3n, 4n, 7n, 8n, 9n, 10n, 11n, 12n, 13n, 31n, 32n, 127n, 128n, 255n, 256n, 65535n, (1n << 31n) - 1n, 1n << 31n, (1n << 32n) - 1n, 1n << 32n, 1n << 53n, (1n << 63n) - 1n, (1n << 64n) - 1n];
const texts = ["null", "true", "-1", "0", "1e999", "9007199254740993", "{}", "[]", "\"\"", "\\u0000", "\"\\ud800\"", "{{", "}}", "{%", "%}", "llama", "gpt2", "tokenizer.ggml.", "general.", "weight", "<0x0A>", "▁", "Ġ"];

function mutate(input, others) {
  let bytes = Buffer.from(input);
  for (let left = 1 + below(5); left > 0; left--) {
    const at = below(bytes.length + 1), size = 1 + below(Math.min(64, bytes.length + 1)), rest = () => bytes.subarray(Math.min(bytes.length, at + size));
    const number = Buffer.alloc(8), width = pick([1, 2, 4, 8]);
    number.writeBigUInt64LE(pick(numbers));
    const change = [
      () => Buffer.concat([bytes.subarray(0, at), Buffer.from([below(256)]), bytes.subarray(Math.min(bytes.length, at + 1))]),
      () => Buffer.concat([bytes.subarray(0, at), number.subarray(0, width), bytes.subarray(Math.min(bytes.length, at + width))]),
      () => Buffer.concat([bytes.subarray(0, at), rest()]),
      () => Buffer.concat([bytes.subarray(0, at), bytes.subarray(at, at + size), bytes.subarray(at)]),
      () => Buffer.concat([bytes.subarray(0, at), Buffer.from(pick(texts)), Math.random() < 0.5 ? bytes.subarray(at) : rest()]),
      () => { const other = pick(others), from = below(other.length + 1); return Buffer.concat([bytes.subarray(0, at), other.subarray(from, from + size), rest()]); },
      () => { const other = pick(others); return Buffer.concat([bytes.subarray(0, at), other.subarray(Math.min(other.length, at))]); },
      () => { const copy = Buffer.from(bytes); if (copy.length > 0) copy[at % copy.length] ^= 1 << below(8); return copy; },
      () => { const copy = Buffer.from(bytes); if (copy.length > 0) copy[at % copy.length] += pick([-1, 1]); return copy; },
    ];
    bytes = pick(change)().subarray(0, mostBytes);
  }
  return bytes;
}

const figures = { executions: 0, taken: 0, refused: 0, blocks: 0, inputs: 0, seconds: Number(seconds) };
let current = Buffer.alloc(0);

function found(why) {
  const path = join(folder, "..", "crashes", `${name}-${createHash("sha256").update(current).digest("hex").slice(0, 12)}`);
  mkdirSync(join(folder, "..", "crashes"), { recursive: true });
  writeFileSync(path, current);
  console.error(`${path}: ${why}`);
  process.exit(77);
}
process.on("uncaughtException", (error) => found(error.stack));

async function execute(bytes) {
  current = bytes;
  writeFileSync(join(folder, "current"), bytes);
  const started = process.cpuUsage();
  await run(name, bytes).then((outcome) => figures[outcome]++, (error) => found(error?.stack ?? error));
  const { user, system } = process.cpuUsage(started);
  if ((user + system) / 1000 > mostCpuMs) found(`took ${Math.round((user + system) / 1000)} ms`);
  figures.executions++;
}

mkdirSync(join(folder, "inputs"), { recursive: true });
const inputs = [...new Map([...corpora, join(folder, "inputs")].flatMap(read).map((bytes) => [bytes.toString("latin1"), bytes])).values()];
for (const input of inputs) await execute(input);
learn(await blocks());
const spent = () => (process.cpuUsage().user + process.cpuUsage().system) / 1e6;
while (spent() < seconds) {
  // One look at the counters costs as much as some inputs: only where a batch reached something new its inputs are looked at one by one.
  const tried = Array.from({ length: batch }, () => mutate(pick(inputs), inputs));
  for (const input of tried) await execute(input);
  if ([...(await blocks())].every((block) => known.has(block))) continue;
  for (const input of tried) {
    await execute(input);
    if (!learn(await blocks())) continue;
    inputs.push(input);
    writeFileSync(join(folder, "inputs", createHash("sha256").update(input).digest("hex").slice(0, 16)), input);
  }
}
rmSync(join(folder, "current"), { force: true });
console.log(JSON.stringify({ ...figures, blocks: known.size, inputs: inputs.length }));
process.exit(0);
