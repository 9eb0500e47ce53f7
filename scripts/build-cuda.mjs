// npm run build:cuda [-- --arch 80,90 --jobs N]: compiles cuda/ into build/cuda/tokenloom_cuda.so, the opt-in library that the
// addon opens beside itself (copied to build/Release where that is), with the CUDA runtime linked statically.
// Architectures: 80, 86, 89, 90 and PTX of the last for later ones. What ptxas tells of each kernel goes to build/cuda/ptxas-ARCH.txt.
import { spawn, spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readFileSync, readdirSync, renameSync, statSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { findToolkit } from "./cuda-toolkit.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const folder = join(root, "build", "cuda");
const option = (name, fallback) => {
  const at = process.argv.indexOf(`--${name}`);
  return at < 0 ? fallback : process.argv[at + 1];
};
const architectures = option("arch", "80,86,89,90").split(",").map(Number);
const jobs = Number(option("jobs", String(Math.min(2, cpus().length))));
if (architectures.some((arch) => !Number.isInteger(arch) || arch < 80)) {
  console.error("build:cuda: --arch takes numbers from 80 on, separated by commas");
  process.exit(2);
}
const toolkit = findToolkit();
if (!toolkit) {
  console.error("build:cuda: there is no CUDA compiler: npm run setup:cuda installs one, or set CUDA_PATH");
  process.exit(1);
}
if (!toolkit.libraries) {
  console.error(`build:cuda: ${toolkit.root} has no libcudart_static.a`);
  process.exit(1);
}

const flags = ["-std=c++20", "-O3", "--compress-mode=size", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall", "-Xptxas", "-v"];
const last = Math.max(...architectures);
const targets = architectures.flatMap((arch) => ["-gencode", `arch=compute_${arch},code=${arch === last ? `[sm_${arch},compute_${arch}]` : `sm_${arch}`}`]);

/** Newest change of what objects are made of. */
const newest = (path) => (statSync(path).isDirectory() ? Math.max(...readdirSync(path).map((name) => newest(join(path, name)))) : statSync(path).mtimeMs);
const shared = Math.max(newest(join(root, "cuda", "core")), newest(join(root, "cpp")), ...readdirSync(join(root, "cuda")).filter((name) => !name.endsWith(".cu") && !name.endsWith(".json")).map((name) => newest(join(root, "cuda", name))));
mkdirSync(folder, { recursive: true });
const stamp = JSON.stringify({ architectures, version: toolkit.version });
const sources = readdirSync(join(root, "cuda")).filter((name) => name.endsWith(".cu"));
const objectOf = (source) => join(folder, source.replace(/\.cu$/, ".o"));
const textOf = (source) => join(folder, source.replace(/\.cu$/, ".ptxas.txt"));
const marker = join(folder, "built.json");
const same = existsSync(marker) && readFileSync(marker, "utf8") === stamp;
const stale = sources.filter((source) => {
  const object = objectOf(source);
  return !same || !existsSync(object) || statSync(object).mtimeMs < Math.max(shared, newest(join(root, "cuda", source)));
});

function compile(source) {
  return new Promise((resolve) => {
    const began = performance.now();
    const child = spawn(toolkit.nvcc, [...flags, ...targets, "-c", join(root, "cuda", source), "-o", objectOf(source)]);
    let text = "";
    child.stdout.on("data", (data) => (text += data));
    child.stderr.on("data", (data) => (text += data));
    child.on("close", (status) => {
      writeFileSync(textOf(source), text);
      console.log(`${status === 0 ? "ok  " : "FAIL"}  ${source} (${((performance.now() - began) / 1000).toFixed(1)} s)`);
      if (status !== 0) console.error(text);
      resolve(status === 0);
    });
  });
}

const queue = [...stale];
let good = true;
await Promise.all(Array.from({ length: jobs }, async () => {
  for (let source = queue.shift(); source; source = queue.shift()) good = (await compile(source)) && good;
}));
if (!good) process.exit(1);
writeFileSync(marker, stamp);

const library = join(folder, "tokenloom_cuda.so");
const linked = spawnSync("g++", ["-shared", "-o", `${library}.new`, ...sources.map(objectOf), "-L", toolkit.libraries, "-lcudart_static", "-lpthread", "-ldl", "-lrt", "-static-libgcc", "-static-libstdc++", "-Wl,--exclude-libs,ALL", "-Wl,-z,nodelete", "-s"], { stdio: "inherit" });
if (linked.status !== 0) process.exit(1);
renameSync(`${library}.new`, library);
const beside = join(root, "build", "Release");
if (existsSync(beside)) {
  copyFileSync(library, join(beside, "tokenloom_cuda.so.new"));
  renameSync(join(beside, "tokenloom_cuda.so.new"), join(beside, "tokenloom_cuda.so"));
}
console.log(`${library}: ${(statSync(library).size / 1e6).toFixed(1)} MB for sm_${architectures.join(", sm_")} and PTX of compute_${last}`);
