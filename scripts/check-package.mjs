// Packs the package with this platform's binary, unpacks it elsewhere and uses it as a stranger would: require and import,
// their types, the command line; publint and are-the-types-wrong look at it too. Fails above 5 MB unpacked. Needs a build. Ends with `N passed, N failed`.
import { execFileSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { checkLibraries, ownPlatform, pack, unpack } from "./packages.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
/** Inside the repository, so that dependencies resolve to the installed ones. */
const folder = join(root, "build", "package");
const installed = join(folder, "node_modules", "tokenloom");
/** Of all that is packed and one platform's binary. */
const limit = 5e6;
let failed = 0;
let passed = 0;
let tarball = "";

function check(name, work) {
  try {
    console.log(`ok    ${name}${work() ?? ""}`);
    passed++;
  } catch (error) {
    console.log(`FAIL  ${name}: ${[error.message, error.stdout, error.stderr].filter(Boolean).join("\n")}`);
    failed++;
  }
}

const run = (command, args, options = {}) => execFileSync(command, args, { cwd: folder, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"], ...options });
const node = (...args) => run(process.execPath, args);
const tool = (name, program, ...args) => node(join(root, "node_modules", name, program), ...args);

function sizeOf(path) {
  const found = statSync(path);
  return found.isDirectory() ? readdirSync(path).reduce((sum, name) => sum + sizeOf(join(path, name)), 0) : found.size;
}

function bring() {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  ({ tarball } = pack({ to: folder }));
  unpack(tarball, installed);
  const binaries = join(installed, "prebuilds", `${process.platform}-${process.arch}`), binary = join(binaries, "tokenloom.node");
  // Of other platforms there may be binaries too: what one platform uses is what counts.
  for (const name of existsSync(join(installed, "prebuilds")) ? readdirSync(join(installed, "prebuilds")) : []) {
    if (join(installed, "prebuilds", name) !== binaries) rmSync(join(installed, "prebuilds", name), { recursive: true });
  }
  if (existsSync(binaries)) return;
  mkdirSync(binaries, { recursive: true });
  cpSync(join(root, "build", "Release", "tokenloom.node"), binary);
  try {
    run("strip", ["--strip-unneeded", binary]);
  } catch {
    console.log("the binary is not stripped: there is no strip");
  }
}

const source = `import { loadModel, memory, systemInfo, type LanguageModel, type Piece } from "tokenloom";
export async function first(path: string): Promise<Piece | undefined> {
  const model: LanguageModel = await loadModel(path);
  for await (const piece of model.session().generate("Once")) return piece;
  return memory().handles > 0 && systemInfo().isa === "" ? undefined : undefined;
}
`;

check("pack and unpack", bring);
check(`unpacked below ${limit / 1e6} MB`, () => {
  const bytes = sizeOf(installed);
  if (bytes > limit) throw new Error(`${(bytes / 1e6).toFixed(2)} MB`);
  return `: ${(bytes / 1e6).toFixed(2)} MB`;
});
const { libc } = ownPlatform(), binaries = join(installed, "prebuilds", `${process.platform}-${process.arch}`);
if (libc) check("libraries that its binary needs", () => `: ${checkLibraries(join(binaries, readdirSync(binaries).find((name) => name.startsWith("tokenloom.") && name.endsWith(".node"))), libc)}`);
check("require", () => `: ${node("-p", 'require("tokenloom").systemInfo().isa').trim()}`);
check("import", () => `: ${node("--input-type=module", "-e", 'import { systemInfo } from "tokenloom"; console.log(systemInfo().isa)').trim()}`);
check("types of both", () => {
  for (const name of ["use.mts", "use.cts"]) writeFileSync(join(folder, name), source);
  node(join(root, "node_modules", "typescript", "bin", "tsc"), "--ignoreConfig", "--noEmit", "--strict", "--module", "nodenext", "--target", "es2022", "--lib", "es2023,esnext.disposable", "--types", "node", "use.mts", "use.cts");
});
check("publint", () => void tool("publint", "src/cli.js", "run", "--strict", "--pack", "false", installed));
check("are the types wrong", () => void tool("@arethetypeswrong/cli", "dist/index.js", tarball, "--format", "table-flipped", "--no-color"));
check("the API is what etc/tokenloom.api.md says; npm run api brings it up to date", () => void run(process.execPath, [join(root, "node_modules/@microsoft/api-extractor/bin/api-extractor"), "run", "--config", join(root, "api-extractor.json")], { cwd: root }));
check("command line", () => `: ${node(join(installed, "dist/esm/cli/main.js"), "info", "--devices").split("\n")[0]}`);
check("tiny model", () => {
  const text = node(join(installed, "dist/esm/cli/main.js"), "run", join(installed, "models", "tiny.gguf"), "Once upon a time", "--max-tokens", "8");
  if (text.trim() === "") throw new Error("no text came");
});
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed === 0 ? 0 : 1;
