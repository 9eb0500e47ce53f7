// Writes the table of docs/devices.md from cuda/twins.def; with --check only says whether it is up to date.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const ops = [...readFileSync(join(root, "cpp", "kernels", "ops.def"), "utf8").matchAll(/^TL_OP\((\w+),/gm)].map(([, name]) => name);
const listed = new Map();
for (const [, kind, name, , reason] of readFileSync(join(root, "cuda", "twins.def"), "utf8").matchAll(/^TL_(TWIN|NO_TWIN)\((\w+)(, "([^"]*)")?\)/gm)) listed.set(name, kind === "TWIN" ? undefined : reason);
const missing = ops.filter((op) => !listed.has(op));
if (missing.length > 0) throw new Error(`cuda/twins.def does not list ${missing.join(", ")}`);
const twins = ops.filter((op) => listed.get(op) === undefined);
const without = ops.filter((op) => listed.get(op) !== undefined);
const lines = [
  `${twins.length} of ${ops.length} ops run on CUDA: ${twins.map((op) => `\`${op}\``).join(", ")}.`,
  "",
  ...(without.length === 0 ? [] : ["| not yet | why |", "|---|---|", ...without.map((op) => `| \`${op}\` | ${listed.get(op)} |`)]),
];
const path = join(root, "docs", "devices.md");
const text = readFileSync(path, "utf8");
const made = text.replace(/(<!-- ops:begin[^>]*-->\n)[\s\S]*?(<!-- ops:end -->)/, (_, begin, end) => `${begin}${lines.join("\n").trimEnd()}\n${end}`);
if (process.argv.includes("--check")) {
  if (made !== text) {
    console.error("docs/devices.md is not what cuda/twins.def says: run node scripts/generate-devices.mjs");
    process.exit(1);
  }
  console.log(`docs/devices.md is up to date: ${twins.length} of ${ops.length} ops`);
} else {
  writeFileSync(path, made);
}
