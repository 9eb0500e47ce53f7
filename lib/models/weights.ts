import { ModelFormatError, TokenloomError } from "../errors.js";
import { callNative, dtypeCode, isFailure, native, storageCode, type NativeHandle, type StoredVector, type StoredWeight } from "../native.js";
import { schedule, threadCount } from "../schedule.js";
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

/** How pack() keeps weights: int8 in blocks of 32 columns with a scale each. Arithmetic is in f32, with int8 in integers. */
export type WeightType = "f32" | "bf16" | "int8";

const packedStorage = { f32: "f32", bf16: "bf16", int8: "q8_0" } as const;

export interface LoadOptions {
  readonly signal?: AbortSignal | undefined;
  readonly threads?: number | undefined;
  /** Of pack(); "f32". */
  readonly weightType?: WeightType | undefined;
  /** Bytes of the file read so far, of all that will be read. */
  readonly onBytes?: (loaded: number) => void;
}

/** Something that waits to be read, and what to do with the answer. */
interface Request<Stored, Answer> {
  readonly entry: TensorEntry;
  readonly stored: Stored;
  /** In the file. */
  readonly bytes: number;
  readonly resolve: (answer: Answer) => void;
  readonly reject: (error: unknown) => void;
}

const floatTypes: ReadonlySet<StorageType> = new Set(["f32", "f16", "bf16"]);
/** Bytes of the file that one native call reads: some milliseconds of work, so that few calls wait for the event loop. */
const callBytes = 4 << 20;

/**
 * Reads and owns a model's weights: each is packed once and shared by all graphs. What is asked for in one go is read in
 * few native calls, in that order, vectors first. After a failure nothing more is read.
 */
export class WeightLoader {
  readonly handles: NativeHandle[] = [];
  readonly path: string;
  bytes = 0;
  /** While true, one of the machine's cores is left to the event loop, where other parts of the model are being made. */
  leaveCore = false;
  private loaded = 0;
  private file: ModelFile | undefined;
  /** Bytes that the garbage collector was told of and that have not come yet. */
  private announced: number;
  private readonly packed = new Map<string, Promise<PackedWeight>>();
  private readonly weights: Request<StoredWeight, PackedWeight>[] = [];
  private readonly vectors: Request<StoredVector, Float32Array>[] = [];
  private readonly errors: { readonly elements: number; readonly relativeError: number }[] = [];
  private reading = false;

  constructor(file: ModelFile, private readonly options: LoadOptions) {
    this.file = file;
    this.path = file.path;
    // All at once, while there is little to collect: told weight by weight it collects garbage several times on the way.
    this.announced = [...file.tensors.values()].reduce((sum, { byteLength }) => sum + byteLength, 0);
    callNative(() => native.announceMemory(this.announced));
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

  get weightType(): WeightType {
    return this.options.weightType ?? "f32";
  }

  columnsOf(tensor: string): number {
    return this.entry(tensor).shape[1]!;
  }

  wholeTensor(name: string): WeightPart {
    return { tensor: name, rowBegin: 0, rowEnd: this.entry(name).shape[0]! };
  }

  /** Rows of the parts, one after another, as one weight. All parts are of one storage type. The same parts load once. */
  weight(parts: readonly WeightPart[]): Promise<PackedWeight> {
    const key = parts.map((part) => `${part.tensor}[${part.rowBegin}:${part.rowEnd}]`).join("+");
    let loading = this.packed.get(key);
    if (!loading) this.packed.set(key, (loading = this.requestWeight(parts)));
    return loading;
  }

  private async requestWeight(parts: readonly WeightPart[]): Promise<PackedWeight> {
    let bytes = 0;
    const stored = parts.map((part) => {
      const entry = this.entry(part.tensor), rows = part.rowEnd - part.rowBegin, rowBytes = entry.byteLength / entry.shape[0]!;
      bytes += rows * rowBytes;
      return { path: entry.file, offset: entry.offset + part.rowBegin * rowBytes, rows, storage: this.code(entry) };
    });
    const entry = this.entry(parts[0]!.tensor);
    return this.request(this.weights, entry, { parts: stored, columns: entry.shape[1]! }, bytes);
  }

  /** A tensor's numbers in f32. */
  async numbers(name: string): Promise<Float32Array> {
    const entry = this.entry(name), count = entry.shape.reduce((product, dim) => product * dim, 1);
    const part = { path: entry.file, offset: entry.offset, rows: 1, storage: this.code(entry) };
    return this.request(this.vectors, entry, { part, count }, entry.byteLength);
  }

  /** The numbers of tensors, one after another. */
  async joined(names: readonly string[]): Promise<Float32Array> {
    const parts = await Promise.all(names.map((name) => this.numbers(name)));
    if (parts.length === 1) return parts[0]!;
    const joined = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      joined.set(part, at);
      at += part.length;
    }
    return joined;
  }

  /** Vectors, one after another, as one f32 constant. */
  async vector(...names: readonly string[]): Promise<Vector> {
    return this.constant(await this.joined(names));
  }

  /** Numbers that were made here, as a constant. */
  constant(values: Float32Array): Vector {
    const handle = callNative(() => native.createConstant(values, dtypeCode.f32));
    this.own(handle, values.byteLength);
    return { handle, length: values.length };
  }

  /**
   * Rows of `columns` numbers, each row times its scale, as a weight of the loader's type. Where int8 does not fit, because columns are
   * no multiple of 32 or `exact` forbids it, they stay f32.
   */
  async pack(values: Float32Array, columns: number, options: { readonly rowScale?: Float32Array; readonly exact?: boolean } = {}): Promise<PackedWeight> {
    const wanted = this.weightType, type = options.exact || (wanted === "int8" && columns % 32 !== 0) ? "f32" : wanted;
    const { signal } = this.options, storage = packedStorage[type];
    const packed = await schedule((threads, cancel) => native.packWeight(values, columns, options.rowScale ?? null, storageCode[storage], threads, cancel), { signal, threads: this.threads });
    this.own(packed.handle, packed.bytes);
    this.errors.push({ elements: values.length, relativeError: packed.relativeError });
    return { handle: packed.handle, rows: values.length / columns, columns, storage, quantized: type === "int8", bytes: packed.bytes };
  }

  /** What pack() lost by rounding: root mean square over all weights that it packed, by their own. */
  get relativeError(): number {
    const elements = this.errors.reduce((sum, { elements: count }) => sum + count, 0);
    return elements === 0 ? 0 : Math.sqrt(this.errors.reduce((sum, error) => sum + error.elements * error.relativeError ** 2, 0) / elements);
  }

  private request<Stored, Answer>(queue: Request<Stored, Answer>[], entry: TensorEntry, stored: Stored, bytes: number): Promise<Answer> {
    return new Promise((resolve, reject) => {
      queue.push({ entry, stored, bytes, resolve, reject });
      if (!this.reading) void this.read();
    });
  }

  /** Reads all that is asked for, now and meanwhile. */
  private async read(): Promise<void> {
    this.reading = true;
    await Promise.resolve(); // the caller's other requests come first
    while (this.file && this.vectors.length + this.weights.length > 0) {
      if (this.vectors.length > 0) {
        await this.call(this.vectors, (stored) => native.loadVectors(stored), (_, values) => values);
      } else {
        await this.call(this.weights, (stored, threads, cancel) => native.loadWeights(stored, threads, cancel), ({ entry, stored }, { handle, bytes }) => {
          this.own(handle, bytes);
          const rows = stored.parts.reduce((sum, part) => sum + part.rows, 0);
          return { handle, rows, columns: stored.columns, storage: entry.type, quantized: !floatTypes.has(entry.type), bytes };
        });
      }
    }
    this.reading = false;
  }

  /** One native call for the requests at the front of a queue. What it says of the file is told with the tensor's name. */
  private async call<Stored, Given, Answer>(
    queue: Request<Stored, Answer>[],
    work: (stored: Stored[], threads: number, cancel: Int32Array) => Promise<Given[]>,
    finish: (request: Request<Stored, Answer>, given: Given) => Answer,
  ): Promise<void> {
    const requests: Request<Stored, Answer>[] = [];
    let bytes = 0;
    while (queue.length > 0 && bytes < callBytes) {
      const request = queue.shift()!;
      requests.push(request);
      bytes += request.bytes;
    }
    let failed = 0;
    const observed = (error: unknown): never => {
      failed = isFailure(error) ? (error.item ?? 0) : 0;
      throw error;
    };
    try {
      const given = await schedule((threads, cancel) => work(requests.map(({ stored }) => stored), threads, cancel).catch(observed), { signal: this.options.signal, threads: this.threads });
      requests.forEach((request, index) => request.resolve(finish(request, given[index]!)));
      this.loaded += bytes;
      this.options.onBytes?.(this.loaded);
    } catch (error) {
      const { entry } = requests[failed]!;
      const told = error instanceof ModelFormatError ? new ModelFormatError(error.message, { tensor: entry.name, offset: entry.offset, file: entry.file }) : error;
      for (const { reject } of [...requests, ...this.vectors.splice(0), ...this.weights.splice(0)]) reject(told);
    }
  }

  private get threads(): number {
    const threads = threadCount(this.options.threads);
    return this.leaveCore ? Math.max(1, Math.min(threads, threadCount(undefined) - 1)) : threads;
  }

  private own(handle: NativeHandle, bytes: number): void {
    if (!this.file) return native.release(handle); // released meanwhile
    this.handles.push(handle);
    this.bytes += bytes;
    this.arrived(bytes);
  }

  private arrived(bytes: number): void {
    const known = Math.min(bytes, this.announced);
    this.announced -= known;
    callNative(() => native.announceMemory(-known));
  }

  private code(entry: TensorEntry): number {
    if (entry.type === "i32") throw new ModelFormatError("Expected numbers of a floating or quantised type", { tensor: entry.name, file: entry.file });
    return storageCode[entry.type];
  }

  /** Lets go of what only loading needs: a file's metadata can be megabytes. */
  finish(): void {
    this.packed.clear();
    this.file = undefined;
    this.arrived(this.announced);
  }

  release(): void {
    for (const handle of this.handles.splice(0)) native.release(handle);
    this.finish();
  }
}
