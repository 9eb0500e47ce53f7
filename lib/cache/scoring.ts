import type { Dim } from "../graph/dims.js";
import type { Graph, Parameter } from "../graph/graph.js";
import type { Value } from "../graph/value.js";
import type { Bytes } from "../native.js";
import { reduceRows, statisticsOfLayer, statisticsWidth } from "../ops/cache-policy.js";
import { ropeFrequencies, ropeTable, type RopeConfig } from "../ops/rope.js";
import type { CachePolicy } from "./policy.js";

export interface ScoringShape {
  readonly layers: number;
  readonly kvHeads: number;
  readonly heads: number;
  readonly headDim: number;
  /** Each layer's rotary embedding. */
  readonly rope?: readonly RopeConfig[];
  /** Of the model, for embeddings that depend on it. */
  readonly contextLength?: number;
}

/** A policy's scores in a graph: what each layer's fragment may use, and the memory that runs have to bind for it. */
export class Scoring {
  readonly cache: Value;
  private readonly statistics: Value | undefined;
  private readonly rotations = new Map<string, Value>();
  private readonly following = new Map<number, Value>();
  private readonly policies: readonly CachePolicy[];

  constructor(private readonly graph: Graph, policy: CachePolicy, private readonly shape: ScoringShape, private readonly tokens: Dim, private readonly seen: Parameter) {
    this.cache = graph.binding("cache", "cache", []);
    this.policies = layerPolicies(policy, shape.layers);
    if (policy.observe.kind === "queries") this.statistics = graph.binding("statistics", "f32", [shape.layers, shape.heads, statisticsWidth(shape.headDim)]);
  }

  score(layer: number): Value | undefined {
    const { cache, tokens, seen, statistics, shape } = this, { layers, heads, kvHeads, headDim, rope, contextLength } = shape;
    const config = rope?.[layer];
    return this.policies[layer]!.score?.({
      cache, layer, layers, heads, kvHeads, headDim, tokens, seen,
      statistics: statistics && statisticsOfLayer(statistics, layer),
      rotation: config && { style: config.style, mean: (count) => this.rotation(config, contextLength ?? 0, count) },
    });
  }

  /** What a run binds besides the cache. */
  bindings(seen: number, statistics: Float32Array | undefined): Record<string, Bytes> {
    const bound: Record<string, Bytes> = {};
    if (this.statistics) bound["statistics"] = statistics!;
    for (const count of this.following.keys()) bound[`following${count}`] = Int32Array.from({ length: count }, (_, i) => seen + i);
    return bound;
  }

  /** Made once for all layers of one embedding. */
  private rotation(config: RopeConfig, contextLength: number, count: number): Value {
    const key = `${count} ${JSON.stringify(config)}`, known = this.rotations.get(key);
    if (known) return known;
    let positions = this.following.get(count);
    if (!positions) this.following.set(count, (positions = this.graph.binding(`following${count}`, "i32", [count])));
    const made = reduceRows(ropeTable(positions, ropeFrequencies(config, contextLength)), { kind: "mean" });
    this.rotations.set(key, made);
    return made;
  }
}

export function layerPolicies(policy: CachePolicy, layers: number): CachePolicy[] {
  return Array.from({ length: layers }, (_, layer) => policy.layerPolicy?.(layer, layers) ?? policy);
}
