import { ModelFormatError } from "../errors.js";
import type { DecoderConfig, DecoderDescription, DecoderWeights, LayerConfig, LayerWeights, WeightPart } from "./config.js";
import type { Fields, Sizes } from "./fields.js";
import { Tensors } from "./tensors.js";

/** Where an architecture departs from Llama: everything left out is as Llama has it. */
export interface Traits {
  readonly layers: readonly LayerConfig[];
  readonly activation: DecoderConfig["activation"];
  /** Used where `config.json` does not say; GGUF files show it by the output tensor's absence. */
  readonly tiedEmbeddings: boolean;
  /** Query, key and value have biases. Elsewhere they are used where the file has them. */
  readonly biases?: boolean;
  /** Query, key and value are rows of one tensor, gate and up of another. */
  readonly fused?: boolean;
  readonly queryKeyNorm?: boolean;
  readonly postNorms?: boolean;
  /** Safetensors hold norm weights minus 1. */
  readonly normOffset?: boolean;
  readonly attentionScale?: number;
  readonly attentionSoftcap?: number | undefined;
  readonly logitSoftcap?: number | undefined;
  readonly embeddingScale?: number;
}

type Role =
  | "attentionNorm" | "query" | "key" | "value" | "queryKeyValue" | "queryNorm" | "keyNorm" | "attentionOutput" | "attentionPostNorm"
  | "feedForwardNorm" | "gate" | "up" | "gateUp" | "down" | "feedForwardPostNorm";

const GGUF_NAMES: Readonly<Record<Role, string>> = {
  attentionNorm: "attn_norm", query: "attn_q", key: "attn_k", value: "attn_v", queryKeyValue: "attn_qkv", queryNorm: "attn_q_norm", keyNorm: "attn_k_norm",
  attentionOutput: "attn_output", attentionPostNorm: "post_attention_norm", feedForwardNorm: "ffn_norm", gate: "ffn_gate", up: "ffn_up", gateUp: "ffn_up",
  down: "ffn_down", feedForwardPostNorm: "post_ffw_norm",
};

/** transformers calls Llama's second norm "post attention"; Gemma, which has one after each block as well, uses that name for what it says. */
const JSON_NAMES: Readonly<Record<Role, string>> = {
  attentionNorm: "input_layernorm", query: "self_attn.q_proj", key: "self_attn.k_proj", value: "self_attn.v_proj", queryKeyValue: "self_attn.qkv_proj",
  queryNorm: "self_attn.q_norm", keyNorm: "self_attn.k_norm", attentionOutput: "self_attn.o_proj", attentionPostNorm: "post_attention_layernorm",
  feedForwardNorm: "post_attention_layernorm", gate: "mlp.gate_proj", up: "mlp.up_proj", gateUp: "mlp.gate_up_proj", down: "mlp.down_proj",
  feedForwardPostNorm: "post_feedforward_layernorm",
};

/** Tensors that repeat what the metadata says, or that RoPE reads by itself. */
const EXTRA = /(^|\.)(rotary_emb\.inv_freq|rope_freqs\.weight|rope_factors_(short|long)\.weight|attn_rot_embd(\.weight)?)$/;

/** Builds the description of one model from its sizes and traits; each tensor's presence, shape and type is checked. */
export function describeWith(fields: Fields, sizes: Sizes, traits: Traits): DecoderDescription {
  const tensors = new Tensors(fields.file);
  const prefix = fields.gguf || !fields.file.tensors.has("model.embed_tokens.weight") ? "" : "model.";
  const embedding = fields.gguf ? "token_embd.weight" : `${prefix}embed_tokens.weight`;
  const vocabulary = readVocabulary(fields, tensors, embedding, sizes.width);
  const outputName = fields.gguf ? "output.weight" : "lm_head.weight";
  const tiedEmbeddings = fields.gguf ? !fields.file.tensors.has(outputName) : fields.file.metadata.boolean("tie_word_embeddings", traits.tiedEmbeddings);
  const weights: DecoderWeights = {
    embedding,
    outputNorm: tensors.vector(fields.gguf ? "output_norm.weight" : `${prefix}norm.weight`, sizes.width),
    ...(!tiedEmbeddings && { output: tensors.matrix(outputName, vocabulary, sizes.width) }),
    layers: Array.from({ length: sizes.layers }, (_, index) => layerWeights(fields, sizes, traits, tensors, prefix, index)),
  };
  tensors.refuseUnused((name) => EXTRA.test(name) || (tiedEmbeddings && name === outputName));
  const config: DecoderConfig = {
    architecture: fields.architecture,
    name: fields.file.metadata.string(fields.gguf ? "general.name" : "_name_or_path", ""),
    layers: traits.layers,
    width: sizes.width,
    heads: sizes.heads,
    kvHeads: sizes.kvHeads,
    headDim: sizes.headDim,
    feedForward: sizes.feedForward,
    vocabulary,
    contextLength: sizes.contextLength,
    normEpsilon: sizes.normEpsilon,
    normOffset: traits.normOffset === true && !fields.gguf ? 1 : 0,
    activation: traits.activation,
    attentionScale: fields.gguf ? fields.positive("attention.scale", "", attentionScale(sizes, traits)) : attentionScale(sizes, traits),
    ...(traits.attentionSoftcap !== undefined && { attentionSoftcap: traits.attentionSoftcap }),
    ...(traits.logitSoftcap !== undefined && { logitSoftcap: traits.logitSoftcap }),
    embeddingScale: traits.embeddingScale ?? 1,
    tiedEmbeddings,
    queryKeyNorm: traits.queryKeyNorm ?? false,
    postNorms: traits.postNorms ?? false,
  };
  return { config, weights };
}

function attentionScale(sizes: Sizes, traits: Traits): number {
  return traits.attentionScale ?? 1 / Math.sqrt(sizes.headDim);
}

/** The embedding's rows, which must be what the metadata says where it says so. */
function readVocabulary(fields: Fields, tensors: Tensors, embedding: string, width: number): number {
  const rows = fields.file.tensors.get(embedding)?.shape[0];
  if (rows === undefined || rows < 1) {
    const found = rows === undefined ? "none of this name" : `${rows} rows`;
    throw new ModelFormatError(`Expected a tensor of shape [vocabulary, ${width}] but found ${found}`, { tensor: embedding, file: fields.file.path });
  }
  const vocabulary = fields.file.metadata.integer(fields.key("vocab_size", "vocab_size"), rows);
  tensors.matrix(embedding, vocabulary, width);
  return vocabulary;
}

function layerWeights(fields: Fields, sizes: Sizes, traits: Traits, tensors: Tensors, prefix: string, index: number): LayerWeights {
  const { width, headDim, feedForward } = sizes;
  const [queryRows, keyRows] = [sizes.heads * headDim, sizes.kvHeads * headDim];
  const name = (role: Role, what = "weight"): string => {
    if (fields.gguf) return `blk.${index}.${GGUF_NAMES[role]}.${what}`;
    const own = role === "feedForwardNorm" && traits.postNorms === true ? "pre_feedforward_layernorm" : JSON_NAMES[role];
    return `${prefix}layers.${index}.${own}.${what}`;
  };
  const matrix = (role: Role, rows: number, columns: number): WeightPart => tensors.matrix(name(role), rows, columns);
  const norm = (role: Role, length: number): string => tensors.vector(name(role), length);
  const bias = (role: Role, rows: number): string | undefined =>
    traits.biases === true || tensors.has(name(role, "bias")) ? tensors.vector(name(role, "bias"), rows) : undefined;
  const [query, key, value] = traits.fused === true
    ? tensors.rows(name("queryKeyValue"), [queryRows, keyRows, keyRows], width)
    : [matrix("query", queryRows, width), matrix("key", keyRows, width), matrix("value", keyRows, width)];
  const [gate, up] = traits.fused === true
    ? tensors.rows(name("gateUp"), [feedForward, feedForward], width)
    : [matrix("gate", feedForward, width), matrix("up", feedForward, width)];
  const [queryBias, keyBias, valueBias] = [bias("query", queryRows), bias("key", keyRows), bias("value", keyRows)];
  return {
    attentionNorm: norm("attentionNorm", width),
    query: query!,
    key: key!,
    value: value!,
    ...(queryBias !== undefined && { queryBias }),
    ...(keyBias !== undefined && { keyBias }),
    ...(valueBias !== undefined && { valueBias }),
    ...(traits.queryKeyNorm === true && { queryNorm: norm("queryNorm", headDim), keyNorm: norm("keyNorm", headDim) }),
    attentionOutput: matrix("attentionOutput", width, queryRows),
    ...(traits.postNorms === true && { attentionPostNorm: norm("attentionPostNorm", width) }),
    feedForwardNorm: norm("feedForwardNorm", width),
    gate: gate!,
    up: up!,
    down: matrix("down", width, feedForward),
    ...(traits.postNorms === true && { feedForwardPostNorm: norm("feedForwardPostNorm", width) }),
  };
}
