// One kind of prompts with node-llama-cpp and one of its own predictors; see ../draft.mjs. Token ids come from the caller.
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const { model: path, threads, drafter, promptIds, tokens } = JSON.parse(process.argv[2]);
const entry = join(process.env.TOKENLOOM_PEERS, "node_modules", "node-llama-cpp", "dist", "index.js");
const { DraftSequenceTokenPredictor, getLlama, InputLookupTokenPredictor } = await import(pathToFileURL(entry).href);
const llama = await getLlama({ build: "never", gpu: false, maxThreads: threads, logLevel: "error" });
const model = await llama.loadModel({ modelPath: path });
let count = 0, ms = 0;
for (const ids of promptIds) {
  const context = await model.createContext({ contextSize: 2048, threads, flashAttention: true, batchSize: 512 });
  const other = drafter === "draft" ? await model.createContext({ contextSize: 2048, threads, flashAttention: true, batchSize: 512 }) : undefined;
  const tokenPredictor = drafter === "lookup" ? new InputLookupTokenPredictor() : other ? new DraftSequenceTokenPredictor(other.getSequence()) : undefined;
  const sequence = context.getSequence(tokenPredictor && { tokenPredictor });
  let started, written = 0;
  for await (const _ of sequence.evaluate(ids, { temperature: 0, yieldEogToken: true })) {
    started ??= performance.now(); // the first token comes with the prompt
    if (++written >= tokens) break;
  }
  ms += performance.now() - started;
  count += written - 1;
  await context.dispose();
  await other?.dispose();
}
process.send({ tokensPerSecond: (count / ms) * 1000 });
process.exit(0);
