// One measurement of this package; see ../llm.mjs for what is asked and answered.
import { measureInChild } from "./measurement.mjs";

await measureInChild(async ({ model: path, threads }) => {
  const { loadModel, systemInfo } = await import("tokenloom");
  return {
    async load() {
      const model = await loadModel(path, { threads, offline: true });
      return { vocabulary: model.config.vocabulary, weightBytes: model.weightBytes, isa: systemInfo().isa, model };
    },
    prepare: async ({ model }) => model.session(),
    /** Calls onToken for each token generated after the prompt. */
    async generate(session, prompt, tokens, onToken) {
      for await (const piece of session.generate(prompt, { maxTokens: tokens, ignoreEndOfText: true })) piece.tokens.forEach(onToken);
    },
  };
});
