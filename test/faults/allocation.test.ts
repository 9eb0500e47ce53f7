import t, { type Test as T } from "tap";
import type { Attempt } from "./once.js";
import { child, report, sanitizedEnvironment, scriptPath, sizesOf } from "./support.js";

const { step, sanitizedStep } = sizesOf("allocation") as { step: number; sanitizedStep: number };

/** Every allocation fails in turn, once and from then on; a process that dies is started again behind the one it died of. */
async function failAll(t: T, by: number, env: Readonly<Record<string, string>>): Promise<{ attempts: number; refused: number; allocations: number }> {
  const counts = { attempts: 0, refused: 0, allocations: 0 };
  for (let first = 1, whole = false; !whole;) {
    const { code, signal, stdout, stderr } = await child(["--expose-gc", scriptPath("once"), String(first), String(by), "1000000"], { env, timeout: 3_600_000 });
    const attempts = stdout.trim().split("\n").filter((line) => line.startsWith("{")).map((line) => JSON.parse(line) as Attempt), last = attempts.at(-1);
    for (const { n, later, outcome, detail, allocations } of attempts) {
      counts.attempts++;
      if (outcome === "refused") counts.refused++;
      if (outcome === "wrong") t.fail(`allocation ${n}${later ? "+" : ""}: ${detail}`);
      counts.allocations = Math.max(counts.allocations, allocations);
    }
    whole = code === 0;
    if (whole) break;
    const n = last === undefined ? first : last.n + (last.later ? by : 0);
    t.fail(`allocation ${n}: the process ended with code ${code}, signal ${signal}: ${stderr.slice(0, 3000)}`);
    if (last === undefined) break;
    first = n + by;
  }
  return counts;
}

t.test("each allocation of memory for weights, caches, arena and scratch may fail", { timeout: 3_600_000 }, async (t) => {
  const plain = await failAll(t, step, {});
  t.ok(plain.refused > 0 && plain.allocations > 0, JSON.stringify(plain));
  const sanitized = sanitizedEnvironment(), figures: Record<string, number> = { ...plain };
  if (sanitized) {
    const all = await failAll(t, sanitizedStep, sanitized);
    t.ok(all.allocations > plain.allocations, `with operator new among them: ${JSON.stringify(all)}`);
    figures["withOperatorNew"] = all.allocations;
    figures["attemptsWithOperatorNew"] = all.attempts;
  } else {
    t.comment("operator new fails only in the addon of node scripts/build-faults.mjs, which is not built");
  }
  report("allocation", figures);
});
