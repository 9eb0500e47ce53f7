import { invalidArgument } from "../errors.js";
import { compile, type CompiledGraph } from "../graph/compile.js";
import { Graph } from "../graph/graph.js";
import { callNative, dtypeCode, native, type NativeHandle } from "../native.js";
import { cacheRotate, keepTop } from "../ops/cache-policy.js";
import { ropeFrequencies } from "../ops/rope.js";
import { schedule, type RunOptions } from "../schedule.js";
import type { CachePolicy, Observation } from "./policy.js";
import { layerPolicies, Scoring, type ScoringShape } from "./scoring.js";
import { cacheTypes, pageTokens } from "./types.js";

/** Policies that rotate keys, or foresee queries, need `rope`. */
export interface EvictionShape extends ScoringShape {
  /** Of any head when it is cut. */
  readonly mostTokens: number;
  /** Layers with a sliding window keep exactly what it shows, their last `window` tokens, whatever the policy; undefined or 0: full attention. */
  readonly windows?: readonly (number | undefined)[];
}

export interface EvictionOptions extends RunOptions {
  /** See queryStatistics: f32 `[layers, heads, 1 + headDim + headDim²]`, for policies that observe queries. */
  readonly statistics?: Float32Array | undefined;
  /** How many tokens the sequence has had; by default one more than the largest position that is there. */
  readonly seen?: number | undefined;
}

/**
 * One policy compiled for caches of one shape: scores, selection and compaction are one native run, off the event loop.
 * Stateless: one eviction serves all caches of its shape.
 */
export class Eviction implements Disposable {
  /** What the model's graphs have to keep in the cache for this policy. */
  readonly observe: Observation;
  private readonly layers: readonly CachePolicy[];
  /** Layers without a window; all where every layer has one. */
  private readonly ruled: readonly number[];
  private readonly selection: { readonly graph: CompiledGraph; readonly scoring: Scoring } | undefined;
  private readonly rotation: CompiledGraph | undefined;

  constructor(readonly policy: CachePolicy, private readonly shape: EvictionShape) {
    this.observe = policy.observe;
    this.layers = layerPolicies(policy, shape.layers);
    const all = Array.from(this.layers.keys()), full = all.filter((layer) => !this.window(layer));
    this.ruled = full.length > 0 ? full : all;
    if (policy.rerotate && shape.rope?.length !== shape.layers) throw invalidArgument("shape.rope", `the rotary embedding of each of ${shape.layers} layers, which ${policy.name} rotates keys by,`, shape.rope);
    this.selection = policy.quantize?.alone ? undefined : this.selectionGraph();
    this.rotation = policy.rerotate ? rotationGraph(shape) : undefined;
  }

  /** The longest head of the layers that the policy rules, given the lengths of all heads `[layers, kvHeads]`. */
  tokensOf(lengths: Int32Array): number {
    const { kvHeads } = this.shape;
    return Math.max(...this.ruled.map((layer) => Math.max(...lengths.subarray(layer * kvHeads, (layer + 1) * kvHeads))));
  }

  /**
   * Whether a cache is to be cut now: behind a prompt when it is over budget; while decoding when a page's worth is, so that
   * the cost is shared by 32 tokens.
   * @param tokens of the longest head, see tokensOf()
   * @param appended how many of them are new since the last call
   */
  due(tokens: number, phase: "prefill" | "decode", appended = 1): boolean {
    const { policy } = this;
    if (policy.quantize && this.crosses(tokens - policy.quantize.recent, phase === "prefill" ? tokens : appended)) return true;
    if (!this.selection || (phase === "decode" && !policy.when.decode)) return false;
    const all = this.budgets(tokens), budgets = this.ruled.map((layer) => all[layer]!);
    return phase === "prefill" ? budgets.some((budget) => budget < tokens) : tokens >= Math.max(...budgets) + pageTokens;
  }

  /** Selects, compacts and, where the policy says so, rotates and converts. All or nothing until the selection is done. */
  async run(cache: NativeHandle, options: EvictionOptions = {}): Promise<void> {
    const { statistics, signal, threads } = options;
    const held = callNative(() => native.cacheStatistics(cache));
    if (held.tokens === 0) return;
    const seen = options.seen ?? held.nextPosition;
    if (this.selection) {
      const { layers, kvHeads } = this.shape, budgets = this.budgets(this.tokensOf(held.lengths));
      const scalars: Record<string, number> = { seen };
      for (const [layer, budget] of budgets.entries()) {
        const { first, last } = this.window(layer) ? { first: 0, last: 0 } : this.layers[layer]!.protect(budget);
        Object.assign(scalars, { [`budget${layer}`]: budget, [`first${layer}`]: first, [`last${layer}`]: last });
      }
      const { graph, scoring } = this.selection, kept = new Uint8Array(layers * kvHeads * held.tokens);
      const bindings = { cache, kept, ...scoring.bindings(seen, statistics) };
      await graph.run({ symbols: { tokens: held.tokens }, bindings, scalars }, { signal, threads });
    }
    // What was selected is to be finished: a cache between the two steps would have gaps in its positions.
    await this.rotation?.run({ bindings: { cache } }, { threads });
    const { quantize } = this.policy;
    if (quantize) await schedule(() => native.requantizeCache(cache, quantize.recent, dtypeCode[cacheTypes[quantize.type]]), { threads });
  }

  dispose(): void {
    this.selection?.graph.dispose();
    this.rotation?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  private window(layer: number): number {
    return this.shape.windows?.[layer] ?? 0;
  }

  /** Whether one of the last `appended` tokens filled a page that lies wholly among the first `tokens`. */
  private crosses(tokens: number, appended: number): boolean {
    return tokens > 0 && Math.floor(tokens / pageTokens) > Math.floor((tokens - appended) / pageTokens);
  }

  /** Of each layer; what a layer's window shows is not cut. */
  private budgets(tokens: number): number[] {
    const { layers, kvHeads } = this.shape, allocated = new Map<CachePolicy, readonly number[]>();
    for (const policy of new Set(this.layers)) allocated.set(policy, policy.allocate({ layers, kvHeads, tokens }));
    return this.layers.map((policy, layer) => this.window(layer) || allocated.get(policy)![layer]!);
  }

  private selectionGraph(): { readonly graph: CompiledGraph; readonly scoring: Scoring } {
    const { layers, kvHeads, mostTokens } = this.shape;
    const graph = new Graph(`evict ${this.policy.name}`);
    const tokens = graph.symbol("tokens", mostTokens), scoring = new Scoring(graph, this.policy, this.shape, tokens, graph.scalar("seen")), { cache } = scoring;
    const kept = graph.binding("kept", "u8", [{ symbol: tokens, multiply: layers * kvHeads, add: 0 }]);
    for (const [layer, policy] of this.layers.entries()) {
      graph.scope(`layer${layer}`, () => {
        const score = this.window(layer) ? undefined : scoring.score(layer);
        const [budget, first, last] = ["budget", "first", "last"].map((name) => graph.scalar(`${name}${layer}`));
        keepTop(score, kept, { cache, layer, tokens, budget: budget!, first, last, acrossHeads: score && policy.acrossHeads });
      });
    }
    return { graph: compile(graph, { cache: { binding: cache, kept: { mask: kept, tokens, dense: this.policy.rerotate } } }), scoring };
  }
}

/** Rotates all keys of a cache to dense positions. */
export function rotationGraph({ layers, rope, contextLength, mostTokens }: Pick<EvictionShape, "layers" | "rope" | "contextLength" | "mostTokens">): CompiledGraph {
  const graph = new Graph("rotate cache"), cache = graph.binding("cache", "cache", []);
  for (let layer = 0; layer < layers; layer++) {
    const config = rope![layer]!;
    cacheRotate(cache, { layer, frequencies: ropeFrequencies(config, contextLength ?? mostTokens).frequencies, style: config.style });
  }
  return compile(graph, { cache: { binding: cache } });
}
