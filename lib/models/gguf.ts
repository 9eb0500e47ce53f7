import { open, stat } from "node:fs/promises";
import { invalidArgument, ModelFormatError } from "../errors.js";
import { Slicer } from "../slice.js";
import { checkedAlign, checkedProduct, checkedSum } from "./checked.js";
import type { ModelFile, StorageType, TensorEntry } from "./file.js";
import { MapMetadata } from "./metadata.js";
import { HeaderReader } from "./reader.js";
import { GGUF_OTHER_STORAGE, GGUF_STORAGE, storageBlock } from "./storage.js";
import { StringTable } from "./strings.js";

/** Keys and tensors: no model has a thousandth of it. */
const MAX_ENTRIES = 1 << 22;
const MAX_KEY_BYTES = 65535;
const MAX_NAME_BYTES = 64;
/** A single string (the chat template is the longest in practice) is decoded in one go: 16 MiB keeps that short. */
const MAX_STRING_BYTES = 16 << 20;
/** Arrays of at least so many strings are kept as a StringTable. */
const TABLE_STRINGS = 256;
/** Strings of a table between two looks at the clock. */
const STRINGS_A_STEP = 2048;
const MAX_TABLE_BYTES = 512 << 20;
const MAX_BOOLEANS = 1 << 20;
const MAX_NESTING = 4;
const MAX_DIMENSIONS = 4;
const MAX_ALIGNMENT = 65536;

/** GGUF's value types: sizes of the fixed ones, and what an array of them becomes. */
const FIXED = [
  { bytes: 1, read: (reader: HeaderReader) => reader.u8(), array: Uint8Array },
  { bytes: 1, read: (reader: HeaderReader) => reader.i8(), array: Int8Array },
  { bytes: 2, read: (reader: HeaderReader) => reader.u16(), array: Uint16Array },
  { bytes: 2, read: (reader: HeaderReader) => reader.i16(), array: Int16Array },
  { bytes: 4, read: (reader: HeaderReader) => reader.u32(), array: Uint32Array },
  { bytes: 4, read: (reader: HeaderReader) => reader.i32(), array: Int32Array },
  { bytes: 4, read: (reader: HeaderReader) => reader.f32(), array: Float32Array },
  undefined, // 7 bool
  undefined, // 8 string
  undefined, // 9 array
  undefined, // 10 u64
  undefined, // 11 i64
  { bytes: 8, read: (reader: HeaderReader) => reader.f64(), array: Float64Array },
] as const;
const BOOL = 7, STRING = 8, ARRAY = 9, U64 = 10, I64 = 11;
/** Fewest bytes that one value of each type takes. */
const LEAST_BYTES = [1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8];

interface Header {
  readonly metadata: Map<string, unknown>;
  readonly tensors: Map<string, TensorEntry>;
}

interface TensorInfo {
  readonly name: string;
  readonly type: StorageType;
  readonly shape: readonly number[];
  /** Relative to the start of the tensor data. */
  readonly offset: number;
  readonly byteLength: number;
}

/**
 * Reads and checks the header of a GGUF file (version 2 or 3, little-endian), and of the other parts where the file is
 * split (`name-00001-of-00003.gguf`). Nothing of the weights is read; arrays of numbers in the metadata become typed
 * arrays. Every count is checked against the bytes left before anything is allocated. Throws ModelFormatError, AbortError.
 */
export async function openGguf(path: string, options: { signal?: AbortSignal | undefined } = {}): Promise<ModelFile> {
  if (typeof path !== "string" || path === "") throw invalidArgument("path", "the path of a GGUF file", path);
  const slicer = new Slicer(options.signal);
  const parts = splitParts(path);
  const first = parts?.[0] ?? path;
  const header = await readHeader(first, slicer);
  const count = splitNumber(header, "split.count", first) ?? 1;
  if (count > 1) {
    if (parts === undefined || parts.length !== count) {
      throw new ModelFormatError(`Expected a name like model-00001-of-${String(count).padStart(5, "0")}.gguf since the model is split into ${count} files`, { file: first });
    }
    await addParts(header, parts, slicer);
  }
  return { format: "gguf", path: first, tensors: header.tensors, metadata: new MapMetadata(header.metadata, first) };
}

/** All paths of a split model, from the path of any of its parts; undefined where the name is not of that form. */
function splitParts(path: string): string[] | undefined {
  const match = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/s.exec(path);
  if (match === null) return undefined;
  const [, prefix = "", , total = ""] = match;
  const count = Number(total);
  if (count < 1) return undefined;
  return Array.from({ length: count }, (_, index) => `${prefix}-${String(index + 1).padStart(5, "0")}-of-${total}.gguf`);
}

function splitNumber(header: Header, key: string, file: string): number | undefined {
  const value = header.metadata.get(key);
  if (value === undefined) return undefined;
  return new MapMetadata(header.metadata, file).integer(key);
}

async function addParts(header: Header, parts: readonly string[], slicer: Slicer): Promise<void> {
  for (const [index, file] of parts.entries()) {
    const part = index === 0 ? header : await readHeader(file, slicer);
    const number = splitNumber(part, "split.no", file);
    if (number !== index || splitNumber(part, "split.count", file) !== parts.length) {
      throw new ModelFormatError(`Expected part ${index} of ${parts.length} but the file says it is part ${number} of ${splitNumber(part, "split.count", file)}`, { file });
    }
    if (index === 0) continue;
    for (const [name, tensor] of part.tensors) {
      if (header.tensors.has(name)) throw new ModelFormatError("Expected each tensor once but two parts of the model have it", { tensor: name, file });
      header.tensors.set(name, tensor);
    }
  }
  const first = parts[0] ?? "";
  const total = splitNumber(header, "split.tensors.count", first);
  if (total !== undefined && total !== header.tensors.size) {
    throw new ModelFormatError(`Expected ${total} tensors in the parts of the model but found ${header.tensors.size}`, { file: first });
  }
}

async function readHeader(file: string, slicer: Slicer): Promise<Header> {
  // Asked before opening: to open a pipe would wait for its writer.
  const found = await stat(file).catch((cause: unknown) => {
    throw new ModelFormatError(`Expected a GGUF file but it cannot be read: ${(cause as Error).message}`, { file });
  });
  if (!found.isFile()) throw new ModelFormatError("Expected a GGUF file but this is no regular file", { file });
  const handle = await open(file, "r").catch((cause: unknown) => {
    throw new ModelFormatError(`Expected a GGUF file but it cannot be read: ${(cause as Error).message}`, { file });
  });
  try {
    const { size } = await handle.stat();
    return await parseHeader(new HeaderReader(handle, size, file), slicer);
  } finally {
    await handle.close();
  }
}

async function parseHeader(reader: HeaderReader, slicer: Slicer): Promise<Header> {
  if (reader.size < 24) throw reader.fail(`Expected a GGUF header of at least 24 bytes but the file has ${reader.size}`);
  await reader.fill(24);
  const magic = reader.text(4);
  if (magic !== "GGUF") throw reader.fail("Expected a GGUF file, which begins with the letters GGUF", 0);
  const version = reader.u32();
  if (version === 0x0200_0000 || version === 0x0300_0000) throw reader.fail("Expected a little-endian GGUF file but this one is big-endian", 4);
  if (version !== 2 && version !== 3) throw reader.fail(`Expected GGUF version 2 or 3 but received ${version}`, 4);
  const tensorCount = reader.length("the number of tensors");
  const keyCount = reader.length("the number of metadata keys");
  if (keyCount > MAX_ENTRIES || tensorCount > MAX_ENTRIES) throw reader.fail(`Expected at most ${MAX_ENTRIES} keys and tensors but received ${keyCount} and ${tensorCount}`, 8);
  // A key takes 8 bytes of length and 4 of type and a value; a tensor a name, dimensions, a type and an offset.
  reader.require(keyCount, 13, "the metadata");
  reader.require(tensorCount, 32, "the tensor list");
  const metadata = await readMetadata(reader, keyCount, slicer);
  const infos = await readTensorInfos(reader, tensorCount, alignmentOf(metadata, reader), slicer);
  const start = checkedAlign(reader.offset, alignmentOf(metadata, reader));
  if (start === undefined) throw reader.fail("Expected tensor data after the header");
  return { metadata, tensors: await placeTensors(reader, infos, start, slicer) };
}

function alignmentOf(metadata: ReadonlyMap<string, unknown>, reader: HeaderReader): number {
  const alignment = metadata.get("general.alignment") ?? 32;
  if (typeof alignment !== "number" || !Number.isInteger(alignment) || alignment < 1 || alignment > MAX_ALIGNMENT || (alignment & (alignment - 1)) !== 0) {
    throw reader.fail(`Expected a power of two in 1 … ${MAX_ALIGNMENT} for general.alignment but received ${String(alignment)}`);
  }
  return alignment;
}

async function readMetadata(reader: HeaderReader, count: number, slicer: Slicer): Promise<Map<string, unknown>> {
  const metadata = new Map<string, unknown>();
  for (let index = 0; index < count; index++) {
    if (slicer.due) await slicer.pause();
    const at = reader.offset;
    const key = await readText(reader, MAX_KEY_BYTES, "a metadata key");
    if (metadata.has(key)) throw reader.fail(`Expected each metadata key once but ${key} is there twice`, at);
    await reader.fill(4);
    metadata.set(key, await readValue(reader, reader.u32(), key, 0, slicer));
  }
  return metadata;
}

async function readText(reader: HeaderReader, most: number, what: string): Promise<string> {
  if (reader.available < 8) await reader.fill(8);
  const length = reader.length(`the length of ${what}`);
  if (length > most) throw reader.fail(`Expected at most ${most} bytes for ${what} but received ${length}`, reader.offset - 8);
  if (reader.available < length) await reader.fill(length);
  return reader.text(length);
}

async function readValue(reader: HeaderReader, type: number, key: string, depth: number, slicer: Slicer): Promise<unknown> {
  if (type === STRING) return readText(reader, MAX_STRING_BYTES, key);
  if (type === ARRAY) return readArray(reader, key, depth, slicer);
  const bytes = LEAST_BYTES[type];
  if (bytes === undefined) throw reader.fail(`Expected a GGUF value type in 0 … 12 for ${key} but received ${type}`);
  await reader.fill(bytes);
  return readScalar(reader, type, key);
}

function readScalar(reader: HeaderReader, type: number, key: string): number | bigint | boolean {
  if (type === BOOL) {
    const value = reader.u8();
    if (value > 1) throw reader.fail(`Expected 0 or 1 for the boolean ${key} but received ${value}`, reader.offset - 1);
    return value === 1;
  }
  if (type === U64 || type === I64) {
    const value = type === U64 ? reader.u64() : reader.i64();
    const number = Number(value);
    return Number.isSafeInteger(number) ? number : value;
  }
  const fixed = FIXED[type];
  if (fixed === undefined) throw reader.fail(`Expected a GGUF value type in 0 … 12 for ${key} but received ${type}`);
  return fixed.read(reader);
}

async function readArray(reader: HeaderReader, key: string, depth: number, slicer: Slicer): Promise<unknown> {
  if (depth >= MAX_NESTING) throw reader.fail(`Expected at most ${MAX_NESTING} nested arrays in ${key}`);
  await reader.fill(12);
  const type = reader.u32();
  const count = reader.length(`the length of ${key}`);
  const least = LEAST_BYTES[type];
  if (least === undefined) throw reader.fail(`Expected a GGUF value type in 0 … 12 for the elements of ${key} but received ${type}`, reader.offset - 12);
  reader.require(count, least, `the array ${key}`);
  const fixed = FIXED[type];
  if (fixed !== undefined) {
    const array = new fixed.array(count);
    await reader.copy(new Uint8Array(array.buffer));
    return array;
  }
  if (type === STRING && count >= TABLE_STRINGS) return readStrings(reader, count, key, slicer);
  if (type === BOOL && count > MAX_BOOLEANS) throw reader.fail(`Expected at most ${MAX_BOOLEANS} booleans in ${key} but received ${count}`);
  const values: unknown[] = [];
  for (let index = 0; index < count; index++) {
    if ((index & 63) === 0 && slicer.due) await slicer.pause();
    if (type === STRING || type === ARRAY) {
      values.push(await readValue(reader, type, key, depth + 1, slicer));
    } else {
      if (reader.available < least) await reader.fill(least);
      values.push(readScalar(reader, type, key));
    }
  }
  return values;
}

/** Vocabularies and merges: hundreds of thousands of strings without a promise or an object for each. */
async function readStrings(reader: HeaderReader, count: number, key: string, slicer: Slicer): Promise<StringTable> {
  const starts = new Uint32Array(count), ends = new Uint32Array(count);
  let bytes = Buffer.allocUnsafe(0);
  let used = 0;
  for (let index = 0; index < count;) {
    if (slicer.due) await slicer.pause();
    const length = await reader.peekLength(`the length of a string of ${key}`);
    if (length > MAX_STRING_BYTES) throw reader.fail(`Expected at most ${MAX_STRING_BYTES} bytes for a string of ${key} but received ${length}`);
    await reader.fill(8 + length);
    if (used + reader.available > MAX_TABLE_BYTES) throw reader.fail(`Expected at most ${MAX_TABLE_BYTES} bytes of strings in ${key}`);
    if (used + reader.available > bytes.length) {
      const grown = Buffer.allocUnsafe(Math.max(used + reader.available, bytes.length * 2));
      bytes.copy(grown, 0, 0, used);
      bytes = grown;
    }
    index = reader.walkStrings(starts, ends, index, Math.min(count, index + STRINGS_A_STEP), MAX_STRING_BYTES, bytes, used);
    used = ends[index - 1] as number;
  }
  return new StringTable(bytes.subarray(0, used), starts, ends);
}

async function readTensorInfos(reader: HeaderReader, count: number, alignment: number, slicer: Slicer): Promise<TensorInfo[]> {
  const infos: TensorInfo[] = [];
  for (let index = 0; index < count; index++) {
    if (slicer.due) await slicer.pause();
    infos.push(await readTensorInfo(reader, alignment));
  }
  return infos;
}

async function readTensorInfo(reader: HeaderReader, alignment: number): Promise<TensorInfo> {
  const at = reader.offset;
  const name = await readText(reader, MAX_NAME_BYTES, "a tensor's name");
  const fail = (message: string): ModelFormatError => new ModelFormatError(message, { offset: at, tensor: name, file: reader.file });
  if (name === "") throw fail("Expected a name for a tensor but it is empty");
  await reader.fill(4);
  const dimensions = reader.u32();
  if (dimensions < 1 || dimensions > MAX_DIMENSIONS) throw fail(`Expected 1 to ${MAX_DIMENSIONS} dimensions but received ${dimensions}`);
  await reader.fill(dimensions * 8 + 12);
  const shape: number[] = [];
  // GGUF writes the innermost dimension first.
  for (let axis = 0; axis < dimensions; axis++) shape.unshift(reader.length(`a dimension of ${name}`));
  const number = reader.u32();
  const offset = reader.length(`the offset of ${name}`);
  const type = GGUF_STORAGE.get(number);
  if (type === undefined) throw fail(`Expected a tensor type that this package reads but received ${GGUF_OTHER_STORAGE.get(number) ?? "the unknown type"} (${number})`);
  if (shape.includes(0)) throw fail(`Expected dimensions of 1 or more but received [${shape.join(", ")}]`);
  const block = storageBlock(type);
  const columns = shape[shape.length - 1] ?? 0;
  if (columns % block.elements !== 0) throw fail(`Expected rows of a multiple of ${block.elements} elements for ${type} but received ${columns}`);
  const byteLength = checkedProduct(...shape.slice(0, -1), columns / block.elements, block.bytes);
  if (byteLength === undefined) throw fail(`Expected fewer than 2^53 bytes but received the shape [${shape.join(", ")}]`);
  if (offset % alignment !== 0) throw fail(`Expected an offset that is a multiple of ${alignment} but received ${offset}`);
  return { name, type, shape, offset, byteLength };
}

/** Checks that every tensor lies within the file and that none overlaps another. */
async function placeTensors(reader: HeaderReader, infos: readonly TensorInfo[], start: number, slicer: Slicer): Promise<Map<string, TensorEntry>> {
  const tensors = new Map<string, TensorEntry>();
  for (const info of infos) {
    if (slicer.due) await slicer.pause();
    const fail = (message: string): ModelFormatError => new ModelFormatError(message, { offset: info.offset, tensor: info.name, file: reader.file });
    if (tensors.has(info.name)) throw fail("Expected each tensor once but its name is there twice");
    const offset = checkedSum(start, info.offset);
    const end = checkedSum(start, info.offset, info.byteLength);
    if (offset === undefined || end === undefined || end > reader.size) {
      throw fail(`Expected the tensor's ${info.byteLength} bytes to lie within the file of ${reader.size} bytes but they begin ${info.offset} bytes after ${start}`);
    }
    tensors.set(info.name, { name: info.name, type: info.type, shape: info.shape, file: reader.file, offset, byteLength: info.byteLength });
  }
  const inOrder = [...tensors.values()].sort((a, b) => a.offset - b.offset);
  for (let index = 1; index < inOrder.length; index++) {
    const [before, after] = [inOrder[index - 1], inOrder[index]] as [TensorEntry, TensorEntry];
    if (before.offset + before.byteLength > after.offset) {
      throw new ModelFormatError(`Expected tensors that do not overlap but this one begins inside ${before.name}`, { offset: after.offset, tensor: after.name, file: reader.file });
    }
  }
  return tensors;
}
