// npm run bench [-- --only llm,attention --quick]: runs the suites one after the other, each in a process of its own, which write
// bench/results/NAME.json with machine, versions and commit; then draws the ratios to the peers as bench/results/NAME.svg and compares
// them with the last commit's (bench/guard.mjs). A suite whose peer or data is missing says so itself, and the others go on.
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { ratioChart } from "./chart.mjs";

const at = (path) => fileURLToPath(new URL(path, import.meta.url));
const suites = {
  llm: { arguments: ["--runs", "3"], quick: ["--runs", "1"] },
  attention: {}, draft: {}, reduce: {}, encoders: {},
  cache: { arguments: ["--part", "speed"], quick: undefined },
};
const { values } = parseArgs({ options: { only: { type: "string" }, quick: { type: "boolean", default: false }, charts: { type: "boolean", default: false } } });
const names = values.only?.split(",") ?? Object.keys(suites);
const unknown = names.filter((name) => !Object.hasOwn(suites, name));
if (unknown.length > 0) {
  console.error(`Expected ${Object.keys(suites).join(", ")} for --only but received ${unknown.join(", ")}`);
  process.exit(2);
}

const failed = [];
for (const name of values.charts ? [] : names) {
  const { arguments: usual = [], quick = usual } = suites[name];
  console.log(`\n== ${name}`);
  const run = spawnSync(process.execPath, ["--expose-gc", at(`${name}.mjs`), ...(values.quick ? quick : usual)], { stdio: "inherit" });
  if (run.status !== 0) failed.push(name);
}
for (const name of names) {
  const file = at(`results/${name}.json`), chart = existsSync(file) ? ratioChart(JSON.parse(readFileSync(file, "utf8"))) : undefined;
  if (chart !== undefined) writeFileSync(at(`results/${name}.svg`), chart);
}
const guarded = spawnSync(process.execPath, [at("guard.mjs")], { stdio: "inherit" });
if (failed.length > 0) console.log(`failed: ${failed.join(", ")}`);
process.exitCode = failed.length > 0 ? 1 : guarded.status;
