// After tsc: gives dist/cjs the types of dist/esm, makes it a CommonJS package of its own (with the package's "#" imports, which may not point outside it),
// and the command line executable.
import { chmodSync, cpSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const at = (path) => fileURLToPath(new URL(`../${path}`, import.meta.url));
const { imports } = JSON.parse(readFileSync(at("package.json"), "utf8"));
mkdirSync(at("dist/cjs"), { recursive: true });
cpSync(at("dist/esm"), at("dist/cjs"), { recursive: true, filter: (path) => !/[\\/]cli$/.test(path) && (!/\.\w+$/.test(path) || path.endsWith(".d.ts")) });
const inner = {};
for (const [name, target] of Object.entries(imports)) {
  if (name.includes("*")) continue;
  const file = `${name.slice(1)}-import.cjs`;
  writeFileSync(at(`dist/cjs/${file}`), `"use strict";\nmodule.exports = require("../../${target.default}");\n`);
  inner[name] = `./${file}`;
}
writeFileSync(at("dist/cjs/package.json"), `${JSON.stringify({ type: "commonjs", imports: inner })}\n`);
if (existsSync(at("dist/esm/cli/main.js"))) chmodSync(at("dist/esm/cli/main.js"), 0o755);
