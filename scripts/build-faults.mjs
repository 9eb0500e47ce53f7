// Builds the addon that fault tests use beside the usual one, in build/addon-asan: AddressSanitizer, and
// allocations and entry points that fail when they are told to (cpp/core/fault.h). Node loads it where TOKENLOOM_PREBUILD names the
// folder and libasan, whose path is written beside it, is preloaded. Says so and leaves it out where a compiler is missing.
import { spawnSync } from "node:child_process";
import { existsSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const cmakeJs = join(dirname(createRequire(import.meta.url).resolve("cmake-js/package.json")), "bin", "cmake-js");
const folder = join(root, "build", "addon-asan");
const has = (program) => spawnSync(program, ["--version"], { stdio: "ignore" }).status === 0;
const libasan = spawnSync("g++", ["-print-file-name=libasan.so"], { encoding: "utf8" }).stdout?.trim();
if (process.platform !== "linux" || !has("cmake") || !libasan || !existsSync(libasan)) {
  console.log("faults: the addon with AddressSanitizer is left out, needs Linux, CMake and GCC with libasan");
  process.exit(0);
}
const targets = process.arch === "arm64" ? "SCALAR;NEON" : "SCALAR;AVX2";
const options = [
  "--out", join("build", "addon-asan", "build"), "--config", "Release", "--parallel", "2", "--CDTL_SANITIZE=address", "--CDTL_FAULTS=ON", `--CDTL_ONLY=${targets}`,
  "--CDCMAKE_CXX_FLAGS_RELEASE=-O1", "--CDCMAKE_CXX_COMPILER=g++",
];
if (has("ccache")) options.push("--CDCMAKE_CXX_COMPILER_LAUNCHER=ccache");
for (const step of existsSync(join(folder, "build", "CMakeCache.txt")) ? ["build"] : ["configure", "build"]) {
  const run = spawnSync(process.execPath, [cmakeJs, step, ...options], { cwd: root, stdio: ["ignore", "pipe", "pipe"], encoding: "utf8" });
  if (run.status === 0) continue;
  process.stderr.write(run.stdout + run.stderr);
  process.exit(run.status ?? 1);
}
writeFileSync(join(folder, "libasan.txt"), `${libasan}\n`);
console.log("faults: the addon with AddressSanitizer is built");
