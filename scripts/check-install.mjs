// What a stranger does: npm install of the packed tarball in an empty folder, with a PATH that has no compiler and no CMake, then five lines that answer a
// prompt. Prints what it takes on the disk, dependencies included; fails above 8 MB. Takes build/package of scripts/check-package.mjs, so run that first.
import { execFileSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";

const installed = fileURLToPath(new URL("../build/package/node_modules/tokenloom", import.meta.url));
if (!existsSync(installed)) {
  console.error("run scripts/check-package.mjs first");
  process.exit(2);
}
const limit = 8e6, work = mkdtempSync(join(tmpdir(), "tokenloom-install-"));
const source = `import { loadModel } from "tokenloom";
const model = await loadModel("tiny");
const session = model.session();
for await (const piece of session.generate("Tell me about looms.", { maxTokens: 40 })) process.stdout.write(piece.text);
session.dispose(), model.dispose();
`;
/** Programs that npm itself needs; no compiler among them. */
const tools = ["node", "npm", "sh", "env", "uname", "sed", "dirname", "basename", "readlink"];

const sizeOf = (path) => (statSync(path).isDirectory() ? readdirSync(path).reduce((sum, name) => sum + sizeOf(join(path, name)), 0) : statSync(path).size);
const found = (name) => process.env.PATH.split(delimiter).map((folder) => join(folder, name)).find((path) => existsSync(path));

try {
  const bin = join(work, "bin"), app = join(work, "app"), packing = join(work, "packing");
  for (const folder of [bin, app, packing]) mkdirSync(folder);
  for (const name of tools) if (found(name)) symlinkSync(found(name), join(bin, name));
  // The package with this platform's binary inside, as it is published.
  const [packed] = JSON.parse(execFileSync("npm", ["pack", "--json", "--ignore-scripts", "--pack-destination", packing], { cwd: installed, encoding: "utf8" }));
  copyFileSync(join(packing, packed.filename), join(app, "tokenloom.tgz"));
  writeFileSync(join(app, "package.json"), '{"private":true,"type":"module"}');
  writeFileSync(join(app, "first.mjs"), source);
  const run = (command, args) => execFileSync(join(bin, command), args, { cwd: app, encoding: "utf8", env: { ...process.env, PATH: bin }, stdio: ["ignore", "pipe", "inherit"] });
  run("npm", ["install", "--no-audit", "--no-fund", "./tokenloom.tgz"]);
  rmSync(join(app, "tokenloom.tgz"));
  const text = run("node", ["first.mjs"]), bytes = sizeOf(join(app, "node_modules"));
  console.log(`it answered: ${JSON.stringify(text.trim().slice(0, 60))}`);
  console.log(`on the disk with all dependencies: ${(bytes / 1e6).toFixed(2)} MB`);
  const good = text.trim() !== "" && bytes <= limit;
  console.log(good ? "1 passed, 0 failed" : "0 passed, 1 failed");
  process.exitCode = good ? 0 : 1;
} finally {
  rmSync(work, { recursive: true, force: true });
}
