// npm run test:cuda [-- STAGE … --schedules 0,1,2 --variants plain,asan,tsan --families attention,kv,reduce,draft]: tests of cuda/ on machines without a GPU. Stages, all by default:
//   faults    builds the emulation three times (plain, ASan with UBSan, TSan) and checks that each fault of
//             test/native/cuda_host/faults.cu is caught by what should catch it, and that nothing else is reported
//   vectors   conformance vectors (TOKENLOOM_SHARED/vectors) through the public interface on the emulated device, in each schedule
//   device    test/cuda on the emulated device, in each schedule: models, streams, graphs, memory, tensors, tensor cores against float64
//   sanitize  the vectors once more, and test/cuda/streams, with the emulation under ASan with UBSan, and under TSan
//   bench     that bench/cuda.mjs runs, with a few rows
//   model     greedy tokens of SmolLM2 (TOKENLOOM_MODELS) on it, against the reference's (TOKENLOOM_SHARED/oracles)
//   build     nvcc for sm_80 and sm_90; budget: what it made of each kernel against cuda/budget.json
//   docs      docs/devices.md lists the twins that there are
import { execFile, spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { checkBudget } from "./cuda-budget.mjs";
import { findToolkit } from "./cuda-toolkit.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const variants = { plain: "", asan: "address,undefined", tsan: "thread" };
const { values: flags, positionals: chosen } = parseArgs({ allowPositionals: true, options: { schedules: { type: "string", default: "0,1,2" }, variants: { type: "string", default: "plain,asan,tsan" }, families: { type: "string", default: "attention,kv,reduce,draft" } } });
const schedules = flags.schedules.split(","), wantedVariants = flags.variants.split(",");

function runOrExit(command, args, options = {}) {
  const { status, error } = spawnSync(command, args, { stdio: "inherit", cwd: root, ...options });
  if (error) console.error(`${command}: ${error.message}`);
  if (status !== 0) process.exit(status ?? 1);
}

/** Builds targets of the emulation in build/cuda-host-VARIANT and returns that folder. */
function buildHost(variant, ...targets) {
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
  for (const variant of wantedVariants) {
    const program = join(buildHost(variant, "cuda_faults"), "cuda_faults");
    const names = spawnSync(program, { encoding: "utf8" }).stdout.trim().split("\n");
    if (names.join() !== Object.keys(caughtBy).join()) throw new Error("faults.cu and caughtBy name different faults");
    for (const name of names) {
      const caught = ["0", "1", "2"].filter((schedule) => {
        const { status } = spawnSync(program, [name], { env: { ...process.env, TOKENLOOM_CUDA_HOST_SCHEDULE: schedule, ASAN_OPTIONS: "detect_leaks=0" }, timeout: 60_000 });
        return status !== 0;
      });
      const good = name.startsWith("none") ? caught.length === 0 : caught.length > 0 || !caughtBy[name].includes(variant);
      wrong += tell(good, `${variant.padEnd(5)} ${name}: ${caught.length > 0 ? `caught in schedules ${caught.join(", ")}` : "no complaint"}`);
    }
  }
  return wrong;
}

const library = join(root, "dist", "esm", "index.js");
const shared = process.env.TOKENLOOM_SHARED;

let passed = 0;

/** One check's line; returns how many failed. */
function tell(good, text) {
  if (good) passed++;
  console.log(`${good ? "ok  " : "FAIL"}  ${text}`);
  return good ? 0 : 1;
}

function skip(stage, reason) {
  console.log(`skip  ${stage}: ${reason}`);
  return 0;
}

const built = new Map();

/** What a process needs to use the emulation; under a sanitizer its library comes first, since Node has none. */
function hostEnvironment(schedule, variant = "plain") {
  if (!built.has(variant)) built.set(variant, join(buildHost(variant, "tokenloom_cuda_host"), "libtokenloom_cuda_host.so"));
  const environment = { ...process.env, TOKENLOOM_CUDA_LIBRARY: built.get(variant), TOKENLOOM_CUDA_HOST_SCHEDULE: schedule };
  if (variant === "plain") return environment;
  const libraries = variant === "asan" ? ["libasan.so", "libubsan.so"] : ["libtsan.so"];
  const paths = libraries.map((name) => spawnSync("g++", [`-print-file-name=${name}`], { encoding: "utf8" }).stdout.trim());
  // Node and the addon are without sanitizers: nothing is known of their memory, so leaks and their own threads' races are not asked for.
  return { ...environment, LD_PRELOAD: paths.join(" "), ASAN_OPTIONS: "detect_leaks=0", UBSAN_OPTIONS: "print_stacktrace=1", TSAN_OPTIONS: `suppressions=${join(root, "test", "native", "cuda_host", "tsan.supp")}` };
}

const notYet = /does not run on CUDA yet/;

const report = /^.*(ERROR: AddressSanitizer|runtime error:|WARNING: ThreadSanitizer|FATAL: ThreadSanitizer).*$/gm;

/** Like spawnSync, but others may run beside it. */
const run = (args, options) => new Promise((resolve) => execFile(process.execPath, args, { encoding: "utf8", maxBuffer: 1 << 28, ...options }, (error, stdout, stderr) => resolve({ stdout, stderr })));

/** The vectors on the emulation in one schedule, a process a family; returns how many failed, reports of a sanitizer among them. */
async function runVectors(schedule, variant, packing) {
  const counts = { passed: 0, failed: 0, notYet: 0, reports: 0 }, env = { ...hostEnvironment(schedule, variant), TOKENLOOM_DEVICE: "cuda" };
  const families = flags.families.split(","), conformance = join(root, "dist", "esm", "cli", "conformance.js");
  for (const { stdout, stderr } of await Promise.all(families.map((family) => run([conformance, "--threads", "1", "--isa", packing, join(shared, "vectors", family)], { env })))) {
    for (const line of stdout.split("\n")) {
      if (line.startsWith("ok ")) counts.passed++;
      else if (notYet.test(line)) counts.notYet++;
      else if (line.startsWith("FAIL")) {
        counts.failed++;
        console.log(line);
      }
    }
    const reports = stderr.match(report) ?? [];
    if (reports.length > 0) console.log(stderr.slice(stderr.search(report)).split("\n").slice(0, 40).join("\n"));
    counts.reports += reports.length;
  }
  if (counts.passed === 0) counts.failed++;
  const wrong = counts.failed + counts.reports, under = variant === "plain" ? "" : ` under ${variant}, ${counts.reports} reports`;
  passed += counts.passed - 1;
  tell(wrong === 0, `vectors in schedule ${schedule}${under}: ${counts.passed} passed, ${counts.failed} failed, ${counts.notYet} need an op without a twin`);
  return wrong;
}

function vectorsMissing() {
  if (!existsSync(library)) return "there is no build: npm run build";
  return !shared || !existsSync(join(shared, "vectors")) ? "TOKENLOOM_SHARED names no folder with vectors" : undefined;
}

async function testVectors() {
  const missing = vectorsMissing();
  if (missing) return skip("vectors", missing);
  const packing = isa();
  let wrong = 0;
  for (const schedule of schedules) wrong += await runVectors(schedule, "plain", packing);
  return wrong;
}

async function testSanitize() {
  const missing = vectorsMissing();
  if (missing) return skip("sanitize", missing);
  const packing = isa();
  let wrong = 0;
  for (const variant of wantedVariants.filter((name) => name !== "plain")) for (const schedule of schedules) wrong += (await runVectors(schedule, variant, packing)) + runFile("streams", schedule, variant);
  return wrong;
}

/** The instruction set whose packing the device reads: the machine's best. */
function isa() {
  const { stdout } = spawnSync(process.execPath, ["--input-type=module", "-e", `import { systemInfo } from ${JSON.stringify(pathToFileURL(library).href)}; console.log(systemInfo().isa)`], { encoding: "utf8" });
  return stdout.trim();
}

const testFolder = join(root, "build", "test", "cuda");

/** One file of test/cuda on the emulation. */
function runFile(name, schedule, variant = "plain") {
  const env = { ...hostEnvironment(schedule, variant), TAP_TIMEOUT: variant === "plain" ? "240" : "1200" };
  const { status, stdout, stderr } = spawnSync(process.execPath, [join(testFolder, `${name}.test.js`)], { encoding: "utf8", env, maxBuffer: 1 << 28 });
  const reports = stderr.match(report) ?? [], good = status === 0 && reports.length === 0;
  if (!good) console.log(`${stdout}\n${stderr.slice(0, 4000)}`);
  return tell(good, `test/cuda/${name} in schedule ${schedule}${variant === "plain" ? "" : ` under ${variant}`}`);
}

function testDevice() {
  if (!existsSync(testFolder)) return skip("device", "there is no build/test: npm run build:test");
  const names = readdirSync(testFolder).filter((name) => name.endsWith(".test.js")).map((name) => name.replace(".test.js", ""));
  return schedules.reduce((wrong, schedule) => names.reduce((sum, name) => sum + runFile(name, schedule), wrong), 0);
}

function testBench() {
  if (!existsSync(library)) return skip("bench", "there is no build: npm run build");
  const { status, stdout, stderr } = spawnSync(process.execPath, [join(root, "bench", "cuda.mjs"), "--tiny", "--runs", "1"], { encoding: "utf8", env: hostEnvironment("0") });
  const good = status === 0 && /\| 17 rows × f32 weight/.test(stdout);
  if (!good) console.log(stdout + stderr);
  return tell(good, "bench:cuda on the emulated device");
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
    const model = await loadModel(process.env.FILE, { device: "cuda" }), out = [];
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
    wrong += tell(good, `model: tokens ${got.join(" ")}${good ? "" : ` instead of ${want.join(" ")}`}`);
  }
  return wrong;
}

function testBuild() {
  if (!findToolkit()) return skip("build", "there is no CUDA compiler: npm run setup:cuda");
  const { status } = spawnSync(process.execPath, [join(root, "scripts", "build-cuda.mjs"), "--arch", process.env.TOKENLOOM_CUDA_ARCH ?? "80,90"], { stdio: "inherit" });
  return tell(status === 0, "nvcc compiles all kernels");
}

function testBudget() {
  if (!findToolkit()) return skip("budget", "there is no CUDA compiler: npm run setup:cuda");
  const { kernels, problems } = checkBudget();
  for (const problem of problems) console.log(`FAIL  budget: ${problem}`);
  if (problems.length === 0) tell(true, `budget: ${kernels} kernels within cuda/budget.json`);
  return problems.length;
}

function testDocs() {
  return tell(spawnSync(process.execPath, [join(root, "scripts", "generate-devices.mjs"), "--check"], { stdio: "inherit" }).status === 0, "docs/devices.md lists the twins");
}

const stages = { docs: testDocs, faults: testFaults, vectors: testVectors, device: testDevice, sanitize: testSanitize, model: testModel, bench: testBench, build: testBuild, budget: testBudget };
for (const name of chosen) {
  if (!Object.hasOwn(stages, name)) {
    console.error(`There is no stage ${name}: choose of ${Object.keys(stages).join(", ")}`);
    process.exit(2);
  }
}
let failures = 0;
for (const [name, stage] of Object.entries(stages)) if (chosen.length === 0 || chosen.includes(name)) failures += await stage();
console.log(`${passed} passed, ${failures} failed`);
process.exitCode = failures === 0 ? 0 : 1;
