import fc from "../support/property.js";

export type Rows = number[][];

/** Formulas as the papers write them, in double, one loop each: nothing shared with the kernels. */
export const norm = (a: readonly number[]): number => Math.sqrt(a.reduce((sum, x) => sum + x * x, 0));
export function cosine(a: readonly number[], b: readonly number[]): number {
  const length = norm(a) * norm(b);
  return length === 0 ? 0 : a.reduce((sum, x, i) => sum + x * b[i]!, 0) / length;
}
export const squared = (a: readonly number[], b: readonly number[]): number => a.reduce((sum, x, i) => sum + (x - b[i]!) ** 2, 0);

/** Indices by falling value; equal ones in order. */
export const falling = (values: readonly number[]): number[] => values.map((_, i) => i).sort((i, j) => values[j]! - values[i]! || i - j);
export const firstOf = (values: readonly number[], better: (a: number, b: number) => boolean): number => values.reduce((best, value, i) => (better(value, values[best]!) ? i : best), 0);

/** ToMe's map (arXiv 2210.09461). */
export function toMeMap(metric: Rows, r: number, classToken: boolean, distillToken: boolean): number[] {
  const a = metric.map((_, i) => i).filter((i) => i % 2 === 0), b = metric.map((_, i) => i).filter((i) => i % 2 === 1);
  const merges = Math.max(0, Math.min(r, Math.floor((metric.length - Number(classToken) - Number(distillToken)) / 2)));
  const scores = a.map((i, row) => b.map((j, column) => ((classToken && row === 0) || (distillToken && column === 0) ? -Infinity : cosine(metric[i]!, metric[j]!))));
  const partner = scores.map((row) => firstOf(row, (x, y) => x > y)), order = falling(scores.map((row, i) => row[partner[i]!] ?? -Infinity));
  const merged = new Set(order.slice(0, merges)), kept = a.map((_, row) => row).filter((row) => !merged.has(row));
  const rows = distillToken ? [...kept.slice(0, 1).map((row) => a[row]!), ...b.slice(0, 1), ...kept.slice(1).map((row) => a[row]!), ...b.slice(1)] : [...kept.map((row) => a[row]!), ...b];
  const place = new Map(rows.map((token, row) => [token, row]));
  return metric.map((_, token) => (token % 2 === 0 && merged.has(token / 2) ? place.get(b[partner[token / 2]!]!)! : place.get(token)!));
}

/** Means of rows by their places, weighted. */
export function merged(x: Rows, map: readonly number[], weights: readonly number[], rows: number): Rows {
  return Array.from({ length: rows }, (_, row) => {
    const members = map.flatMap((place, i) => (place === row ? [i] : [])), total = members.reduce((sum, i) => sum + weights[i]!, 0);
    return x[0]!.map((_, column) => members.reduce((sum, i) => sum + (total === 0 ? 1 / members.length : weights[i]! / total) * x[i]![column]!, 0));
  });
}

/** Greedy choice of far rows by the plain method: every distance anew. `first` undefined: the one whose nearest other is farthest. */
export function farthest(x: Rows, keep: number, distance: (a: number[], b: number[]) => number, first: number | undefined, sum: boolean): number[] {
  const all = x.map((a, i) => x.map((b, j) => (i === j ? 0 : distance(a, b))));
  const alone = x.map((_, i) => Math.min(Infinity, ...x.flatMap((_, j) => (i === j ? [] : [all[i]![j]!]))));
  const order = [first ?? firstOf(alone, (a, b) => a > b)];
  while (order.length < keep) {
    const far = x.map((_, i) => (order.includes(i) ? -Infinity : sum ? order.reduce((total, j) => total + all[i]![j]!, 0) : Math.min(...order.map((j) => all[i]![j]!))));
    order.push(firstOf(far, (a, b) => a > b));
  }
  return order.slice(0, keep);
}

/** Rows of norm 2 or 0 with few elements: products, norms and sums are exact in f32, so ties are true ties. */
export const exactRows = (most: number, width = 8): fc.Arbitrary<Rows> => {
  const row = fc.tuple(fc.shuffledSubarray(Array.from({ length: width }, (_, i) => i), { minLength: 4, maxLength: 4 }), fc.tuple(...[0, 1, 2, 3].map(() => fc.boolean()))).map(([places, signs]) => {
    const made = new Array<number>(width).fill(0);
    places.forEach((place, i) => (made[place] = signs[i] ? 1 : -1));
    return made;
  });
  return fc.array(fc.oneof({ weight: 8, arbitrary: row }, { weight: 1, arbitrary: fc.constant(new Array<number>(width).fill(0)) }), { minLength: 1, maxLength: most });
};

/** Numbers that repeat for a seed, −1 … 1. */
export function noise(rows: number, width: number, seed: number): Rows {
  let state = (seed * 2654435761 + 12345) >>> 0;
  const next = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.fround(state / 2 ** 31 - 1);
  };
  return Array.from({ length: rows }, () => Array.from({ length: width }, next));
}

export const flat = (...batch: Rows[]): Float32Array => Float32Array.from(batch.flat(2));
export function worst(got: ArrayLike<number>, want: ArrayLike<number>): number {
  let most = got.length === want.length ? 0 : Infinity;
  for (let i = 0; i < want.length; i++) most = Math.max(most, Math.abs(got[i]! - want[i]!) / (1 + Math.abs(want[i]!)));
  return most;
}
