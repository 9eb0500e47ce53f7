import { ModelFormatError } from "../errors.js";
import type { WeightPart } from "./config.js";
import type { ModelFile, TensorEntry } from "./file.js";

/** A file's tensors, each of which is asked for by its expected shape. */
export class Tensors {
  readonly #file: ModelFile;
  readonly #used = new Set<string>();

  constructor(file: ModelFile) {
    this.#file = file;
  }

  has(name: string): boolean {
    return this.#file.tensors.has(name);
  }

  /** The shape that a tensor has, for sizes that the configuration leaves open. */
  shape(tensor: string): readonly number[] {
    const entry = this.#file.tensors.get(tensor);
    if (entry === undefined) throw this.#error(tensor, "a tensor", "none of this name");
    return entry.shape;
  }

  /** A matmul weight of any storage type but integers. */
  matrix(tensor: string, rows: number, columns: number): WeightPart {
    const entry = this.#find(tensor, [rows, columns]);
    if (entry.type === "i32") throw this.#error(tensor, `a floating-point or block type of shape [${rows}, ${columns}]`, "i32");
    return { tensor, rowBegin: 0, rowEnd: rows };
  }

  /** Consecutive row ranges of one fused matmul weight. */
  rows(tensor: string, counts: readonly number[], columns: number): readonly WeightPart[] {
    this.matrix(tensor, counts.reduce((sum, count) => sum + count, 0), columns);
    let rowBegin = 0;
    return counts.map((count) => ({ tensor, rowBegin, rowEnd: (rowBegin += count) }));
  }

  /** A norm's weight or a bias: plain floats. */
  vector(tensor: string, length: number): string {
    return this.floats(tensor, [length]);
  }

  /** Plain floats of any shape. */
  floats(tensor: string, shape: readonly number[]): string {
    const entry = this.#find(tensor, shape);
    if (entry.type !== "f32" && entry.type !== "f16" && entry.type !== "bf16") throw this.#error(tensor, `f32, f16 or bf16 of shape [${shape.join(", ")}]`, entry.type);
    return tensor;
  }

  /** A tensor that nobody asked for (a bias, a norm, an expert) would be left out of the arithmetic in silence. */
  refuseUnused(known: (name: string) => boolean): void {
    for (const name of this.#file.tensors.keys()) {
      if (!this.#used.has(name) && !known(name)) {
        throw new ModelFormatError("Expected only tensors that this architecture uses but found another", { tensor: name, file: this.#file.path });
      }
    }
  }

  #find(tensor: string, shape: readonly number[]): TensorEntry {
    const entry = this.#file.tensors.get(tensor);
    if (entry === undefined) throw this.#error(tensor, `a tensor of shape [${shape.join(", ")}]`, "none of this name");
    if (entry.shape.length !== shape.length || !entry.shape.every((size, axis) => size === shape[axis])) {
      throw this.#error(tensor, `shape [${shape.join(", ")}]`, `[${entry.shape.join(", ")}]`);
    }
    this.#used.add(tensor);
    return entry;
  }

  #error(tensor: string, expected: string, found: string): ModelFormatError {
    return new ModelFormatError(`Expected ${expected} but found ${found}`, { tensor, file: this.#file.path });
  }
}
