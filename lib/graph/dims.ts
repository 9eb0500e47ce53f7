import { ShapeError } from "../errors.js";

/** A size that is known when a graph runs: `n` new tokens, `batch` sequences. `max` bounds it, so that memory can be planned. */
export class Symbolic {
  constructor(readonly name: string, readonly index: number, readonly max: number) {}
}

/** symbol · multiply + add: all that shapes of transformers need. */
export interface Affine {
  readonly symbol: Symbolic;
  readonly multiply: number;
  readonly add: number;
}

export type Dim = number | Symbolic | Affine;

/** Every dim in one form. */
export function affine(dim: Dim): { symbol: Symbolic | undefined; multiply: number; add: number } {
  if (typeof dim === "number") return { symbol: undefined, multiply: 0, add: dim };
  if (dim instanceof Symbolic) return { symbol: dim, multiply: 1, add: 0 };
  return dim;
}

/** dim + add. */
export function addDim(dim: Dim, add: number): Dim {
  const { symbol, multiply, add: own } = affine(dim);
  return symbol ? { symbol, multiply, add: own + add } : own + add;
}

/** dim · multiply / divide, which must come out whole. */
export function scaleDim(dim: Dim, multiply: number, divide: number): Dim {
  const { symbol, multiply: by, add } = affine(dim), scaled = [by, add].map((x) => (x * multiply) / divide) as [number, number];
  if (!scaled.every(Number.isInteger)) throw new ShapeError("shape", "dims", `Expected a multiple of ${divide} but received ${dimText(dim)}`);
  return symbol ? { symbol, multiply: scaled[0], add: scaled[1] } : scaled[1];
}

export function dimEquals(a: Dim, b: Dim): boolean {
  const x = affine(a), y = affine(b);
  return x.symbol === y.symbol && x.multiply === y.multiply && x.add === y.add;
}

/** The largest value a dim can take. */
export function dimMax(dim: Dim): number {
  const { symbol, multiply, add } = affine(dim);
  return (symbol?.max ?? 0) * multiply + add;
}

export function dimText(dim: Dim): string {
  const { symbol, multiply, add } = affine(dim);
  if (!symbol) return String(add);
  return `${multiply === 1 ? "" : `${multiply}·`}${symbol.name}${add === 0 ? "" : ` + ${add}`}`;
}

export function shapeText(dims: readonly Dim[]): string {
  return `[${dims.map(dimText).join(", ")}]`;
}
