import addon from "#native";
import { AbortError, ArgumentError, BusyError, DisposedError, ModelFormatError, NumericError, OutOfMemoryError, ShapeError, TokenloomError } from "./errors.js";

/** A native object: weight, vector, program, page pool, cache or tensor of a device. Freed by `release`, or by the garbage collector. */
export interface NativeHandle {
  readonly __nativeHandle: unique symbol;
}

/** Any JavaScript memory that a run may read or write. */
export type Bytes = Float32Array | Int32Array | Uint16Array | Uint8Array | Int8Array | BigInt64Array;

/** The element types of cpp/core/dtype.h, by number. */
export const dtypeCode = { none: 0, f32: 1, f16: 2, bf16: 3, i8: 4, u8: 5, i32: 6, i64: 7, q8: 8, packed: 9, cache: 10, i4: 11 } as const;
/** The storage types of cpp/kernels/packed_weight.h, by number. */
export const storageCode = { f32: 0, f16: 1, bf16: 2, q4_0: 3, q4_1: 4, q5_0: 5, q5_1: 6, q8_0: 7, q2_k: 8, q3_k: 9, q4_k: 10, q5_k: 11, q6_k: 12, iq4_nl: 13 } as const;

export interface NativeOp {
  readonly name: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly parameters: readonly string[];
}

export interface StoredPart {
  readonly path: string;
  readonly offset: number;
  readonly rows: number;
  readonly storage: number;
}

/** A matmul weight: the rows of its parts, one after another. */
export interface StoredWeight {
  readonly parts: readonly StoredPart[];
  readonly columns: number;
}

/** `count` numbers in one row. */
export interface StoredVector {
  readonly part: StoredPart;
  readonly count: number;
}

export interface WeightInfo {
  readonly handle: NativeHandle;
  readonly bytes: number;
}

export interface CacheStatistics {
  /** Tokens held, of the longest head. */
  readonly tokens: number;
  readonly bytesHeld: number;
  readonly bytesShared: number;
  /** One more than the largest position held. */
  readonly nextPosition: number;
  /** Tokens of each layer and head, `[layers, kvHeads]`. */
  readonly lengths: Int32Array;
}

export type CudaDevice =
  | { readonly available: false; readonly reason: string }
  | {
      readonly available: true;
      readonly name: string;
      readonly computeCapability: string;
      readonly memoryBytes: number;
      /** Bytes held on the device, and copied to it and from it so far. */
      readonly bytesHeld: number;
      readonly bytesIn: number;
      readonly bytesOut: number;
      /** Taken from the driver, whether held or kept for the next who asks; at most `byteLimit` (TOKENLOOM_DEVICE_MEMORY), 0: no limit. */
      readonly bytesTaken: number;
      readonly byteLimit: number;
      /** Streams made so far: runs on different ones go side by side. */
      readonly streams: number;
      /** CUDA graphs made of runs that repeat, launches of them, and how many of their nodes were told of other arguments. */
      readonly graphs: { readonly made: number; readonly launches: number; readonly changes: number };
      /** Ops that have a twin. */
      readonly ops: readonly string[];
    };

/** The whole native surface. Synchronous calls are short; promises run off the event loop. */
export interface NativeAddon {
  info(): { isa: string; available: string[]; requestedIsaIsValid: boolean; cores: number; scratchBytes: number };
  ops(): NativeOp[];
  /** The CUDA device, or why there is none. Opens its library at the first call. */
  cudaDevice(): CudaDevice;
  memory(): { arena: number; weight: number; cache: number; scratch: number; tensor: number; handles: number };
  /** Gives the shared arena back to the system; it is made anew when needed. */
  trim(): void;
  /** Tests only: makes the n-th allocation from now fail; 0 switches off. Returns how many were made so far. */
  failAllocation(n: number, andAllLater: boolean): number;
  /** Frees what a handle holds as soon as no run uses it. Twice is fine. */
  release(handle: NativeHandle): void;
  /** Reads and packs weights. An error's `item` is the index of the one that failed. */
  loadWeights(weights: readonly StoredWeight[], threads: number, cancel: Int32Array): Promise<WeightInfo[]>;
  /** Reads stored vectors as f32. */
  loadVectors(vectors: readonly StoredVector[]): Promise<Float32Array[]>;
  /** Packs rows of `columns` numbers, each row times its scale, as f32, bf16 or q8_0. */
  packWeight(values: Float32Array, columns: number, rowScale: Float32Array | null, storage: number, threads: number, cancel: Int32Array): Promise<WeightInfo & { readonly relativeError: number }>;
  /** Tells the garbage collector of native memory to come; with a negative number, that it has come or will not. */
  announceMemory(bytes: number): void;
  /** Copies `values` into native memory for use as a constant of programs. */
  createConstant(values: Bytes, dtype: number): NativeHandle;
  createProgram(words: Float64Array, constants: readonly NativeHandle[]): NativeHandle;
  /** Memory of the device, its contents undefined. */
  createDeviceTensor(bytes: number, dtype: number): NativeHandle;
  /** Fills it from `values`, or `values` from it. */
  copyDeviceTensor(tensor: NativeHandle, values: Bytes, toDevice: boolean): Promise<void>;
  createPool(layers: number, kvHeads: number, headDim: number, element: number, byteLimit: number, device: number): NativeHandle;
  createCache(pool: NativeHandle): NativeHandle;
  /** A cache of the first `tokens` tokens that shares their pages. */
  forkCache(cache: NativeHandle, tokens: number): NativeHandle;
  truncateCache(cache: NativeHandle, tokens: number): void;
  /** Drops the last `tokens` tokens of each head. */
  dropCache(cache: NativeHandle, tokens: number): void;
  cacheStatistics(cache: NativeHandle): CacheStatistics;
  /** Its `lengths` alone: cheap enough for every step. */
  cacheLengths(cache: NativeHandle): Int32Array;
  /** Keeps a number a token from now on: see cacheObserve(). */
  observeCache(cache: NativeHandle): void;
  /** What a head holds, as f32 `[tokens, headDim]`, and where its tokens stand. */
  readCache(cache: NativeHandle, layer: number, head: number, keys: Float32Array | null, values: Float32Array | null, positions: Int32Array | null): void;
  /** Element type and number of holders of each page of a head, in turn. */
  cachePages(cache: NativeHandle, layer: number, head: number): Int32Array;
  /** Converts the pages before each head's last `recent` tokens to another element type. */
  requantizeCache(cache: NativeHandle, recent: number, element: number): Promise<void>;
  cacheLayerBytes(cache: NativeHandle, layer: number): number;
  saveCacheLayer(cache: NativeHandle, layer: number, bytes: Uint8Array): Promise<void>;
  /** Into an empty layer; throws for damaged bytes, the cache is to be thrown away then. */
  loadCacheLayer(cache: NativeHandle, layer: number, bytes: Uint8Array): Promise<void>;
  run(
    program: NativeHandle,
    symbols: Float64Array,
    bindings: readonly (Bytes | NativeHandle | null)[],
    scalars: Float64Array,
    place: { readonly threads: number; readonly device: number },
    cancel: Int32Array,
  ): Promise<void>;
}

export const native: NativeAddon = addon;

interface NativeFailure {
  readonly status: string;
  readonly op: string;
  readonly argument: string;
  readonly message: string;
  readonly expected: number;
  readonly got: number;
  /** Of a call for several things, the index of the one that failed. */
  readonly item?: number;
}

export function isFailure(error: unknown): error is NativeFailure {
  return typeof error === "object" && error !== null && typeof (error as { status?: unknown }).status === "string";
}

/** What was asked of a device's memory, and what it holds. */
function deviceMemory({ argument, message, got }: NativeFailure): string {
  const device = native.cudaDevice();
  const holds = device.available ? `: it holds ${device.bytesHeld} bytes and has taken ${device.bytesTaken}${device.byteLimit > 0 ? ` of at most ${device.byteLimit}` : ""}` : "";
  return `cuda: ${argument}: ${message}, ${got} bytes were asked for${holds}`;
}

/** Turns what the addon threw into a typed error whose stack is the caller's. */
export function fromNative(error: unknown, reason?: unknown): unknown {
  if (!isFailure(error)) return error;
  const sizes = error.expected !== 0 || error.got !== 0 ? ` (expected ${error.expected}, got ${error.got})` : "";
  const text = `${error.op}: ${error.argument === "" ? "" : `${error.argument}: `}${error.message}${sizes}`;
  switch (error.status) {
    case "argument": return new ArgumentError(error.argument, text);
    case "shape": return new ShapeError(error.op, error.argument, text);
    case "memory": return new OutOfMemoryError(error.op === "cuda" ? deviceMemory(error) : text);
    case "cancelled": return new AbortError(reason);
    case "numeric": return new NumericError(text);
    case "format": case "io": return new ModelFormatError(text);
    case "busy": return new BusyError(error.argument);
    case "disposed": return new DisposedError(error.argument);
    default: return new TokenloomError("TL_INTERNAL", text);
  }
}

/** Calls the addon and translates its errors. */
export function callNative<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw fromNative(error);
  }
}
