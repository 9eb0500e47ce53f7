import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, readdirSync } from "node:fs";
import { dirname, join, posix } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";

const root = findRoot(dirname(fileURLToPath(import.meta.url)));

function findRoot(folder: string): string {
  return existsSync(join(folder, "package-lock.json")) ? folder : findRoot(dirname(folder));
}

/** Paths below `folder`, relative to the repository, with forward slashes. */
function filesUnder(folder: string, pattern: RegExp): string[] {
  return readdirSync(join(root, folder), { recursive: true, encoding: "utf8" })
    .map((name) => posix.join(folder, name.replaceAll("\\", "/")))
    .filter((name) => pattern.test(name))
    .sort();
}

const read = (file: string): string => readFileSync(join(root, file), "utf8");

/** From top to bottom. A file may use its own layer and those below. */
const libLayers = [
  ["cli"], ["index.ts"], ["generate"], ["encode"], ["tokenizer"], ["models"], ["cache", "reduce", "draft", "sequence", "transfer"], ["ops"], ["graph"],
  ["device.ts", "memory.ts", "resource.ts", "schedule.ts", "tensor.ts"], ["native.ts"], ["slice.ts"], ["check.ts"], ["errors.ts", "svg.ts"],
];
const nativeLayers = [["binding"], ["cpp/exec"], ["cpp/kernels"], ["cpp/cache", "cpp/simd"], ["cpp/core"]];

function layerOf(layers: readonly (readonly string[])[], file: string): number {
  return layers.findIndex((names) => names.some((name) => file === name || file.startsWith(`${name}/`)));
}

/** "a uses b" for every use that points upwards, and every file that no layer claims. */
function upwardUses(layers: readonly (readonly string[])[], uses: readonly (readonly [from: string, to: string])[]): string[] {
  return uses.flatMap(([from, to]) => {
    const [above, below] = [layerOf(layers, from), layerOf(layers, to)];
    if (above < 0 || below < 0) return [`${above < 0 ? from : to} belongs to no layer`];
    return below < above ? [`${from} uses ${to}`] : [];
  });
}

t.test("imports in lib/ point downwards", async (t) => {
  const uses = filesUnder("lib", /\.ts$/).flatMap((file) =>
    [...read(file).matchAll(/(?:from|import)\s*\(?\s*"(\.[^"]+)\.js"/g)].map((match) => [file.slice(4), posix.join(dirname(file), `${match[1]}.ts`).slice(4)] as const),
  );
  t.ok(uses.length > 50, "imports were found");
  t.same(upwardUses(libLayers, uses), []);
});

t.test("only native.ts loads the addon", async (t) => {
  t.same(filesUnder("lib", /\.ts$/).filter((file) => read(file).includes('"#native"')), ["lib/native.ts"]);
});

t.test("papers' files touch neither native code nor offsets", async (t) => {
  const papers = ["cache", "reduce", "draft", "sequence", "transfer"].filter((folder) => existsSync(join(root, "lib", folder)));
  const files = papers.flatMap((folder) => filesUnder(`lib/${folder}`, /\.ts$/)).filter((file) => /^export const method\b/m.test(read(file)));
  t.ok(files.length > 0, "files of papers were found");
  t.same(files.filter((file) => read(file).includes("/native.js")), []);
});

t.test("includes in cpp/ and binding/ point downwards", async (t) => {
  const uses = [...filesUnder("cpp", /\.(h|cpp)$/), ...filesUnder("binding", /\.(h|cc)$/)].flatMap((file) =>
    [...read(file).matchAll(/^#include "([^"]+)"/gm)].map((match) => [file, posix.join(dirname(file), match[1] ?? "")] as const),
  );
  t.ok(uses.length > 50, "includes were found");
  // target.h is the door of kernel files: their own tables have to be included before it opens the instruction region.
  const throughTheDoor = uses.filter(([from, to]) => from === "cpp/simd/target.h" && to.startsWith("cpp/kernels/"));
  t.same(upwardUses(nativeLayers, uses.filter((use) => !throughTheDoor.includes(use))), []);
});

t.test("only the binding knows Node; kernels, cache and executor name no intrinsics", async (t) => {
  const sources = filesUnder("cpp", /\.(h|cpp|def)$/);
  t.same(sources.filter((file) => /#include <(napi|node_api|uv)\.h>/.test(read(file))), []);
  const outside = sources.filter((file) => !file.startsWith("cpp/simd/") && !file.startsWith("cpp/core/"));
  t.same(outside.filter((file) => /\b_mm\d*_|\bv(ld1|st1|add|mul|dot)q_|immintrin\.h|arm_neon\.h/.test(read(file))), []);
});

t.test("no file of lib/, cpp/ or binding/ is over 600 lines", async (t) => {
  const files = [...filesUnder("lib", /\.ts$/), ...filesUnder("cpp", /\.(h|cpp|def)$/), ...filesUnder("binding", /\.(h|cc)$/)];
  t.same(files.filter((file) => read(file).split("\n").length > 601), []);
});

t.test("the text names no registry host and no path of one machine", async (t) => {
  // With spaces for dots, so that this file does not find itself.
  const hosts = ["registry npmjs", "pypi org", "files pythonhosted", "static crates", "deb debian", "proxy golang"].map((host) => host.replace(" ", "\\."));
  const folders = ["work", "root", "opt", "home"].map((folder) => `(?<![\\w.~/-])/${folder}/[\\w.]`);
  const forbidden = new RegExp([...hosts, ...folders].join("|"));
  const listed = execFileSync("git", ["ls-files", "-co", "--exclude-standard"], { cwd: root, encoding: "utf8" }).split("\n");
  const texts = listed.filter((file) => /\.(ts|mjs|cjs|js|json|md|py|sh|h|cc|cpp|def|cu|cuh|txt|yml)$|^\.ci\/run$/.test(file) && existsSync(join(root, file)));
  t.same(texts.flatMap((file) => { const match = forbidden.exec(read(file)); return match ? [`${file}: ${match[0]}`] : []; }), []);
});
