import { ShapeError } from "../errors.js";
import type { NativeHandle } from "../native.js";
import { dimMax, scaleDim, shapeText, type Dim } from "./dims.js";
import type { Graph } from "./graph.js";

/** Element types of values: `q8` rows are activations quantised for integer matmuls, `packed` a weight, `cache` a KV cache. */
export type ValueType = "f32" | "f16" | "bf16" | "i8" | "u8" | "i32" | "i64" | "q8" | "packed" | "cache";

export const elementBytes: Readonly<Record<ValueType, number>> = { f32: 4, f16: 2, bf16: 2, i8: 1, u8: 1, i32: 4, i64: 8, q8: 0, packed: 0, cache: 0 };

/** What a value's bytes are: planned in the arena, a constant of the program, or bound at each run. */
export type Storage =
  | { readonly kind: "arena"; readonly id: number; readonly bytes: number; name: string }
  | { readonly kind: "constant"; readonly index: number; readonly handle: NativeHandle; name: string }
  | { readonly kind: "binding"; readonly index: number; name: string };

/** Bytes of one row of `q8`: 32 signed bytes, a scale and three sums a block, padded to 64 (cpp/kernels/quantized_rows.h). */
function quantizedRowBytes(columns: number): number {
  return Math.ceil((Math.ceil(columns / 32) * 44) / 64) * 64;
}

export function valueBytes(type: ValueType, dims: readonly Dim[]): number {
  const sizes = dims.map(dimMax);
  const count = (of: number[]): number => of.reduce((product, size) => product * size, 1);
  if (type === "q8") return count(sizes.slice(0, -1)) * quantizedRowBytes(sizes.at(-1) ?? 1);
  return count(sizes) * elementBytes[type];
}

/** One tensor of a graph: a type, symbolic dims (outermost first), and where its elements lie. */
export class Value {
  /** Set once an op has overwritten the memory: later use is a mistake of the graph's author. */
  overwrittenBy: string | undefined;

  constructor(
    readonly graph: Graph,
    readonly type: ValueType,
    readonly dims: readonly Dim[],
    readonly storage: Storage,
    /** Elements from one index of a dim to the next. */
    readonly strides: readonly number[],
    /** First element, counted from the storage's start. */
    readonly offset = 0,
  ) {}

  get rank(): number {
    return this.dims.length;
  }

  get name(): string {
    return this.storage.name;
  }

  /** For error messages: `attention.query f32 [n, 9, 64]`. */
  toString(): string {
    return `${this.name} ${this.type} ${shapeText(this.dims)}`;
  }

  /** Elements begin … begin + count of the last dim, without copying. */
  columns(begin: number, count: number): Value {
    const last = this.dims.at(-1);
    if (typeof last !== "number" || begin < 0 || count < 0 || begin + count > last) {
      throw new ShapeError("columns", this.name, `Expected columns ${begin} to ${begin + count} to lie within ${this}`);
    }
    return new Value(this.graph, this.type, [...this.dims.slice(0, -1), count], this.storage, this.strides, this.offset + begin);
  }

  /** The same elements with the dims in another order: axes[i] is the dim that comes i-th. */
  permute(...axes: number[]): Value {
    return new Value(this.graph, this.type, axes.map((axis) => this.dims[axis]!), this.storage, axes.map((axis) => this.strides[axis]!), this.offset);
  }

  /** The last dim, `parts · rest`, seen as two. */
  split(parts: number): Value {
    const last = this.dims.at(-1);
    if (typeof last !== "number" || last % parts !== 0) throw new ShapeError("split", this.name, `Expected the last dim of ${this} to be a multiple of ${parts}`);
    const inner = last / parts;
    return new Value(this.graph, this.type, [...this.dims.slice(0, -1), parts, inner], this.storage, [...this.strides.slice(0, -1), inner, 1], this.offset);
  }

  /** Each row of a dense matrix seen as `parts` rows. */
  splitRows(parts: number): Value {
    const [rows, width] = this.dims;
    if (this.rank !== 2 || typeof width !== "number" || width % parts !== 0 || this.strides[0] !== width) throw new ShapeError("splitRows", this.name, `Expected a dense matrix whose rows are a multiple of ${parts} but received ${this}`);
    return new Value(this.graph, this.type, [scaleDim(rows!, parts, 1), width / parts], this.storage, [width / parts, 1], this.offset);
  }

  /** Every `count` rows of a dense matrix seen as one. */
  joinRows(count: number): Value {
    const [rows, width] = this.dims;
    if (this.rank !== 2 || typeof width !== "number" || this.strides[0] !== width) throw new ShapeError("joinRows", this.name, `Expected a dense matrix but received ${this}`);
    return new Value(this.graph, this.type, [scaleDim(rows!, 1, count), width * count], this.storage, [width * count, 1], this.offset);
  }

  /** The last two dims seen as one; they must lie densely. */
  join(): Value {
    const [outer, inner] = this.dims.slice(-2), stride = this.strides.at(-2);
    if (typeof outer !== "number" || typeof inner !== "number" || stride !== inner) throw new ShapeError("join", this.name, `Expected the last two dims of ${this} to be dense`);
    return new Value(this.graph, this.type, [...this.dims.slice(0, -2), outer * inner], this.storage, [...this.strides.slice(0, -2), 1], this.offset);
  }
}

export function denseStrides(dims: readonly Dim[]): number[] {
  const strides: number[] = new Array<number>(dims.length);
  let stride = 1;
  for (let i = dims.length - 1; i >= 0; i--) {
    strides[i] = stride;
    // Only the outermost dim may be symbolic, so the product of the inner ones is a number.
    const dim = dims[i]!;
    if (i > 0 && typeof dim !== "number") throw new ShapeError("shape", "dims", `Expected only the first dim to be symbolic in ${shapeText(dims)}`);
    if (i > 0) stride *= dim as number;
  }
  return strides;
}
