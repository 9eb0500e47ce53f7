/** Plain formulas of attention and of each policy, in double precision, for tests to compare with. */
export interface HeadRows {
  readonly keys: readonly Float32Array[];
  readonly values: readonly Float32Array[];
}

const dot = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!;
  return sum;
};
export const norm = (a: ArrayLike<number>): number => Math.sqrt(dot(a, a));

/** Causal attention weights of queries (the last ones of `keys`) summed over them: one number a key. */
export function columnSums(queries: readonly Float32Array[], keys: readonly Float32Array[]): number[] {
  const sums = new Array<number>(keys.length).fill(0);
  for (const [i, query] of queries.entries()) {
    const seen = keys.length - queries.length + i + 1;
    const logits = keys.slice(0, seen).map((key) => dot(query, key) / Math.sqrt(key.length)), most = Math.max(...logits);
    const weights = logits.map((logit) => Math.exp(logit - most)), total = weights.reduce((a, b) => a + b, 0);
    weights.forEach((weight, j) => (sums[j] = sums[j]! + weight / total));
  }
  return sums;
}

export function pooled(x: readonly number[], kernel: number, kind: "avg" | "max"): number[] {
  const reach = (kernel - 1) / 2;
  return x.map((_, j) => {
    const around = x.slice(Math.max(0, j - reach), j + reach + 1);
    return kind === "max" ? Math.max(...around) : around.reduce((a, b) => a + b, 0) / kernel;
  });
}

export function keyDiff(keys: readonly Float32Array[]): number[] {
  const mean = Array.from(keys[0]!, (_, d) => keys.reduce((sum, key) => sum + key[d]! / Math.max(norm(key), 1e-12), 0) / keys.length);
  return keys.map((key) => -dot(key, mean) / (Math.max(norm(key), 1e-8) * Math.max(norm(mean), 1e-8)));
}

/** Which of `tokens` stay, by sorting: the protected ones, then the best; equal scores by lowest index. */
export function naiveKeep(scores: readonly number[] | undefined, tokens: number, budget: number, first = 0, last = 0): number[] {
  const all = Math.min(budget, tokens), beginning = Math.min(first, all), end = Math.min(last, all - beginning);
  const kept = new Set<number>();
  for (let j = 0; j < beginning; j++) kept.add(j);
  for (let j = tokens - end; j < tokens; j++) kept.add(j);
  const rest = Array.from({ length: tokens }, (_, j) => j).filter((j) => !kept.has(j));
  rest.sort((a, b) => (scores ? scores[b]! - scores[a]! || a - b : b - a));
  for (const j of rest.slice(0, all - kept.size)) kept.add(j);
  return [...kept].sort((a, b) => a - b);
}

/** AdaKV's division of heads · budget tokens, by sorting. */
export function naiveAcross(scores: readonly (readonly number[])[], budget: number, safeguard: number): number[][] {
  const own = safeguard > 0 ? Math.max(1, Math.trunc(budget * safeguard)) : 0;
  const kept = scores.map((row) => new Set(naiveKeep(row, row.length, own)));
  let left = scores.length * budget - kept.reduce((sum, set) => sum + set.size, 0);
  const rest = scores.flatMap((row, head) => row.map((score, j) => ({ score, head, j }))).filter(({ head, j }) => !kept[head]!.has(j));
  rest.sort((a, b) => b.score - a.score || a.head - b.head || a.j - b.j);
  for (const { head, j } of rest) if (left-- > 0) kept[head]!.add(j);
  return kept.map((set) => [...set].sort((a, b) => a - b));
}

/** x rotated at a position, pairs (i, i + dim/2). */
export function rotated(x: ArrayLike<number>, position: number, theta = 10000): number[] {
  const half = x.length / 2, out = Array.from(x);
  for (let i = 0; i < half; i++) {
    const angle = position * theta ** (-i / half), [c, s] = [Math.cos(angle), Math.sin(angle)];
    out[i] = x[i]! * c - x[i + half]! * s;
    out[i + half] = x[i + half]! * c + x[i]! * s;
  }
  return out;
}

/** ExpectedAttention's softmax of one query head's queries (before RoPE) over the keys behind the sinks. */
export function expectedWeights(queries: readonly Float32Array[], keys: readonly Float32Array[], { sinks, future, covariance }: { sinks: number; future: number; covariance: boolean }): number[] {
  const counted = queries.slice(sinks), dim = keys[0]!.length, tokens = keys.length;
  const unit = (d: number): number[] => Array.from({ length: dim }, (_, i) => (i === d ? 1 : 0));
  // R's columns: the mean of the rotated unit vectors.
  const columns = Array.from({ length: dim }, (_, d) => {
    const sum = new Array<number>(dim).fill(0);
    for (let f = 0; f < future; f++) rotated(unit(d), tokens + f).forEach((value, i) => (sum[i] = sum[i]! + value / future));
    return sum;
  });
  const rotate = (x: readonly number[]): number[] => x.map((_, i) => x.reduce((sum, value, d) => sum + columns[d]![i]! * value, 0));
  const plain = Array.from({ length: dim }, (_, d) => counted.reduce((sum, query) => sum + query[d]!, 0) / counted.length);
  const mean = rotate(plain), deviations = counted.map((query) => rotate(Array.from(query, (value, d) => value - plain[d]!)));
  const logits = keys.slice(sinks).map((key) => {
    const spread = deviations.reduce((sum, deviation) => sum + dot(deviation, key) ** 2, 0) / counted.length;
    return dot(mean, key) / Math.sqrt(dim) + (covariance ? spread / (2 * dim) : 0);
  });
  const most = Math.max(...logits), weights = logits.map((logit) => Math.exp(logit - most)), total = weights.reduce((a, b) => a + b, 0);
  return [...new Array<number>(sinks).fill(0), ...weights.map((weight) => weight / total)];
}
