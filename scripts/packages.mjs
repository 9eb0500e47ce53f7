// The packages that are published: `tokenloom`, without a binary, which names one package for each platform as an optional dependency of its own
// version, `@tokenloom/PLATFORM-ARCH[-musl]`: npm installs the one whose os, cpu and libc fit and no other.
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const readJson = (path) => JSON.parse(readFileSync(path, "utf8"));
const writeJson = (path, value) => writeFileSync(path, `${JSON.stringify(value, null, 2)}\n`);

/** The package in folder `from`, or the registry's of the name `spec`, as a tarball in folder `to`: its path there and what npm says of it. */
export function pack({ from = root, spec, to }) {
  const args = ["pack", "--json", "--ignore-scripts", ...(spec ? [spec] : []), "--pack-destination", to];
  const [packed] = JSON.parse(execFileSync("npm", args, { cwd: from, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] }));
  return { ...packed, tarball: join(to, packed.filename) };
}

/** What a tarball holds, in `folder`, which is made where it is missing. */
export function unpack(tarball, folder) {
  mkdirSync(folder, { recursive: true });
  execFileSync("tar", ["-xzf", tarball, "-C", folder, "--strip-components=1"]);
}

/** "linux-x64-musl"; libc is "glibc", "musl" or, where there is no choice, undefined. */
export const platformName = ({ platform, arch, libc }) => `${platform}-${arch}${libc === "musl" ? "-musl" : ""}`;

/** What this process runs on. */
export function ownPlatform() {
  const { platform, arch } = process;
  return { platform, arch, libc: platform !== "linux" ? undefined : process.report.getReport().header.glibcVersionRuntime ? "glibc" : "musl" };
}

/** Makes the package of a platform of a binary, in a folder that is made anew; answers where the binary lies in it. */
export function makePlatformPackage(folder, of, binary) {
  const { platform, arch, libc } = of, { version, license, engines } = readJson(join(root, "package.json"));
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  copyFileSync(binary, join(folder, "tokenloom.node"));
  copyFileSync(join(root, "LICENSE"), join(folder, "LICENSE"));
  const description = `The binary of tokenloom for ${platform} on ${arch}${libc ? `, ${libc}` : ""}`;
  writeFileSync(join(folder, "README.md"), `${description}. npm installs it beside \`tokenloom\`: nobody needs to by hand.\n`);
  writeJson(join(folder, "package.json"), {
    name: `@tokenloom/${platformName(of)}`, version, description, license, engines, os: [platform], cpu: [arch], ...(libc && { libc: [libc] }), main: "tokenloom.node", files: ["tokenloom.node"],
  });
  return join(folder, "tokenloom.node");
}

/** Turns an unpacked package with a binary into the one that is published, which names these platforms' packages instead. */
export function makeMainPackage(folder, platforms) {
  rmSync(join(folder, "prebuilds"), { recursive: true, force: true });
  const described = readJson(join(folder, "package.json"));
  described.optionalDependencies = Object.fromEntries(platforms.map((name) => [`@tokenloom/${name}`, described.version]));
  writeJson(join(folder, "package.json"), described);
}

/** Says what a Linux binary asks of the system; throws where that is newer than glibc 2.28 or a library that not every system has. */
export function checkLibraries(binary, libc, objdump = "objdump") {
  const dump = (flag) => execFileSync(objdump, [flag, binary], { encoding: "utf8", maxBuffer: 1 << 26 });
  const libraries = [...dump("-p").matchAll(/NEEDED +(\S+)/g)].map(([, library]) => library);
  const foreign = libraries.filter((library) => /^libstdc\+\+|^libc\+\+/.test(library) || (libc === "musl" && /\.so\.6$/.test(library)));
  if (foreign.length > 0) throw new Error(`needs ${foreign.join(", ")}, which not every system has`);
  const newer = [...dump("-T").matchAll(/\(?GLIBC_2\.(\d+)[\d.]*\)?\s+(\S+)/g)].filter(([, minor]) => Number(minor) > 28);
  if (newer.length > 0) throw new Error(`asks for more than glibc 2.28: ${newer.map(([, minor, symbol]) => `${symbol} of 2.${minor}`).join(", ")}`);
  return `needs ${libraries.join(", ")}${libc === "glibc" ? "; runs on glibc 2.28 and later" : ""}`;
}
