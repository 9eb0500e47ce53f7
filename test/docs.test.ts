// Runs the code of README.md and docs/: each block that a reader could paste. What goes before a block, in a comment, holds for it:
//   <!-- not run: REASON -->    is left out; every block that is no js, ts or cjs needs a reason
//   <!-- before: CODE -->       what the block takes for given
// Blocks run in a folder of their own, whose models are tiny ones under the names that the text uses.
import { execFile } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, symlinkSync } from "node:fs";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import sharp from "sharp";
import t from "tap";
import ts from "typescript";
import { root, tiny } from "./cli/program.js";
import { encoderFolder, tinyBert } from "./support/encoders.js";
import { scratch } from "./support/paths.js";

const run = promisify(execFile);
const pages = ["README.md", "CONTRIBUTING.md", "SECURITY.md", ...readdirSync(join(root, "docs")).filter((name) => name.endsWith(".md")).map((name) => `docs/${name}`)];

interface Block {
  readonly line: number;
  readonly language: string;
  readonly code: string;
  readonly before: string;
  readonly reason: string | undefined;
}

/** The fenced blocks of a page that name a language, with the comment above each. */
function blocksOf(page: string): Block[] {
  const text = readFileSync(join(root, page), "utf8");
  return [...text.matchAll(/(?:<!-- (not run|before): ((?:(?!-->)[^])*) -->\n)?^```(\w+)\n([^]*?)^```$/gm)].map(([, kind, comment = "", language = "", code = ""], index, all) => ({
    line: text.slice(0, all[index]!.index).split("\n").length,
    language, code,
    before: kind === "before" ? comment : "",
    reason: kind === "not run" ? comment : undefined,
  }));
}

/** What a folder has to have for every block: models, a picture, a text. */
async function prepare(folder: ReturnType<typeof scratch>): Promise<void> {
  symlinkSync(tiny, join(folder.path, "SmolLM2-135M-Instruct.Q4_1.gguf"));
  const bert = join(folder.path, "all-MiniLM-L6-v2");
  mkdirSync(bert);
  tinyBert({ path: bert, write: (name, text) => folder.write(join("all-MiniLM-L6-v2", name), text) });
  for (const name of ["dinov2-small.safetensors", "dinov2-small-saliency.safetensors"]) symlinkSync(join(encoderFolder, "dinov2-gated"), join(folder.path, name));
  for (const name of ["loom.jpg", "picture.jpg"]) await sharp({ create: { width: 40, height: 40, channels: 3, background: "#7a5c3e" } }).toFile(join(folder.path, name));
  folder.write("package.json", "{}");
  mkdirSync(join(folder.path, "node_modules"));
  symlinkSync(root, join(folder.path, "node_modules", "tokenloom"));
}

function compiled({ language, code, before }: Block): string {
  if (language === "cjs") return code;
  // Imports may stand behind what goes before; `using` becomes what Node 20 knows.
  return ts.transpileModule(`${code}\n`.replace(/^((?:import [^]*?;\n|\/\/.*\n|\n)*)/, (imports) => `${imports}${before}\n`), { compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext, verbatimModuleSyntax: true } }).outputText;
}

for (const page of pages) {
  t.test(page, async (t) => {
    for (const block of blocksOf(page)) {
      const place = `${page}:${block.line}`;
      if (block.reason !== undefined) {
        t.comment(`${place} is not run: ${block.reason}`);
        continue;
      }
      if (!["js", "ts", "cjs"].includes(block.language)) {
        t.fail(`${place}: a block of ${block.language} needs a reason why it is not run`);
        continue;
      }
      const folder = scratch(t);
      await prepare(folder);
      const file = folder.write(block.language === "cjs" ? "block.cjs" : "block.mjs", compiled(block));
      const env = { ...process.env, TOKENLOOM_MODELS: folder.path, TOKENLOOM_CACHE: join(folder.path, "cache"), HF_ENDPOINT: "http://127.0.0.1:40001" };
      await t.resolves(run(process.execPath, [file], { cwd: dirname(file), env, timeout: 100_000 }), place);
    }
  });
}
