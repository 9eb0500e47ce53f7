import { compileInSlices, type CompiledGraph } from "../graph/compile.js";
import { addDim, dimMax, scaleDim, type Dim, type Symbolic } from "../graph/dims.js";
import { Graph } from "../graph/graph.js";
import { Value } from "../graph/value.js";
import { add, convert, copyInto, gatedActivation } from "../ops/activation.js";
import { packedAttention } from "../ops/attention.js";
import { reduceRows } from "../ops/cache-policy.js";
import { embedding, gatherRows } from "../ops/embedding.js";
import { imagePatches, poolSequences } from "../ops/encoder.js";
import { matmul } from "../ops/matmul.js";
import { layerNorm } from "../ops/norm.js";
import { logSizes, meanHeads, unmergeRows } from "../ops/reduce.js";
import type { Reduction, TokenRows } from "../reduce/reduction.js";
import { Slicer } from "../slice.js";
import type { EncoderConfig, Pooling } from "./encoder-config.js";
import type { Encoder, EncoderLayer, Linear, Norm } from "./encoder-weights.js";
import { saliencyMap } from "./saliency.js";

/** What is to be computed besides tokens. */
export interface EncoderOutputs {
  readonly pool: Pooling;
  readonly normalize: boolean;
  readonly saliency: boolean;
  /** Tokens before the first block and behind each one. */
  readonly hiddenStates: boolean;
  readonly reduce: Reduction | undefined;
  /** Layers in which `reduce` takes tokens away: see keptTokens(). */
  readonly reducedLayers: readonly boolean[];
}

/** Each sequence's tokens behind the reduction of each layer, at most; undefined where nothing happens in a layer. */
export function keptTokens(reduce: Reduction | undefined, layers: number, tokens: readonly number[]): (readonly number[] | undefined)[] {
  let now = tokens;
  return Array.from({ length: layers }, (_, layer) => {
    const next = reduce === undefined ? now : now.map((count) => reduce.keep(count, { layer, layers }));
    const same = reduce?.dataDependent ? reduce.acts?.(layer) === false : next.every((count, i) => count === now[i]);
    now = next;
    return same ? undefined : next;
  });
}

/** What the blocks of one graph share. */
interface Body {
  readonly graph: Graph;
  readonly outputs: EncoderOutputs;
  readonly sequences: Symbolic;
  /** i32 `[sequences + 1]`: 0, 1, 2 …, the bounds of one row a sequence. */
  readonly single: Value;
  /** Rows that are left behind the reduction of a layer. */
  readonly rows: (layer: number, before: Dim) => Dim;
}

/** Builds the graphs of one encoder over shared weights. Sequences lie end to end; none is padded. */
export class EncoderGraphs {
  constructor(private readonly encoder: Encoder) {}

  private get config(): EncoderConfig {
    return this.encoder.config;
  }

  private norm(graph: Graph, name: string, x: Value, { weight, bias }: Norm, as: "f32" | "q8" = "f32"): Value {
    const [scale, shift] = [weight, bias].map((vector, i) => graph.shared(`${name}.${i === 0 ? "weight" : "bias"}`, "f32", [vector.length], vector.handle)) as [Value, Value];
    return layerNorm(x, scale, shift, { epsilon: this.config.normEpsilon, as, name });
  }

  private linear(graph: Graph, name: string, x: Value, { weight, bias }: Linear, options: { readonly residual?: Value; readonly activation?: EncoderConfig["activation"] } = {}): Value {
    const from = weight.quantized && x.type === "f32" ? convert(x, "q8") : x;
    return matmul(from, graph.weight(name, weight), { ...options, bias: bias && graph.shared(`${name}.bias`, "f32", [bias.length], bias.handle), name });
  }

  private block(body: Body, layer: EncoderLayer, index: number, tokens: TokenRows): TokenRows {
    const { graph, outputs: { reduce, reducedLayers } } = body, { normFirst, layers, heads, width } = this.config;
    const as = ({ weight }: Linear): "f32" | "q8" => (weight.quantized ? "q8" : "f32");
    const normed = normFirst ? this.norm(graph, "attentionNorm", tokens.x, layer.attentionNorm, as(layer.queryKeyValue)) : tokens.x;
    const all = this.linear(graph, "queryKeyValue", normed, layer.queryKeyValue);
    const [query, key, value] = [0, 1, 2].map((part) => all.columns(part * width, width).split(heads)) as [Value, Value, Value];
    const bias = reduce?.proportional && tokens.sizes ? logSizes(tokens.sizes) : undefined, reduces = reduce !== undefined && reducedLayers[index]!;
    const { out } = packedAttention(query, key, value, tokens.bounds, { bias });
    const scores = reduces && reduce.needs.scores ? this.classWeights(body, all, key, value, bias, tokens) : undefined;
    const attended = this.linear(graph, "attentionOutput", out.join(), layer.output, { residual: tokens.x });
    let left: TokenRows = { ...tokens, x: normFirst ? attended : this.norm(graph, "attentionNorm", attended, layer.attentionNorm) };
    if (reduces) left = reduce.apply(left, { layer: index, layers, rows: body.rows(index, left.x.dims[0]!), metric: reduce.needs.metric ? meanHeads(key) : undefined, scores });
    const inner = normFirst ? this.norm(graph, "feedForwardNorm", left.x, layer.feedForwardNorm, as(layer.up)) : left.x;
    const done = this.feedForward(graph, layer, inner, left.x);
    return { ...left, x: normFirst ? done : this.norm(graph, "feedForwardNorm", done, layer.feedForwardNorm) };
  }

  private feedForward(graph: Graph, layer: EncoderLayer, x: Value, residual: Value): Value {
    const { activation, gated } = this.config, as = layer.down.weight.quantized ? "q8" : "f32";
    if (!gated) return this.linear(graph, "down", this.linear(graph, "up", x, layer.up, { activation }), layer.down, { residual });
    return this.linear(graph, "down", gatedActivation(this.linear(graph, "up", x, layer.up), activation, { as, name: "activation" }), layer.down, { residual });
  }

  /** The class token's attention to each token, mean over heads, f32 `[tokens]`. */
  private classWeights({ graph, sequences, single }: Body, all: Value, key: Value, value: Value, bias: Value | undefined, { bounds }: TokenRows): Value {
    const { heads, width } = this.config, first = new Value(graph, "i32", [sequences], bounds.storage, [1], bounds.offset);
    const { weights } = packedAttention(gatherRows(all.columns(0, width), first).split(heads), key, value, bounds, { queryBounds: single, bias, lastWeights: true });
    const mean = reduceRows(weights!, { kind: "mean" });
    return new Value(graph, "f32", [mean.dims[1]!], mean.storage, [1], mean.offset);
  }

  /** ids, positions → f32 `[n, width]`. */
  private embedText(graph: Graph, n: Symbolic): Value {
    const { words, positions, norm } = this.encoder.text!, { width } = this.config, ids = graph.binding("ids", "i32", [n]);
    const table = graph.shared("positionTable", "f32", [positions.length / width, width], positions.handle);
    const x = embedding(graph.weight("words", words), ids), at = gatherRows(table, graph.binding("positions", "i32", [n]));
    return this.norm(graph, "embeddingNorm", add(x, at), norm);
  }

  /** pixels → f32 `[images · (prefix + patches), width]`: what stands before the patches, and all positions, come in as a residual. */
  private embedImages(graph: Graph, images: Symbolic, rows: Dim): Value {
    const { table, projection, norm } = this.encoder.patches!, { width, image } = this.config, { height, width: across, patch, prefix } = image!;
    const pixels = graph.binding("pixels", "u8", [images, height, across, 3]);
    const residual = gatherRows(graph.shared("positionTable", "f32", [table.length / width, width], table.handle), graph.binding("places", "i32", [rows]));
    const x = this.linear(graph, "patches", imagePatches(pixels, { patch, prefix }), { weight: projection, bias: undefined }, { residual });
    return norm ? this.norm(graph, "preNorm", x, norm) : x;
  }

  /** One vector a sequence. */
  private pooled({ graph, single, sequences, outputs: { pool, normalize } }: Body, tokens: TokenRows): Value {
    const { pooledNorm, projection } = this.encoder, direction = (x: Value): Value => (normalize ? poolSequences(x, single, { kind: "cls", normalize }) : x);
    if (pool === "attention") return direction(this.attentionPool(graph, tokens, single, sequences));
    const x = poolSequences(tokens.x, tokens.bounds, { kind: pool, sizes: tokens.sizes, normalize: normalize && !pooledNorm && !projection });
    if (!pooledNorm && !projection) return x;
    const normed = pooledNorm ? this.norm(graph, "pooledNorm", x, pooledNorm) : x;
    return direction(projection ? this.linear(graph, "projection", normed, projection) : normed);
  }

  /** SigLIP's head: the learnt query, a row that all sequences share, attends to the tokens of each. */
  private attentionPool(graph: Graph, tokens: TokenRows, single: Value, sequences: Dim): Value {
    const { heads, headDim, width, activation } = this.config, pool = this.encoder.attentionPool!;
    const all = this.linear(graph, "pool.keyValue", tokens.x, pool.keyValue);
    const [key, value] = [0, 1].map((part) => all.columns(part * width, width).split(heads)) as [Value, Value];
    const { storage } = graph.shared("pool.query", "f32", [width], pool.query.handle);
    const query = new Value(graph, "f32", [sequences, heads, headDim], storage, [0, headDim, 1]);
    const { out } = packedAttention(query, key, value, tokens.bounds, { queryBounds: single, bias: tokens.sizes && logSizes(tokens.sizes) });
    const x = this.linear(graph, "pool.output", out.join(), pool.output);
    const inner = this.linear(graph, "pool.up", this.norm(graph, "pool.norm", x, pool.norm), pool.up, { activation });
    return this.linear(graph, "pool.down", inner, pool.down, { residual: x });
  }

  /**
   * ids and positions, or pixels and places, and bounds → tokens, embedding and what else `outputs` names: sizes, source and newBounds of
   * reduced tokens, hidden0 …, saliency. At most `most` tokens, or images, and `mostSequences` at once.
   */
  async encode(outputs: EncoderOutputs, most: number, mostSequences: number): Promise<CompiledGraph> {
    const slicer = new Slicer(), graph = new Graph("encode"), { image, layers, width } = this.config;
    await slicer.pause();
    const sequences = graph.symbol("sequences", image ? most : mostSequences), ends = addDim(sequences, 1);
    const each = image ? image.prefix + (image.height / image.patch) * (image.width / image.patch) : 0;
    const kept = image && keptTokens(outputs.reduce, layers, [each]);
    const bounds = graph.binding("bounds", "i32", [ends]), single = graph.binding("single", "i32", [ends]);
    const rows = image ? scaleDim(sequences, each, 1) : graph.symbol("n", most);
    const body: Body = {
      graph, outputs, sequences, single,
      rows: (layer, before) => (kept ? scaleDim(sequences, kept[layer]![0]!, 1) : graph.symbol(`rows${layer}`, dimMax(before))),
    };
    let tokens: TokenRows = { x: image ? this.embedImages(graph, sequences, rows) : this.embedText(graph, rows as Symbolic), bounds, original: bounds };
    const keep = (name: string, x: Value): unknown => outputs.hiddenStates && copyInto(x, graph.binding(name, "f32", x.dims));
    keep("hidden0", tokens.x);
    for (const [index, layer] of this.encoder.layers.entries()) {
      if (slicer.due) await slicer.pause();
      tokens = graph.scope(`layer${index}`, () => this.block(body, layer, index, tokens));
      keep(`hidden${index + 1}`, tokens.x);
    }
    if (this.encoder.norm) tokens = { ...tokens, x: this.norm(graph, "norm", tokens.x, this.encoder.norm) };
    const pooled = this.pooled(body, tokens);
    if (outputs.saliency) {
      const all = tokens.source ? unmergeRows(tokens.x, tokens.bounds, tokens.source, bounds) : tokens.x;
      graph.output("saliency", saliencyMap(graph, this.encoder.saliency!, all, image!, sequences));
    }
    graph.output("embedding", pooled);
    graph.output("tokens", new Value(graph, "f32", [tokens.x.dims[0]!, width], tokens.x.storage, [width, 1]));
    if (tokens.source) for (const [name, value] of Object.entries({ sizes: tokens.sizes!, source: tokens.source, newBounds: tokens.bounds })) graph.output(name, value);
    return compileInSlices(graph, {}, slicer);
  }
}
