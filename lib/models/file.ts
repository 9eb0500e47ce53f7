/** How the numbers of a stored tensor are encoded: plain element types, and GGUF's block types. */
export type StorageType =
  | "f32" | "f16" | "bf16" | "i32"
  | "q4_0" | "q4_1" | "q5_0" | "q5_1" | "q8_0"
  | "q2_k" | "q3_k" | "q4_k" | "q5_k" | "q6_k" | "iq4_nl";

/** Where one tensor lies. `shape` is outermost first: a matmul weight is `[rows (outputs), columns (inputs)]`. */
export interface TensorEntry {
  readonly name: string;
  readonly type: StorageType;
  readonly shape: readonly number[];
  /** Path of the file that holds it: a model may be split over several. */
  readonly file: string;
  /** Byte offset in `file`, checked together with `byteLength` against the file's size. */
  readonly offset: number;
  readonly byteLength: number;
}

/** A checked header: nothing of the weights has been read yet. */
export interface ModelFile {
  readonly format: "gguf" | "safetensors";
  readonly path: string;
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  /** GGUF metadata, or the parsed `config.json` beside safetensors files; read through the typed accessors only. */
  readonly metadata: Metadata;
}

/** Typed access to metadata of unknown origin: a wrong type is a ModelFormatError that names the key. */
export interface Metadata {
  has(key: string): boolean;
  keys(): Iterable<string>;
  /** The raw value: string, number, boolean, bigint, array or (config.json) object; undefined where absent. */
  raw(key: string): unknown;
  string(key: string, fallback?: string): string;
  /** A finite number. */
  number(key: string, fallback?: number): number;
  /** An integer in 0 … 2^31 − 1. */
  integer(key: string, fallback?: number): number;
  boolean(key: string, fallback?: boolean): boolean;
  strings(key: string): readonly string[] | undefined;
  numbers(key: string): readonly number[] | Float32Array | Int32Array | undefined;
}
