import { mkdtemp, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import { ArgumentError, loadModel, ModelFormatError, NumericError, TokenloomError, type LanguageModel } from "tokenloom";
import { openModel } from "#lib/models/open.js";
import { settledMemory } from "../support/leaks.js";
import fc from "../support/property.js";

const folder = await mkdtemp(join(tmpdir(), "tokenloom-hostile-"));
t.after(() => rm(folder, { recursive: true, force: true }));
const tinyPath = fileURLToPath(new URL("../../../models/tiny.gguf", import.meta.url));
const tiny = await readFile(tinyPath);

async function write(name: string, bytes: Uint8Array | string): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, bytes);
  return path;
}

async function use(model: LanguageModel): Promise<string> {
  using held = model;
  using session = held.session();
  let text = "";
  for await (const piece of session.generate([1, 2, 3], { maxTokens: 3 })) text += piece.text;
  return text;
}

t.test("what is no model is told so", async (t) => {
  await t.rejects(loadModel(await write("text.gguf", "This is a text file, not a model.\n")), ModelFormatError);
  await t.rejects(loadModel(await write("empty.gguf", "")), ModelFormatError);
  await t.rejects(loadModel(join(folder, "absent.gguf"), { offline: true }), ArgumentError);
  await t.rejects(loadModel(await write("magic.gguf", "GGUF")), ModelFormatError);
});

t.test("a truncated model is refused at every length", async (t) => {
  for (const length of [4, 24, 100, 1000, 5000, 20_000, tiny.length >> 1, tiny.length - 1]) {
    await t.rejects(loadModel(await write("cut.gguf", tiny.subarray(0, length))), ModelFormatError, `${length} bytes`);
  }
});

t.test("a file that shrinks between reading the header and the weights gives a typed error", async (t) => {
  const path = await write("shrinks.gguf", tiny);
  let cut = false;
  await t.rejects(
    loadModel(path, { onProgress: ({ stage }) => {
      if (stage !== "weights" || cut) return;
      cut = true;
      void truncate(path, 8192);
    } }),
    { name: "ModelFormatError", message: /ended while its weights were read.*tensor .*shrinks\.gguf/ },
  );
});

t.test("a file that vanishes after the load hurts nobody", async (t) => {
  const path = await write("vanishes.gguf", tiny);
  const model = await loadModel(path);
  await truncate(path, 10);
  await rm(path);
  t.type(await use(model), "string");
});

t.test("bit flips and rewritten numbers: a typed error or a working model, never a crash", async (t) => {
  const header = tiny.length - Math.floor(tiny.length * 0.9);
  const change = fc.record({ at: fc.nat(Math.min(header, 40_000)), value: fc.constantFrom(0, 1, 2, 127, 128, 255, -1), width: fc.constantFrom(1, 4, 8) });
  let loaded = 0, refused = 0;
  for (const changes of fc.sample(fc.array(change, { minLength: 1, maxLength: 3 }), { numRuns: 250, seed: 11 })) {
    const mutant = Buffer.from(tiny);
    for (const { at, value, width } of changes) mutant.fill(value & 255, at, Math.min(at + width, mutant.length));
    const path = await write("mutant.gguf", mutant);
    try {
      await use(await loadModel(path, { offline: true }));
      loaded++;
    } catch (error) {
      if (!(error instanceof TokenloomError)) t.fail(`untyped: ${(error as Error).stack}`, { changes });
      refused++;
    }
  }
  t.ok(loaded > 0 && refused > 0, `${loaded} ran, ${refused} were refused`);
});

t.test("weights of NaN: a typed error from the sampler, not an index out of range", async (t) => {
  const file = await openModel(tinyPath), broken = Buffer.from(tiny);
  const norm = file.tensors.get("output_norm.weight")!;
  for (let i = 0; i < norm.byteLength; i += 4) broken.writeFloatLE(NaN, norm.offset + i);
  await t.rejects(use(await loadModel(await write("nan.gguf", broken))), NumericError);
});

t.test("nothing is left behind", async (t) => {
  t.match(await settledMemory(), { handles: 0, weights: 0, cache: 0 });
});
