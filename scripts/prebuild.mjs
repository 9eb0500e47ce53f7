// node scripts/prebuild.mjs [--arch arm64]: builds the addon in a folder of its own and puts it, stripped, where node-gyp-build
// looks for it: prebuilds/PLATFORM-ARCH/tokenloom[.glibc|.musl].node. On Linux x64, --arch arm64 cross-compiles (g++-aarch64-linux-gnu).
// Checks that a glibc binary asks for nothing newer than glibc 2.28. (prebuildify would build in build/Release, over the developer's own.)
import { spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, rmSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { cpus } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const require = createRequire(import.meta.url);
const { values } = parseArgs({ options: { arch: { type: "string", default: process.arch } } });
const { arch } = values, platform = process.platform, cross = arch !== process.arch;
if (cross && !(platform === "linux" && arch === "arm64")) throw new Error(`this machine does not build ${platform}-${arch}: only linux-arm64 is cross-compiled`);
const tools = cross ? "aarch64-linux-gnu-" : "";
const musl = platform === "linux" && !process.report.getReport().header.glibcVersionRuntime;
const libc = platform !== "linux" ? "" : musl ? ".musl" : ".glibc";

function run(command, args) {
  const done = spawnSync(command, args, { cwd: root, encoding: "utf8", maxBuffer: 1 << 28, stdio: ["ignore", "pipe", "pipe"] });
  if (done.status === 0) return done.stdout;
  process.stderr.write(`${done.stdout ?? ""}${done.stderr ?? ""}${done.error?.message ?? ""}`);
  throw new Error(`${command} ${args.join(" ")} failed`);
}

const folder = join("build", `prebuild-${platform}-${arch}`);
const cmakeJs = join(dirname(require.resolve("cmake-js/package.json")), "bin", "cmake-js");
const options = ["--out", folder, "--config", "Release", "--arch", arch, "--parallel", String(Math.min(2, cpus().length))];
if (spawnSync("ccache", ["--version"], { stdio: "ignore" }).status === 0) options.push("--CDCMAKE_CXX_COMPILER_LAUNCHER=ccache");
if (cross) options.push("--CDCMAKE_SYSTEM_NAME=Linux", "--CDCMAKE_SYSTEM_PROCESSOR=aarch64", `--CDCMAKE_C_COMPILER=${tools}gcc`, `--CDCMAKE_CXX_COMPILER=${tools}g++`);
if (!existsSync(join(root, folder, "CMakeCache.txt"))) run(process.execPath, [cmakeJs, "configure", ...options]);
run(process.execPath, [cmakeJs, "build", ...options]);

const target = join(root, "prebuilds", `${platform}-${arch}`, `tokenloom${libc}.node`);
rmSync(target, { force: true });
mkdirSync(dirname(target), { recursive: true });
copyFileSync(join(root, folder, "Release", "tokenloom.node"), target);
if (platform === "linux") run(`${tools}strip`, ["--strip-unneeded", target]);
if (platform === "darwin") run("strip", ["-x", target]), run("codesign", ["--force", "--sign", "-", target]);
console.log(`${target.slice(root.length + 1)}: ${(statSync(target).size / 1e6).toFixed(2)} MB`);

if (libc === ".glibc") {
  const symbols = run(`${tools}objdump`, ["-T", target]);
  const newer = [...symbols.matchAll(/\(?GLIBC_2\.(\d+)[\d.]*\)?\s+(\S+)/g)].filter(([, minor]) => Number(minor) > 28);
  const libraries = [...run(`${tools}objdump`, ["-p", target]).matchAll(/NEEDED +(\S+)/g)].map(([, name]) => name);
  console.log(`needs ${libraries.join(", ")}`);
  if (newer.length > 0) throw new Error(`asks for more than glibc 2.28: ${newer.map(([, minor, name]) => `${name} of 2.${minor}`).join(", ")}`);
  if (libraries.includes("libstdc++.so.6")) throw new Error("libstdc++ is not linked in");
  console.log("runs on glibc 2.28 and later");
}
