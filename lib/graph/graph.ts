import { invalidArgument, ShapeError, TokenloomError } from "../errors.js";
import { callNative, dtypeCode, native, type Bytes, type NativeHandle, type NativeOp } from "../native.js";
import { Symbolic, type Dim } from "./dims.js";
import { denseStrides, Value, valueBytes, type Storage, type ValueType } from "./value.js";

/** A number given anew at each run, such as a temperature. */
export class Scalar {
  constructor(readonly name: string, readonly index: number) {}
}

export type Parameter = number | Symbolic | Scalar;

export interface Node {
  readonly op: NativeOp;
  readonly code: number;
  /** `layer3.attention`: what errors and explain() call it. */
  readonly name: string;
  /** Inputs then outputs, in the op's order; undefined where an optional one is left out. */
  readonly views: readonly (Value | undefined)[];
  readonly inputs: number;
  readonly parameters: readonly Parameter[];
  /** Storage ids: the output may lie where the input lay, if the input ends here. */
  readonly mayOverwrite: readonly [output: number, input: number] | undefined;
}

export interface OutputPlan {
  readonly type: ValueType;
  readonly dims: readonly Dim[];
  /** Write here instead of into fresh memory: an input's view (in place) or an output binding. */
  readonly into?: Value | undefined;
}

export interface NodePlan {
  readonly inputs: Readonly<Record<string, Value | undefined>>;
  readonly outputs: Readonly<Record<string, OutputPlan>>;
  readonly parameters?: Readonly<Record<string, Parameter>>;
  /** Output name → input name whose memory it may reuse when the input is not needed any more. */
  readonly reuse?: readonly [output: string, input: string];
  readonly name?: string;
}

let opTable: Map<string, { op: NativeOp; code: number }> | undefined;

function findOp(name: string): { op: NativeOp; code: number } {
  opTable ??= new Map(native.ops().map((op, code) => [op.name, { op, code }]));
  const found = opTable.get(name);
  if (!found) throw new TokenloomError("TL_INTERNAL", `The addon has no op '${name}': lib and binary are of different versions`);
  return found;
}

/**
 * A list of ops over symbolic shapes, built once and compiled to one native program. Ops run in the order in which they
 * were added; values are views, so slices cost nothing.
 */
export class Graph {
  readonly nodes: Node[] = [];
  readonly symbols: Symbolic[] = [];
  readonly bindings: { readonly name: string; readonly type: ValueType }[] = [];
  readonly scalars: Scalar[] = [];
  readonly constants: { readonly name: string; readonly handle: NativeHandle; readonly owned: boolean }[] = [];
  readonly storages: Extract<Storage, { kind: "arena" }>[] = [];
  private readonly scopes: string[] = [];
  private readonly known = new Map<NativeHandle, number>();

  constructor(readonly name: string) {}

  /** Names given within `body` are prefixed: `layer3.attention`. */
  scope<T>(name: string, body: () => T): T {
    this.scopes.push(name);
    try {
      return body();
    } finally {
      this.scopes.pop();
    }
  }

  /** A size bound at each run, at most `max`. */
  symbol(name: string, max: number): Symbolic {
    const symbol = new Symbolic(name, this.symbols.length, max);
    this.symbols.push(symbol);
    return symbol;
  }

  scalar(name: string): Scalar {
    const scalar = new Scalar(name, this.scalars.length);
    this.scalars.push(scalar);
    return scalar;
  }

  /** Memory bound at each run, read or written: ids, logits, a cache. */
  binding(name: string, type: ValueType, dims: readonly Dim[]): Value {
    this.bindings.push({ name, type });
    return new Value(this, type, dims, { kind: "binding", index: this.bindings.length - 1, name }, denseStrides(dims));
  }

  /** Arena memory that ops write through `into`, each a part of it. */
  buffer(name: string, type: ValueType, dims: readonly Dim[]): Value {
    return this.fresh({ type, dims }, [...this.scopes, name].join("."));
  }

  /** A packed weight `[rows, columns]`, owned by the caller. */
  weight(name: string, weight: { readonly handle: NativeHandle; readonly rows: number; readonly columns: number }): Value {
    return this.constantValue(name, "packed", [weight.rows, weight.columns], weight.handle, false);
  }

  /** Values copied into the program. */
  constant(name: string, type: ValueType, data: Bytes, dims: readonly number[]): Value {
    return this.constantValue(name, type, dims, callNative(() => native.createConstant(data, dtypeCode[type])), true);
  }

  /** A constant that lives elsewhere, such as a norm's weight shared by several programs. */
  shared(name: string, type: ValueType, dims: readonly number[], handle: NativeHandle): Value {
    return this.constantValue(name, type, dims, handle, false);
  }

  private constantValue(name: string, type: ValueType, dims: readonly number[], handle: NativeHandle, owned: boolean): Value {
    let index = this.known.get(handle);
    if (index === undefined) {
      index = this.constants.length;
      this.constants.push({ name, handle, owned });
      this.known.set(handle, index);
    }
    return new Value(this, type, dims, { kind: "constant", index, handle, name }, denseStrides(dims));
  }

  /** Adds one op. `inputs`, `outputs` and `parameters` are keyed as in cpp/kernels/ops.def. Returns the outputs by name. */
  add<Name extends string>(opName: string, plan: NodePlan & { readonly outputs: Readonly<Record<Name, OutputPlan>> }): Record<Name, Value> {
    const { op, code } = findOp(opName);
    const name = [...this.scopes, plan.name ?? opName].join(".");
    const results = {} as Record<string, Value>;
    const views: (Value | undefined)[] = op.inputs.map((input) => {
      const value = plan.inputs[input];
      if (value?.overwrittenBy !== undefined) throw new TokenloomError("TL_INTERNAL", `${name}: ${value} was overwritten by ${value.overwrittenBy}`);
      return value;
    });
    for (const output of op.outputs) {
      const wanted = (plan.outputs as Record<string, OutputPlan | undefined>)[output];
      if (!wanted) {
        views.push(undefined);
        continue;
      }
      const value = wanted.into ? this.viewInto(name, output, wanted) : this.fresh(wanted, `${name}.${output}`);
      for (const input of Object.values(plan.inputs)) if (input && wanted.into && input === wanted.into) input.overwrittenBy = name;
      results[output] = value;
      views.push(value);
    }
    const parameters = op.parameters.map((parameter) => {
      const value = plan.parameters?.[parameter];
      if (value === undefined) throw new TokenloomError("TL_INTERNAL", `${name}: parameter '${parameter}' is missing`);
      if (typeof value !== "number" && !(value instanceof Symbolic) && !(value instanceof Scalar)) throw invalidArgument(`options.${parameter}`, "a number", value);
      return value;
    });
    this.nodes.push({ op, code, name, views, inputs: op.inputs.length, parameters, mayOverwrite: this.reuse(plan, results) });
    return results as Record<Name, Value>;
  }

  /** Gives a value that ops have written a place outside the arena: it becomes a binding of that name. */
  output(name: string, value: Value): Value {
    const bound = this.binding(name, value.type, value.dims);
    const moved = (view: Value | undefined): Value | undefined =>
      view?.storage === value.storage ? new Value(this, view.type, view.dims, bound.storage, view.strides, view.offset) : view;
    this.nodes.forEach((node, i) => (this.nodes[i] = { ...node, views: node.views.map(moved), mayOverwrite: undefined }));
    return bound;
  }

  private reuse(plan: NodePlan, results: Record<string, Value>): readonly [number, number] | undefined {
    const output = plan.reuse && results[plan.reuse[0]]?.storage, input = plan.reuse && plan.inputs[plan.reuse[1]]?.storage;
    return output?.kind === "arena" && input?.kind === "arena" ? [output.id, input.id] : undefined;
  }

  private fresh(wanted: OutputPlan, name: string): Value {
    const storage = { kind: "arena" as const, id: this.storages.length, bytes: valueBytes(wanted.type, wanted.dims), name };
    this.storages.push(storage);
    return new Value(this, wanted.type, wanted.dims, storage, denseStrides(wanted.dims));
  }

  private viewInto(name: string, output: string, wanted: OutputPlan): Value {
    const into = wanted.into!;
    if (into.type !== wanted.type || into.rank !== wanted.dims.length) {
      throw new ShapeError(name, output, `Expected ${wanted.type} of rank ${wanted.dims.length} for ${name}.${output} but received ${into}`);
    }
    return new Value(this, into.type, into.dims, into.storage, into.strides, into.offset);
  }
}
