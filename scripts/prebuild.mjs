// node scripts/prebuild.mjs [--arch arm64 | --libc musl]: builds the addon in a folder of its own and puts it, stripped, into the package of its
// platform, build/npm/PLATFORM-ARCH[-musl] (scripts/packages.mjs). This machine's own goes where node-gyp-build looks for it too,
// prebuilds/PLATFORM-ARCH/tokenloom[.glibc|.musl].node, so that a plain `npm pack` holds it. (prebuildify would build over build/Release.)
// On Linux x64, --arch arm64 cross-compiles by g++-aarch64-linux-gnu, --libc musl by Zig's compiler (TOKENLOOM_ZIG, `zig`, or pip install ziglang).
// Checks that a glibc binary asks for nothing newer than glibc 2.28, and a musl one for musl only.
import { spawnSync } from "node:child_process";
import { chmodSync, copyFileSync, existsSync, mkdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { cpus } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { checkLibraries, makePlatformPackage, ownPlatform, platformName } from "./packages.mjs";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const require = createRequire(import.meta.url);
const { platform, libc: ownLibc } = ownPlatform();
const { values } = parseArgs({ options: { arch: { type: "string", default: process.arch }, libc: { type: "string", ...(ownLibc && { default: ownLibc }) } } });
const { arch, libc } = values, own = arch === process.arch && libc === ownLibc;
const cross = own ? "" : platform === "linux" && process.arch === "x64" && arch === "arm64" && libc === "glibc" ? "arm64" : platform === "linux" && arch === process.arch && libc === "musl" ? "musl" : undefined;
if (cross === undefined) throw new Error(`this machine does not build ${platform}-${arch}${libc ? ` for ${libc}` : ""}: on Linux x64 --arch arm64 and --libc musl can be built besides its own`);
const tools = cross === "arm64" ? "aarch64-linux-gnu-" : "";
const name = platformName({ platform, arch, libc }), folder = join("build", `prebuild-${name}`);

function run(command, args) {
  const done = spawnSync(command, args, { cwd: root, encoding: "utf8", maxBuffer: 1 << 28, stdio: ["ignore", "pipe", "pipe"] });
  if (done.status === 0) return done.stdout;
  process.stderr.write(`${done.stdout ?? ""}${done.stderr ?? ""}${done.error?.message ?? ""}`);
  throw new Error(`${command} ${args.join(" ")} failed`);
}

const has = (command, ...args) => spawnSync(command, args, { stdio: "ignore" }).status === 0;

/** Programs that call Zig's compilers for musl, as CMake wants one path for each. */
function zigCompilers() {
  const zig = process.env.TOKENLOOM_ZIG ?? (has("zig", "version") ? "zig" : has("python3", "-m", "ziglang", "version") ? "python3 -m ziglang" : undefined);
  if (!zig) throw new Error("building for musl needs Zig's compiler: pip install ziglang, or its path in TOKENLOOM_ZIG");
  const target = `${arch === "arm64" ? "aarch64" : "x86_64"}-linux-musl`;
  mkdirSync(join(root, folder), { recursive: true });
  return ["cc", "c++"].map((language) => {
    const path = join(root, folder, `zig-${language}`);
    writeFileSync(path, `#!/bin/sh\nexec ${zig} ${language} -target ${target} "$@"\n`);
    chmodSync(path, 0o755);
    return path;
  });
}

const cmakeJs = join(dirname(require.resolve("cmake-js/package.json")), "bin", "cmake-js");
const options = ["--out", folder, "--config", "Release", "--arch", arch, "--parallel", String(Math.min(2, cpus().length))];
if (has("ccache", "--version") && cross !== "musl") options.push("--CDCMAKE_CXX_COMPILER_LAUNCHER=ccache");
if (cross === "arm64") options.push("--CDCMAKE_SYSTEM_NAME=Linux", "--CDCMAKE_SYSTEM_PROCESSOR=aarch64", `--CDCMAKE_C_COMPILER=${tools}gcc`, `--CDCMAKE_CXX_COMPILER=${tools}g++`);
if (cross === "musl") {
  const [c, cxx] = zigCompilers();
  options.push(`--CDCMAKE_C_COMPILER=${c}`, `--CDCMAKE_CXX_COMPILER=${cxx}`);
}
if (platform === "win32") options.push("--toolset", "ClangCL");
if (!existsSync(join(root, folder, "CMakeCache.txt"))) run(process.execPath, [cmakeJs, "configure", ...options]);
run(process.execPath, [cmakeJs, "build", ...options]);

const binary = makePlatformPackage(join(root, "build", "npm", name), { platform, arch, libc }, join(root, folder, "Release", "tokenloom.node"));
if (platform === "linux") run(`${tools}strip`, ["--strip-unneeded", binary]);
if (platform === "darwin") run("strip", ["-x", binary]), run("codesign", ["--force", "--sign", "-", binary]);
if (own) {
  const target = join(root, "prebuilds", `${platform}-${arch}`, `tokenloom${libc ? `.${libc}` : ""}.node`);
  mkdirSync(dirname(target), { recursive: true });
  rmSync(target, { force: true });
  copyFileSync(binary, target);
}
console.log(`build/npm/${name}/tokenloom.node: ${(statSync(binary).size / 1e6).toFixed(2)} MB`);

if (libc) console.log(checkLibraries(binary, libc, `${tools}objdump`));
