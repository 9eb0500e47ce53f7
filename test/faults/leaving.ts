/** A process that is left in the middle: `leaving.js server` goes on until SIGTERM; `leaving.js exit|uncaught|load N` ends by itself after N tokens or milliseconds. */
import { AbortError, loadModel, streamingLlm, type LanguageModel } from "tokenloom";

const [what, count = "0"] = process.argv.slice(2), after = Number(count);
const controller = new AbortController();
let written = 0, ended = 0;

async function one(model: LanguageModel, i: number): Promise<void> {
  using session = model.session({ cache: streamingLlm({ budget: 128 }) });
  try {
    for await (const piece of session.generate(`Once upon a time ${i}`, { ignoreEndOfText: true, signal: controller.signal })) {
      written += piece.tokens.length;
      if (written === 20) console.log("runs");
      if (written < after || after === 0) continue;
      if (what === "exit") process.exit(0);
      if (what === "uncaught") setImmediate(() => { throw new Error("on purpose"); });
    }
  } catch (error) {
    if (error instanceof AbortError) ended++;
  }
}

if (what === "load") {
  setTimeout(() => process.exit(0), after);
  for (;;) (await loadModel("tiny")).dispose();
}
if (what === "server") process.on("SIGTERM", () => controller.abort());
const model = await loadModel("tiny");
await Promise.all(Array.from({ length: 8 }, (_, i) => one(model, i)));
model.dispose();
console.log(`streams ended ${ended}`);
