// npm run test:cuda [-- STAGE …]: tests of cuda/ on machines without a GPU. Stages, all by default:
//   faults    builds the emulation three times (plain, ASan with UBSan, TSan) and checks that each fault of
//             test/native/cuda_host/faults.cu is caught by what should catch it, and that nothing else is reported
//   vectors   conformance vectors (TOKENLOOM_SHARED/vectors) through the public interface on the emulated device, in each schedule
//   halves    attention on tensor cores against float64, in each schedule
//   model     greedy tokens of SmolLM2 (TOKENLOOM_MODELS) on it, against the reference's (TOKENLOOM_SHARED/oracles)
//   build     nvcc for sm_80 and sm_90; budget: what it made of each kernel against cuda/budget.json
//   docs      docs/devices.md lists the twins that there are
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { checkBudget } from "./cuda-budget.mjs";
import { findToolkit } from "./cuda-toolkit.mjs";

export const root = fileURLToPath(new URL("..", import.meta.url));
export const schedules = ["0", "1", "2"];
export const variants = { plain: "", asan: "address,undefined", tsan: "thread" };

export function runOrExit(command, args, options = {}) {
  const { status, error } = spawnSync(command, args, { stdio: "inherit", cwd: root, ...options });
  if (error) console.error(`${command}: ${error.message}`);
  if (status !== 0) process.exit(status ?? 1);
}

/** Builds targets of the emulation in build/cuda-host-VARIANT and returns that folder. */
export function buildHost(variant, ...targets) {
  const folder = join(root, "build", `cuda-host-${variant}`);
  const ccache = spawnSync("ccache", ["--version"]).status === 0 ? ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] : [];
  const sanitize = variants[variant] === "" ? [] : [`-DTL_SANITIZE=${variants[variant]}`];
  runOrExit("cmake", ["-S", root, "-B", folder, "-DTL_ADDON=OFF", "-DTL_CUDA_HOST=ON", "-DTL_ONLY=SCALAR", "-DCMAKE_BUILD_TYPE=Release", ...sanitize, ...ccache], { stdio: ["ignore", "ignore", "inherit"] });
  runOrExit("cmake", ["--build", folder, "-j", String(Math.min(2, cpus().length)), "--target", ...targets], { stdio: ["ignore", "ignore", "inherit"] });
  return join(folder, "test", "native", "cuda_host");
}

/** Which variants have to catch a fault, in one of the schedules at least. */
const caughtBy = {
  none: [], noneProduct: [],
  noBarrierAfterWait: ["plain"], noBarrierBeforeRefill: ["plain", "tsan"], noBarrierInReduction: ["plain", "tsan"], waitOneShort: ["plain"],
  rowPastEnd: ["plain", "asan"], sharedTooSmall: ["asan"], wrongShuffle: ["plain"], divergentBarrier: ["plain"], divergentShuffle: ["plain"],
  misalignedCopy: ["plain"], openCopies: ["plain"], noWarpBarrier: ["plain"], wrongFragment: ["plain"],
};

function testFaults() {
  let wrong = 0;
  for (const variant of Object.keys(variants)) {
    const program = join(buildHost(variant, "cuda_faults"), "cuda_faults");
    const names = spawnSync(program, { encoding: "utf8" }).stdout.trim().split("\n");
    if (names.join() !== Object.keys(caughtBy).join()) throw new Error("faults.cu and caughtBy name different faults");
    for (const name of names) {
      const caught = schedules.filter((schedule) => {
        const { status } = spawnSync(program, [name], { env: { ...process.env, TOKENLOOM_CUDA_HOST_SCHEDULE: schedule, ASAN_OPTIONS: "detect_leaks=0" }, timeout: 60_000 });
        return status !== 0;
      });
      const good = name.startsWith("none") ? caught.length === 0 : caught.length > 0 || !caughtBy[name].includes(variant);
      if (!good) wrong++;
      console.log(`${good ? "ok  " : "FAIL"}  ${variant.padEnd(5)} ${name}: ${caught.length > 0 ? `caught in schedules ${caught.join(", ")}` : "no complaint"}`);
    }
  }
  return wrong;
}

const library = join(root, "dist", "esm", "index.js");
const shared = process.env.TOKENLOOM_SHARED;

function skip(stage, reason) {
  console.log(`skip  ${stage}: ${reason}`);
  return 0;
}

let emulation;

function hostEnvironment(schedule) {
  emulation ??= join(buildHost("plain", "tokenloom_cuda_host"), "libtokenloom_cuda_host.so");
  return { ...process.env, TOKENLOOM_DEVICE: "cuda", TOKENLOOM_CUDA_LIBRARY: emulation, TOKENLOOM_CUDA_HOST_SCHEDULE: schedule };
}

const notYet = /does not run on CUDA yet/;

function testVectors() {
  if (!existsSync(library)) return skip("vectors", "there is no build: npm run build");
  if (!shared || !existsSync(join(shared, "vectors"))) return skip("vectors", "TOKENLOOM_SHARED names no folder with vectors");
  let wrong = 0;
  const packing = isa();
  for (const schedule of schedules) {
    const counts = { passed: 0, failed: 0, notYet: 0 };
    for (const family of ["attention", "kv", "reduce", "draft"]) {
      const { stdout } = spawnSync(process.execPath, [join(root, "dist", "esm", "cli", "conformance.js"), "--threads", "1", "--isa", packing, join(shared, "vectors", family)], { encoding: "utf8", env: hostEnvironment(schedule), maxBuffer: 1 << 26 });
      for (const line of stdout.split("\n")) {
        if (line.startsWith("ok ")) counts.passed++;
        else if (notYet.test(line)) counts.notYet++;
        else if (line.startsWith("FAIL")) {
          counts.failed++;
          console.log(line);
        }
      }
    }
    if (counts.passed === 0) counts.failed++;
    console.log(`${counts.failed === 0 ? "ok  " : "FAIL"}  vectors in schedule ${schedule}: ${counts.passed} passed, ${counts.failed} failed, ${counts.notYet} need an op without a twin`);
    wrong += counts.failed;
  }
  return wrong;
}

/** The instruction set whose packing the device reads: the machine's best. */
function isa() {
  const { stdout } = spawnSync(process.execPath, ["--input-type=module", "-e", `import { systemInfo } from ${JSON.stringify(pathToFileURL(library).href)}; console.log(systemInfo().isa)`], { encoding: "utf8" });
  return stdout.trim();
}

function testHalves() {
  const file = join(root, "build", "test", "cuda", "half.test.js");
  if (!existsSync(file)) return skip("halves", "there is no build/test: npm run build:test");
  let wrong = 0;
  for (const schedule of schedules) {
    const { status, stdout } = spawnSync(process.execPath, [file], { encoding: "utf8", env: hostEnvironment(schedule) });
    if (status !== 0) console.log(stdout);
    console.log(`${status === 0 ? "ok  " : "FAIL"}  attention on tensor cores in schedule ${schedule}`);
    wrong += status === 0 ? 0 : 1;
  }
  return wrong;
}

function testModel() {
  const models = process.env.TOKENLOOM_MODELS, file = models && join(models, "SmolLM2-135M-Instruct.Q4_1.gguf");
  if (!existsSync(library)) return skip("model", "there is no build: npm run build");
  if (!file || !existsSync(file)) return skip("model", "TOKENLOOM_MODELS has no SmolLM2-135M-Instruct.Q4_1.gguf");
  if (!shared || !existsSync(join(shared, "oracles", "smollm2", "smollm2.json"))) return skip("model", "TOKENLOOM_SHARED has no oracles/smollm2");
  const tokens = 4;
  const { greedy } = JSON.parse(readFileSync(join(shared, "oracles", "smollm2", "smollm2.json"), "utf8"));
  const program = `
    import { loadModel } from ${JSON.stringify(pathToFileURL(library).href)};
    const model = await loadModel(process.env.FILE), out = [];
    for (const { ids, out: want } of JSON.parse(process.env.CASES)) {
      const session = model.session(), got = [];
      for await (const piece of session.generate(ids, { maxTokens: ${tokens}, temperature: 0 })) got.push(...piece.tokens);
      out.push({ got: got.slice(0, ${tokens}), want: want.slice(0, ${tokens}) });
      session.dispose();
    }
    console.log(JSON.stringify(out));`;
  const cases = JSON.stringify(greedy.slice(0, 2).map(({ ids, out }) => ({ ids, out })));
  const { stdout, stderr } = spawnSync(process.execPath, ["--input-type=module", "-e", program], { encoding: "utf8", env: { ...hostEnvironment("0"), FILE: file, CASES: cases } });
  if (!stdout) {
    console.error(stderr);
    return 1;
  }
  let wrong = 0;
  for (const { got, want } of JSON.parse(stdout)) {
    const good = got.join() === want.join();
    if (!good) wrong++;
    console.log(`${good ? "ok  " : "FAIL"}  model: tokens ${got.join(" ")}${good ? "" : ` instead of ${want.join(" ")}`}`);
  }
  return wrong;
}

function testBuild() {
  if (!findToolkit()) return skip("build", "there is no CUDA compiler: npm run setup:cuda");
  return spawnSync(process.execPath, [join(root, "scripts", "build-cuda.mjs"), "--arch", process.env.TOKENLOOM_CUDA_ARCH ?? "80,90"], { stdio: "inherit" }).status === 0 ? 0 : 1;
}

function testBudget() {
  if (!findToolkit()) return skip("budget", "there is no CUDA compiler: npm run setup:cuda");
  const { kernels, problems } = checkBudget();
  for (const problem of problems) console.log(`FAIL  budget: ${problem}`);
  if (problems.length === 0) console.log(`ok    budget: ${kernels} kernels within cuda/budget.json`);
  return problems.length;
}

function testDocs() {
  return spawnSync(process.execPath, [join(root, "scripts", "generate-devices.mjs"), "--check"], { stdio: "inherit" }).status === 0 ? 0 : 1;
}

const stages = { docs: testDocs, faults: testFaults, vectors: testVectors, halves: testHalves, model: testModel, build: testBuild, budget: testBudget };
const chosen = process.argv.slice(2);
for (const name of chosen) {
  if (!Object.hasOwn(stages, name)) {
    console.error(`There is no stage ${name}: choose of ${Object.keys(stages).join(", ")}`);
    process.exit(2);
  }
}
let failures = 0;
for (const [name, stage] of Object.entries(stages)) if (chosen.length === 0 || chosen.includes(name)) failures += await stage();
if (failures > 0) console.error(`${failures} failed`);
process.exitCode = failures === 0 ? 0 : 1;
