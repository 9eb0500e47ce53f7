// lib/ → dist/: the types (tsc checks them), one ESM file a source file, one CommonJS file in all. White space is shortened and lines
// are broken at 320 columns; names stay, so that stack traces say where they are. `--plain` leaves ESM files as readable as they are.
import { build } from "esbuild";
import { spawnSync } from "node:child_process";
import { chmodSync, copyFileSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, posix } from "node:path";
import { fileURLToPath } from "node:url";

const at = (path) => fileURLToPath(new URL(`../${path}`, import.meta.url));
const { imports } = JSON.parse(readFileSync(at("package.json"), "utf8"));
const sources = readdirSync(at("lib"), { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith(".ts")).map((name) => at(join("lib", name)));

// No file of a source that is gone stays.
for (const folder of ["dist/esm", "dist/cjs"]) rmSync(at(folder), { recursive: true, force: true });
const checked = spawnSync(process.execPath, [at("node_modules/typescript/bin/tsc"), "-p", at("tsconfig.json"), "--emitDeclarationOnly"], { stdio: "inherit" });
if (checked.status !== 0) process.exit(checked.status ?? 1);

const plain = process.argv.includes("--plain");
const common = { platform: "node", target: "node20", charset: "utf8", tsconfig: at("tsconfig.json"), legalComments: "none", logLevel: "warning" };
const short = { minifyWhitespace: true, minifySyntax: true, lineLimit: 320 };
await build({ ...common, ...(plain ? {} : short), entryPoints: sources, outbase: at("lib"), outdir: at("dist/esm"), format: "esm" });
// Node takes the "#" imports of the nearest package.json: in dist/cjs, which is a package of its own, paths stand for them.
const paths = { name: "paths", setup: (made) => made.onResolve({ filter: /^#/ }, ({ path }) => ({ path: imports[path].default.replace(".", "../.."), external: true })) };
await build({ ...common, ...short, entryPoints: [at("lib/index.ts")], outfile: at("dist/cjs/index.js"), bundle: true, packages: "external", plugins: [paths], format: "cjs" });
chmodSync(at("dist/esm/cli/main.js"), 0o755);
writeFileSync(at("dist/cjs/package.json"), '{"type":"commonjs"}\n');

// The types once for both: CommonJS has those that its index leads to, an ESM file hands them on.
const types = new Set();
function addTypes(file) {
  if (types.has(file)) return;
  types.add(file);
  mkdirSync(dirname(at(`dist/cjs/${file}`)), { recursive: true });
  copyFileSync(at(`dist/esm/${file}`), at(`dist/cjs/${file}`));
  for (const [, used] of readFileSync(at(`dist/esm/${file}`), "utf8").matchAll(/(?:from|import)\s*\(?\s*"(\.[^"]+)\.js"/g)) addTypes(posix.join(posix.dirname(file), `${used}.d.ts`));
}
addTypes("index.d.ts");
writeFileSync(at("dist/index.d.mts"), 'export * from "./cjs/index.js";\n');
