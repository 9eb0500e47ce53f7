import { readFile } from "node:fs/promises";
import { openSafetensors } from "../../models/safetensors.js";
import type { NamedTensor, Tolerance, Vector } from "./vector.js";

interface HeaderEntry {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data_offsets: readonly [number, number];
}

const arrays = {
  F32: Float32Array, I32: Int32Array, U8: Uint8Array, BOOL: Uint8Array, F16: Uint16Array, BF16: Uint16Array,
} as const;

/** Reads a vector file; undefined where its metadata names no op. Throws ModelFormatError for a broken file. */
export async function readVector(path: string): Promise<Vector | undefined> {
  // The reader of models checks the file; it keeps neither the metadata nor bytes, which vectors have and models have not.
  await openSafetensors(path);
  const bytes = await readFile(path);
  const headerEnd = 8 + Number(bytes.readBigUInt64LE());
  const header = new Map(Object.entries(JSON.parse(bytes.toString("utf8", 8, headerEnd)) as Record<string, unknown>));
  const metadata = (header.get("__metadata__") ?? {}) as Record<string, string>;
  header.delete("__metadata__");
  const { op } = metadata;
  if (op === undefined) return undefined;
  const tolerances = new Map(Object.entries(JSON.parse(metadata["tol"] ?? "{}") as Record<string, Tolerance>));
  const tensors = new Map([...header].map(([name, entry]) => [name, toTensor(bytes, headerEnd, name, entry as HeaderEntry)]));
  return { path, op, params: JSON.parse(metadata["params"] ?? "{}") as Record<string, unknown>, tolerances, tensors };
}

function toTensor(bytes: Buffer, dataStart: number, name: string, { dtype, shape, data_offsets: [begin, end] }: HeaderEntry): NamedTensor {
  const ArrayType = arrays[dtype as keyof typeof arrays];
  if (ArrayType === undefined) throw new Error(`${name} is of the type ${dtype}, which vectors do not use`);
  // A copy, so that every array is aligned.
  const copy = new Uint8Array(bytes.subarray(dataStart + begin, dataStart + end));
  return { shape, data: new ArrayType(copy.buffer, 0, copy.byteLength / ArrayType.BYTES_PER_ELEMENT) };
}
