/** A model file that is cut or removed while it is loaded or used: `shrinking.js TRIALS`. A mapping would end the process with SIGBUS. */
import { copyFileSync, mkdtempSync, rmSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadModel, TokenloomError } from "tokenloom";
import { read } from "./sessions.js";
import { Random } from "./support.js";

const folder = mkdtempSync(join(tmpdir(), "tokenloom-shrinking-")), random = new Random(6);
process.on("exit", () => rmSync(folder, { recursive: true, force: true }));
const source = join(process.cwd(), "models", "tiny.gguf"), options = { maxTokens: 8, seed: 1 };
const counts = { right: 0, refused: 0 };

async function generate(path: string, meanwhile: () => void): Promise<string> {
  using model = await loadModel(path);
  using session = model.session();
  return (await read(session, "Once upon a time", options, (tokens) => tokens === 3 && meanwhile())).text;
}

const right = await generate(source, () => undefined);
for (let trial = 0; trial < Number(process.argv[2]); trial++) {
  const path = join(folder, `${trial}.gguf`), harm = (): void => (trial % 4 === 3 ? rmSync(path) : truncateSync(path, 8192));
  copyFileSync(source, path);
  const early = trial % 2 === 1, timer = early ? setTimeout(harm, random.below(25)) : undefined;
  try {
    const text = await generate(path, early ? () => undefined : harm);
    if (text !== right) throw new Error(`trial ${trial}: ${JSON.stringify(text)} instead of ${JSON.stringify(right)}`);
    counts.right++;
  } catch (error) {
    if (!early || !(error instanceof TokenloomError)) throw error;
    counts.refused++;
  } finally {
    clearTimeout(timer);
  }
}
console.log(JSON.stringify(counts));
