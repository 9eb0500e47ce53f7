// Builds the addon that fault tests use beside the usual one, in build/addon-asan: AddressSanitizer, UndefinedBehaviorSanitizer, and
// allocations and entry points that fail when they are told to (cpp/core/fault.h). Node loads it where TOKENLOOM_PREBUILD names the
// folder and libasan, whose path is written beside it, is preloaded. Says so and leaves it out where a compiler is missing.
// Kernels are compiled with the flags of the native tests under sanitizers (scripts/sanitizers.mjs): ccache takes them from there.
import { spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { sanitizedFlags, sanitizedTargets } from "./sanitizers.mjs";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const cmakeJs = join(dirname(createRequire(import.meta.url).resolve("cmake-js/package.json")), "bin", "cmake-js");
const folder = join(root, "build", "addon-asan"), building = join("build", "addon-asan-build");
const has = (program) => spawnSync(program, ["--version"], { stdio: "ignore" }).status === 0;
const libasan = spawnSync("c++", ["-print-file-name=libasan.so"], { encoding: "utf8" }).stdout?.trim();
if (process.platform !== "linux" || !has("cmake") || !libasan || !existsSync(libasan)) {
  console.log("faults: the addon with AddressSanitizer is left out, needs Linux, CMake and GCC with libasan");
  process.exit(0);
}
const options = [
  "--out", building, "--config", "Release", "--parallel", "2", "--CDTL_FAULTS=ON",
  ...Object.entries({ ...sanitizedFlags, TL_ONLY: sanitizedTargets }).map(([name, value]) => `--CD${name}=${value}`),
];
if (has("ccache")) options.push("--CDCMAKE_CXX_COMPILER_LAUNCHER=ccache");
for (const step of existsSync(join(root, building, "CMakeCache.txt")) ? ["build"] : ["configure", "build"]) {
  const run = spawnSync(process.execPath, [cmakeJs, step, ...options], { cwd: root, stdio: ["ignore", "pipe", "pipe"], encoding: "utf8" });
  if (run.status === 0) continue;
  process.stderr.write(run.stdout + run.stderr);
  process.exit(run.status ?? 1);
}
mkdirSync(join(folder, "build", "Release"), { recursive: true });
copyFileSync(join(root, building, "Release", "tokenloom.node"), join(folder, "build", "Release", "tokenloom.node"));
writeFileSync(join(folder, "libasan.txt"), `${libasan}\n`);
console.log("faults: the addon with AddressSanitizer is built");
