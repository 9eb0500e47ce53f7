import { ModelFormatError } from "../errors.js";
import type { ModelFile } from "./file.js";

/**
 * One model's hyperparameters under both names: GGUF's, without the architecture's prefix, and `config.json`'s.
 * A getter with a fallback returns it where the key is absent; a value outside its range is a ModelFormatError that names the key.
 */
export class Fields {
  readonly file: ModelFile;
  readonly gguf: boolean;
  /** `general.architecture` or `model_type`. */
  readonly architecture: string;

  constructor(file: ModelFile) {
    this.file = file;
    this.gguf = file.format === "gguf";
    this.architecture = file.metadata.string(this.gguf ? "general.architecture" : "model_type");
  }

  /** The key as this file spells it. */
  key(gguf: string, json: string): string {
    return this.gguf ? `${this.architecture}.${gguf}` : json;
  }

  has(gguf: string, json: string): boolean {
    return this.file.metadata.has(this.key(gguf, json));
  }

  /** `null` in config.json: switches a window or soft cap off where leaving the key out would not. The accessors treat both as absent. */
  isNull(json: string): boolean {
    return !this.gguf && !this.file.metadata.has(json) && [...this.file.metadata.keys()].includes(json);
  }

  /** An integer in low … 2^31 − 1. */
  integer(gguf: string, json: string, low: number, fallback?: number): number {
    const key = this.key(gguf, json);
    const value = this.file.metadata.integer(key, fallback);
    if (value < low) throw this.error(`an integer of at least ${low} for ${key}`, value);
    return value;
  }

  /** A finite number above 0. */
  positive(gguf: string, json: string, fallback?: number): number {
    const key = this.key(gguf, json);
    const value = this.file.metadata.number(key, fallback);
    if (!(value > 0)) throw this.error(`a number above 0 for ${key}`, value);
    return value;
  }

  /** A number above 0, or undefined where the key is 0, null, or absent without a fallback: how files switch a soft cap off. */
  optionalPositive(gguf: string, json: string, fallback?: number): number | undefined {
    const key = this.key(gguf, json);
    const value = this.file.metadata.number(key, this.isNull(json) ? 0 : (fallback ?? 0));
    if (value < 0) throw this.error(`a number of at least 0 for ${key}`, value);
    return value === 0 ? undefined : value;
  }

  error(expected: string, found: unknown): ModelFormatError {
    return new ModelFormatError(`Expected ${expected} but found ${String(found)}`, { file: this.file.path });
  }
}

/** Sizes that every decoder states, each checked alone and against the others. */
export interface Sizes {
  readonly layers: number;
  readonly width: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly feedForward: number;
  readonly contextLength: number;
  readonly normEpsilon: number;
}

/** What transformers takes where `config.json` is silent; `kvHeads` and `headDim` may follow from the others. */
export interface SizeDefaults extends Omit<Sizes, "kvHeads" | "headDim"> {
  readonly kvHeads?: number;
  readonly headDim?: number;
}

/** Reads the sizes. GGUF files must state what llama.cpp requires; `config.json` falls back to `defaults`. */
export function readSizes(fields: Fields, defaults: SizeDefaults): Sizes {
  const otherwise = <T>(value: T): T | undefined => (fields.gguf ? undefined : value);
  const layers = fields.integer("block_count", "num_hidden_layers", 1, otherwise(defaults.layers));
  if (layers > 10_000) throw fields.error(`at most 10000 layers for ${fields.key("block_count", "num_hidden_layers")}`, layers);
  const width = fields.integer("embedding_length", "hidden_size", 1, otherwise(defaults.width));
  const heads = fields.integer("attention.head_count", "num_attention_heads", 1, otherwise(defaults.heads));
  const kvHeads = fields.integer("attention.head_count_kv", "num_key_value_heads", 1, otherwise(defaults.kvHeads) ?? heads);
  if (heads % kvHeads !== 0) throw fields.error(`a divisor of the ${heads} attention heads for ${fields.key("attention.head_count_kv", "num_key_value_heads")}`, kvHeads);
  const headDim = readHeadDim(fields, width, heads, otherwise(defaults.headDim));
  const feedForward = fields.integer("feed_forward_length", "intermediate_size", 1, otherwise(defaults.feedForward));
  const contextLength = fields.integer("context_length", "max_position_embeddings", 1, otherwise(defaults.contextLength));
  const normEpsilon = fields.positive("attention.layer_norm_rms_epsilon", "rms_norm_eps", otherwise(defaults.normEpsilon));
  // Unlike a wrong weight, these would be computed without and give nonsense.
  if (fields.gguf && fields.file.metadata.integer(`${fields.architecture}.expert_count`, 0) > 0) {
    throw fields.error("a dense feed-forward block", `${fields.architecture}.expert_count ${fields.file.metadata.integer(`${fields.architecture}.expert_count`)}`);
  }
  return { layers, width, heads, kvHeads, headDim, feedForward, contextLength, normEpsilon };
}

function readHeadDim(fields: Fields, width: number, heads: number, fallback: number | undefined): number {
  if (fallback === undefined && !fields.has("attention.key_length", "head_dim") && width % heads !== 0) {
    throw fields.error(`a width that is a multiple of the ${heads} attention heads for ${fields.key("embedding_length", "hidden_size")}`, width);
  }
  const headDim = fields.integer("attention.key_length", "head_dim", 1, fallback ?? width / heads);
  if (fields.gguf) {
    const valueKey = `${fields.architecture}.attention.value_length`;
    const valueDim = fields.file.metadata.integer(valueKey, headDim);
    if (valueDim !== headDim) throw fields.error(`${headDim}, the length of keys, for ${valueKey}`, valueDim);
  }
  return headDim;
}

/** `hidden_act` and its kin. GGUF names no activation: the architecture implies it. */
export function readActivation(fields: Fields, json: string, implied: "silu" | "gelu-tanh"): "silu" | "gelu-tanh" | "gelu" {
  if (fields.gguf || !fields.file.metadata.has(json)) return implied;
  const name = fields.file.metadata.string(json);
  if (name === "silu" || name === "swish") return "silu";
  if (name === "gelu_pytorch_tanh" || name === "gelu_new") return "gelu-tanh";
  if (name === "gelu") return "gelu";
  throw fields.error(`silu, gelu or gelu_pytorch_tanh for ${json}`, name);
}
