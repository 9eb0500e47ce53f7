// What a stranger does: npm install in an empty folder, with a PATH that has no compiler and no CMake, then five lines that answer a prompt. Twice:
// the packed tarball with this platform's binary inside, and the packages as they are published (scripts/packages.mjs), the platforms' from a registry
// of our own. Prints what either takes on the disk, dependencies included; fails above 8 MB. Takes build/package of scripts/check-package.mjs.
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { makeMainPackage, makePlatformPackage, ownPlatform, pack, platformName } from "./packages.mjs";

const installed = fileURLToPath(new URL("../build/package/node_modules/tokenloom", import.meta.url));
if (!existsSync(installed)) {
  console.error("run scripts/check-package.mjs first");
  process.exit(2);
}
const limit = 8e6, work = mkdtempSync(join(tmpdir(), "tokenloom-install-")), bin = join(work, "bin");
const source = `import { loadModel } from "tokenloom";
const model = await loadModel("tiny"), session = model.session();
const question = [{ role: "user", content: "What is a loom?" }];
for await (const piece of session.generate(question, { maxTokens: 40 })) process.stdout.write(piece.text);
session.dispose(), model.dispose();
`;
/** Programs that npm itself needs; no compiler among them. */
const tools = ["node", "npm", "sh", "env", "uname", "sed", "dirname", "basename", "readlink"];
let passed = 0, failed = 0;

const execute = promisify(execFile);
const run = async (command, args, cwd, env = process.env) => (await execute(command, args, { cwd, encoding: "utf8", env })).stdout;
const sizeOf = (path) => (statSync(path).isDirectory() ? readdirSync(path).reduce((sum, name) => sum + sizeOf(join(path, name)), 0) : statSync(path).size);
const found = (name) => process.env.PATH.split(delimiter).map((folder) => join(folder, name)).find((path) => existsSync(path));

const packed = (from) => pack({ from, to: work }).tarball;

/** A registry that knows these tarballs, by the names of their packages; answers its address. */
async function serve(tarballs) {
  const server = createServer(({ url }, response) => {
    const path = decodeURIComponent(url.slice(1)), known = tarballs.get(path.replace(/\.tgz$/, ""));
    if (!known) return void response.writeHead(404).end();
    if (path.endsWith(".tgz")) return void response.end(readFileSync(known.tarball));
    const integrity = `sha512-${createHash("sha512").update(readFileSync(known.tarball)).digest("base64")}`;
    const dist = { integrity, tarball: `http://127.0.0.1:${server.address().port}/${path}.tgz` };
    response.end(JSON.stringify({ name: path, "dist-tags": { latest: known.described.version }, versions: { [known.described.version]: { ...known.described, dist } } }));
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return server;
}

/** Installs a tarball, runs the five lines and looks at what lies on the disk. */
async function install(name, tarball, flags, binaries) {
  const app = mkdtempSync(join(work, "app-"));
  writeFileSync(join(app, "package.json"), '{"private":true,"type":"module"}');
  writeFileSync(join(app, "first.mjs"), source);
  const env = { ...process.env, PATH: bin }, started = Date.now();
  await run(join(bin, "npm"), ["install", "--no-audit", "--no-fund", ...flags, tarball], app, env);
  const text = (await run(join(bin, "node"), ["first.mjs"], app, env)).trim(), bytes = sizeOf(join(app, "node_modules"));
  const own = join(app, "node_modules", "@tokenloom"), extra = existsSync(own) ? readdirSync(own) : [];
  console.log(`${name}: it answered ${JSON.stringify(text.slice(0, 50))} after ${Math.round((Date.now() - started) / 1000)} s; on the disk with all dependencies: ${(bytes / 1e6).toFixed(2)} MB`);
  const good = text !== "" && bytes <= limit && extra.join() === binaries.join();
  if (!good) console.log(`FAIL  ${name}: ${extra.join(", ") || "no package"} of platforms, expected ${binaries.join(", ") || "none"}`);
  good ? passed++ : failed++;
}

try {
  mkdirSync(bin);
  for (const name of tools) if (found(name)) symlinkSync(found(name), join(bin, name));
  await install("one tarball", packed(installed), [], []);

  // As published: this platform's package, and one of another that must not be installed.
  const own = ownPlatform(), name = platformName(own), other = own.platform === "darwin" ? "linux" : "darwin", main = join(work, "main");
  const folder = join(installed, "prebuilds", `${own.platform}-${own.arch}`), binary = join(folder, readdirSync(folder).find((file) => file.startsWith("tokenloom.") && file.endsWith(".node")));
  const platforms = new Map([[name, own], [`${other}-${own.arch}`, { platform: other, arch: own.arch }]]), tarballs = new Map();
  for (const [of, platform] of platforms) {
    makePlatformPackage(join(work, of), platform, binary);
    tarballs.set(`@tokenloom/${of}`, { tarball: packed(join(work, of)), described: JSON.parse(readFileSync(join(work, of, "package.json"), "utf8")) });
  }
  cpSync(installed, main, { recursive: true });
  makeMainPackage(main, [...platforms.keys()]);
  const server = await serve(tarballs);
  await install("as published", packed(main), [`--@tokenloom:registry=http://127.0.0.1:${server.address().port}/`], [name]);
  server.close();
} finally {
  rmSync(work, { recursive: true, force: true });
}
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed === 0 ? 0 : 1;
