// What the benchmarks' tables and result files have in common.
import { execFileSync } from "node:child_process";
import { availableParallelism, cpus, loadavg, totalmem } from "node:os";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";

/** The checked-out commit, and whether files were changed since; undefined outside a repository. */
export function commit() {
  try {
    const git = (...args) => execFileSync("git", args, { cwd: dirname(fileURLToPath(import.meta.url)), encoding: "utf8" }).trim();
    return `${git("rev-parse", "--short", "HEAD")}${git("status", "--porcelain", "--untracked-files=no") === "" ? "" : " with changes"}`;
  } catch {
    return undefined;
  }
}

/** The machine and what else ran on it: with a load above about 0.5 before the start the figures, ratios too, say little. */
export function machine() {
  return { cpu: cpus()[0].model.trim(), cores: availableParallelism(), memoryBytes: totalmem(), loadBefore: loadavg()[0], node: process.version, platform: `${process.platform}-${process.arch}` };
}

/** `{ result, ms, cpuMs }` of some work: the clock's time, and the processor's, which hardly depends on what else runs. */
export async function timed(work) {
  const cpu = process.cpuUsage(), started = performance.now(), result = await work(), ms = performance.now() - started, { user, system } = process.cpuUsage(cpu);
  return { result, ms, cpuMs: (user + system) / 1000 };
}

export const number = (value, digits = 0) => (value === undefined || Number.isNaN(value) ? "–" : value.toLocaleString("en-US", { maximumFractionDigits: digits, minimumFractionDigits: digits }));

/** A Markdown table: names of columns, the first for text, and rows of strings. */
export function table(columns, rows) {
  return [columns, columns.map((_, i) => (i === 0 ? "---" : "---:")), ...rows].map((row) => `| ${row.join(" | ")} |`).join("\n");
}

/** Mean and standard error of independent values. */
export function meanAndError(values) {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (values.length - 1);
  return { mean, error: Math.sqrt(variance / values.length) };
}
