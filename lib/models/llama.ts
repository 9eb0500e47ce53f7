import type { Architecture, DecoderDescription } from "./config.js";
import { describeWith } from "./describe.js";
import { Fields, readActivation, readSizes, type SizeDefaults } from "./fields.js";
import type { ModelFile } from "./file.js";
import { readRope } from "./rope.js";
import { readWindow, slidingLayers } from "./windows.js";

const LLAMA: SizeDefaults = { layers: 32, width: 4096, heads: 32, feedForward: 11008, contextLength: 2048, normEpsilon: 1e-6 };
const MISTRAL: SizeDefaults = { layers: 32, width: 4096, heads: 32, kvHeads: 8, feedForward: 14336, contextLength: 131072, normEpsilon: 1e-6 };

/** Llama (arXiv 2302.13971, 2307.09288, 2407.21783) and Mistral (arXiv 2310.06825), whose layers all slide. GGUF files permute q and k so that RoPE's pairs are neighbours. */
export const llama: Architecture = {
  gguf: ["llama"],
  modelTypes: ["llama", "mistral"],
  describe(file: ModelFile): DecoderDescription {
    const fields = new Fields(file);
    const mistral = fields.architecture === "mistral";
    const sizes = readSizes(fields, mistral ? MISTRAL : LLAMA);
    const rope = readRope(fields, sizes, { style: fields.gguf ? "interleaved" : "half", theta: 10000 });
    const window = fields.gguf || mistral ? readWindow(fields, mistral ? 4096 : undefined) : undefined;
    return describeWith(fields, sizes, {
      layers: slidingLayers(sizes, window, () => window !== undefined, () => rope),
      activation: readActivation(fields, "hidden_act", "silu"),
      tiedEmbeddings: false,
      biases: !fields.gguf && file.metadata.boolean("attention_bias", false),
    });
  },
};
