// What this machine can do: multiply-adds of one core, and bytes that so many cores read from memory. Measured by a small
// C++ program (native/limits.cpp), which is built here; JavaScript has no loop that reads as fast as memory gives.
// As a program: prints both for one and for all cores.
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const file = fileURLToPath(import.meta.url);

/**
 * `{ flops, bandwidth }`: FLOP/s of one core, and bytes a second at which `threads` cores read the same `bytes` again and
 * again (by default more than any cache holds). Both are undefined where there is no C++ compiler.
 */
export function machineLimits(threads, bytes) {
  const folder = mkdtempSync(join(tmpdir(), "tokenloom-limits-"));
  try {
    const program = join(folder, "limits");
    execFileSync("c++", ["-std=c++20", "-O2", "-pthread", "-o", program, join(dirname(file), "native", "limits.cpp")], { stdio: ["ignore", "ignore", "pipe"] });
    const { f32, read } = JSON.parse(execFileSync(program, [threads, ...(bytes === undefined ? [] : [bytes])].map(String), { encoding: "utf8" }));
    return { flops: f32 || undefined, bandwidth: read };
  } catch (error) {
    process.stderr.write(`the machine's limits are left out: ${error.message.split("\n")[0]}\n`);
    return { flops: undefined, bandwidth: undefined };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

if (process.argv[1] === file) {
  const show = (rate, unit) => (rate === undefined ? "unknown" : `${(rate / 1e9).toFixed(1)} ${unit}`);
  for (const threads of new Set([1, availableParallelism()])) {
    const { flops, bandwidth } = machineLimits(threads);
    console.log(`${threads} core${threads === 1 ? "" : "s"}: read ${show(bandwidth, "GB/s")}, multiply-adds of one core ${show(flops, "GFLOP/s")}`);
  }
}
