import type { Architecture, DecoderDescription } from "./config.js";
import { describeWith } from "./describe.js";
import { Fields, readActivation, readSizes, type SizeDefaults, type Sizes } from "./fields.js";
import type { ModelFile } from "./file.js";
import { readRope } from "./rope.js";
import { readSliding, readWindow, slidingLayers } from "./windows.js";

const DEFAULTS: SizeDefaults = { layers: 32, width: 4096, heads: 32, kvHeads: 32, feedForward: 22016, contextLength: 32768, normEpsilon: 1e-6 };

/** Qwen 2 and 2.5 (arXiv 2407.10671, 2412.15115): Llama with biases on query, key and value. */
export const qwen2: Architecture = {
  gguf: ["qwen2"],
  modelTypes: ["qwen2"],
  describe(file: ModelFile): DecoderDescription {
    const fields = new Fields(file);
    const sizes = readSizes(fields, DEFAULTS);
    return describeWith(fields, sizes, {
      layers: qwenLayers(fields, sizes),
      activation: readActivation(fields, "hidden_act", "silu"),
      tiedEmbeddings: false,
      biases: true,
    });
  },
};

/** Layers from `max_window_layers` on slide, if `use_sliding_window` says so; GGUF files keep nothing of it. */
export function qwenLayers(fields: Fields, sizes: Sizes): ReturnType<typeof slidingLayers> {
  const rope = readRope(fields, sizes, { style: "half", theta: 10000 });
  const slides = !fields.gguf && fields.file.metadata.boolean("use_sliding_window", false);
  const window = slides ? readWindow(fields, 4096) : undefined;
  const first = slides ? fields.integer("", "max_window_layers", 0, 28) : 0;
  const sliding = readSliding(fields, sizes, (index) => index >= first);
  return slidingLayers(sizes, window, (index) => window !== undefined && sliding(index), () => rope);
}
