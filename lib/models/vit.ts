import type { ActivationKind } from "../ops/activation.js";
import type { BesideFiles, EncoderArchitecture, EncoderConfig, EncoderDescription, EncoderLayerNames, EncoderNames, ImageConfig, LinearNames, NormNames, PatchNames } from "./encoder-config.js";
import { readEncoderActivation, readEncoderSizes, type EncoderSizes } from "./encoder-fields.js";
import { Fields } from "./fields.js";
import type { ModelFile } from "./file.js";
import { describeSaliency } from "./saliency.js";
import { Tensors } from "./tensors.js";

const IMAGENET = { mean: [0.485, 0.456, 0.406], deviation: [0.229, 0.224, 0.225] } as const;
const HALF = { mean: [0.5, 0.5, 0.5], deviation: [0.5, 0.5, 0.5] } as const;
const CLIP = { mean: [0.48145466, 0.4578275, 0.40821073], deviation: [0.26862954, 0.26130258, 0.27577711] } as const;
type Normalization = Pick<ImageConfig, "mean" | "deviation">;

/** What the description of each vision tower works with. */
class Tower {
  readonly fields: Fields;
  readonly tensors: Tensors;
  readonly sizes: EncoderSizes;

  constructor(readonly file: ModelFile, readonly beside: BesideFiles, readonly prefix: string, readonly under: string, defaults: Omit<EncoderSizes, "headDim">) {
    this.fields = new Fields(file);
    this.tensors = new Tensors(file);
    this.sizes = readEncoderSizes(this.fields, defaults, under);
  }

  norm(name: string): NormNames {
    return { weight: this.tensors.vector(`${name}.weight`, this.sizes.width), bias: this.tensors.vector(`${name}.bias`, this.sizes.width) };
  }

  /** Biases are used where the file has them. */
  linear(names: readonly string[], rows: number, columns: number, scale?: string): LinearNames {
    const { tensors } = this, biases = names.filter((name) => tensors.has(`${name}.bias`));
    if (biases.length !== 0 && biases.length !== names.length) throw this.fields.error(`biases of all of ${names.join(", ")} or of none`, biases.join(", "));
    return {
      weights: names.map((name) => tensors.matrix(`${name}.weight`, rows, columns).tensor),
      ...(biases.length > 0 && { biases: biases.map((name) => tensors.vector(`${name}.bias`, rows)) }),
      ...(scale !== undefined && tensors.has(scale) && { scale: tensors.vector(scale, rows) }),
    };
  }

  patches(projection: string, positions: string, prefix: PatchNames["prefix"]): { readonly patches: PatchNames; readonly patch: number } {
    const { tensors, fields, sizes: { width } } = this, shape = tensors.shape(`${projection}.weight`), patch = shape[2] ?? 0;
    const stated = fields.integer("", `${this.under}patch_size`, 1, patch);
    tensors.floats(`${projection}.weight`, [width, 3, stated, stated]);
    const bias = tensors.has(`${projection}.bias`) ? { biases: [tensors.vector(`${projection}.bias`, width)] } : {};
    const table = tensors.shape(positions), rows = table.at(-2) ?? 0;
    tensors.floats(positions, table.length === 3 ? [1, rows, width] : [rows, width]);
    const side = Math.round(Math.sqrt(rows - prefix.filter(({ positioned }) => positioned).length));
    if (side < 1 || side * side + prefix.filter(({ positioned }) => positioned).length !== rows) throw fields.error(`a square grid in ${positions}`, `${rows} rows`);
    for (const { tensor } of prefix) tensors.floats(tensor, tensors.shape(tensor).length === 3 ? [1, tensors.shape(tensor)[1] ?? 0, width] : [width]);
    return { patches: { projection: { weights: [`${projection}.weight`], ...bias }, positions, prefix, grid: [side, side], antialias: this.fields.architecture === "dinov2_with_registers" }, patch };
  }

  /** Tokens before the patches, in order. */
  prefixTokens(prefix: PatchNames["prefix"]): number {
    return prefix.reduce((sum, { tensor }) => sum + (this.tensors.shape(tensor).length === 3 ? this.tensors.shape(tensor)[1]! : 1), 0);
  }

  image(patch: number, prefix: number, fallbackSize: number, normalization: Normalization): ImageConfig {
    return imageConfig(this.fields, this.beside.preprocessor, { patch, prefix, fallbackSize, normalization });
  }

  finish(names: EncoderNames, config: Partial<EncoderConfig> & Pick<EncoderConfig, "image" | "pool" | "classToken">, activation: ActivationKind, extra: RegExp): EncoderDescription {
    this.tensors.refuseUnused((name) => extra.test(name));
    return {
      names,
      config: {
        ...this.sizes, architecture: this.fields.architecture, name: this.file.metadata.string("_name_or_path", ""), activation, gated: false,
        normFirst: true, dimension: this.sizes.width, normalize: false, saliency: names.saliency !== undefined, ...config,
      },
    };
  }
}

const FILTERS: Readonly<Record<number, ImageConfig["interpolation"]>> = { 0: "nearest", 1: "lanczos3", 2: "linear", 3: "cubic" };

/** preprocessor_config.json, or what the family was trained with. */
function imageConfig(fields: Fields, preprocessor: Readonly<Record<string, unknown>>, known: { readonly patch: number; readonly prefix: number; readonly fallbackSize: number; readonly normalization: Normalization }): ImageConfig {
  const triple = (key: string, fallback: readonly [number, number, number]): readonly [number, number, number] => {
    const value = preprocessor[key];
    return Array.isArray(value) && value.length === 3 && value.every((x) => typeof x === "number") ? (value as unknown as [number, number, number]) : fallback;
  };
  /** { height, width }, { shortest_edge }, or one number for both. */
  const edges = (key: string): readonly [number, number] | undefined => {
    const value = preprocessor[key], given = value as { height?: unknown; width?: unknown; shortest_edge?: unknown } | undefined;
    const pair = typeof value === "number" ? [value, value] : [given?.height ?? given?.shortest_edge, given?.width ?? given?.shortest_edge];
    return pair.every((x) => Number.isInteger(x) && (x as number) > 0) ? (pair as [number, number]) : undefined;
  };
  const crop = preprocessor["do_center_crop"] === true ? edges("crop_size") : undefined, size = edges("size");
  const [height, width] = crop ?? size ?? [known.fallbackSize, known.fallbackSize];
  if (height % known.patch !== 0 || width % known.patch !== 0) throw fields.error(`an image size that is a multiple of the patch size ${known.patch}`, `${height} × ${width}`);
  return {
    height, width, patch: known.patch, prefix: known.prefix, mean: triple("image_mean", known.normalization.mean), deviation: triple("image_std", known.normalization.deviation),
    interpolation: FILTERS[Number(preprocessor["resample"] ?? 3)] ?? "cubic", cropFrom: crop && (size?.[0] ?? height),
  };
}

/** Where `vit.`, `deit.` … may stand before each name. */
function prefixOf(file: ModelFile, name: string, ...prefixes: string[]): string {
  return prefixes.find((prefix) => file.tensors.has(`${prefix}${name}`)) ?? "";
}

const CLASS_TOKEN = "embeddings.cls_token";
const HEADS = /(^|\.)(pooler\.|classifier\.|cls_classifier\.|distillation_classifier\.|lm_head\.|decoder\.|embeddings\.(mask_token|position_ids)$)/;

/** ViT (arXiv 2010.11929) and DeiT (2012.12877), which has one more token. */
export const vit: EncoderArchitecture = {
  modelTypes: ["vit", "deit"],
  describe(file, beside) {
    const prefix = prefixOf(file, CLASS_TOKEN, "vit.", "deit."), tower = new Tower(file, beside, prefix, "", { layers: 12, width: 768, heads: 12, feedForward: 3072, normEpsilon: 1e-12 });
    const { width, feedForward, layers } = tower.sizes, distilled = `${prefix}embeddings.distillation_token`;
    const before = [{ tensor: `${prefix}${CLASS_TOKEN}`, positioned: true }, ...(file.tensors.has(distilled) ? [{ tensor: distilled, positioned: true }] : [])];
    const { patches, patch } = tower.patches(`${prefix}embeddings.patch_embeddings.projection`, `${prefix}embeddings.position_embeddings`, before);
    const names: EncoderNames = {
      patches,
      layers: Array.from({ length: layers }, (_, index): EncoderLayerNames => {
        const at = `${prefix}encoder.layer.${index}`;
        return {
          attentionNorm: tower.norm(`${at}.layernorm_before`),
          queryKeyValue: tower.linear(["query", "key", "value"].map((part) => `${at}.attention.attention.${part}`), width, width),
          output: tower.linear([`${at}.attention.output.dense`], width, width),
          feedForwardNorm: tower.norm(`${at}.layernorm_after`),
          up: tower.linear([`${at}.intermediate.dense`], feedForward, width),
          down: tower.linear([`${at}.output.dense`], width, feedForward),
        };
      }),
      norm: tower.norm(`${prefix}layernorm`),
    };
    const image = tower.image(patch, before.length, patches.grid[0] * patch, tower.fields.architecture === "deit" ? IMAGENET : HALF);
    return tower.finish(names, { image, pool: "cls", classToken: true }, readEncoderActivation(tower.fields, "gelu"), HEADS);
  },
};

/** DINOv2 (arXiv 2304.07193), with registers (2309.16588) or a saliency head. */
export const dinov2: EncoderArchitecture = {
  modelTypes: ["dinov2", "dinov2_with_registers"],
  describe(file, beside) {
    const prefix = prefixOf(file, CLASS_TOKEN, "dinov2.", "dinov2_with_registers."), tower = new Tower(file, beside, prefix, "", { layers: 12, width: 768, heads: 12, feedForward: 3072, normEpsilon: 1e-6 });
    const { width, feedForward, layers } = tower.sizes, registers = `${prefix}embeddings.register_tokens`;
    const before = [{ tensor: `${prefix}${CLASS_TOKEN}`, positioned: true }, ...(file.tensors.has(registers) ? [{ tensor: registers, positioned: false }] : [])];
    const { patches, patch } = tower.patches(`${prefix}embeddings.patch_embeddings.projection`, `${prefix}embeddings.position_embeddings`, before);
    const gated = file.metadata.boolean("use_swiglu_ffn", false);
    const inner = gated ? (tower.tensors.shape(`${prefix}encoder.layer.0.mlp.weights_out.weight`)[1] ?? 0) : feedForward;
    const image = tower.image(patch, tower.prefixTokens(before), 224, IMAGENET);
    const saliency = file.tensors.has("decoder.upconv1.weight") ? describeSaliency(tower.tensors, width) : undefined;
    const names: EncoderNames = {
      patches,
      layers: Array.from({ length: layers }, (_, index): EncoderLayerNames => {
        const at = `${prefix}encoder.layer.${index}`, [up, down] = gated ? ["weights_in", "weights_out"] : ["fc1", "fc2"];
        return {
          attentionNorm: tower.norm(`${at}.norm1`),
          queryKeyValue: tower.linear(["query", "key", "value"].map((part) => `${at}.attention.attention.${part}`), width, width),
          output: tower.linear([`${at}.attention.output.dense`], width, width, `${at}.layer_scale1.lambda1`),
          feedForwardNorm: tower.norm(`${at}.norm2`),
          up: tower.linear([`${at}.mlp.${up}`], gated ? 2 * inner : inner, width),
          down: tower.linear([`${at}.mlp.${down}`], width, inner, `${at}.layer_scale2.lambda1`),
        };
      }),
      norm: tower.norm(`${prefix}layernorm`),
      ...(saliency && { saliency }),
    };
    const activation = gated ? "silu" : readEncoderActivation(tower.fields, "gelu");
    return tower.finish(names, { image, pool: "cls", classToken: true, gated, feedForward: inner }, activation, HEADS);
  },
};

/** Blocks as CLIP and SigLIP name them. */
function clipLayers(tower: Tower, prefix: string): EncoderLayerNames[] {
  const { width, feedForward, layers } = tower.sizes;
  return Array.from({ length: layers }, (_, index) => {
    const at = `${prefix}encoder.layers.${index}`;
    return {
      attentionNorm: tower.norm(`${at}.layer_norm1`),
      queryKeyValue: tower.linear(["q_proj", "k_proj", "v_proj"].map((part) => `${at}.self_attn.${part}`), width, width),
      output: tower.linear([`${at}.self_attn.out_proj`], width, width),
      feedForwardNorm: tower.norm(`${at}.layer_norm2`),
      up: tower.linear([`${at}.mlp.fc1`], feedForward, width),
      down: tower.linear([`${at}.mlp.fc2`], width, feedForward),
    };
  });
}

/** Text towers and what both towers share are not read. */
const OTHER_TOWER = /^(text_model\.|text_projection\.|logit_scale$|logit_bias$|vision_model\.embeddings\.position_ids$|embeddings\.position_ids$)/;
const underOf = (file: ModelFile, both: string): string => (file.metadata.string("model_type") === both ? "vision_config." : "");

/** CLIP's vision tower (arXiv 2103.00020). */
export const clip: EncoderArchitecture = {
  modelTypes: ["clip", "clip_vision_model"],
  describe(file, beside) {
    const prefix = prefixOf(file, "pre_layrnorm.weight", "vision_model."), under = underOf(file, "clip");
    const tower = new Tower(file, beside, prefix, under, { layers: 12, width: 768, heads: 12, feedForward: 3072, normEpsilon: 1e-5 });
    const before = [{ tensor: `${prefix}embeddings.class_embedding`, positioned: true }];
    const { patches, patch } = tower.patches(`${prefix}embeddings.patch_embedding`, `${prefix}embeddings.position_embedding.weight`, before);
    const projected = file.tensors.has("visual_projection.weight") ? tower.tensors.shape("visual_projection.weight")[0]! : undefined;
    const names: EncoderNames = {
      patches: { ...patches, norm: tower.norm(`${prefix}pre_layrnorm`) },
      layers: clipLayers(tower, prefix),
      pooledNorm: tower.norm(`${prefix}post_layernorm`),
      ...(projected !== undefined && { projection: tower.linear(["visual_projection"], projected, tower.sizes.width) }),
    };
    const image = tower.image(patch, 1, patches.grid[0] * patch, CLIP);
    return tower.finish(names, { image, pool: "cls", classToken: true, dimension: projected ?? tower.sizes.width }, readEncoderActivation(tower.fields, "quick-gelu", under), OTHER_TOWER);
  },
};

/** SigLIP's vision tower (arXiv 2303.15343): no class token, an attention head makes the embedding. */
export const siglip: EncoderArchitecture = {
  modelTypes: ["siglip", "siglip_vision_model"],
  describe(file, beside) {
    const prefix = prefixOf(file, "post_layernorm.weight", "vision_model."), under = underOf(file, "siglip");
    const tower = new Tower(file, beside, prefix, under, { layers: 12, width: 768, heads: 12, feedForward: 3072, normEpsilon: 1e-6 });
    const { width, feedForward } = tower.sizes, head = `${prefix}head`;
    const { patches, patch } = tower.patches(`${prefix}embeddings.patch_embedding`, `${prefix}embeddings.position_embedding.weight`, []);
    const pooled = file.tensors.has(`${head}.probe`);
    const names: EncoderNames = {
      patches,
      layers: clipLayers(tower, prefix),
      norm: tower.norm(`${prefix}post_layernorm`),
      ...(pooled && {
        attentionPool: {
          probe: tower.tensors.floats(`${head}.probe`, [1, 1, width]),
          queryKeyValue: { weights: [tower.tensors.matrix(`${head}.attention.in_proj_weight`, 3 * width, width).tensor], biases: [tower.tensors.vector(`${head}.attention.in_proj_bias`, 3 * width)] },
          output: tower.linear([`${head}.attention.out_proj`], width, width),
          norm: tower.norm(`${head}.layernorm`),
          up: tower.linear([`${head}.mlp.fc1`], feedForward, width),
          down: tower.linear([`${head}.mlp.fc2`], width, feedForward),
        },
      }),
    };
    const image = tower.image(patch, 0, patches.grid[0] * patch, HALF);
    return tower.finish(names, { image, pool: pooled ? "attention" : "mean", classToken: false }, readEncoderActivation(tower.fields, "gelu-tanh", under), OTHER_TOWER);
  },
};
