// node scripts/prebuild.mjs [--arch arm64]: builds the addon in a folder of its own and puts it, stripped, into the package of its
// platform, build/npm/PLATFORM-ARCH[-musl] (scripts/packages.mjs). This machine's own goes where node-gyp-build looks for it too,
// prebuilds/PLATFORM-ARCH/tokenloom[.glibc|.musl].node, so that a plain `npm pack` holds it. (prebuildify would build over build/Release.)
// On Linux x64, --arch arm64 cross-compiles by g++-aarch64-linux-gnu; binaries for musl are built on musl.
// Checks that a glibc binary asks for nothing newer than glibc 2.28, and a musl one for musl only.
import { spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, rmSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { cpus } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { checkLibraries, makePlatformPackage, ownPlatform, platformName } from "./packages.mjs";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const require = createRequire(import.meta.url);
const { platform, libc: ownLibc } = ownPlatform();
const { values } = parseArgs({ options: { arch: { type: "string", default: process.arch } } });
const { arch } = values, cross = arch !== process.arch, libc = ownLibc;
if (cross && !(platform === "linux" && arch === "arm64" && libc === "glibc")) throw new Error(`this machine does not build ${platform}-${arch}: only linux-arm64 is cross-compiled, on Linux with glibc`);
const tools = cross ? "aarch64-linux-gnu-" : "";
const name = platformName({ platform, arch, libc }), folder = join("build", `prebuild-${name}`);

function run(command, args) {
  const done = spawnSync(command, args, { cwd: root, encoding: "utf8", maxBuffer: 1 << 28, stdio: ["ignore", "pipe", "pipe"] });
  if (done.status === 0) return done.stdout;
  process.stderr.write(`${done.stdout ?? ""}${done.stderr ?? ""}${done.error?.message ?? ""}`);
  throw new Error(`${command} ${args.join(" ")} failed`);
}

const cmakeJs = join(dirname(require.resolve("cmake-js/package.json")), "bin", "cmake-js");
const options = ["--out", folder, "--config", "Release", "--arch", arch, "--parallel", String(Math.min(2, cpus().length))];
if (spawnSync("ccache", ["--version"], { stdio: "ignore" }).status === 0) options.push("--CDCMAKE_CXX_COMPILER_LAUNCHER=ccache");
if (cross) options.push("--CDCMAKE_SYSTEM_NAME=Linux", "--CDCMAKE_SYSTEM_PROCESSOR=aarch64", `--CDCMAKE_C_COMPILER=${tools}gcc`, `--CDCMAKE_CXX_COMPILER=${tools}g++`);
if (platform === "win32") options.push("--toolset", "ClangCL");
if (!existsSync(join(root, folder, "CMakeCache.txt"))) run(process.execPath, [cmakeJs, "configure", ...options]);
run(process.execPath, [cmakeJs, "build", ...options]);

const binary = makePlatformPackage(join(root, "build", "npm", name), { platform, arch, libc }, join(root, folder, "Release", "tokenloom.node"));
if (platform === "linux") run(`${tools}strip`, ["--strip-unneeded", binary]);
if (platform === "darwin") run("strip", ["-x", binary]), run("codesign", ["--force", "--sign", "-", binary]);
if (!cross) {
  const target = join(root, "prebuilds", `${platform}-${arch}`, `tokenloom${libc ? `.${libc}` : ""}.node`);
  mkdirSync(dirname(target), { recursive: true });
  rmSync(target, { force: true });
  copyFileSync(binary, target);
}
console.log(`build/npm/${name}/tokenloom.node: ${(statSync(binary).size / 1e6).toFixed(2)} MB`);

if (libc) console.log(checkLibraries(binary, libc, `${tools}objdump`));
