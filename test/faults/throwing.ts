/** Throws from each place of the addon in turn, in a build with TL_FAULTS, and prints what came of it: test/faults/exceptions.test.ts. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadModel, memory, OutOfMemoryError, snapKV, TokenloomError, tokenRecycling, type EncoderModel } from "tokenloom";
import { isFailure, native } from "#lib/native.js";
import { read } from "./sessions.js";

const faults = native as unknown as { throwAt(place: string, what: 1 | 2 | 3): void };
const folder = mkdtempSync(join(tmpdir(), "tokenloom-throwing-")), fixtures = join(process.cwd(), "test", "fixtures");
process.on("exit", () => rmSync(folder, { recursive: true, force: true }));

/** All that the addon exports is called by this, or by `direct`. */
async function everything(): Promise<string> {
  using model = await loadModel(join(fixtures, "architectures", "llama3", "model.gguf"), { threads: 2 });
  using session = model.session({ cache: snapKV({ budget: 24, window: 4 }), draft: tokenRecycling(), draftNodes: 6 });
  const first = await read(session, Array.from({ length: 40 }, (_, i) => i), { maxTokens: 8, ignoreEndOfText: true });
  using plain = model.session();
  await read(plain, [1, 2, 3], { maxTokens: 2 });
  await plain.save(join(folder, "saved"));
  using restored = await model.restore(join(folder, "saved"));
  restored.stats();
  using fork = plain.fork();
  fork.cachedPositions();
  fork.reset();
  using images = (await loadModel(join(fixtures, "encoders", "vit"), { kind: "encoder", weights: "bf16" })) as EncoderModel;
  const { width, height } = images.config.image!;
  const { embedding } = await images.encode({ data: new Uint8Array(width * height * 3), width, height });
  return `${first.tokens.join()} ${embedding.data.join()}`;
}

const right = await everything(), wrong: string[] = [];
const places = [...Object.keys(native).filter((name) => name !== "throwAt"), "addon", "execute", "complete", "poolJob"];
let thrown = 0;
for (const place of places) {
  for (const what of [1, 2, 3] as const) {
    faults.throwAt(place, what);
    try {
      await everything();
    } catch (error) {
      thrown++;
      const typed = error instanceof TokenloomError, expected = what === 2 ? error instanceof OutOfMemoryError : typed && error.code === "TL_INTERNAL";
      if (!expected && !isFailure(error)) wrong.push(`${place}, ${what}: ${(error as Error).stack}`);
      if (!typed) wrong.push(`${place}, ${what}: not typed: ${(error as Error).stack}`);
    }
    faults.throwAt("", 1);
    if ((await everything()) !== right) wrong.push(`${place}, ${what}: what comes afterwards differs`);
  }
}
for (let i = 0; i < 100 && memory().handles > 0; i++) {
  globalThis.gc!();
  await new Promise((resolve) => setTimeout(resolve, 2));
}
if (memory().handles > 0 || memory().weights > 0) wrong.push(`left behind: ${JSON.stringify(memory())}`);
console.log(JSON.stringify({ places: places.length, thrown, wrong }));
