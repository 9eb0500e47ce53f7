// The packages that are published: `tokenloom`, without a binary, which names one package for each platform as an optional dependency of its own
// version, `@tokenloom/PLATFORM-ARCH[-musl]`: npm installs the one whose os, cpu and libc fit and no other.
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const readJson = (path) => JSON.parse(readFileSync(path, "utf8"));
const writeJson = (path, value) => writeFileSync(path, `${JSON.stringify(value, null, 2)}\n`);

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
