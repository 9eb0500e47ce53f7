import { ModelFormatError, TokenloomError } from "../errors.js";
import { callNative, dtypeCode, native, storageCode, type NativeHandle } from "../native.js";
import { schedule } from "../schedule.js";
import type { WeightPart } from "./config.js";
import type { ModelFile, StorageType, TensorEntry } from "./file.js";

/** A matmul weight in packed form. */
export interface PackedWeight {
  readonly handle: NativeHandle;
  readonly rows: number;
  readonly columns: number;
  readonly storage: StorageType;
  /** Whether activations have to be quantised for it (integer kernels), or stay f32. */
  readonly quantized: boolean;
  readonly bytes: number;
}

/** A vector as a constant of programs. */
export interface Vector {
  readonly handle: NativeHandle;
  readonly length: number;
}

export interface LoadOptions {
  readonly signal?: AbortSignal | undefined;
  readonly threads?: number | undefined;
  /** Bytes of the file read so far, of all that will be read. */
  readonly onBytes?: (loaded: number) => void;
}

const floatTypes: ReadonlySet<StorageType> = new Set(["f32", "f16", "bf16"]);

/** Reads and owns a model's weights: each is packed once and shared by all graphs. */
export class WeightLoader {
  readonly handles: NativeHandle[] = [];
  bytes = 0;
  private loaded = 0;
  private readonly packed = new Map<string, Promise<PackedWeight>>();

  readonly path: string;
  private file: ModelFile | undefined;

  constructor(file: ModelFile, private readonly options: LoadOptions) {
    this.file = file;
    this.path = file.path;
  }

  private entry(name: string): TensorEntry {
    if (!this.file) throw new TokenloomError("TL_INTERNAL", "This loader has finished");
    const entry = this.file.tensors.get(name);
    if (!entry) throw new ModelFormatError("The model lacks a tensor that its architecture needs", { tensor: name, file: this.path });
    return entry;
  }

  storageOf(part: WeightPart): StorageType {
    return this.entry(part.tensor).type;
  }

  wholeTensor(name: string): WeightPart {
    return { tensor: name, rowBegin: 0, rowEnd: this.entry(name).shape[0]! };
  }

  /** Rows of the parts, one after another, as one weight. All parts are of one storage type. The same parts load once. */
  weight(parts: readonly WeightPart[]): Promise<PackedWeight> {
    const key = parts.map((part) => `${part.tensor}[${part.rowBegin}:${part.rowEnd}]`).join("+");
    let loading = this.packed.get(key);
    if (!loading) this.packed.set(key, (loading = this.load(parts)));
    return loading;
  }

  private async load(parts: readonly WeightPart[]): Promise<PackedWeight> {
    const stored = parts.map((part) => {
      const entry = this.entry(part.tensor);
      const rowBytes = entry.byteLength / entry.shape[0]!;
      return { path: entry.file, offset: entry.offset + part.rowBegin * rowBytes, rows: part.rowEnd - part.rowBegin, storage: this.code(entry), rowBytes };
    });
    const first = this.entry(parts[0]!.tensor), columns = first.shape[1]!;
    const { handle, bytes } = await this.read(first, (threads, cancel) => native.loadWeight(stored, columns, threads, cancel));
    this.handles.push(handle);
    this.bytes += bytes;
    this.report(stored.reduce((sum, part) => sum + part.rows * part.rowBytes, 0));
    const rows = stored.reduce((sum, part) => sum + part.rows, 0);
    return { handle, rows, columns, storage: first.type, quantized: !floatTypes.has(first.type), bytes };
  }

  /** A tensor's numbers in f32. */
  async numbers(name: string): Promise<Float32Array> {
    const entry = this.entry(name), length = entry.shape.reduce((product, dim) => product * dim, 1);
    const values = await schedule(() => native.loadVector({ path: entry.file, offset: entry.offset, rows: 1, storage: this.code(entry) }, length), this.options);
    this.report(entry.byteLength);
    return values;
  }

  /** Vectors, one after another, as one f32 constant. */
  async vector(...names: readonly string[]): Promise<Vector> {
    const parts: Float32Array[] = [];
    for (const name of names) parts.push(await this.numbers(name));
    const joined = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      joined.set(part, at);
      at += part.length;
    }
    const handle = callNative(() => native.createConstant(joined, dtypeCode.f32));
    this.handles.push(handle);
    this.bytes += joined.byteLength;
    return { handle, length: joined.length };
  }

  /** Runs native reading; what it says of the file is told with the tensor's name. */
  private async read<T>(entry: TensorEntry, work: (threads: number, cancel: Int32Array) => Promise<T>): Promise<T> {
    try {
      return await schedule(work, this.options);
    } catch (error) {
      if (error instanceof ModelFormatError) throw new ModelFormatError(error.message, { tensor: entry.name, offset: entry.offset, file: entry.file });
      throw error;
    }
  }

  private code(entry: TensorEntry): number {
    if (entry.type === "i32") throw new ModelFormatError("Expected numbers of a floating or quantised type", { tensor: entry.name, file: entry.file });
    return storageCode[entry.type];
  }

  private report(bytes: number): void {
    this.loaded += bytes;
    this.options.onBytes?.(this.loaded);
  }

  /** Lets go of what only loading needs: a file's metadata can be megabytes. */
  finish(): void {
    this.packed.clear();
    this.file = undefined;
  }

  release(): void {
    for (const handle of this.handles.splice(0)) native.release(handle);
    this.finish();
  }
}
