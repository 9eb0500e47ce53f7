// The table of fault evidence at full size: runs the rows of test/faults/rows.json, one after another, and writes docs/reliability.md
// from their results, which are kept in docs/reliability.json. The same code runs small in `npm test`.
//   node scripts/soak.mjs              all rows, about two hours on two cores
//   node scripts/soak.mjs abort gguf   some
//   node scripts/soak.mjs --small      at the size of npm test
//   node scripts/soak.mjs --table      writes the table only
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { commit, machine } from "../bench/report.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const at = (...parts) => join(root, ...parts);
const readJson = (path) => JSON.parse(readFileSync(path, "utf8"));
const rows = readJson(at("test", "faults", "rows.json"));
const store = at("docs", "reliability.json");
let results = existsSync(store) ? readJson(store) : {};

const names = process.argv.slice(2).filter((argument) => !argument.startsWith("--"));
const scale = process.argv.includes("--small") ? "small" : "full";
const unknown = names.filter((name) => !rows.some((row) => row.name === name));
if (unknown.length > 0) {
  console.error(`Expected names among ${rows.map(({ name }) => name).join(", ")} but received ${unknown.join(", ")}`);
  process.exit(2);
}

function machineText() {
  const { cpu, cores, memoryBytes, platform, node } = machine();
  return `${cpu}, ${cores} cores, ${Math.round(memoryBytes / 2 ** 30)} GB, ${platform}, Node ${node}`;
}

/** A row's command: a test file of test/faults, or its own. */
const commandOf = (row) => row.command ?? ["node", "--expose-gc", `build/test/faults/${row.test}.test.js`];

/** Runs a command once for all rows that share it, and keeps what each of them reported. */
function run(command, sharing) {
  for (const { name } of sharing) rmSync(at("build", "faults", `${name}.json`), { force: true });
  const started = Date.now(), env = { ...process.env, TOKENLOOM_FAULTS: scale, TAP_TIMEOUT: "14400" };
  const done = spawnSync(command[0] === "node" ? process.execPath : command[0], command.slice(1), { cwd: root, env, encoding: "utf8", maxBuffer: 1 << 28 });
  const passed = done.status === 0;
  if (!passed) process.stderr.write(`${done.stdout}${done.stderr}`);
  if (existsSync(store)) results = readJson(store); // two may run beside each other
  for (const row of sharing) {
    const path = at("build", "faults", `${row.name}.json`), figures = existsSync(path) ? readJson(path).figures : row.figures && passed ? figuresFrom(row, done.stdout) : {};
    results[row.name] = { passed, scale, figures, seconds: Math.round((Date.now() - started) / 1000), date: new Date().toISOString().slice(0, 10), commit: commit(), machine: machineText() };
    console.log(`${passed ? "ok  " : "FAIL"} ${row.name}: ${figuresText(figures)} (${results[row.name].seconds} s)`);
  }
  return passed;
}

/** Of commands that are no tests of ours: what a pattern finds in their output. */
const figuresFrom = (row, text) => Object.fromEntries(Object.entries(row.figures).map(([name, pattern]) => [name, new RegExp(pattern, "m").exec(text)?.[1] ?? "?"]));

/** "mostCpuMs" → "most cpu ms", "grownKiB" → "grown KiB". */
const words = (name) => name.replace(/-/g, " ").replace(/(?<=[a-z0-9])(KiB|MiB)$|(?<=[a-z0-9])([A-Z])/g, (_, unit, letter) => ` ${unit ?? letter.toLowerCase()}`);
const figuresText = (figures) => Object.entries(figures).map(([name, value]) => `${words(name)} ${typeof value === "number" ? value.toLocaleString("en-US") : value}`).join(", ");

function table() {
  const lines = [...rows].sort((a, b) => a.rows[0] - b.rows[0]).map((row) => {
    const { passed, scale: size, figures, date, seconds } = results[row.name] ?? {};
    const outcome = passed === undefined ? "not run yet" : `${passed ? "passed" : "**failed**"}${size === "small" ? ", small" : ""}: ${figuresText(figures)} (${seconds} s, ${date})`;
    const small = row.command ? `\`${row.command.join(" ")}\`` : `\`npx tap build/test/faults/${row.test}.test.js\``;
    return `| ${row.rows.join(", ")} | ${row.promise} | ${small}; full: \`npm run soak ${row.name}\` | ${outcome} |`;
  });
  const machines = [...new Set(Object.values(results).map((result) => result.machine))];
  return `# Reliability

What can go wrong with a native package, made to go wrong on purpose. Each row is a command; \`npm test\` runs it small,
\`npm run soak\` at full size (all rows, or those named), which also writes this page from its results. Numbers on the left
are those of our list of promises. Before the first time: \`npm run build && npm run build:test && npm run build:faults\`;
the last makes an addon under sanitizers whose allocations and entry points fail when they are told to.

| # | promise | commands | last result |
|---|---|---|---|
${lines.join("\n")}

Measured on ${machines.join("; ") || "no machine yet"}.
${readFileSync(at("test", "faults", "notes.md"), "utf8")}`;
}

let failed = 0;
if (!process.argv.includes("--table")) {
  const chosen = rows.filter(({ name }) => names.length === 0 || names.includes(name)), commands = new Map();
  for (const row of chosen) {
    const key = commandOf(row).join(" ");
    commands.set(key, [...(commands.get(key) ?? []), row]);
  }
  for (const sharing of commands.values()) {
    // Rows that share a command are run by it together, whichever was named.
    const all = rows.filter((row) => commandOf(row).join(" ") === commandOf(sharing[0]).join(" "));
    if (!run(commandOf(sharing[0]), all)) failed++;
    writeFileSync(store, `${JSON.stringify(results, null, 1)}\n`);
    writeFileSync(at("docs", "reliability.md"), table());
  }
} else {
  writeFileSync(at("docs", "reliability.md"), table());
}
process.exit(failed > 0 ? 1 : 0);
