import { checkOptionsObject, numberOption } from "../check.js";
import { invalidArgument } from "../errors.js";

/** An integer option within its range, or its default. */
export function integer(name: string, value: unknown, fallback: number, low: number, high: number): number {
  return numberOption(name, value, fallback, low, high, true);
}

export function optionsObject<T extends object>(options: T | undefined): Partial<T> {
  return options === undefined ? {} : checkOptionsObject(options);
}

/** Token ids as a user gives them. */
export function tokenIds(name: string, tokens: unknown): readonly number[] | Int32Array {
  if (!Array.isArray(tokens) && !(tokens instanceof Int32Array)) throw invalidArgument(name, "an array of token ids", tokens);
  tokens.forEach((id: unknown, i: number) => {
    if (!Number.isInteger(id) || (id as number) < 0) throw invalidArgument(`${name}[${i}]`, "a token id", id);
  });
  return tokens as readonly number[] | Int32Array;
}
