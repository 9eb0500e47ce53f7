import { invalidArgument, ShapeError } from "../errors.js";
import { dimEquals, dimText, type Dim } from "../graph/dims.js";
import { Value, type ValueType } from "../graph/value.js";

/** An optional operand reaches an op as it was given: here it shows whether it is one. */
function expectValue(argument: string, value: unknown): asserts value is Value {
  if (!(value instanceof Value)) throw invalidArgument(argument, "a tensor", value);
}

/** Throws a ShapeError that names op, argument, dimension, expected and got. */
export function expectDim(op: string, argument: string, value: Value, axis: number, expected: Dim): void {
  expectValue(argument, value);
  const got = value.dims.at(axis);
  if (got === undefined || !dimEquals(got, expected)) {
    throw new ShapeError(op, argument, `${op}: Expected dimension ${axis} of ${argument} to be ${dimText(expected)} but received ${value}`);
  }
}

export function expectRank(op: string, argument: string, value: Value, rank: number): void {
  expectValue(argument, value);
  if (value.rank !== rank) throw new ShapeError(op, argument, `${op}: Expected rank ${rank} for ${argument} but received ${value}`);
}

export function expectType(op: string, argument: string, value: Value, ...types: ValueType[]): void {
  expectValue(argument, value);
  if (!types.includes(value.type)) throw new ShapeError(op, argument, `${op}: Expected ${types.join(" or ")} for ${argument} but received ${value}`);
}

/** A dim that has to be known when the graph is built, such as a width. */
export function fixedDim(op: string, argument: string, value: Value, axis: number): number {
  expectValue(argument, value);
  const dim = value.dims.at(axis);
  if (typeof dim !== "number") throw new ShapeError(op, argument, `${op}: Expected dimension ${axis} of ${argument} to be fixed but received ${value}`);
  return dim;
}
