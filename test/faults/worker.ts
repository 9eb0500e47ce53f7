/** What a worker thread does that is about to be ended: test/faults/workers.ts. */
import { parentPort, workerData } from "node:worker_threads";
import { loadModel, ops, tensor } from "tokenloom";

const { what } = workerData as { what: "generate" | "exit" | "throw" | "load" | "ops" };
if (what === "ops") {
  const x = tensor(new Float32Array(4 * 256 * 64).fill(0.1), [1, 4, 256, 64]);
  parentPort!.postMessage("runs");
  for (;;) (await ops.attention(x, x, x, { causal: true })).out.dispose();
}
if (what === "load") parentPort!.postMessage("runs");
for (;;) {
  const model = await loadModel("tiny");
  if (what === "load") {
    model.dispose();
    continue;
  }
  using session = model.session();
  let seen = 0;
  for await (const piece of session.generate("Once upon a time", { maxTokens: 400, ignoreEndOfText: true })) {
    seen += piece.tokens.length;
    if (seen === 3) parentPort!.postMessage("runs");
    if (what === "exit" && seen >= 5) process.exit(0);
    if (what === "throw" && seen >= 5) throw new Error("on purpose");
  }
  model.dispose();
}
