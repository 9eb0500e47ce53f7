// node scripts/pack.mjs: what is published (scripts/packages.mjs), as tarballs in build/npm: `tokenloom` and a package for each platform whose
// binary scripts/prebuild.mjs put into build/npm/PLATFORM. A plain `npm pack` makes one tarball with this machine's binary inside instead.
import { existsSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { makeMainPackage, pack, unpack } from "./packages.mjs";

const root = fileURLToPath(new URL("..", import.meta.url)), folder = join(root, "build", "npm");
const versionOf = (path) => JSON.parse(readFileSync(join(path, "package.json"), "utf8")).version;

const found = existsSync(folder) ? readdirSync(folder) : [];
for (const name of found) if (name.endsWith(".tgz")) rmSync(join(folder, name));
const platforms = found.filter((name) => name !== "tokenloom" && statSync(join(folder, name), { throwIfNoEntry: false })?.isDirectory());
if (platforms.length === 0) throw new Error("there is no binary: run scripts/prebuild.mjs first");
for (const name of platforms) {
  if (versionOf(join(folder, name)) !== versionOf(root)) throw new Error(`${name} is of version ${versionOf(join(folder, name))}, not ${versionOf(root)}: run scripts/prebuild.mjs again`);
}

const main = join(folder, "tokenloom"), whole = pack({ to: folder }).tarball;
rmSync(main, { recursive: true, force: true });
unpack(whole, main);
rmSync(whole);
makeMainPackage(main, platforms);
for (const name of ["tokenloom", ...platforms]) {
  const { filename, unpackedSize } = pack({ from: join(folder, name), to: folder });
  console.log(`build/npm/${filename}: ${(unpackedSize / 1e6).toFixed(2)} MB unpacked`);
}
