import { deviceOf, type DeviceName } from "./device.js";
import { ArgumentError, DisposedError, invalidArgument, OutOfMemoryError } from "./errors.js";
import { callNative, dtypeCode, native, type Bytes, type NativeHandle } from "./native.js";
import { schedule, type RunOptions } from "./schedule.js";

/** Element types that user tensors may have. f16 and bf16 are bit patterns in a Uint16Array. */
export type TensorType = "f32" | "f16" | "bf16" | "i8" | "u8" | "i32";

const arrays = { f32: Float32Array, f16: Uint16Array, bf16: Uint16Array, i8: Int8Array, u8: Uint8Array, i32: Int32Array } as const;

export type TensorData<T extends TensorType> = InstanceType<(typeof arrays)[T]>;

let live = 0;
let liveBytes = 0;

/** Tensors not yet disposed of or collected, and their bytes. */
export function tensorCount(): { count: number; bytes: number } {
  return { count: live, bytes: liveBytes };
}

const net = new FinalizationRegistry<number>((bytes) => {
  live--;
  liveBytes -= bytes;
});

/** Memory of a device, shared by the tensors that are views of it. What is never released goes with its handle. */
class DeviceArray {
  private users = 1;

  constructor(readonly handle: NativeHandle) {}

  shared(): this {
    this.users++;
    return this;
  }

  release(): void {
    if (--this.users === 0) native.release(this.handle);
  }
}

/**
 * A dense array of numbers with a shape, outermost dim first. It is a view over a JavaScript ArrayBuffer: kernels read and
 * write that memory itself, nothing is copied, and V8 knows its size. Do not transfer or resize the buffer during a call.
 * Or it lies in a device's memory, see to(): ops that are given such a tensor run there, and what they return lies there.
 */
export class Tensor<T extends TensorType = TensorType> implements Disposable {
  private array: TensorData<T> | DeviceArray | undefined;
  /** Where the elements are. */
  readonly device: DeviceName;

  /** @internal Use tensor(). */
  constructor(readonly type: T, readonly shape: readonly number[], data: TensorData<T> | DeviceArray) {
    this.array = data;
    this.device = data instanceof DeviceArray ? "cuda" : "cpu";
    if (data instanceof DeviceArray) return;
    live++;
    liveBytes += data.byteLength;
    net.register(this, data.byteLength, this);
  }

  private get held(): TensorData<T> | DeviceArray {
    if (!this.array) throw new DisposedError("This tensor");
    return this.array;
  }

  /** The elements, row-major. The same memory, not a copy. Throws ArgumentError where they lie on a device. */
  get data(): TensorData<T> {
    const { held } = this;
    if (held instanceof DeviceArray) throw new ArgumentError("data", "Expected a tensor in JavaScript memory but this one lies on cuda: copy it with await tensor.to('cpu')");
    return held;
  }

  /** What a run is given. @internal */
  get memory(): Bytes | NativeHandle {
    const { held } = this;
    return held instanceof DeviceArray ? held.handle : (held as Bytes);
  }

  /**
   * A copy on another device, or a view of this tensor where it lies there already; systemInfo().cuda counts the bytes. Both are
   * disposed of for themselves. Throws ArgumentError where there is no such device, OutOfMemoryError, DisposedError.
   */
  async to(device: DeviceName, options: Pick<RunOptions, "signal"> = {}): Promise<Tensor<T>> {
    const { held, shape, type } = this;
    if (deviceOf(device) === this.device) return this.reshape(shape);
    const made = device === "cuda" ? onDevice(shape, type) : zeros(shape, type);
    const [there, here] = held instanceof DeviceArray ? [held.handle, made.memory as Bytes] : [made.memory as NativeHandle, held as Bytes];
    try {
      await schedule(() => native.copyDeviceTensor(there, here, device === "cuda"), options, "cuda");
    } catch (error) {
      made.dispose();
      throw error;
    }
    return made;
  }

  get size(): number {
    return this.shape.reduce((product, dim) => product * dim, 1);
  }

  get isDisposed(): boolean {
    return this.array === undefined;
  }

  /** The same elements under another shape. */
  reshape(shape: readonly number[]): Tensor<T> {
    const { held } = this;
    if (held instanceof DeviceArray) {
      checkShape(shape, this.size);
      return new Tensor(this.type, [...shape], held.shared());
    }
    return tensor(held as Bytes, shape, this.type) as Tensor<T>;
  }

  /** Lets go of the memory. A run that uses it ends first; twice is fine. */
  dispose(): void {
    const { array } = this;
    this.array = undefined;
    if (array instanceof DeviceArray) array.release();
    else if (array) {
      live--;
      liveBytes -= array.byteLength;
      net.unregister(this);
    }
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

function checkShape(shape: readonly number[], length: number): void {
  if (!Array.isArray(shape) || shape.length > 5) throw invalidArgument("shape", "an array of at most five dims", shape);
  shape.forEach((dim, i) => {
    if (!Number.isSafeInteger(dim) || dim < 0) throw invalidArgument(`shape[${i}]`, "a non-negative integer", dim);
  });
  const size = shape.reduce((product, dim) => product * dim, 1);
  if (size !== length) throw invalidArgument("shape", `dims whose product is the data's length ${length}`, `[${shape.join(", ")}]`);
}

/**
 * A tensor over `data`, without copying. The element type follows from the array; a Uint16Array needs it said: "f16" or
 * "bf16". Throws ArgumentError for shapes that do not fit, other arrays, detached or shared buffers.
 */
export function tensor(data: Float32Array, shape?: readonly number[]): Tensor<"f32">;
export function tensor(data: Int32Array, shape?: readonly number[]): Tensor<"i32">;
export function tensor(data: Uint8Array, shape?: readonly number[]): Tensor<"u8">;
export function tensor(data: Int8Array, shape?: readonly number[]): Tensor<"i8">;
export function tensor<T extends "f16" | "bf16">(data: Uint16Array, shape: readonly number[], type: T): Tensor<T>;
export function tensor(data: Bytes, shape?: readonly number[], type?: TensorType): Tensor;
export function tensor(data: Bytes, shape: readonly number[] = [(data as { length?: number } | null)?.length ?? 0], type?: TensorType): Tensor {
  const natural: TensorType | undefined =
    data instanceof Float32Array ? "f32" : data instanceof Int32Array ? "i32" : data instanceof Uint8Array ? "u8" : data instanceof Int8Array ? "i8" : undefined;
  const found = type ?? natural;
  if (found === undefined || !(data instanceof arrays[found])) {
    throw invalidArgument("data", "a Float32Array, Int32Array, Uint8Array, Int8Array, or a Uint16Array with type 'f16' or 'bf16'", data);
  }
  const { buffer } = data as { buffer: ArrayBufferLike & { resizable?: boolean; detached?: boolean } };
  // Native code works on this memory while JavaScript goes on: it must not move, shrink or change hands.
  if (!(buffer instanceof ArrayBuffer) || buffer.resizable === true) throw invalidArgument("data", "an array over an ArrayBuffer that is neither shared nor resizable", buffer);
  checkShape(shape, data.length);
  return new Tensor(found, [...shape], data as TensorData<TensorType>);
}

function allocate(of: (typeof arrays)[TensorType], size: number): Bytes {
  try {
    return new of(size);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new OutOfMemoryError(`No memory for a tensor of ${size} elements: ${error.message}`);
  }
}

/** A tensor of zeros. Throws ArgumentError, OutOfMemoryError. */
export function zeros<T extends TensorType = "f32">(shape: readonly number[], type: T = "f32" as T): Tensor<T> {
  if (!Array.isArray(shape)) throw invalidArgument("shape", "an array of dims", shape);
  const size = shape.reduce((product: number, dim: unknown) => product * (typeof dim === "number" ? dim : NaN), 1);
  if (!Object.hasOwn(arrays, type)) throw invalidArgument("type", Object.keys(arrays).join(", "), type);
  if (!Number.isSafeInteger(size) || size < 0) throw invalidArgument("shape", "non-negative integer dims", shape);
  return tensor(allocate(arrays[type], size), shape, type) as Tensor<T>;
}

/** A tensor in the device's memory, its elements undefined. @internal */
export function onDevice<T extends TensorType>(shape: readonly number[], type: T): Tensor<T> {
  const bytes = shape.reduce((product, dim) => product * dim, 1) * arrays[type].BYTES_PER_ELEMENT;
  return new Tensor(type, [...shape], new DeviceArray(callNative(() => native.createDeviceTensor(bytes, dtypeCode[type]))));
}

/** The same object, with a dispose() of all tensors that are its properties, or in arrays that are. */
export function disposable<Parts extends object>(parts: Parts): Parts & Disposable {
  return Object.assign(parts, {
    [Symbol.dispose]() {
      for (const part of Object.values(parts).flat()) if (part instanceof Tensor) part.dispose();
    },
  });
}
