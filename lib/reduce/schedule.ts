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
