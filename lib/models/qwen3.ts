import type { Architecture, DecoderDescription } from "./config.js";
import { describeWith } from "./describe.js";
import { Fields, readActivation, readSizes, type SizeDefaults } from "./fields.js";
import type { ModelFile } from "./file.js";
import { qwenLayers } from "./qwen2.js";

const DEFAULTS: SizeDefaults = { layers: 32, width: 4096, heads: 32, kvHeads: 32, headDim: 128, feedForward: 22016, contextLength: 32768, normEpsilon: 1e-6 };

/** Qwen 3 (arXiv 2505.09388): RMS norms on each head's query and key take the place of Qwen 2's biases. */
export const qwen3: Architecture = {
  gguf: ["qwen3"],
  modelTypes: ["qwen3"],
  describe(file: ModelFile): DecoderDescription {
    const fields = new Fields(file);
    const sizes = readSizes(fields, DEFAULTS);
    return describeWith(fields, sizes, {
      layers: qwenLayers(fields, sizes),
      activation: readActivation(fields, "hidden_act", "silu"),
      tiedEmbeddings: false,
      biases: !fields.gguf && file.metadata.boolean("attention_bias", false),
      queryKeyNorm: true,
    });
  },
};
