import { ArgumentError, OutOfMemoryError } from "../errors.js";
import type { Bytes, NativeHandle } from "../native.js";
import type { RunOptions } from "../schedule.js";
import { onDevice, Tensor, zeros, type TensorType } from "../tensor.js";
import { compile, type CompiledGraph } from "./compile.js";
import { Graph } from "./graph.js";
import type { Value } from "./value.js";

/** Graphs of single calls, kept for the next call of the same op, shapes and options. Least recently used go first. */
const kept = new Map<string, { graph: CompiledGraph; outputs: readonly { name: string; type: TensorType; shape: number[] }[] }>();
const mostKept = 64;
/** More than any machine has memory for, and few enough to be planned without rounding. */
const mostElements = 2 ** 44;

type Tensors = Readonly<Record<string, Tensor | undefined>>;

function prepare(name: string, inputs: Tensors, build: (values: Record<string, Value>, graph: Graph) => Record<string, Value>) {
  const graph = new Graph(name);
  const values: Record<string, Value> = {};
  for (const [key, input] of Object.entries(inputs)) if (input) values[key] = graph.binding(key, input.type, input.shape);
  const results = build(values, graph);
  const outputs = Object.entries(results).map(([key, value]) => {
    const elements = (value.dims as number[]).reduce((product, dim) => product * dim, 1);
    if (elements > mostElements) throw new OutOfMemoryError(`No memory for ${name}'s result of ${elements} elements`);
    graph.output(`out.${key}`, value);
    return { name: key, type: value.type as TensorType, shape: value.dims as number[] };
  });
  return { graph: compile(graph), outputs };
}

/**
 * Runs one op, or a few, on tensors: builds the graph that `build` describes, compiles it once a shape, runs it.
 * Where one of them lies on a device the op runs there and its results stay there.
 * `key` has to tell apart whatever `build` depends on besides shapes; numbers that change often go in as `scalars` instead.
 */
export async function evaluate<Name extends string>(
  name: string,
  inputs: Tensors,
  key: string,
  build: (values: Record<string, Value>, graph: Graph) => Record<Name, Value>,
  options: RunOptions = {},
  scalars: Readonly<Record<string, number>> = {},
): Promise<Record<Name, Tensor>> {
  for (const [input, value] of Object.entries(inputs)) if (value !== undefined) expectTensor(input, value);
  const there = Object.values(inputs).some((value) => value?.device === "cuda");
  if (there && options.device === "cpu") throw new ArgumentError("options.device", "Expected 'cuda' for options.device, where an operand lies, but received 'cpu'");
  const shapes = Object.entries(inputs).map(([input, value]) => (value ? `${input}:${value.type}[${value.shape.join(",")}]` : ""));
  const id = `${name}|${key}|${shapes.join("|")}`;
  let entry = kept.get(id);
  if (entry) kept.delete(id);
  else entry = prepare(name, inputs, build);
  kept.set(id, entry);
  if (kept.size > mostKept) {
    const [oldest, { graph }] = kept.entries().next().value!;
    kept.delete(oldest);
    graph.dispose();
  }
  const bindings: Record<string, Bytes | NativeHandle> = {};
  for (const [input, value] of Object.entries(inputs)) if (value) bindings[input] = value.memory;
  const outputs = entry.outputs.map(({ name: output, type, shape }) => [output, (there ? onDevice : zeros)(shape, type)] as const);
  for (const [output, value] of outputs) bindings[`out.${output}`] = value.memory;
  try {
    await entry.graph.run({ bindings, scalars }, there ? { ...options, device: "cuda" } : options);
  } catch (error) {
    for (const [, value] of outputs) value.dispose();
    throw error;
  }
  return Object.fromEntries(outputs) as Record<Name, Tensor>;
}

/** For the eager forms of ops: a tensor argument, or an ArgumentError that names it. */
export function expectTensor(name: string, value: unknown, ...types: TensorType[]): Tensor {
  if (!(value instanceof Tensor)) throw new ArgumentError(name, `Expected a tensor for ${name} but received ${value === null ? "null" : typeof value}`);
  if (types.length > 0 && !types.includes(value.type)) throw new ArgumentError(name, `Expected ${types.join(" or ")} for ${name} but received ${value.type}`);
  void value.memory;
  return value;
}
