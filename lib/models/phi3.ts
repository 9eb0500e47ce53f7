import type { Architecture, DecoderDescription } from "./config.js";
import { describeWith } from "./describe.js";
import { Fields, readActivation, readSizes, type SizeDefaults } from "./fields.js";
import type { ModelFile } from "./file.js";
import { readRope } from "./rope.js";
import { readWindow, slidingLayers } from "./windows.js";

const DEFAULTS: SizeDefaults = { layers: 32, width: 3072, heads: 32, feedForward: 8192, contextLength: 4096, normEpsilon: 1e-5 };

/** Phi-3, 3.5 and 4 (arXiv 2404.14219): fused projections, LongRoPE, sometimes a window on all layers and RoPE on part of each head. */
export const phi3: Architecture = {
  gguf: ["phi3"],
  modelTypes: ["phi3"],
  describe(file: ModelFile): DecoderDescription {
    const fields = new Fields(file);
    const sizes = readSizes(fields, DEFAULTS);
    const rope = readRope(fields, sizes, { style: "half", theta: 10000, partial: true });
    const window = readWindow(fields);
    return describeWith(fields, sizes, {
      layers: slidingLayers(sizes, window, () => window !== undefined, () => rope),
      activation: readActivation(fields, "hidden_act", "silu"),
      tiedEmbeddings: false,
      fused: true,
    });
  },
};
