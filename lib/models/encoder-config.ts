import type { ActivationKind } from "../ops/activation.js";
import type { ModelFile } from "./file.js";
import type { SaliencyNames } from "./saliency.js";

/** How one vector is made of a sequence's tokens: its first, their mean or maximum, or the model's own attention head (SigLIP). */
export type Pooling = "cls" | "mean" | "max" | "attention";

/** How images become numbers: resized, cut into patches, (x / 255 − mean) / deviation. */
export interface ImageConfig {
  readonly height: number;
  readonly width: number;
  readonly patch: number;
  readonly mean: readonly [number, number, number];
  readonly deviation: readonly [number, number, number];
  /** Of the resizing filter. */
  readonly interpolation: "nearest" | "linear" | "cubic" | "lanczos3";
  /** The middle of the picture, its shorter edge resized to so much first; undefined: the whole picture, its proportions changed. */
  readonly cropFrom: number | undefined;
  /** Tokens before the patches: class token, distillation token, registers. */
  readonly prefix: number;
}

/** A transformer that turns a text or an image into vectors. */
export interface EncoderConfig {
  /** `model_type` of config.json: bert, vit, deit, dinov2, clip_vision_model … */
  readonly architecture: string;
  readonly name: string;
  readonly layers: number;
  readonly width: number;
  readonly heads: number;
  readonly headDim: number;
  readonly feedForward: number;
  readonly activation: ActivationKind;
  /** The feed-forward block is gated: activation(gate) · up. */
  readonly gated: boolean;
  readonly normEpsilon: number;
  /** Norms stand before attention and feed-forward (ViT), not behind their residual sums (BERT). */
  readonly normFirst: boolean;
  /** Length of the embedding. */
  readonly dimension: number;
  readonly pool: Pooling;
  readonly normalize: boolean;
  /** Of text models. */
  readonly vocabulary?: number;
  readonly contextLength?: number;
  /** Of image models. */
  readonly image?: ImageConfig;
  /** The first token stands for the whole; reductions keep it. */
  readonly classToken: boolean;
  readonly saliency: boolean;
}

/** A matmul weight out of tensors whose rows follow one another, its bias, and a factor for each row (layer scale). */
export interface LinearNames {
  readonly weights: readonly string[];
  readonly biases?: readonly string[];
  readonly scale?: string;
}

export interface NormNames {
  readonly weight: string;
  readonly bias: string;
}

export interface EncoderLayerNames {
  readonly attentionNorm: NormNames;
  readonly queryKeyValue: LinearNames;
  readonly output: LinearNames;
  readonly feedForwardNorm: NormNames;
  readonly up: LinearNames;
  readonly down: LinearNames;
}

export interface TextNames {
  readonly words: string;
  readonly positions: string;
  readonly types: string | undefined;
  readonly norm: NormNames;
}

export interface PatchNames {
  readonly projection: LinearNames;
  readonly positions: string;
  /** Tensors of the tokens before the patches, and whether each has a row of the position table. */
  readonly prefix: readonly { readonly tensor: string; readonly positioned: boolean }[];
  /** The position table's own grid. */
  readonly grid: readonly [height: number, width: number];
  /** How the table is resized for another grid. */
  readonly antialias: boolean;
  /** CLIP's norm before the first block. */
  readonly norm?: NormNames;
}

/** SigLIP's head: a learnt query attends to all tokens, then a feed-forward block. */
export interface AttentionPoolNames {
  readonly probe: string;
  readonly queryKeyValue: LinearNames;
  readonly output: LinearNames;
  readonly norm: NormNames;
  readonly up: LinearNames;
  readonly down: LinearNames;
}

export interface EncoderNames {
  readonly text?: TextNames;
  readonly patches?: PatchNames;
  readonly layers: readonly EncoderLayerNames[];
  /** Behind the last block, of all tokens. */
  readonly norm?: NormNames;
  /** Of the pooled token only (CLIP). */
  readonly pooledNorm?: NormNames;
  readonly attentionPool?: AttentionPoolNames;
  /** From the pooled token to the embedding (CLIP). */
  readonly projection?: LinearNames;
  readonly saliency?: SaliencyNames;
}

export interface EncoderDescription {
  readonly config: EncoderConfig;
  readonly names: EncoderNames;
}

/** What stands in the files beside `config.json`, where they are there. */
export interface BesideFiles {
  /** preprocessor_config.json. */
  readonly preprocessor: Readonly<Record<string, unknown>>;
  /** 1_Pooling/config.json of sentence-transformers. */
  readonly pooling: Readonly<Record<string, unknown>> | undefined;
  /** sentence-transformers' last step divides by the norm; undefined: the model is none of theirs. */
  readonly normalize: boolean | undefined;
  /** sentence_bert_config.json. */
  readonly maxSequenceLength: number | undefined;
}

/** One family of encoders; throws ModelFormatError with what is missing and what was expected. */
export interface EncoderArchitecture {
  /** `model_type` of config.json. */
  readonly modelTypes: readonly string[];
  describe(file: ModelFile, beside: BesideFiles): EncoderDescription;
}
