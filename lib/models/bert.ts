import type { BesideFiles, EncoderArchitecture, EncoderLayerNames, LinearNames, NormNames, Pooling } from "./encoder-config.js";
import { readEncoderActivation, readEncoderSizes } from "./encoder-fields.js";
import { Fields } from "./fields.js";
import { Tensors } from "./tensors.js";

/** Heads for training that some checkpoints carry along, and tables that repeat what is known. */
const EXTRA = /(^|\.)(pooler\.|cls\.|embeddings\.position_ids$|classifier\.|qa_outputs\.)/;

/** BERT (arXiv 1810.04805) and what shares its form: MiniLM, bge, gte, e5. */
export const bert: EncoderArchitecture = {
  modelTypes: ["bert"],
  describe(file, beside) {
    const fields = new Fields(file), tensors = new Tensors(file), sizes = readEncoderSizes(fields, { layers: 12, width: 768, heads: 12, feedForward: 3072, normEpsilon: 1e-12 });
    const { width, feedForward } = sizes;
    if (fields.file.metadata.string("position_embedding_type", "absolute") !== "absolute") throw fields.error("'absolute' for position_embedding_type", fields.file.metadata.string("position_embedding_type"));
    const prefix = tensors.has("bert.embeddings.word_embeddings.weight") ? "bert." : "";
    const words = `${prefix}embeddings.word_embeddings.weight`, positions = `${prefix}embeddings.position_embeddings.weight`, types = `${prefix}embeddings.token_type_embeddings.weight`;
    const vocabulary = tensors.shape(words)[0] ?? 0, trained = tensors.shape(positions)[0] ?? 0;
    tensors.matrix(words, file.metadata.integer("vocab_size", vocabulary), width);
    tensors.floats(positions, [file.metadata.integer("max_position_embeddings", trained), width]);
    if (tensors.has(types)) tensors.floats(types, [tensors.shape(types)[0] ?? 0, width]);
    const norm = (name: string): NormNames => {
      const old = tensors.has(`${name}.gamma`); // checkpoints from TensorFlow
      return { weight: tensors.vector(`${name}.${old ? "gamma" : "weight"}`, width), bias: tensors.vector(`${name}.${old ? "beta" : "bias"}`, width) };
    };
    const linear = (names: readonly string[], rows: number, columns: number): LinearNames => ({
      weights: names.map((name) => tensors.matrix(`${name}.weight`, rows, columns).tensor), biases: names.map((name) => tensors.vector(`${name}.bias`, rows)),
    });
    const layers = Array.from({ length: sizes.layers }, (_, index): EncoderLayerNames => {
      const at = `${prefix}encoder.layer.${index}`;
      return {
        queryKeyValue: linear(["query", "key", "value"].map((part) => `${at}.attention.self.${part}`), width, width),
        output: linear([`${at}.attention.output.dense`], width, width),
        attentionNorm: norm(`${at}.attention.output.LayerNorm`),
        up: linear([`${at}.intermediate.dense`], feedForward, width),
        down: linear([`${at}.output.dense`], width, feedForward),
        feedForwardNorm: norm(`${at}.output.LayerNorm`),
      };
    });
    const embeddingNorm = norm(`${prefix}embeddings.LayerNorm`);
    tensors.refuseUnused((name) => EXTRA.test(name));
    return {
      config: {
        ...sizes, architecture: fields.architecture, name: file.metadata.string("_name_or_path", ""), activation: readEncoderActivation(fields, "gelu"), gated: false,
        normFirst: false, dimension: width, pool: poolingOf(beside), normalize: beside.normalize ?? true, vocabulary,
        contextLength: Math.min(trained, beside.maxSequenceLength ?? trained), classToken: true, saliency: false,
      },
      names: { text: { words, positions, types: tensors.has(types) ? types : undefined, norm: embeddingNorm }, layers },
    };
  },
};

/** The mode that sentence-transformers would use; the mean where nobody says. */
function poolingOf({ pooling }: BesideFiles): Pooling {
  if (pooling?.["pooling_mode_cls_token"] === true) return "cls";
  return pooling?.["pooling_mode_max_tokens"] === true ? "max" : "mean";
}
