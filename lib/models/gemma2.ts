import type { Architecture, DecoderDescription } from "./config.js";
import { describeWith } from "./describe.js";
import { Fields, readActivation, readSizes, type SizeDefaults, type Sizes } from "./fields.js";
import type { ModelFile } from "./file.js";
import { readRope } from "./rope.js";
import { readSliding, readWindow, slidingLayers } from "./windows.js";

const DEFAULTS: SizeDefaults = { layers: 26, width: 2304, heads: 8, kvHeads: 4, headDim: 256, feedForward: 9216, contextLength: 8192, normEpsilon: 1e-6 };

/** Gemma 2 (arXiv 2408.00118): every other layer slides, the first one first; soft caps; norms after each block too. */
export const gemma2: Architecture = {
  gguf: ["gemma2"],
  modelTypes: ["gemma2"],
  describe(file: ModelFile): DecoderDescription {
    const fields = new Fields(file);
    refuseBidirectional(fields);
    const sizes = readSizes(fields, DEFAULTS);
    const rope = readRope(fields, sizes, { style: "half", theta: 10000 });
    const window = readWindow(fields, 4096);
    return describeWith(fields, sizes, {
      layers: slidingLayers(sizes, window, readSliding(fields, sizes, (index) => index % 2 === 0), () => rope),
      activation: readActivation(fields, "hidden_activation", "gelu-tanh"),
      tiedEmbeddings: true,
      biases: !fields.gguf && file.metadata.boolean("attention_bias", false),
      postNorms: true,
      normOffset: true,
      attentionScale: gemmaScale(fields, sizes, 46),
      attentionSoftcap: fields.optionalPositive("attn_logit_softcapping", "attn_logit_softcapping", 50),
      logitSoftcap: fields.optionalPositive("final_logit_softcapping", "final_logit_softcapping", 30),
      embeddingScale: Math.sqrt(sizes.width),
    });
  },
};

/** The factor of q·k, 1/√query_pre_attn_scalar. GGUF files lack it: the head's size but in the 27B models, known by their depth. */
export function gemmaScale(fields: Fields, sizes: Sizes, layersOf27B: number): number {
  const implied = sizes.layers === layersOf27B ? sizes.width / sizes.heads : sizes.headDim;
  return 1 / Math.sqrt(fields.gguf ? implied : fields.positive("", "query_pre_attn_scalar", 256));
}

/** Gemma's embedding models attend both ways: other arithmetic under the same name. */
export function refuseBidirectional(fields: Fields): void {
  if (!fields.gguf && fields.file.metadata.boolean("use_bidirectional_attention", false)) throw fields.error("false for use_bidirectional_attention of a decoder", true);
}
