import { checkOptionsObject } from "../check.js";
import { invalidArgument } from "../errors.js";

/**
 * A number for each layer of a model: the same for all, one a layer, or a course from the first layer to the last. Counts of
 * tokens are truncated to integers, shares of tokens are not.
 */
export type Schedule = number | readonly number[] | {
  readonly kind: "constant" | "linear" | "cosine";
  /** In the first layer. */
  readonly from: number;
  /** In the last layer; `from` by default. A constant has none. */
  readonly to?: number;
};

export interface ScheduleRange {
  readonly low: number;
  readonly high: number;
  readonly whole: boolean;
}

function checkValue(name: string, value: unknown, { low, high, whole }: ScheduleRange): void {
  if (typeof value !== "number" || !(value >= low && value <= high) || (whole && !Number.isSafeInteger(value))) {
    throw invalidArgument(name, `${whole ? "an integer" : "a number"} ${Number.isFinite(high) ? `from ${low} to ${high}` : `of at least ${low}`}`, value);
  }
}

/** Throws an ArgumentError that names `name` where the schedule is none. */
export function checkSchedule(name: string, schedule: unknown, range: ScheduleRange): asserts schedule is Schedule {
  if (Array.isArray(schedule)) {
    if (schedule.length === 0) throw invalidArgument(name, "a number for each layer", schedule);
    schedule.forEach((value, layer) => checkValue(`${name}[${layer}]`, value, range));
    return;
  }
  if (typeof schedule !== "object" || schedule === null) return checkValue(name, schedule, range);
  const { kind, from, to } = schedule as { kind?: unknown; from?: unknown; to?: unknown };
  if (kind !== "constant" && kind !== "linear" && kind !== "cosine") throw invalidArgument(`${name}.kind`, "'constant', 'linear' or 'cosine'", kind);
  checkValue(`${name}.from`, from, range);
  if (to === undefined) return;
  if (kind === "constant") throw invalidArgument(`${name}.to`, "nothing beside kind 'constant'", to);
  checkValue(`${name}.to`, to, range);
}

/** What a schedule gives one of `layers` layers. Throws an ArgumentError where it was written for another number of layers. */
export function scheduled(name: string, schedule: Schedule, layer: number, layers: number, whole: boolean): number {
  if (typeof schedule === "number") return schedule;
  if ("kind" in schedule) {
    const { kind, from, to = from } = schedule, at = layers === 1 ? 0 : layer / (layers - 1);
    const value = kind === "constant" ? from : from + (to - from) * (kind === "linear" ? at : (1 - Math.cos(Math.PI * at)) / 2);
    // A course of integers may land a rounding error below one: 13 must not become 12.
    return whole ? Math.floor(value + 1e-9) : value;
  }
  if (schedule.length !== layers) throw invalidArgument(name, `${layers} numbers, one for each layer`, schedule);
  return schedule[layer]!;
}

/** Layers in which something happens, from 0; undefined: all. */
export function checkLayers(name: string, layers: unknown): asserts layers is readonly number[] | undefined {
  if (layers === undefined) return;
  if (!Array.isArray(layers) || layers.length === 0 || !layers.every((layer) => Number.isSafeInteger(layer) && layer >= 0)) throw invalidArgument(name, "numbers of layers, from 0", layers);
}

/** How many of a sequence's tokens stay: a count, or a share of those there are. */
export interface KeepOptions {
  /** Tokens that stay of each sequence. Either this or keepRate. */
  readonly keep?: Schedule;
  /** The share that stays, above 0 and at most 1. */
  readonly keepRate?: Schedule;
  /** Layers in which tokens go, from 0; all by default. */
  readonly layers?: readonly number[];
}

export interface Keeping {
  /** What stays of `tokens` tokens, of which `first` stay whatever happens and come on top. */
  count(tokens: number, first: number, at: { readonly layer: number; readonly layers: number }): number;
  /** The same for countTokens(). */
  plan(first: number, at: { readonly layer: number; readonly layers: number }): { readonly rate?: number; readonly add?: number; readonly first: number; readonly rounding: "truncate" | "even" | "up" };
  readonly key: string;
}

/** The nearest integer, halves to the even one. */
export function roundEven(x: number): number {
  const whole = Math.floor(x), part = x - whole;
  return whole + (part > 0.5 || (part === 0.5 && whole % 2 !== 0) ? 1 : 0);
}

const rounders = { truncate: Math.trunc, up: Math.ceil, even: roundEven };

/** Reads keep or keepRate; shares are rounded as the paper does. */
export function keeping(options: KeepOptions, rounding: "truncate" | "even" | "up"): Keeping {
  checkOptionsObject(options, "an object with keep or keepRate");
  const { keep, keepRate, layers: only } = options;
  if ((keep === undefined) === (keepRate === undefined)) throw invalidArgument("options", "either keep or keepRate", options);
  if (keep !== undefined) checkSchedule("options.keep", keep, { low: 0, high: Infinity, whole: true });
  if (keepRate !== undefined) checkSchedule("options.keepRate", keepRate, { low: 0, high: 1, whole: false });
  checkLayers("options.layers", only);
  const value = (layer: number, layers: number): number => (keep !== undefined ? scheduled("options.keep", keep, layer, layers, true) : scheduled("options.keepRate", keepRate!, layer, layers, false));
  return {
    count(tokens, first, { layer, layers }) {
      if (only && !only.includes(layer)) return tokens;
      const others = Math.max(0, tokens - first), wanted = value(layer, layers);
      return Math.min(tokens, first) + (keep !== undefined ? Math.min(others, wanted) : rounders[rounding](wanted * others));
    },
    plan(first, { layer, layers }) {
      return keep !== undefined ? { add: value(layer, layers), first, rounding } : { rate: value(layer, layers), first, rounding };
    },
    key: JSON.stringify({ keep, keepRate, only }),
  };
}
