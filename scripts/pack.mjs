// node scripts/pack.mjs: what is published (scripts/packages.mjs), as tarballs in build/npm: `tokenloom` and a package for each platform whose
// binary scripts/prebuild.mjs put into build/npm/PLATFORM. A plain `npm pack` makes one tarball with this machine's binary inside instead.
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { makeMainPackage } from "./packages.mjs";

const root = fileURLToPath(new URL("..", import.meta.url)), folder = join(root, "build", "npm");
const run = (command, args, cwd) => execFileSync(command, args, { cwd, encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] });
const pack = (from) => JSON.parse(run("npm", ["pack", "--json", "--ignore-scripts", "--pack-destination", folder], from))[0];
const versionOf = (path) => JSON.parse(readFileSync(join(path, "package.json"), "utf8")).version;

const found = existsSync(folder) ? readdirSync(folder) : [];
for (const name of found) if (name.endsWith(".tgz")) rmSync(join(folder, name));
const platforms = found.filter((name) => name !== "tokenloom" && statSync(join(folder, name), { throwIfNoEntry: false })?.isDirectory());
if (platforms.length === 0) throw new Error("there is no binary: run scripts/prebuild.mjs first");
for (const name of platforms) {
  if (versionOf(join(folder, name)) !== versionOf(root)) throw new Error(`${name} is of version ${versionOf(join(folder, name))}, not ${versionOf(root)}: run scripts/prebuild.mjs again`);
}

const main = join(folder, "tokenloom"), whole = join(folder, pack(root).filename);
rmSync(main, { recursive: true, force: true });
mkdirSync(main);
run("tar", ["-xzf", whole, "-C", main, "--strip-components=1"]);
rmSync(whole);
makeMainPackage(main, platforms);
for (const name of ["tokenloom", ...platforms]) {
  const { filename, unpackedSize } = pack(join(folder, name));
  console.log(`build/npm/${filename}: ${(unpackedSize / 1e6).toFixed(2)} MB unpacked`);
}
