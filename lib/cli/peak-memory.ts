import { readFileSync } from "node:fs";

/**
 * The most bytes this process has held. resourceUsage().maxRSS is not it on Linux: there a child begins with what its
 * parent held when it was made.
 */
export function peakMemoryBytes(): number {
  try {
    const peak = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync("/proc/self/status", "utf8"));
    if (peak) return Number(peak[1]) * 1024;
  } catch {
    // Not Linux.
  }
  return process.resourceUsage().maxRSS * 1024;
}
