import type { PromptFilter } from "../cache/gemfilter.js";
import { observedSums, type Observation } from "../cache/policy.js";
import { compileInSlices, type CompiledGraph } from "../graph/compile.js";
import { Graph, type Scalar } from "../graph/graph.js";
import type { Symbolic } from "../graph/dims.js";
import type { Value } from "../graph/value.js";
import { add, convert, gatedActivation, softcap } from "../ops/activation.js";
import { cacheAppend, cachedAttention, observePath } from "../ops/cache.js";
import { cacheObserve, queryStatistics, statisticsOfLayer, statisticsWidth } from "../ops/cache-policy.js";
import { treeMask, verifyTree } from "../ops/draft.js";
import { embedding, gatherRows } from "../ops/embedding.js";
import { matmul } from "../ops/matmul.js";
import { headNorm, rmsNorm } from "../ops/norm.js";
import { rope, ropeFrequencies, ropeTable, type RopeConfig } from "../ops/rope.js";
import { logProb, sample, topK, type SampleParameters } from "../ops/sample.js";
import { Slicer } from "../slice.js";
import type { DecoderConfig, DecoderDescription, LayerWeights, WeightPart } from "./config.js";
import { storedFactorTensors, withStoredFactors } from "./rope.js";
import type { PackedWeight, Vector, WeightLoader } from "./weights.js";

/** Weights whose rows follow one another in one output, with their biases. */
interface Projection {
  readonly weights: readonly PackedWeight[];
  readonly bias: Vector | undefined;
}

interface Layer {
  readonly attentionNorm: Vector;
  readonly queryKeyValue: Projection;
  readonly queryNorm: Vector | undefined;
  readonly keyNorm: Vector | undefined;
  readonly attentionOutput: Projection;
  readonly attentionPostNorm: Vector | undefined;
  readonly feedForwardNorm: Vector;
  readonly gateUp: Projection;
  readonly down: Projection;
  readonly feedForwardPostNorm: Vector | undefined;
}

/** A decoder's weights in memory. */
export interface Decoder {
  readonly config: DecoderConfig;
  readonly embedding: PackedWeight;
  readonly outputNorm: Vector;
  readonly output: PackedWeight;
  readonly layers: readonly Layer[];
}

/** Neighbouring parts of one storage type become one weight: one matmul computes them together. */
async function projection(loader: WeightLoader, parts: readonly WeightPart[], biases: readonly (string | undefined)[] = []): Promise<Projection> {
  const groups: WeightPart[][] = [];
  for (const part of parts) {
    const last = groups.at(-1);
    if (last && loader.storageOf(last[0]!) === loader.storageOf(part)) last.push(part);
    else groups.push([part]);
  }
  const names = biases.filter((name): name is string => name !== undefined);
  const [weights, bias] = await Promise.all([Promise.all(groups.map((group) => loader.weight(group))), names.length > 0 ? loader.vector(...names) : undefined]);
  return { weights, bias };
}

async function loadLayer(loader: WeightLoader, names: LayerWeights): Promise<Layer> {
  const optional = (name: string | undefined): Promise<Vector> | undefined => (name === undefined ? undefined : loader.vector(name));
  return settled<Layer>({
    attentionNorm: loader.vector(names.attentionNorm),
    queryKeyValue: projection(loader, [names.query, names.key, names.value], [names.queryBias, names.keyBias, names.valueBias]),
    queryNorm: optional(names.queryNorm),
    keyNorm: optional(names.keyNorm),
    attentionOutput: projection(loader, [names.attentionOutput]),
    attentionPostNorm: optional(names.attentionPostNorm),
    feedForwardNorm: loader.vector(names.feedForwardNorm),
    gateUp: projection(loader, [names.gate, names.up]),
    down: projection(loader, [names.down]),
    feedForwardPostNorm: optional(names.feedForwardPostNorm),
  });
}

/** Promise.all of an object's values. */
async function settled<T extends object>(parts: { readonly [K in keyof T]: T[K] | Promise<T[K]> }): Promise<T> {
  const keys = Object.keys(parts) as (keyof T)[];
  const values = await Promise.all(keys.map((key) => parts[key]));
  return Object.fromEntries(keys.map((key, index) => [key, values[index]])) as T;
}

/** Asks for everything before it waits: the loader reads it in few calls. */
export async function loadDecoder(description: DecoderDescription, loader: WeightLoader, slicer: Slicer): Promise<Decoder> {
  const factorNames = storedFactorTensors(description);
  const factors = await Promise.all(factorNames.map((name) => loader.numbers(name)));
  const { config, weights } = withStoredFactors(description, new Map(factorNames.map((name, index) => [name, factors[index]!])), loader.path);
  const layers: Promise<Layer>[] = [];
  for (const names of weights.layers) {
    if (slicer.due) await slicer.pause();
    const layer = loadLayer(loader, names);
    layer.catch(() => undefined); // told by Promise.all below: until then nobody listens
    layers.push(layer);
  }
  const table = loader.weight([loader.wholeTensor(weights.embedding)]);
  return settled<Decoder>({
    config,
    embedding: table,
    outputNorm: loader.vector(weights.outputNorm),
    output: weights.output ? loader.weight([weights.output]) : table,
    layers: Promise.all(layers),
  });
}

/** One row block in both forms that matmuls read: f32, and quantised where a weight is. Each is made once. */
class Rows {
  private quantized: Value | undefined;
  private plain: Value | undefined;

  constructor(private readonly make: (as: "f32" | "q8") => Value) {}

  for(weight: PackedWeight): Value {
    return weight.quantized ? (this.quantized ??= this.make("q8")) : (this.plain ??= this.make("f32"));
  }

  /** Rows that exist as f32 already. */
  static of(x: Value): Rows {
    return new Rows((as) => (as === "q8" ? convert(x, "q8") : x));
  }
}

function samplerScalars(graph: Graph): SampleParameters {
  const scalar = (name: string): Scalar => graph.scalar(name);
  return {
    temperature: scalar("temperature"), topK: scalar("topK"), topP: scalar("topP"), minP: scalar("minP"),
    repeatPenalty: scalar("repeatPenalty"), seed: scalar("seed"), stream: scalar("stream"), position: scalar("position"),
  };
}

/** What a cache policy learns from attention: see lib/cache/policy.ts. */
interface AttentionObserver {
  /** Called with queries before RoPE. */
  query?(query: Value, layer: number): void;
  readonly columnSums?: { readonly queries: number; readonly keys: number };
  sums(columnSums: Value, cache: Value, layer: number): void;
  /** Of a draft tree it is known behind all layers which nodes count: called with the layer's queries and log-sum-exps. */
  nodes?(query: Value, logSumExp: Value, layer: number): void;
}

interface BodyOptions {
  readonly tree?: Value;
  readonly observer?: ((cache: Value) => AttentionObserver | undefined) | undefined;
  /** The layer whose queries are the result, instead of hidden states behind all layers. */
  readonly stopAt?: number;
  /** The rows whose hidden states are wanted, i32: the last layer computes no others behind its attention. */
  readonly rows?: Value;
}

interface AttentionExtras {
  readonly tree: Value | undefined;
  readonly observer: AttentionObserver | undefined;
  readonly rows: Value | undefined;
}

/** Builds the graphs of one decoder over shared weights. */
export class DecoderGraphs {
  constructor(private readonly decoder: Decoder, private readonly contextLength: number) {}

  /** Hidden states of n new tokens; their keys and values go to the cache. */
  private async body(graph: Graph, n: Symbolic, slicer: Slicer, options: BodyOptions = {}): Promise<{ hidden: Value; ids: Value; cache: Value; positions: Value }> {
    const { config, layers } = this.decoder;
    await slicer.pause();
    const ids = graph.binding("ids", "i32", [n]), positions = graph.binding("positions", "i32", [n]), cache = graph.binding("cache", "cache", []);
    const tables = new Map<RopeConfig, Value>(); // layers share these objects
    const tableFor = (rope: RopeConfig): Value => {
      let table = tables.get(rope);
      if (!table) tables.set(rope, (table = ropeTable(positions, ropeFrequencies(rope, this.contextLength))));
      return table;
    };
    for (const layer of config.layers) tableFor(layer.rope);
    const extras: AttentionExtras = { tree: options.tree, observer: options.observer?.(cache), rows: undefined };
    let hidden = embedding(graph.weight("embedding", this.decoder.embedding), ids, { scale: config.embeddingScale });
    for (const [index, layer] of layers.entries()) {
      if (slicer.due) await slicer.pause();
      if (index === options.stopAt) {
        const table = tableFor(config.layers[index]!.rope);
        hidden = graph.scope(`layer${index}`, () => this.queryOf(graph, layer, index, hidden, cache, table, undefined));
        break;
      }
      hidden = graph.scope(`layer${index}`, () => {
        const rows = index === layers.length - 1 ? options.rows : undefined;
        const attended = this.attention(graph, layer, index, hidden, cache, tableFor(config.layers[index]!.rope), { ...extras, rows });
        return this.feedForward(graph, layer, attended);
      });
    }
    return { hidden, ids, cache, positions };
  }

  private vector(graph: Graph, name: string, vector: Vector): Value {
    return graph.shared(name, "f32", [vector.length], vector.handle);
  }

  private norm(graph: Graph, name: string, x: Value, weight: Vector, as: "f32" | "q8"): Value {
    const { normEpsilon, normOffset } = this.decoder.config;
    return rmsNorm(x, this.vector(graph, name, weight), { epsilon: normEpsilon, weightOffset: normOffset, as, name });
  }

  /** x times all weights of a projection, side by side in one output. */
  private project(graph: Graph, name: string, x: Rows, { weights, bias }: Projection): Value {
    const biasValue = bias && this.vector(graph, `${name}.bias`, bias);
    if (weights.length === 1) return matmul(x.for(weights[0]!), graph.weight(name, weights[0]!), { bias: biasValue, name });
    const total = weights.reduce((sum, weight) => sum + weight.rows, 0), n = x.for(weights[0]!).dims[0]!;
    const out = graph.buffer(name, "f32", [n, total]);
    let begin = 0;
    for (const weight of weights) {
      const columns = biasValue?.columns(begin, weight.rows);
      matmul(x.for(weight), graph.weight(name, weight), { bias: columns, into: out.columns(begin, weight.rows), name });
      begin += weight.rows;
    }
    return out;
  }

  /** x plus a projection of `from`: in one op where no norm stands between. */
  private addProjection(graph: Graph, name: string, x: Value, from: Rows, { weights }: Projection, postNorm: Vector | undefined): Value {
    const weight = weights[0]!;
    if (!postNorm) return matmul(from.for(weight), graph.weight(name, weight), { residual: x, name });
    const projected = matmul(from.for(weight), graph.weight(name, weight), { name });
    return add(x, this.norm(graph, `${name}.postNorm`, projected, postNorm, "f32"), { name: `${name}.residual` });
  }

  /** A layer's queries, keys and values behind RoPE; keys and values go to the cache. */
  private queryOf(graph: Graph, layer: Layer, index: number, x: Value, cache: Value, table: Value, observer: AttentionObserver | undefined): Value {
    const { heads, kvHeads, headDim, normEpsilon, normOffset, layers } = this.decoder.config;
    const normed = new Rows((as) => this.norm(graph, "attentionNorm", x, layer.attentionNorm, as));
    const all = this.project(graph, "queryKeyValue", normed, layer.queryKeyValue);
    let query = all.columns(0, heads * headDim).split(heads), key = all.columns(heads * headDim, kvHeads * headDim).split(kvHeads);
    const value = all.columns((heads + kvHeads) * headDim, kvHeads * headDim).split(kvHeads);
    const options = { epsilon: normEpsilon, weightOffset: normOffset };
    if (layer.queryNorm) query = headNorm(query, this.vector(graph, "queryNorm", layer.queryNorm), options);
    if (layer.keyNorm) key = headNorm(key, this.vector(graph, "keyNorm", layer.keyNorm), options);
    const { style } = layers[index]!.rope;
    observer?.query?.(query, index);
    query = rope(query, table, style, "queryRope");
    cacheAppend(rope(key, table, style, "keyRope"), value, cache, index);
    return query;
  }

  private attention(graph: Graph, layer: Layer, index: number, x: Value, cache: Value, table: Value, { tree, observer, rows }: AttentionExtras): Value {
    const { attentionScale, attentionSoftcap, layers } = this.decoder.config;
    const query = this.queryOf(graph, layer, index, x, cache, table, observer);
    const { window } = layers[index]!, columnSums = window ? undefined : observer?.columnSums, nodes = window ? undefined : observer?.nodes;
    const { out: attended, columnSums: sums, logSumExp } = cachedAttention(query, cache, { layer: index, scale: attentionScale, window, softcap: attentionSoftcap, tree, columnSums, logSumExp: nodes !== undefined });
    if (sums) observer!.sums(sums, cache, index);
    nodes?.(query, logSumExp!, index);
    const wanted = (value: Value): Value => (rows ? gatherRows(value, rows) : value);
    return this.addProjection(graph, "attentionOutput", wanted(x), Rows.of(wanted(attended.join())), layer.attentionOutput, layer.attentionPostNorm);
  }

  private feedForward(graph: Graph, layer: Layer, x: Value): Value {
    const normed = new Rows((as) => this.norm(graph, "feedForwardNorm", x, layer.feedForwardNorm, as));
    const gateUp = this.project(graph, "gateUp", normed, layer.gateUp);
    const activated = new Rows((as) => gatedActivation(gateUp, this.decoder.config.activation, { as, name: "activation" }));
    return this.addProjection(graph, "down", x, activated, layer.down, layer.feedForwardPostNorm);
  }

  private logits(graph: Graph, hidden: Value): Value {
    const { output, outputNorm, config } = this.decoder;
    const normed = new Rows((as) => this.norm(graph, "outputNorm", hidden, outputNorm, as));
    const logits = matmul(normed.for(output), graph.weight("output", output), { name: "output" });
    return config.logitSoftcap === undefined ? logits : softcap(logits, config.logitSoftcap);
  }

  /** What attention is to leave behind for a cache policy. Runs give the scalar "accumulate", "skip" and the binding "statistics" where it needs them. */
  private observer(graph: Graph, observe: Observation | undefined, n: Symbolic): AttentionObserver | undefined {
    const { heads, kvHeads, headDim, layers } = this.decoder.config;
    if (!observe) return undefined;
    if (observe.kind === "queries") {
      const statistics = graph.binding("statistics", "f32", [layers.length, heads, statisticsWidth(headDim)]), skip = graph.scalar("skip");
      return { query: (query, layer) => queryStatistics(query, statisticsOfLayer(statistics, layer), { skip }), sums: () => undefined };
    }
    const wanted = observedSums(observe, { heads, kvHeads });
    if (!wanted) return undefined;
    const keys = this.contextLength + 2 * n.max, accumulate = graph.scalar("accumulate");
    return { columnSums: { queries: wanted.queries, keys }, sums: (sums, cache, layer) => cacheObserve(sums, cache, { layer, scale: wanted.scale, accumulate }) };
  }

  /** ids, positions → the cache only: all of a prompt but its last piece. */
  async prefill(most: number, observe?: Observation): Promise<CompiledGraph> {
    const slicer = new Slicer(), graph = new Graph("prefill"), n = graph.symbol("n", most);
    const { cache, positions } = await this.body(graph, n, slicer, { observer: () => this.observer(graph, observe, n) });
    return compileInSlices(graph, { cache: { binding: cache, newTokens: n, positions } }, slicer);
  }

  /** ids, positions, history → the cache, and the token drawn behind the last one. */
  async generate(most: number, historyMost: number, observe?: Observation): Promise<CompiledGraph> {
    const slicer = new Slicer(), graph = new Graph("generate"), n = graph.symbol("n", most), h = graph.symbol("history", historyMost);
    const last = graph.binding("last", "i32", [1]);
    const { hidden, cache, positions } = await this.body(graph, n, slicer, { observer: () => this.observer(graph, observe, n), rows: last });
    const history = graph.binding("history", "i32", [h]);
    const token = graph.binding("token", "i32", [1]), probability = graph.binding("logProb", "f32", [1]);
    sample(this.logits(graph, hidden), history, { token, logProb: probability }, samplerScalars(graph));
    return compileInSlices(graph, { cache: { binding: cache, newTokens: n, positions } }, slicer);
  }

  /**
   * ids, positions, parents and history of a draft tree of at most `most` nodes → the accepted path in the cache, the tokens drawn along
   * it and, for a `top` above 0, the largest logits of all nodes. What `observe` wants of attention is that of the path: runs give
   * the scalars "accumulate" and "counted", the nodes at its end that count.
   */
  async draft(most: number, historyMost: number, top: number, observe?: Observation): Promise<CompiledGraph> {
    const { attentionScale: scale, attentionSoftcap, heads, kvHeads } = this.decoder.config;
    const slicer = new Slicer(), graph = new Graph("draft"), n = graph.symbol("n", most), h = graph.symbol("history", historyMost);
    const parents = graph.binding("parents", "i32", [n]), tree = treeMask(parents, { words: Math.ceil(most / 32), past: 0 }).bits;
    const path = graph.binding("path", "i32", [n]), accepted = graph.binding("accepted", "i32", [n]), count = graph.binding("count", "i32", [1]);
    const wanted = observe && observedSums(observe, { heads, kvHeads }), verified: (() => void)[] = [];
    const observer = (cache: Value): AttentionObserver | undefined => {
      if (!wanted) return undefined;
      const shared = { scale, softcap: attentionSoftcap, tree, path, count, queries: graph.scalar("counted"), share: wanted.scale, accumulate: graph.scalar("accumulate"), keys: this.contextLength + 2 * most };
      return { sums: () => undefined, nodes: (query, logSumExp, layer) => verified.push(() => observePath(query, cache, { ...shared, layer, logSumExp })) };
    };
    const { hidden, ids, cache, positions } = await this.body(graph, n, slicer, { tree, observer });
    const logits = this.logits(graph, hidden), history = graph.binding("history", "i32", [h]);
    const into = { path, accepted, count, logProb: graph.binding("logProb", "f32", [n]) };
    verifyTree(logits, ids, parents, history, into, { ...samplerScalars(graph), repeatLastTokens: graph.scalar("repeatLastTokens") });
    for (const add of verified) add();
    if (top > 0) {
      topK(logits, {
        values: graph.binding("topValues", "f32", [n, top]), indices: graph.binding("topIndices", "i32", [n, top]), logSumExp: graph.binding("logSumExp", "f32", [n]),
      });
    }
    return compileInSlices(graph, { cache: { binding: cache, newTokens: n, positions, accepted: { path, count } } }, slicer);
  }

  /** ids, positions → the first layers' cache, and a mask u8 `[tokens]` of all tokens so far: which ones a prompt filter keeps. */
  async filter(most: number, filter: PromptFilter): Promise<CompiledGraph> {
    const slicer = new Slicer(), graph = new Graph(filter.name), n = graph.symbol("n", most), tokens = graph.symbol("tokens", this.contextLength);
    const { hidden: query, cache, positions } = await this.body(graph, n, slicer, { stopAt: filter.layer });
    const scores = filter.score(query, { cache, layer: filter.layer, kvHeads: this.decoder.config.kvHeads, tokens });
    filter.select(scores, graph.binding("kept", "u8", [tokens]), graph.scalar("budget"), tokens);
    return compileInSlices(graph, { cache: { binding: cache, newTokens: n, positions } }, slicer);
  }

  /** ids, positions, targets → the cache, log-probabilities of the targets, and the `top` largest logits of each row. */
  async score(most: number, top: number): Promise<CompiledGraph> {
    const slicer = new Slicer(), graph = new Graph("score"), n = graph.symbol("n", most);
    const { hidden, cache, positions } = await this.body(graph, n, slicer);
    const logits = this.logits(graph, hidden);
    topK(logits, {
      values: graph.binding("values", "f32", [n, top]), indices: graph.binding("indices", "i32", [n, top]), logSumExp: graph.binding("logSumExp", "f32", [n]),
    });
    logProb(logits, graph.binding("targets", "i32", [n]), graph.binding("logProb", "f32", [n]));
    return compileInSlices(graph, { cache: { binding: cache, newTokens: n, positions } }, slicer);
  }
}
