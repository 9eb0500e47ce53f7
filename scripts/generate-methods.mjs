// Writes docs/methods.md from docs/methods.json (the papers and the plan for each) and from the built methods' own metadata:
// a method's file exports `method = { recipe, paper, arxiv, summary }`, and `paper` is that of its row in methods.json.
// `--check` writes nothing and fails where the committed file differs. Needs dist/esm.
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath, pathToFileURL } from "node:url";

const at = (path) => fileURLToPath(new URL(`../${path}`, import.meta.url));
const folders = ["cache", "reduce", "draft", "sequence", "transfer"];

/** Metadata of every built method, by the paper's name in methods.json. */
async function builtMethods() {
  const built = new Map();
  for (const folder of folders.filter((name) => existsSync(at(`dist/esm/${name}`)))) {
    for (const file of readdirSync(at(`dist/esm/${folder}`)).filter((name) => name.endsWith(".js")).sort()) {
      const { method } = await import(pathToFileURL(at(`dist/esm/${folder}/${file}`)).href);
      if (method) built.set(method.paper, [...(built.get(method.paper) ?? []), { ...method, file: `lib/${folder}/${file.replace(/js$/, "ts")}` }]);
    }
  }
  return built;
}

const cell = (text) => text.replaceAll("|", "\\|");

function status(row, methods) {
  if (methods) return methods.map(({ recipe, arxiv, summary, file }) => `[\`${recipe}\`](../${file}): ${summary} (arXiv ${arxiv})`).join("; ");
  if (row.stage === "D") return "not built: no inference method of its own";
  return `not built yet: stage ${row.stage}`;
}

export async function methodsPage() {
  const rows = JSON.parse(readFileSync(at("docs/methods.json"), "utf8"));
  const built = await builtMethods();
  for (const paper of built.keys()) {
    if (!rows.some((row) => row.paper === paper)) throw new Error(`${built.get(paper)[0].file} names a paper that docs/methods.json does not have: ${paper}`);
  }
  const sections = [...new Set(rows.map((row) => row.section))].map((section) => {
    const own = rows.filter((row) => row.section === section);
    const lines = own.map((row) => `| ${cell(row.paper)} | ${cell(row.headline)} | ${cell(row.plan)} | ${cell(status(row, built.get(row.paper)))} |`);
    return `## ${section}\n\n| paper | its headline | here | status |\n|---|---|---|---|\n${lines.join("\n")}\n`;
  });
  const count = rows.filter((row) => built.has(row.paper)).length;
  return `# Methods

Every paper this package follows, what it becomes here, and whether it is built. The headline is the paper's own claim,
not a measurement of ours. Stage 1 is the first release, stage 2 the next; papers about data and training have no
inference method, and the table says what a compute engine can offer of them, or why nothing runs.
Built: ${count} of ${rows.length} rows. This page is made by \`node scripts/generate-methods.mjs\`.

${sections.join("\n")}`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const page = await methodsPage();
  const committed = existsSync(at("docs/methods.md")) ? readFileSync(at("docs/methods.md"), "utf8") : "";
  if (!process.argv.includes("--check")) writeFileSync(at("docs/methods.md"), page);
  else if (page !== committed) {
    console.error("docs/methods.md differs from what scripts/generate-methods.mjs makes: run it and commit the result");
    process.exitCode = 1;
  }
}
