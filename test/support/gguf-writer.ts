/** A GGUF writer that shares nothing with the package's reader, for tests that need small models, right or broken. */

const VALUE_TYPES = { u8: 0, i8: 1, u16: 2, i16: 3, u32: 4, i32: 5, f32: 6, bool: 7, string: 8, array: 9, u64: 10, i64: 11, f64: 12 } as const;
type ValueType = keyof typeof VALUE_TYPES;

const TENSOR_TYPES = {
  f32: 0, f16: 1, q4_0: 2, q4_1: 3, q5_0: 6, q5_1: 7, q8_0: 8, q2_k: 10, q3_k: 11, q4_k: 12, q5_k: 13, q6_k: 14, iq4_nl: 20, i32: 26, bf16: 30,
} as const;

/** A value whose type is not what plain JavaScript values get: `{ type: "u64", value: 7n }`, `{ type: "array", of: "u8", value: [1] }`. */
export type TypedValue =
  | { type: Exclude<ValueType, "array">; value: number | bigint | string | boolean }
  | { type: "array"; of: ValueType; value: readonly unknown[] };

/**
 * Strings, booleans and typed values as they are; integers become u32 (i32 where negative), other numbers f32; arrays of
 * strings, of booleans, of integers (i32), of other numbers (f32); Int32Array, Uint32Array, Float32Array by their kind.
 */
export type MetadataValue =
  | string | boolean | number | bigint | readonly string[] | readonly number[] | readonly boolean[] | Int32Array | Uint32Array | Float32Array | TypedValue;

export interface TensorToWrite {
  name: string;
  /** Outermost dimension first. */
  shape: readonly number[];
  /** A type's name, or its number where a broken file is wanted. */
  type: keyof typeof TENSOR_TYPES | number;
  /** The stored bytes; of f32, f16 and bf16 tensors also the numbers. */
  data: Uint8Array | Float32Array;
  /** Overrides the place behind the tensor before, relative to the data. */
  offset?: number | bigint;
}

export interface GgufToWrite {
  version?: number;
  /** Written as general.alignment unless that is among the metadata. Default 32, which is not written. */
  alignment?: number;
  metadata?: Readonly<Record<string, MetadataValue>> | ReadonlyMap<string, MetadataValue> | readonly (readonly [string, MetadataValue])[];
  tensors?: readonly TensorToWrite[];
}

export function writeGguf({ version = 3, alignment, metadata = {}, tensors = [] }: GgufToWrite): Uint8Array {
  const entries: (readonly [string, MetadataValue])[] =
    metadata instanceof Map || Array.isArray(metadata) ? [...(metadata as Iterable<readonly [string, MetadataValue]>)] : Object.entries(metadata as Record<string, MetadataValue>);
  if (alignment !== undefined && !entries.some(([key]) => key === "general.alignment")) entries.unshift(["general.alignment", alignment]);
  const align = alignment ?? 32;
  const header = new Bytes();
  header.raw(Buffer.from("GGUF")).u32(version).u64(tensors.length).u64(entries.length);
  for (const [key, value] of entries) writeValue(header.string(key), typed(value));
  const blobs = tensors.map(({ type, data }) => (data instanceof Float32Array ? floats(data, type) : data));
  let end = 0;
  for (const [index, { name, shape, type, offset }] of tensors.entries()) {
    header.string(name).u32(shape.length);
    for (const size of [...shape].reverse()) header.u64(size);
    header.u32(typeof type === "number" ? type : TENSOR_TYPES[type]).u64(offset ?? end);
    end = Math.ceil((end + blobs[index]!.length) / align) * align;
  }
  header.pad(align);
  const parts = [header.done()];
  for (const blob of blobs) parts.push(Buffer.from(blob), Buffer.alloc(Math.ceil(blob.length / align) * align - blob.length));
  return new Uint8Array(Buffer.concat(parts));
}

class Bytes {
  readonly #parts: Buffer[] = [];
  #length = 0;

  raw(bytes: Uint8Array): this {
    this.#parts.push(Buffer.from(bytes));
    this.#length += bytes.length;
    return this;
  }
  number(size: number, write: (buffer: Buffer) => void): this {
    const buffer = Buffer.alloc(size);
    write(buffer);
    return this.raw(buffer);
  }
  u32(value: number): this { return this.number(4, (buffer) => buffer.writeUInt32LE(value)); }
  u64(value: number | bigint): this { return this.number(8, (buffer) => buffer.writeBigUInt64LE(BigInt(value))); }
  string(text: string): this {
    const bytes = Buffer.from(text);
    return this.u64(bytes.length).raw(bytes);
  }
  pad(multiple: number): this { return this.raw(Buffer.alloc((multiple - (this.#length % multiple)) % multiple)); }
  done(): Buffer { return Buffer.concat(this.#parts); }
}

function typed(value: MetadataValue): TypedValue {
  if (typeof value === "string") return { type: "string", value };
  if (typeof value === "boolean") return { type: "bool", value };
  if (typeof value === "bigint") return { type: value < 0n ? "i64" : "u64", value };
  if (typeof value === "number") return { type: !Number.isInteger(value) ? "f32" : value < 0 ? "i32" : "u32", value };
  if (value instanceof Int32Array) return { type: "array", of: "i32", value: [...value] };
  if (value instanceof Uint32Array) return { type: "array", of: "u32", value: [...value] };
  if (value instanceof Float32Array) return { type: "array", of: "f32", value: [...value] };
  if (!Array.isArray(value)) return value as TypedValue;
  const of = typeof value[0] === "string" ? "string" : typeof value[0] === "boolean" ? "bool" : value.every(Number.isInteger) ? "i32" : "f32";
  return { type: "array", of, value };
}

function writeValue(out: Bytes, value: TypedValue): void {
  out.u32(VALUE_TYPES[value.type]);
  writeBare(out, value.type, value);
}

function writeBare(out: Bytes, type: ValueType, holder: { value: unknown; of?: ValueType }): void {
  const { value } = holder;
  switch (type) {
    case "u8": out.number(1, (buffer) => buffer.writeUInt8(value as number)); break;
    case "i8": out.number(1, (buffer) => buffer.writeInt8(value as number)); break;
    case "u16": out.number(2, (buffer) => buffer.writeUInt16LE(value as number)); break;
    case "i16": out.number(2, (buffer) => buffer.writeInt16LE(value as number)); break;
    case "u32": out.u32(value as number); break;
    case "i32": out.number(4, (buffer) => buffer.writeInt32LE(value as number)); break;
    case "f32": out.number(4, (buffer) => buffer.writeFloatLE(value as number)); break;
    case "f64": out.number(8, (buffer) => buffer.writeDoubleLE(value as number)); break;
    case "u64": out.u64(value as bigint); break;
    case "i64": out.number(8, (buffer) => buffer.writeBigInt64LE(BigInt(value as bigint))); break;
    case "bool": out.number(1, (buffer) => buffer.writeUInt8(Number(value))); break;
    case "string": out.string(value as string); break;
    case "array": {
      const elements = value as readonly unknown[];
      out.u32(VALUE_TYPES[holder.of!]).u64(elements.length);
      // The elements of nested arrays are typed values themselves.
      for (const element of elements) writeBare(out, holder.of!, holder.of === "array" ? (element as TypedValue) : { value: element });
    }
  }
}

function floats(data: Float32Array, type: TensorToWrite["type"]): Uint8Array {
  if (type === "f32") return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  if (type !== "f16" && type !== "bf16") throw new Error(`numbers for a tensor of type ${type}: give its bytes`);
  const halves = Uint16Array.from(data, type === "bf16" ? toBfloat16 : toFloat16);
  return new Uint8Array(halves.buffer);
}

const FLOAT = new Float32Array(1), BITS = new Uint32Array(FLOAT.buffer);

/** To nearest, ties to even. */
export function toBfloat16(value: number): number {
  FLOAT[0] = value;
  const bits = BITS[0]!;
  if (Number.isNaN(value)) return (bits >>> 16) | 0x40;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

/** To nearest, ties to even. */
export function toFloat16(value: number): number {
  const sign = Object.is(value, -0) || value < 0 ? 0x8000 : 0;
  const size = Math.abs(value);
  if (Number.isNaN(value)) return 0x7e00;
  if (size >= 65520) return sign | 0x7c00;
  const exponent = Math.max(-14, Math.floor(Math.log2(size)));
  const steps = size === 0 ? 0 : roundEven(size / 2 ** (exponent - 10));
  // A subnormal has steps below 1024 and the exponent field 0; rounding up to 2048 carries into the exponent by itself.
  return sign | (size === 0 ? 0 : ((exponent + 14) << 10) + steps);
}

function roundEven(value: number): number {
  const floor = Math.floor(value), rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}
