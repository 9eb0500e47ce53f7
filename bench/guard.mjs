// npm run bench:guard [-- --against REF --tolerance 0.15]: compares each ratio to a peer in bench/results with that of the last commit
// (or of REF), where both were measured on the same kind of processor with the same instruction set. Ratios, as both sides of one ran in turns on the same
// machine; rates by themselves are not compared. Fails where a ratio fell by more than the tolerance.
import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { kindOf, ratiosOf } from "./ratios.mjs";
import { table } from "./report.mjs";

const folder = fileURLToPath(new URL("results", import.meta.url));
const { values } = parseArgs({ options: { against: { type: "string", default: "HEAD" }, tolerance: { type: "string", default: "0.15" } } });
const tolerance = Number(values.tolerance);

function before(name) {
  try {
    return JSON.parse(execFileSync("git", ["show", `${values.against}:bench/results/${name}`], { cwd: folder, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }));
  } catch {
    return undefined;
  }
}

const rows = [];
let fallen = 0;
for (const name of readdirSync(folder).filter((file) => file.endsWith(".json")).sort()) {
  const now = JSON.parse(readFileSync(`${folder}/${name}`, "utf8")), old = before(name);
  if (old === undefined) console.log(`${name}: nothing to compare with in ${values.against}`);
  else if (kindOf(now) !== kindOf(old)) console.log(`${name}: not compared, another machine (${kindOf(now)} against ${kindOf(old)})`);
  else {
    const last = ratiosOf(old);
    for (const [row, ratio] of ratiosOf(now)) {
      if (!last.has(row)) continue;
      const change = ratio / last.get(row) - 1, bad = change < -tolerance;
      if (bad) fallen++;
      if (Math.abs(change) > 0.005) rows.push([`${name}: ${row}`, `${last.get(row).toFixed(2)}×`, `${ratio.toFixed(2)}×`, `${(100 * change).toFixed(1)} %${bad ? " FELL" : ""}`]);
    }
  }
}
if (rows.length > 0) console.log(table(["ratio", "before", "now", "change"], rows));
console.log(fallen === 0 ? "no ratio fell" : `${fallen} ratios fell by more than ${100 * tolerance} %`);
process.exitCode = fallen === 0 ? 0 : 1;
