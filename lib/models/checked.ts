/** Sums and products of sizes that a file states: `undefined` as soon as a value is not an integer in 0 … 2^53 − 1. */
export function checkedProduct(...factors: readonly number[]): number | undefined {
  let product = 1;
  for (const factor of factors) {
    if (!isSize(factor)) return undefined;
    product *= factor;
    // The double nearest to a product of 2^53 or more is itself not a safe integer, so that this check is exact.
    if (!Number.isSafeInteger(product)) return undefined;
  }
  return product;
}

export function checkedSum(...terms: readonly number[]): number | undefined {
  let sum = 0;
  for (const term of terms) {
    if (!isSize(term)) return undefined;
    sum += term;
    if (!Number.isSafeInteger(sum)) return undefined;
  }
  return sum;
}

/** `value` rounded up to a multiple of `alignment`. */
export function checkedAlign(value: number, alignment: number): number | undefined {
  if (!isSize(value) || !isSize(alignment) || alignment === 0) return undefined;
  const remainder = value % alignment;
  return remainder === 0 ? value : checkedSum(value, alignment - remainder);
}

function isSize(value: number): boolean {
  return Number.isSafeInteger(value) && value >= 0;
}
