import { invalidArgument } from "../errors.js";
import { evaluate, expectTensor } from "../graph/evaluate.js";
import type { Value } from "../graph/value.js";
import { runOptions, type RunOptions } from "../schedule.js";
import { disposable, Tensor } from "../tensor.js";

/** Tensors that an op returned. `using` frees them all; they can also be disposed of one by one. */
export type Results<Name extends string> = Readonly<Record<Name, Tensor<"f32">>> & Disposable;

/** Replaces each tensor within options by what `replace` makes of it; everything else stays. */
function mapTensors(options: unknown, path: string, replace: (tensor: Tensor, path: string) => unknown): unknown {
  if (options instanceof Tensor) return replace(options, path);
  if (["bigint", "symbol", "function"].includes(typeof options)) throw invalidArgument(`options.${path}`, "a number, a string, a boolean or a tensor", options);
  if (typeof options !== "object" || options === null || options instanceof AbortSignal) return options;
  return Object.fromEntries(Object.entries(options).map(([key, value]) => [key, mapTensors(value, path === "" ? key : `${path}.${key}`, replace)]));
}

/**
 * The form of a graph op that takes tensors and returns tensors: `required` operands, then options which may hold more
 * tensors. Runs off the event loop; `signal`, `threads` and `device` are among the options.
 */
export async function run<Name extends string>(
  op: string,
  required: Readonly<Record<string, unknown>>,
  options: object,
  build: (operands: Record<string, Value>, options: object) => Record<Name, Value>,
): Promise<Results<Name>> {
  const given = runOptions(options), { signal: _signal, threads: _threads, device: _device, ...rest } = options as RunOptions;
  const inputs: Record<string, Tensor> = {};
  for (const [name, value] of Object.entries(required)) inputs[name] = expectTensor(name, value);
  const shape = mapTensors(rest, "", (tensor, path) => {
    inputs[path] = expectTensor(path, tensor);
    return `tensor ${path}`;
  });
  const made = await evaluate(op, inputs, JSON.stringify(shape), (values) => {
    const operands = mapTensors(rest, "", (_, path) => values[path]) as object;
    return build(values, operands);
  }, given);
  return disposable(made as Record<Name, Tensor<"f32">>);
}
