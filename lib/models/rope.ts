import { ModelFormatError } from "../errors.js";
import type { DecoderDescription, RopeConfig, RopeScaling } from "./config.js";
import type { Fields, Sizes } from "./fields.js";

export interface RopeReading {
  readonly style: RopeConfig["style"];
  /** Where the file states no base. */
  readonly theta: number;
  /** Only some architectures rotate part of each head. */
  readonly partial?: boolean;
  /** Which of the dictionaries of `rope_parameters`, where each layer type has its own. */
  readonly layerType?: string;
}

/** RoPE as the file states it: base, rotated dimensions, scaling; every number checked. */
export function readRope(fields: Fields, sizes: Sizes, reading: RopeReading): RopeConfig {
  return fields.gguf ? ropeOfGguf(fields, sizes, reading) : ropeOfJson(fields, sizes, reading);
}

function ropeOfGguf(fields: Fields, sizes: Sizes, { style, theta }: RopeReading): RopeConfig {
  const dim = checkedDim(fields, sizes, fields.integer("rope.dimension_count", "", 1, sizes.headDim));
  const base = fields.positive("rope.freq_base", "", theta);
  const scaling = scalingOfGguf(fields, sizes, dim);
  return { style, theta: base, dim, ...(scaling && { scaling }) };
}

function scalingOfGguf(fields: Fields, sizes: Sizes, dim: number): RopeScaling | undefined {
  const type = fields.file.metadata.string(`${fields.architecture}.rope.scaling.type`, "linear");
  // Before rope.scaling.factor there was rope.scale_linear; 0 and 1 both mean "not scaled".
  const factor = fields.optionalPositive("rope.scaling.factor", "") ?? fields.optionalPositive("rope.scale_linear", "") ?? 1;
  const original = fields.integer("rope.scaling.original_context_length", "", 2, Math.max(2, sizes.contextLength));
  const attentionFactor = fields.positive("rope.scaling.attn_factor", "", 1);
  const stored = storedFactors(fields, dim);
  if (stored !== undefined) {
    if (type !== "longrope" && type !== "none" && factor !== 1) throw fields.error(`no rope.scaling.factor beside the tensor ${stored.short}`, factor);
    return { type: "stored-factors", ...stored, originalMaxPosition: original, attentionFactor };
  }
  switch (type) {
    case "none":
      return undefined;
    case "linear":
      return factor === 1 ? undefined : { type: "linear", factor };
    case "yarn": {
      if (factor < 1) throw fields.error("a number of at least 1 for rope.scaling.factor of YaRN", factor);
      const betaFast = fields.optionalPositive("rope.scaling.yarn_beta_fast", "") ?? 32;
      const betaSlow = fields.optionalPositive("rope.scaling.yarn_beta_slow", "") ?? 1;
      return { type: "yarn", factor, originalMaxPosition: original, betaFast, betaSlow, attentionFactor: attentionFactor * yarnAttention(factor) };
    }
    case "longrope":
      throw new ModelFormatError("LongRoPE needs the tensors rope_factors_short.weight and rope_factors_long.weight, which the file lacks", { tensor: "rope_factors_short.weight", file: fields.file.path });
    default:
      throw fields.error(`none, linear, yarn or longrope for ${fields.architecture}.rope.scaling.type`, type);
  }
}

function storedFactors(fields: Fields, dim: number): { short: string; long: string } | undefined {
  const { tensors, path } = fields.file;
  const pair = ["rope_factors_short.weight", "rope_factors_long.weight"] as const;
  const named = tensors.has(pair[0]) || tensors.has(pair[1]) ? pair : tensors.has("rope_freqs.weight") ? (["rope_freqs.weight", "rope_freqs.weight"] as const) : undefined;
  if (named === undefined) return undefined;
  for (const tensor of named) {
    const entry = tensors.get(tensor);
    if (entry === undefined) throw new ModelFormatError(`Expected a tensor of shape [${dim / 2}] but the file has none of this name`, { tensor, file: path });
    if (entry.type !== "f32" || entry.shape.length !== 1 || entry.shape[0] !== dim / 2) {
      throw new ModelFormatError(`Expected f32 of shape [${dim / 2}] but found ${entry.type} of shape [${entry.shape.join(", ")}]`, { tensor, file: path });
    }
  }
  return { short: named[0], long: named[1] };
}

function ropeOfJson(fields: Fields, sizes: Sizes, { style, theta, partial, layerType }: RopeReading): RopeConfig {
  const { metadata } = fields.file;
  // transformers 5 writes rope_parameters with the base inside; before, rope_theta and rope_scaling stood side by side.
  const nested = `rope_parameters.${layerType}`;
  const inside = layerType !== undefined && metadata.has(nested) ? nested : metadata.has("rope_scaling") ? "rope_scaling" : "rope_parameters";
  const base = metadata.has(`${inside}.rope_theta`) ? fields.positive("", `${inside}.rope_theta`) : fields.positive("", "rope_theta", theta);
  const share = fields.positive("", metadata.has(`${inside}.partial_rotary_factor`) ? `${inside}.partial_rotary_factor` : "partial_rotary_factor", 1);
  if (share > 1 || (share !== 1 && partial !== true)) throw fields.error(partial ? "at most 1 for partial_rotary_factor" : `1 for partial_rotary_factor of ${fields.architecture}`, share);
  const dim = checkedDim(fields, sizes, Math.trunc(sizes.headDim * share));
  const scaling = scalingOfJson(fields, sizes, inside, dim);
  return { style, theta: base, dim, ...(scaling && { scaling }) };
}

/** The scaling of one dictionary of config.json (`rope_scaling`, `rope_parameters` or one layer type's). */
function scalingOfJson(fields: Fields, sizes: Sizes, inside: string, dim: number): RopeScaling | undefined {
  const { metadata } = fields.file;
  const stated = metadata.string(`${inside}.rope_type`, metadata.string(`${inside}.type`, "default"));
  // Phi-3 files called their LongRoPE "su" or "yarn" once.
  const type = fields.architecture === "phi3" && ["su", "yarn"].includes(stated) ? "longrope" : stated;
  const number = (name: string, fallback?: number): number => fields.positive("", `${inside}.${name}`, fallback);
  const original = (): number => {
    const key = metadata.has("original_max_position_embeddings") ? "original_max_position_embeddings" : `${inside}.original_max_position_embeddings`;
    return fields.integer("", key, 2, fields.architecture === "phi3" ? 4096 : Math.max(2, sizes.contextLength));
  };
  switch (type) {
    case "default":
    // Dynamic NTK changes nothing up to the context length, and no more is promised.
    case "dynamic":
      return undefined;
    case "linear":
      return { type: "linear", factor: number("factor") };
    case "llama3": {
      const lowFreqFactor = number("low_freq_factor");
      const highFreqFactor = number("high_freq_factor");
      if (highFreqFactor <= lowFreqFactor) throw fields.error(`more than the low_freq_factor ${lowFreqFactor} for ${inside}.high_freq_factor`, highFreqFactor);
      return { type: "llama3", factor: number("factor"), lowFreqFactor, highFreqFactor, originalMaxPosition: original() };
    }
    case "yarn":
      return yarnOfJson(fields, inside, original());
    case "longrope":
      return longRopeOfJson(fields, sizes, inside, original(), dim);
    default:
      throw fields.error(`default, dynamic, linear, llama3, longrope or yarn for ${inside}.rope_type`, type);
  }
}

function yarnOfJson(fields: Fields, inside: string, originalMaxPosition: number): RopeScaling {
  const { metadata } = fields.file;
  const optional = (name: string): number | undefined => fields.optionalPositive("", `${inside}.${name}`);
  const factor = fields.positive("", `${inside}.factor`);
  if (factor < 1) throw fields.error(`a number of at least 1 for ${inside}.factor of YaRN`, factor);
  if (!metadata.boolean(`${inside}.truncate`, true)) throw fields.error(`true for ${inside}.truncate`, false);
  const [scale, scaleAll] = [optional("mscale"), optional("mscale_all_dim")];
  const attentionFactor = optional("attention_factor") ?? (scale && scaleAll ? yarnAttention(factor, scale) / yarnAttention(factor, scaleAll) : yarnAttention(factor));
  return { type: "yarn", factor, originalMaxPosition, betaFast: optional("beta_fast") ?? 32, betaSlow: optional("beta_slow") ?? 1, attentionFactor };
}

/** YaRN's temperature (arXiv 2309.00071, equation 22), which multiplies cosines and sines. */
function yarnAttention(factor: number, scale = 1): number {
  return factor <= 1 ? 1 : 0.1 * scale * Math.log(factor) + 1;
}

/** LongRoPE (arXiv 2402.13753): the attention factor follows from the contexts' ratio where it is not given. */
function longRopeOfJson(fields: Fields, sizes: Sizes, inside: string, originalMaxPosition: number, dim: number): RopeScaling {
  const factor = fields.positive("", `${inside}.factor`, sizes.contextLength / originalMaxPosition);
  const attentionFactor = fields.positive("", `${inside}.attention_factor`, factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(originalMaxPosition)));
  const divisors = (name: string): readonly number[] => {
    const values = fields.file.metadata.numbers(`${inside}.${name}`);
    if (values === undefined) throw fields.error(`${dim / 2} numbers for ${inside}.${name}`, "none");
    return checkedDivisors(values, dim / 2, `${inside}.${name}`, fields.file.path);
  };
  return { type: "factors", short: divisors("short_factor"), long: divisors("long_factor"), originalMaxPosition, attentionFactor };
}

function checkedDim(fields: Fields, sizes: Sizes, dim: number): number {
  if (dim < 2 || dim % 2 !== 0 || dim > sizes.headDim) {
    const key = fields.gguf && !fields.has("rope.dimension_count", "") ? "attention.key_length" : "rope.dimension_count";
    throw fields.error(`an even number of rotated dimensions in 2 … ${sizes.headDim} for ${fields.key(key, "head_dim")}`, dim);
  }
  return dim;
}

function checkedDivisors(values: ArrayLike<number>, count: number, name: string, file: string, tensor?: string): readonly number[] {
  const divisors = Array.from(values);
  if (divisors.length !== count || !divisors.every((value) => Number.isFinite(value) && value > 0)) {
    const found = divisors.find((value) => !(Number.isFinite(value) && value > 0));
    throw new ModelFormatError(`Expected ${count} numbers above 0 for ${name} but found ${found === undefined ? divisors.length : String(found)}`, { file, tensor });
  }
  return divisors;
}

/** Names of the tensors whose numbers `withStoredFactors` needs; most models have none. */
export function storedFactorTensors(description: DecoderDescription): readonly string[] {
  const names = new Set<string>();
  for (const { rope } of description.config.layers) {
    if (rope.scaling?.type === "stored-factors") names.add(rope.scaling.short).add(rope.scaling.long);
  }
  return [...names];
}

/**
 * Puts the numbers of RoPE factor tensors in their place.
 * @param values f32, dim / 2 numbers each, by tensor name; a number that is not finite and above 0 is a ModelFormatError
 */
export function withStoredFactors(description: DecoderDescription, values: ReadonlyMap<string, Float32Array>, file: string): DecoderDescription {
  const resolved = new Map<RopeConfig, RopeConfig>();
  const resolve = (rope: RopeConfig): RopeConfig => {
    const { scaling } = rope;
    if (scaling?.type !== "stored-factors") return rope;
    const known = resolved.get(rope);
    if (known !== undefined) return known;
    const divisors = (tensor: string): readonly number[] => checkedDivisors(values.get(tensor) ?? [], rope.dim / 2, "RoPE factors", file, tensor);
    const { originalMaxPosition, attentionFactor } = scaling;
    const plain: RopeConfig = { ...rope, scaling: { type: "factors", short: divisors(scaling.short), long: divisors(scaling.long), originalMaxPosition, attentionFactor } };
    resolved.set(rope, plain);
    return plain;
  };
  const layers = description.config.layers.map((layer) => ({ ...layer, rope: resolve(layer.rope) }));
  return { config: { ...description.config, layers }, weights: description.weights };
}
