// Builds the addon into build/Release with cmake-js: quickly where nothing changed.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { cpus } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const require = createRequire(import.meta.url);
const cmakeJs = join(dirname(require.resolve("cmake-js/package.json")), "bin", "cmake-js");
const jobs = String(Math.max(1, cpus().length));
const options = ["--out", "build", "--config", "Release", "--parallel", jobs];
const has = (program) => spawnSync(program, ["--version"], { stdio: "ignore" }).status === 0;
if (!has("cmake")) {
  console.error("tokenloom: building from source needs CMake 3.20 or later and a C++20 compiler");
  process.exit(1);
}
if (has("ccache")) options.push("--CDCMAKE_CXX_COMPILER_LAUNCHER=ccache", "--CDCMAKE_C_COMPILER_LAUNCHER=ccache");
const configured = existsSync(join(root, "build", "CMakeCache.txt"));
const steps = configured ? [["build"]] : [["configure"], ["build"]];
for (const [step] of steps) {
  const run = spawnSync(process.execPath, [cmakeJs, step, ...options], { cwd: root, stdio: ["ignore", "pipe", "pipe"], encoding: "utf8" });
  if (run.status !== 0) {
    process.stderr.write(run.stdout + run.stderr);
    process.exit(run.status ?? 1);
  }
}
