// What the compiler made of each kernel, against cuda/budget.json: registers, spills, shared memory, the occupancy that follows from
// them, and tensor-core instructions in the disassembly. Needs build/cuda of `npm run build:cuda`.
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { findToolkit } from "./cuda-toolkit.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const folder = join(root, "build", "cuda");

/** Of one multiprocessor, by compute capability: warps, blocks, shared bytes (1 KB a block is the system's). */
const processors = {
  80: { warps: 64, blocks: 32, shared: 164 << 10 },
  86: { warps: 48, blocks: 16, shared: 100 << 10 },
  89: { warps: 48, blocks: 24, shared: 100 << 10 },
  90: { warps: 64, blocks: 32, shared: 228 << 10 },
};

/** Warps that fit at once, by the rules of NVIDIA's occupancy calculator: registers go to warps in units of 256, of 65,536. */
export function occupancy(arch, { threads, registers, shared }) {
  const { warps, blocks, shared: most } = processors[arch];
  const each = Math.ceil(threads / 32);
  const byRegisters = Math.floor(Math.floor(65536 / (Math.ceil((registers * 32) / 256) * 256) / 4) * 4 / each);
  const byShared = Math.floor(most / (shared + 1024));
  return (Math.min(blocks, Math.floor(warps / each), byRegisters, byShared) * each) / warps;
}

function demangle(names) {
  const { stdout } = spawnSync("c++filt", { input: names.join("\n"), encoding: "utf8" });
  return stdout.trim().split("\n").map((name) => /::(\w+)(<[^(]*>)?\(/.exec(name.replaceAll("(anonymous namespace)::", ""))?.[1] ?? name);
}

/** Kernels as ptxas reports them: { name, arch, registers, spills, fixedShared }. */
function compiledKernels() {
  const kernels = [];
  for (const file of readdirSync(folder).filter((name) => name.endsWith(".ptxas.txt"))) {
    const text = readFileSync(join(folder, file), "utf8");
    const entry = /Compiling entry function '(\w+)' for 'sm_(\d+)'[\s\S]*?(\d+) bytes spill stores, (\d+) bytes spill loads[\s\S]*?Used (\d+) registers([^\n]*)/g;
    for (const [, mangled, arch, stores, loads, registers, rest] of text.matchAll(entry)) {
      kernels.push({ mangled, file: file.replace(".ptxas.txt", ".o"), arch: Number(arch), registers: Number(registers), spills: Number(stores) + Number(loads), fixedShared: Number(/(\d+) bytes smem/.exec(rest)?.[1] ?? 0) });
    }
  }
  const names = demangle(kernels.map(({ mangled }) => mangled));
  return kernels.map((kernel, i) => ({ ...kernel, name: names[i] }));
}

/** Mangled names of kernels with tensor-core instructions, by object and architecture. */
function tensorKernels(cuobjdump, file, arch) {
  const { stdout } = spawnSync(cuobjdump, ["-sass", "-arch", `sm_${arch}`, join(folder, file)], { encoding: "utf8", maxBuffer: 1 << 30 });
  const found = new Set();
  let current;
  for (const line of stdout.split("\n")) {
    current = /Function : (\w+)/.exec(line)?.[1] ?? current;
    if (/\b[HI]MMA\b/.test(line)) found.add(current);
  }
  return found;
}

export function checkBudget({ print = false } = {}) {
  if (!existsSync(join(folder, "built.json"))) throw new Error("there is no build/cuda: run npm run build:cuda first");
  const budget = JSON.parse(readFileSync(join(root, "cuda", "budget.json"), "utf8"));
  const toolkit = findToolkit();
  const kernels = compiledKernels();
  const disassembled = new Map();
  const problems = [];
  const seen = new Set();
  for (const kernel of kernels) {
    const limit = budget[kernel.name];
    if (!limit) {
      problems.push(`${kernel.name}: has no row in cuda/budget.json`);
      continue;
    }
    seen.add(kernel.name);
    const shared = limit.shared + kernel.fixedShared;
    const occupied = occupancy(kernel.arch, { threads: limit.threads, registers: kernel.registers, shared });
    const where = `${kernel.name} on sm_${kernel.arch}`;
    if (kernel.registers > limit.registers) problems.push(`${where}: ${kernel.registers} registers, of ${limit.registers} allowed`);
    if (kernel.spills > (limit.spills ?? 0)) problems.push(`${where}: spills ${kernel.spills} bytes, of ${limit.spills ?? 0} allowed`);
    // The table's occupancies are those of a multiprocessor with room for 64 warps.
    if (processors[kernel.arch].warps === 64 && occupied < limit.occupancy) problems.push(`${where}: occupancy ${occupied.toFixed(2)}, at least ${limit.occupancy} wanted`);
    if (limit.tensor) {
      const key = `${kernel.file} ${kernel.arch}`;
      if (!disassembled.has(key)) disassembled.set(key, tensorKernels(toolkit.cuobjdump, kernel.file, kernel.arch));
      if (!disassembled.get(key).has(kernel.mangled)) problems.push(`${where}: no tensor-core instruction in the disassembly`);
    }
    if (print) console.log(`${where.padEnd(40)} ${String(kernel.registers).padStart(4)} registers ${String(kernel.spills).padStart(4)} spilled ${String(shared).padStart(6)} shared  occupancy ${occupied.toFixed(2)}`);
  }
  for (const name of Object.keys(budget)) if (!seen.has(name)) problems.push(`${name}: is in cuda/budget.json and in no object`);
  return { kernels: kernels.length, problems: [...new Set(problems)] };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { kernels, problems } = checkBudget({ print: true });
  for (const problem of problems) console.error(problem);
  console.log(`${kernels} kernels, ${problems.length} problems`);
  process.exitCode = problems.length === 0 ? 0 : 1;
}
