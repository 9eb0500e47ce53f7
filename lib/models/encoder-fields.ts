import type { ActivationKind } from "../ops/activation.js";
import type { Fields } from "./fields.js";

export interface EncoderSizes {
  readonly layers: number;
  readonly width: number;
  readonly heads: number;
  readonly headDim: number;
  readonly feedForward: number;
  readonly normEpsilon: number;
}

/** Sizes that every encoder's config.json states; `under` is the object that holds them ("vision_config."). */
export function readEncoderSizes(fields: Fields, defaults: Omit<EncoderSizes, "headDim">, under = ""): EncoderSizes {
  const integer = (key: string, fallback: number): number => fields.integer("", `${under}${key}`, 1, fallback);
  const layers = integer("num_hidden_layers", defaults.layers);
  if (layers > 10_000) throw fields.error("at most 10000 layers for num_hidden_layers", layers);
  const width = integer("hidden_size", defaults.width), heads = integer("num_attention_heads", defaults.heads);
  if (width % heads !== 0) throw fields.error(`a width that is a multiple of the ${heads} attention heads for hidden_size`, width);
  const ratio = fields.file.metadata.number(`${under}mlp_ratio`, 0);
  const feedForward = ratio > 0 ? Math.floor(width * ratio) : integer("intermediate_size", defaults.feedForward);
  return { layers, width, heads, headDim: width / heads, feedForward, normEpsilon: fields.positive("", `${under}layer_norm_eps`, defaults.normEpsilon) };
}

const activations: Readonly<Record<string, ActivationKind>> = {
  gelu: "gelu", gelu_new: "gelu-tanh", gelu_pytorch_tanh: "gelu-tanh", gelu_fast: "gelu-tanh", quick_gelu: "quick-gelu", relu: "relu", silu: "silu", swish: "silu",
};

export function readEncoderActivation(fields: Fields, fallback: ActivationKind, under = ""): ActivationKind {
  const key = `${under}hidden_act`;
  if (!fields.file.metadata.has(key)) return fallback;
  const name = fields.file.metadata.string(key);
  const found = Object.hasOwn(activations, name) ? activations[name] : undefined;
  if (found === undefined) throw fields.error(`one of ${Object.keys(activations).join(", ")} for ${key}`, name);
  return found;
}
