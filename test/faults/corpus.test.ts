import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import t from "tap";
import { Random, report, sizesOf } from "./support.js";

const { names, run } = (await import(pathToFileURL(join(process.cwd(), "test", "fuzz", "targets.mjs")).href)) as { names: string[]; run(name: string, bytes: Uint8Array): Promise<"taken" | "refused"> };

t.test("what fuzzing found worth keeping is taken or refused with a typed error, and so is what is made of it", { timeout: 3_600_000 }, async (t) => {
  const { changed } = sizesOf("corpus") as { changed: number }, random = new Random(4), counts = { files: 0, executions: 0, taken: 0, refused: 0 };
  for (const name of names) {
    const folder = join(process.cwd(), "test", "fuzz", "corpus", name), inputs = readdirSync(folder).map((file) => readFileSync(join(folder, file)));
    counts.files += inputs.length;
    for (const input of inputs) {
      for (let i = 0; i <= changed; i++) {
        const bytes = Buffer.from(input);
        for (let k = 0; i > 0 && k < 3; k++) bytes[random.below(bytes.length)] = random.below(256);
        counts.executions++;
        try {
          counts[await run(name, bytes)]++;
        } catch (error) {
          t.fail(`${name}: ${bytes.toString("base64").slice(0, 2000)}: ${(error as Error).stack}`);
        }
      }
    }
    t.ok(inputs.length > 0, name);
  }
  report("corpus", counts);
});
