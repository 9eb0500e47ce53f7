// After tsc: marks dist/cjs as CommonJS and makes the command line executable.
import { chmodSync, existsSync, mkdirSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const at = (path) => fileURLToPath(new URL(`../${path}`, import.meta.url));
mkdirSync(at("dist/cjs"), { recursive: true });
writeFileSync(at("dist/cjs/package.json"), '{ "type": "commonjs" }\n');
if (existsSync(at("dist/esm/cli/main.js"))) chmodSync(at("dist/esm/cli/main.js"), 0o755);
