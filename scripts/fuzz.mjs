// Coverage-guided fuzzing of everything that reads files, as JavaScript (scripts/fuzz-loop.mjs over dist/esm), and of native programs
// (test/native/fuzz_program.cpp).
//   npm run fuzz -- --seconds 60 [TARGET …]     seconds of processor time for each target
// What reached something new goes to build/fuzz/TARGET/inputs, findings to build/fuzz/crashes; exits with 1 where there are any.
// `--keep` copies the smallest of what was found to test/fuzz/corpus.
import { spawn, spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const { names } = await import("../test/fuzz/targets.mjs");
const flag = process.argv.indexOf("--seconds"), full = process.env.TOKENLOOM_FAULTS === "full";
const seconds = flag > 0 ? Number(process.argv[flag + 1]) : full ? 70 : 5;
const asked = process.argv.slice(2).filter((argument, i) => !argument.startsWith("--") && (flag < 0 || i !== flag - 1)), chosen = asked.length > 0 ? asked : [...names, "program"];
const crashes = join(root, "build", "fuzz", "crashes");
/** A target counts as hung where so many looks, this far apart, find it at the same input. */
const mostLooks = 20, betweenLooks = 10_000;
/** Inputs kept in the repository are at most so large, and so many for each target. */
const keptBytes = 1500, keptInputs = 24;

/** Whether a process is stopped, as by SIGSTOP: then its silence means nothing. */
function isStopped(pid) {
  try {
    return readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1].startsWith("T");
  } catch {
    return false;
  }
}

/** Runs a target to its end; what it died of, or hangs on, is in FOLDER/current. */
function fuzzFiles(name) {
  const folder = join(root, "build", "fuzz", name);
  mkdirSync(folder, { recursive: true });
  const child = spawn(process.execPath, [join(root, "scripts", "fuzz-loop.mjs"), name, String(seconds), folder, join(root, "test", "fuzz", "corpus", name)], { cwd: root, stdio: ["ignore", "pipe", "pipe"] });
  let stdout = "", stderr = "";
  child.stdout.on("data", (text) => (stdout += text));
  child.stderr.on("data", (text) => (stderr += text));
  const current = join(folder, "current");
  let looks = 0, last = 0;
  const watch = setInterval(() => {
    const written = existsSync(current) ? statSync(current).mtimeMs : 0;
    looks = written !== last || isStopped(child.pid) ? 0 : looks + 1;
    last = written;
    if (looks >= mostLooks) child.kill("SIGKILL");
  }, betweenLooks);
  return new Promise((resolve) => child.on("close", (code, signal) => {
    clearInterval(watch);
    if (code !== 0 && existsSync(current)) copyFileSync(current, join(crashes, `${name}-${signal ?? code}`));
    resolve({ found: code !== 0, text: code === 0 ? stdout : `${signal ?? code}\n${stderr}` });
  }));
}

/** Native, by GCC with its coverage hooks and both sanitizers; undefined where tools are missing. */
function fuzzProgram() {
  const folder = join(root, "build", "fuzz-program"), has = (program) => spawnSync(program, ["--version"], { stdio: "ignore" }).status === 0;
  if (!has("cmake") || !has("g++")) return undefined;
  const launcher = has("ccache") ? ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] : [];
  const configure = ["-S", ".", "-B", folder, "-DTL_ADDON=OFF", "-DTL_FUZZ=ON", "-DTL_ONLY=SCALAR", "-DTL_SANITIZE=address;undefined", "-DCMAKE_BUILD_TYPE=Sanitize", "-DCMAKE_CXX_FLAGS=-O1", "-DCMAKE_CXX_COMPILER=g++", ...launcher];
  for (const step of [configure, ["--build", folder, "--parallel", "2", "--target", "fuzz_program"]]) {
    const built = spawnSync("cmake", step, { cwd: root, encoding: "utf8", maxBuffer: 1 << 28 });
    if (built.status !== 0) return { found: true, text: `${built.stdout}${built.stderr}` };
  }
  const env = { ...process.env, UBSAN_OPTIONS: "halt_on_error=1:print_stacktrace=1" };
  const run = spawnSync(join(folder, "test", "native", "fuzz_program"), [String(seconds)], { cwd: crashes, encoding: "utf8", env });
  return { found: run.status !== 0, text: run.status === 0 ? run.stdout : `${run.signal ?? run.status}\n${run.stdout}${run.stderr}` };
}

function keep(name) {
  const from = join(root, "build", "fuzz", name, "inputs"), to = join(root, "test", "fuzz", "corpus", name);
  const files = existsSync(from) ? readdirSync(from).map((file) => ({ file, bytes: statSync(join(from, file)).size })) : [];
  for (const { file } of files.filter(({ bytes }) => bytes <= keptBytes).sort((a, b) => a.bytes - b.bytes).slice(0, keptInputs)) copyFileSync(join(from, file), join(to, file));
}

rmSync(crashes, { recursive: true, force: true });
mkdirSync(crashes, { recursive: true });
const total = { targets: 0, executions: 0, findings: 0, cpuSeconds: 0 };
function tell(name, run) {
  if (run === undefined) {
    console.log(`${name}: left out, needs CMake and GCC`);
    return;
  }
  total.targets++;
  if (run.found) total.findings++;
  else {
    const figures = JSON.parse(run.text);
    total.executions += figures.executions;
    total.cpuSeconds += seconds;
  }
  console.log(`${run.found ? "FOUND" : "ok  "} ${name}: ${run.text.trim()}`);
  if (process.argv.includes("--keep") && names.includes(name)) keep(name);
}

// Beside each other: each counts its own processor time.
await Promise.all(chosen.filter((name) => name !== "program").map(async (name) => tell(name, await fuzzFiles(name))));
if (chosen.includes("program")) tell("program", fuzzProgram());
const results = join(root, "build", "faults");
mkdirSync(results, { recursive: true });
writeFileSync(join(results, "fuzz.json"), `${JSON.stringify({ name: "fuzz", figures: { ...total, corpusFiles: names.reduce((sum, name) => sum + readdirSync(join(root, "test", "fuzz", "corpus", name)).length, 0) } })}\n`);
console.log(`${total.targets - total.findings} passed, ${total.findings} failed`);
process.exit(total.findings > 0 ? 1 : 0);
