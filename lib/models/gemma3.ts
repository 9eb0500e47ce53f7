import type { Architecture, DecoderDescription, RopeConfig } from "./config.js";
import { describeWith } from "./describe.js";
import { Fields, readActivation, readSizes, type SizeDefaults, type Sizes } from "./fields.js";
import type { ModelFile } from "./file.js";
import { gemmaScale, refuseBidirectional } from "./gemma2.js";
import { readRope } from "./rope.js";
import { readSliding, readWindow, slidingLayers } from "./windows.js";

const DEFAULTS: SizeDefaults = { layers: 26, width: 2304, heads: 8, kvHeads: 4, headDim: 256, feedForward: 9216, contextLength: 131072, normEpsilon: 1e-6 };

/** Gemma 3's text decoder (arXiv 2503.19786): five sliding layers to each global one, each kind with its own RoPE base; query and key norms instead of soft caps. */
export const gemma3: Architecture = {
  gguf: ["gemma3"],
  modelTypes: ["gemma3_text"],
  describe(file: ModelFile): DecoderDescription {
    const fields = new Fields(file);
    refuseBidirectional(fields);
    const sizes = readSizes(fields, DEFAULTS);
    const window = readWindow(fields, fields.gguf ? undefined : 4096);
    const period = readPeriod(fields);
    const sliding = readSliding(fields, sizes, (index) => (index + 1) % period !== 0);
    const [local, global] = [localRope(fields, sizes), readRope(fields, sizes, { style: "half", theta: 1e6, layerType: "full_attention" })];
    return describeWith(fields, sizes, {
      layers: slidingLayers(sizes, window, sliding, (slides) => (slides ? local : global)),
      activation: readActivation(fields, "hidden_activation", "gelu-tanh"),
      tiedEmbeddings: true,
      biases: !fields.gguf && file.metadata.boolean("attention_bias", false),
      queryKeyNorm: true,
      postNorms: true,
      normOffset: true,
      attentionScale: gemmaScale(fields, sizes, 62),
      attentionSoftcap: fields.gguf ? undefined : fields.optionalPositive("", "attn_logit_softcapping"),
      logitSoftcap: fields.optionalPositive("final_logit_softcapping", "final_logit_softcapping"),
      embeddingScale: Math.sqrt(sizes.width),
    });
  },
};

/** Every so many layers one is global. */
function readPeriod(fields: Fields): number {
  if (Array.isArray(fields.file.metadata.raw(fields.key("attention.sliding_window_pattern", "")))) return 6;
  return fields.integer("attention.sliding_window_pattern", "sliding_window_pattern", 1, 6);
}

/** The sliding layers' RoPE is never scaled. */
function localRope(fields: Fields, sizes: Sizes): RopeConfig {
  const nested = "rope_parameters.sliding_attention";
  if (!fields.gguf && fields.file.metadata.has(nested)) return readRope(fields, sizes, { style: "half", theta: 1e4, layerType: "sliding_attention" });
  const { dim } = readRope(fields, sizes, { style: "half", theta: 1e4 });
  return { style: "half", theta: fields.positive("rope.freq_base_swa", "rope_local_base_freq", 1e4), dim };
}
