import type { RopeConfig, RopeScaling } from "../ops/rope.js";
import type { ModelFile } from "./file.js";

export type { RopeConfig, RopeScaling };

/** What is special to one layer. */
export interface LayerConfig {
  /** Sliding window in tokens (the query's own key counts), undefined = full causal attention. */
  readonly window?: number;
  readonly rope: RopeConfig;
}

/** A decoder-only transformer, whatever family and file format it came from. */
export interface DecoderConfig {
  readonly architecture: string;
  readonly name: string;
  readonly layers: readonly LayerConfig[];
  readonly width: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly feedForward: number;
  readonly vocabulary: number;
  readonly contextLength: number;
  readonly normEpsilon: number;
  /** 1 where norm weights are stored as w − 1 (Gemma's safetensors); GGUF files store w itself: 0. */
  readonly normOffset: 0 | 1;
  readonly activation: "silu" | "gelu-tanh" | "gelu";
  /** Multiplies q·k; 1/sqrt(headDim) for most. */
  readonly attentionScale: number;
  readonly attentionSoftcap?: number;
  readonly logitSoftcap?: number;
  /** Multiplies embeddings (Gemma: sqrt(width)). */
  readonly embeddingScale: number;
  /** Output head = embedding table. */
  readonly tiedEmbeddings: boolean;
  /** RMS norm on each head of q and k before RoPE (Qwen3, Gemma 3). */
  readonly queryKeyNorm: boolean;
  /** Norms after attention and after the feed-forward block, before each residual sum (Gemma 2, 3). */
  readonly postNorms: boolean;
}

/** A weight's parts in row order: `Q, K, V` of a fused tensor are row ranges of one entry, of separate tensors whole entries. */
export interface WeightPart {
  readonly tensor: string;
  readonly rowBegin: number;
  readonly rowEnd: number;
}

/** Where one layer's weights are. Each matmul weight is a list of parts whose rows follow one another. */
export interface LayerWeights {
  readonly attentionNorm: string;
  readonly query: WeightPart;
  readonly key: WeightPart;
  readonly value: WeightPart;
  readonly queryBias?: string;
  readonly keyBias?: string;
  readonly valueBias?: string;
  readonly queryNorm?: string;
  readonly keyNorm?: string;
  readonly attentionOutput: WeightPart;
  readonly attentionPostNorm?: string;
  readonly feedForwardNorm: string;
  readonly gate: WeightPart;
  readonly up: WeightPart;
  readonly down: WeightPart;
  readonly feedForwardPostNorm?: string;
}

export interface DecoderWeights {
  readonly embedding: string;
  readonly outputNorm: string;
  /** Absent where the embedding table is the output head. */
  readonly output?: WeightPart;
  readonly layers: readonly LayerWeights[];
}

export interface DecoderDescription {
  readonly config: DecoderConfig;
  readonly weights: DecoderWeights;
}

/** One architecture: reads its configuration and names its weights; throws ModelFormatError with what is missing and what was expected. */
export interface Architecture {
  /** `general.architecture` of GGUF files. */
  readonly gguf: readonly string[];
  /** `model_type` of config.json. */
  readonly modelTypes: readonly string[];
  describe(file: ModelFile): DecoderDescription;
}
