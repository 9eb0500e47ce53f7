// One measurement of node-llama-cpp, from the folder that TOKENLOOM_PEERS names; see ../llm.mjs.
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { measureInChild } from "./measurement.mjs";

await measureInChild(async ({ model: path, threads, contextTokens }) => {
  const entry = join(process.env.TOKENLOOM_PEERS, "node_modules", "node-llama-cpp", "dist", "index.js");
  const { getLlama } = await import(pathToFileURL(entry).href);
  const llama = await getLlama({ build: "never", gpu: false, maxThreads: threads, logLevel: "error" });
  return {
    async load() {
      const model = await llama.loadModel({ modelPath: path });
      return { vocabulary: model.fileInfo.metadata.tokenizer.ggml.tokens.length, model };
    },
    prepare: ({ model }) => model.createContext({ contextSize: contextTokens, threads, flashAttention: true, batchSize: 512 }),
    async generate(context, prompt, tokens, onToken) {
      let count = 0;
      for await (const token of context.getSequence().evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
        onToken(token);
        if (++count >= tokens) break;
      }
    },
  };
});
