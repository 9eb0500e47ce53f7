import { invalidArgument } from "./errors.js";

/** An option that is a number (a `whole` one) within its range, or its default. */
export function numberOption(name: string, value: unknown, fallback: number, low: number, high: number, whole = false): number {
  if (value === undefined) return fallback;
  if (typeof value !== "number" || !(value >= low && value <= high) || (whole && !Number.isInteger(value))) {
    throw invalidArgument(name, `${whole ? "an integer" : "a number"} from ${low} to ${high === Number.MAX_SAFE_INTEGER ? "2^53 − 1" : high}`, value);
  }
  return value;
}

/** An option that is true or false, or its default. */
export function flagOption(name: string, value: unknown, fallback: boolean): boolean {
  if (value !== undefined && typeof value !== "boolean") throw invalidArgument(name, "true or false", value);
  return value ?? fallback;
}

/** Options of a call, as the one object they have to be. */
export function checkOptionsObject<T>(options: T, expected = "an object"): T {
  if (typeof options !== "object" || options === null) throw invalidArgument("options", expected, options);
  for (const [key, value] of Object.entries(options)) if (typeof value === "symbol" || typeof value === "bigint") throw invalidArgument(`options.${key}`, "no such value", value);
  return options;
}

/** An array of one type of numbers. */
export function checkArray<T extends Int32Array | Float32Array>(name: string, value: unknown, type: { new (length: number): T; readonly name: string }): T {
  if (!(value instanceof type)) throw invalidArgument(name, `${type.name === "Int32Array" ? "an" : "a"} ${type.name}`, value);
  return value;
}

export function checkSignal(name: string, signal: unknown): AbortSignal | undefined {
  if (signal !== undefined && !(signal instanceof AbortSignal)) throw invalidArgument(name, "an AbortSignal", signal);
  return signal;
}
