import { deviceCode, deviceOf } from "../device.js";
import { ArgumentError, invalidArgument, ShapeError } from "../errors.js";
import { callNative, dtypeCode, native, type Bytes, type NativeHandle } from "../native.js";
import { NativeResource } from "../resource.js";
import { schedule, type RunOptions } from "../schedule.js";
import { finishAtOnce, type Slicer } from "../slice.js";
import { escapeXml } from "../svg.js";
import { affine, shapeText, Symbolic } from "./dims.js";
import { Scalar, type Graph, type Node, type Parameter } from "./graph.js";
import { planArena, type ArenaPlan } from "./plan.js";
import { liveNodes } from "./prune.js";
import { elementBytes, type Value } from "./value.js";

const magic = 0x746c6f6f6d, version = 2;

/** What a run does with its KV cache, once its ops are done. All values are bindings. */
export interface CacheUse {
  readonly binding: Value;
  /** How many tokens the run appends; absent: none. */
  readonly newTokens?: Symbolic;
  /** Where they stand, i32 `[newTokens]`; absent: behind the last one. */
  readonly positions?: Value;
  /** They are nodes of a draft tree, of which these rows stay: i32 `[newTokens]` and their number, i32 `[1]`. */
  readonly accepted?: { readonly path: Value; readonly count: Value };
  /** Tokens that stay: u8 `[layers, kvHeads, tokens]`. `dense`: keys will be rotated to new positions, see cacheRotate(). */
  readonly kept?: { readonly mask: Value; readonly tokens: Symbolic; readonly dense: boolean };
}

export interface CompileOptions {
  readonly cache?: CacheUse;
}

/** What one run gives: symbols and scalars by name, memory for each binding by name (null leaves an optional one out). */
export interface RunInputs {
  readonly symbols?: Readonly<Record<string, number>>;
  readonly bindings: Readonly<Record<string, Bytes | NativeHandle | null>>;
  readonly scalars?: Readonly<Record<string, number>>;
}

/** The words of a program, written one after another. */
class Words {
  private words = new Float64Array(4096);
  private count = 0;

  put(word: number): void {
    if (this.count === this.words.length) {
      const larger = new Float64Array(this.count * 2);
      larger.set(this.words);
      this.words = larger;
    }
    this.words[this.count++] = word;
  }

  view(view: Value | undefined, offsets: ReadonlyMap<number, number>): void {
    if (!view) return this.put(0);
    const { storage, dims } = view;
    const inArena = storage.kind === "arena";
    this.put(inArena ? 1 : storage.kind === "constant" ? 2 : 3);
    this.put(inArena ? 0 : storage.index);
    this.put(-1);
    this.put(0);
    this.put(inArena ? offsets.get(storage.id)! + view.offset * elementBytes[view.type] : view.offset);
    this.put(dtypeCode[view.type]);
    this.put(dims.length);
    for (let axis = 0; axis < dims.length; axis++) {
      const { symbol, multiply, add } = affine(dims[axis]!);
      this.put(symbol?.index ?? -1);
      this.put(multiply);
      this.put(add);
      this.put(view.strides[axis]!);
    }
  }

  parameter(parameter: Parameter): void {
    const kind = parameter instanceof Symbolic ? 1 : parameter instanceof Scalar ? 2 : 0;
    this.put(kind);
    this.put(kind === 0 ? (parameter as number) : (parameter as Symbolic | Scalar).index);
  }

  all(): Float64Array {
    return this.words.subarray(0, this.count);
  }
}

/** Nodes between two looks at the clock. */
const stepNodes = 8;

function* encode(graph: Graph, nodes: readonly Node[], plan: ArenaPlan, options: CompileOptions): Generator<void, Float64Array> {
  const offsets = new Map(plan.placements.map(({ id, offset }) => [id, offset]));
  const { cache } = options;
  const bindingOf = (value: Value | undefined): number => (value?.storage.kind === "binding" ? value.storage.index : -1);
  const words = new Words();
  const header = [
    magic, version, graph.symbols.length, graph.constants.length, graph.bindings.length, graph.scalars.length, plan.bytes, nodes.length,
    bindingOf(cache?.binding), bindingOf(cache?.positions), bindingOf(cache?.accepted?.path), bindingOf(cache?.accepted?.count), bindingOf(cache?.kept?.mask),
    cache?.newTokens?.index ?? -1, cache?.kept?.tokens.index ?? -1, cache?.kept?.dense ? 1 : 0,
  ];
  for (const word of header) words.put(word);
  for (const { type } of graph.bindings) words.put(dtypeCode[type]);
  for (const [index, node] of nodes.entries()) {
    if (index % stepNodes === 0) yield;
    words.put(node.code);
    for (let view = 0; view < node.views.length; view++) words.view(node.views[view], offsets);
    for (let parameter = 0; parameter < node.parameters.length; parameter++) words.parameter(node.parameters[parameter]!);
  }
  return words.all();
}

function explainNode(node: Node, index: number, offsets: ReadonlyMap<number, number>): string {
  const show = (view: Value | undefined): string => {
    if (!view) return "–";
    const place = view.storage.kind === "arena" ? `@${offsets.get(view.storage.id)}` : view.storage.kind === "constant" ? `const ${view.name}` : `bind ${view.name}`;
    return `${view.type}${shapeText(view.dims)} ${place}`;
  };
  const inputs = node.views.slice(0, node.inputs).map(show).join(", "), outputs = node.views.slice(node.inputs).map(show).join(", ");
  return `${String(index).padStart(4)}  ${node.name}: ${node.op.name}(${inputs}) → ${outputs === "" ? "cache" : outputs}`;
}

/** A compiled graph: one native call a run, off the event loop. */
export class CompiledGraph extends NativeResource {
  readonly name: string;
  readonly plan: ArenaPlan;
  private readonly graph: Graph;

  /** @internal Use compile(). */
  constructor(graph: Graph, private readonly nodes: readonly Node[], plan: ArenaPlan, words: Float64Array) {
    const handle = callNative(() => native.createProgram(words, graph.constants.map((constant) => constant.handle)));
    super(`graph ${graph.name}`, handle);
    // The program holds its constants itself; those made for this graph alone need no other owner.
    for (const constant of graph.constants) if (constant.owned) native.release(constant.handle);
    this.name = graph.name;
    this.plan = plan;
    this.graph = graph;
  }

  /** Runs once. Rejects with a typed error; nothing is half-appended to a cache then. */
  run(inputs: RunInputs, options: RunOptions = {}): Promise<void> {
    const { graph } = this;
    const symbols = Float64Array.from(graph.symbols, (symbol) => this.symbolValue(symbol, inputs.symbols?.[symbol.name]));
    const scalars = Float64Array.from(graph.scalars, (scalar) => {
      const value = inputs.scalars?.[scalar.name];
      if (typeof value !== "number") throw invalidArgument(`scalars.${scalar.name}`, "a number", value);
      return value;
    });
    const bindings = graph.bindings.map(({ name }) => {
      const value = inputs.bindings[name];
      if (value === undefined) throw new ArgumentError(`bindings.${name}`, `Expected memory or null for bindings.${name} of graph ${this.name} but received undefined`);
      return value;
    });
    const { handle } = this; // taken now: a dispose() that comes while this run waits for its turn must not stop it
    // A run on a cache goes where that lies, unless it is told otherwise.
    const device = options.device === undefined && graph.bindings.some(({ type }) => type === "cache") ? undefined : deviceOf(options.device);
    return this.during(() => schedule((threads, cancel) => native.run(handle, symbols, bindings, scalars, { threads, device: deviceCode[device ?? "cache"] }, cancel), options, device));
  }

  private symbolValue(symbol: Symbolic, value: number | undefined): number {
    if (!Number.isSafeInteger(value) || value! < 0) throw invalidArgument(`symbols.${symbol.name}`, "a non-negative integer", value);
    if (value! > symbol.max) throw new ShapeError(this.name, symbol.name, `Expected at most ${symbol.max} for symbol ${symbol.name} of graph ${this.name} but received ${value}`);
    return value!;
  }

  /** Ops with shapes and arena offsets, live ranges, and the peak. */
  explain(): string {
    const offsets = new Map(this.plan.placements.map(({ id, offset }) => [id, offset]));
    const total = this.plan.placements.reduce((sum, { bytes }) => sum + bytes, 0);
    return [
      `graph ${this.name}: ${this.nodes.length} ops, arena ${this.plan.bytes} bytes for values of ${total} bytes`,
      `symbols: ${this.graph.symbols.map((symbol) => `${symbol.name} ≤ ${symbol.max}`).join(", ") || "none"}`,
      ...this.nodes.map((node, index) => explainNode(node, index, offsets)),
      ...this.plan.placements.map(({ name, offset, bytes, first, last }) => `      ${name}: bytes ${offset} … ${offset + bytes}, ops ${first} … ${last}`),
    ].join("\n");
  }

  /** The arena over time: one bar a value, bytes upwards, ops to the right. */
  toSvg(): string {
    const width = 900, height = 400, ops = Math.max(1, this.nodes.length), bytes = Math.max(1, this.plan.bytes);
    const bars = this.plan.placements.map(({ name, offset, bytes: size, first, last }, i) => {
      const x = (first / ops) * width, w = ((last - first + 1) / ops) * width, h = (size / bytes) * height, y = height - (offset / bytes) * height - h;
      return `<rect x="${x.toFixed(1)}" y="${y.toFixed(1)}" width="${w.toFixed(1)}" height="${h.toFixed(1)}" fill="hsl(${(i * 47) % 360} 60% 70%)" stroke="#333" stroke-width=".3"><title>${escapeXml(name)}: ${size} bytes</title></rect>`;
    });
    return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" role="img" aria-label="live ranges of graph ${escapeXml(this.name)}">${bars.join("")}</svg>`;
  }
}

function* compileSteps(graph: Graph, options: CompileOptions): Generator<void, CompiledGraph> {
  const nodes = liveNodes(graph);
  yield;
  const plan = yield* planArena(graph, nodes);
  const words = yield* encode(graph, nodes, plan, options);
  yield;
  return new CompiledGraph(graph, nodes, plan, words);
}

export function compile(graph: Graph, options: CompileOptions = {}): CompiledGraph {
  return finishAtOnce(compileSteps(graph, options));
}

/** compile() for large graphs, in slices that leave the event loop free. */
export function compileInSlices(graph: Graph, options: CompileOptions, slicer: Slicer): Promise<CompiledGraph> {
  return slicer.finish(compileSteps(graph, options));
}
