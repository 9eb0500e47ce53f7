import { open, readFile, realpath, stat } from "node:fs/promises";
import { basename, dirname, isAbsolute, join, relative, sep } from "node:path";
import { invalidArgument, ModelFormatError } from "../errors.js";
import { Slicer } from "../slice.js";
import { checkedProduct } from "./checked.js";
import type { ModelFile, StorageType, TensorEntry } from "./file.js";
import { type JsonObject, type JsonValue, parseJson, toPlain } from "./json.js";
import { JsonMetadata } from "./metadata.js";

const MAX_HEADER = 100_000_000;
const MAX_JSON_FILE = 128 << 20;
const MAX_DIMENSIONS = 32;

/** Element types of the format: bits, and the storage type where this package reads tensors of it. */
const DTYPES: ReadonlyMap<string, { readonly bits: number; readonly type?: StorageType }> = new Map<string, { bits: number; type?: StorageType }>([
  ["F32", { bits: 32, type: "f32" }], ["F16", { bits: 16, type: "f16" }], ["BF16", { bits: 16, type: "bf16" }], ["I32", { bits: 32, type: "i32" }],
  ["BOOL", { bits: 8 }], ["U8", { bits: 8 }], ["I8", { bits: 8 }], ["I16", { bits: 16 }], ["U16", { bits: 16 }], ["U32", { bits: 32 }],
  ["I64", { bits: 64 }], ["U64", { bits: 64 }], ["F64", { bits: 64 }], ["C64", { bits: 64 }], ["F8_E5M2", { bits: 8 }], ["F8_E4M3", { bits: 8 }],
  ["F8_E8M0", { bits: 8 }], ["F4", { bits: 4 }], ["F6_E2M3", { bits: 6 }], ["F6_E3M2", { bits: 6 }],
]);

export interface SafetensorsFile extends ModelFile {
  readonly format: "safetensors";
  /** Tensors whose element type this package does not read (I64, U8, …): checked, and left out of `tensors`. Name → type. */
  readonly skipped: ReadonlyMap<string, string>;
}

/**
 * Reads and checks the headers of a model in safetensors files: one file, an index (`model.safetensors.index.json`), or
 * a folder with either. `config.json` beside them becomes the metadata. F32, F16, BF16 and I32 tensors are kept.
 * Shards must lie in the model's folder. Throws ModelFormatError, AbortError.
 */
export async function openSafetensors(path: string, options: { signal?: AbortSignal | undefined } = {}): Promise<SafetensorsFile> {
  if (typeof path !== "string" || path === "") throw invalidArgument("path", "the path of a safetensors file, its index or their folder", path);
  const slicer = new Slicer(options.signal);
  const file = await mainFile(path);
  const tensors = new Map<string, TensorEntry>();
  const skipped = new Map<string, string>(), notes = new Map<string, string>();
  if (file.endsWith(".json")) await readShards(file, tensors, skipped, slicer);
  else await readShard(file, tensors, skipped, slicer, notes);
  return { format: "safetensors", path: file, tensors, metadata: await readConfig(dirname(file), slicer, notes, file), skipped };
}

/** The weights (or their index) in a folder; the path itself where it is a file. */
async function mainFile(path: string): Promise<string> {
  const found = await stat(path).catch((cause: unknown) => {
    throw new ModelFormatError(`Expected a model but it cannot be read: ${(cause as Error).message}`, { file: path });
  });
  if (!found.isDirectory()) return path;
  for (const name of ["model.safetensors.index.json", "model.safetensors"]) {
    if (await exists(join(path, name))) return join(path, name);
  }
  throw new ModelFormatError("Expected model.safetensors or model.safetensors.index.json in the folder", { file: path });
}

/** config.json; a single file may carry its own in `__metadata__` instead: `config`, and `architecture` for the model_type. */
async function readConfig(folder: string, slicer: Slicer, notes: ReadonlyMap<string, string>, weights: string): Promise<JsonMetadata> {
  const file = join(folder, "config.json"), config = notes.get("config"), architecture = notes.get("architecture");
  if (config !== undefined && architecture !== undefined) {
    const own = await parseJson(Buffer.from(config), { file: weights, slicer });
    if (!(own instanceof Map)) throw new ModelFormatError("Expected a JSON object for config in __metadata__", { file: weights });
    return new JsonMetadata(toPlain(new Map([["model_type", architecture], ...own])) as Record<string, unknown>, weights);
  }
  return new JsonMetadata(toPlain((await exists(file)) ? await readJsonObject(file, slicer) : new Map<string, JsonValue>()) as Record<string, unknown>, file);
}

/** Parses a JSON file whose top level is an object; `tables` as in JsonOptions. Throws ModelFormatError. */
export async function readJsonObject(file: string, slicer: Slicer, tables?: ReadonlySet<string>): Promise<JsonObject> {
  const found = await stat(file);
  if (!found.isFile() || found.size > MAX_JSON_FILE) throw new ModelFormatError(`Expected a JSON file of at most ${MAX_JSON_FILE} bytes`, { file });
  const bytes = await readFile(file, slicer.signal === undefined ? {} : { signal: slicer.signal });
  const value = await parseJson(bytes, { file, slicer, ...(tables === undefined ? {} : { tables }) });
  if (!(value instanceof Map)) throw new ModelFormatError("Expected a JSON object", { file });
  return value;
}

export async function exists(file: string): Promise<boolean> {
  return stat(file).then(() => true, () => false);
}

async function readShards(index: string, tensors: Map<string, TensorEntry>, skipped: Map<string, string>, slicer: Slicer): Promise<void> {
  const map = (await readJsonObject(index, slicer)).get("weight_map");
  if (!(map instanceof Map) || map.size === 0) throw new ModelFormatError("Expected the object weight_map in the index", { file: index });
  const folder = dirname(index);
  const root = await modelRoot(folder);
  const shards = new Map<string, string>();
  for (const [name, shard] of map) {
    if (typeof shard !== "string") throw new ModelFormatError("Expected the name of a file in weight_map", { tensor: name, file: index });
    if (!shards.has(shard)) shards.set(shard, await shardPath(folder, root, shard, index));
  }
  for (const file of shards.values()) await readShard(file, tensors, skipped, slicer);
  for (const [name, shard] of map) {
    if (tensors.get(name)?.file !== shards.get(shard as string) && !skipped.has(name)) {
      throw new ModelFormatError(`Expected the tensor in ${String(shard)}, where weight_map says it is`, { tensor: name, file: index });
    }
  }
}

/** The folder in which shards must really lie: in the hub's cache the snapshot's links lead to blobs beside it. */
async function modelRoot(folder: string): Promise<string> {
  const real = await realpath(folder);
  const parent = dirname(real);
  return basename(parent) === "snapshots" && basename(dirname(parent)).startsWith("models--") ? dirname(parent) : real;
}

async function shardPath(folder: string, root: string, shard: string, index: string): Promise<string> {
  const refuse = (): never => {
    throw new ModelFormatError(`Expected files inside of the model's folder in weight_map but received ${JSON.stringify(shard)}`, { file: index });
  };
  if (shard === "" || shard.includes("\0") || isAbsolute(shard) || /^[A-Za-z]:/.test(shard) || shard.split(/[/\\]/).includes("..")) refuse();
  const file = join(folder, shard);
  const real = await realpath(file).catch((cause: unknown) => {
    throw new ModelFormatError(`Expected the file ${shard}, which the index names, but it cannot be read: ${(cause as Error).message}`, { file: index });
  });
  const inside = relative(root, real);
  if (inside === ".." || inside.startsWith(`..${sep}`) || isAbsolute(inside)) refuse();
  return file;
}

async function readShard(file: string, tensors: Map<string, TensorEntry>, skipped: Map<string, string>, slicer: Slicer, notes = new Map<string, string>()): Promise<void> {
  if (!(await stat(file)).isFile()) throw new ModelFormatError("Expected a safetensors file but this is no regular file", { file });
  const handle = await open(file, "r");
  try {
    const { size } = await handle.stat();
    if (size < 8) throw new ModelFormatError(`Expected a safetensors header but the file has ${size} bytes`, { offset: 0, file });
    const length = Buffer.alloc(8);
    await handle.read(length, 0, 8, 0);
    const headerBytes = length.readBigUInt64LE();
    if (headerBytes < 2n || headerBytes > BigInt(MAX_HEADER)) throw new ModelFormatError(`Expected a header of 2 … ${MAX_HEADER} bytes but received ${headerBytes}`, { offset: 0, file });
    if (headerBytes > BigInt(size - 8)) throw new ModelFormatError(`Expected a header of ${headerBytes} bytes but the file has ${size}`, { offset: 0, file });
    const header = Buffer.allocUnsafe(Number(headerBytes));
    let read = 0;
    while (read < header.length) {
      const { bytesRead } = await handle.read(header, read, header.length - read, 8 + read);
      if (bytesRead === 0) throw new ModelFormatError("Expected more bytes but the file became shorter while it was read", { offset: 8 + read, file });
      read += bytesRead;
    }
    if (header[0] !== 0x7b) throw new ModelFormatError("Expected a header that begins with {", { offset: 8, file });
    const parsed = await parseJson(header, { file, slicer, offset: 8, safeIntegers: true });
    await addTensors(parsed as JsonObject, file, 8 + header.length, size, tensors, skipped, slicer, notes);
  } finally {
    await handle.close();
  }
}

interface Range {
  readonly name: string;
  readonly begin: number;
  readonly end: number;
}

async function addTensors(header: JsonObject, file: string, start: number, size: number, tensors: Map<string, TensorEntry>, skipped: Map<string, string>, slicer: Slicer, notes: Map<string, string>): Promise<void> {
  const ranges: Range[] = [];
  for (const [name, value] of header) {
    if (slicer.due) await slicer.pause();
    if (name === "__metadata__") {
      for (const [note, text] of checkStrings(value, file)) notes.set(note, text);
      continue;
    }
    const { range, dtype, shape } = parseTensor(name, value, file);
    ranges.push(range);
    const type = DTYPES.get(dtype)?.type;
    if (tensors.has(name) || skipped.has(name)) throw new ModelFormatError("Expected each tensor once but two files of the model have it", { tensor: name, file });
    if (type === undefined) skipped.set(name, dtype);
    else tensors.set(name, { name, type, shape, file, offset: start + range.begin, byteLength: range.end - range.begin });
  }
  checkTiling(ranges, size - start, file);
}

function checkStrings(value: JsonValue, file: string): ReadonlyMap<string, string> {
  if (!(value instanceof Map) || ![...value.values()].every((entry) => typeof entry === "string")) {
    throw new ModelFormatError("Expected an object of strings for __metadata__", { file });
  }
  return value as ReadonlyMap<string, string>;
}

function parseTensor(name: string, value: JsonValue, file: string): { range: Range; dtype: string; shape: number[] } {
  const fail = (message: string): ModelFormatError => new ModelFormatError(message, { tensor: name, file });
  if (!(value instanceof Map)) throw fail("Expected an object with dtype, shape and data_offsets");
  const dtype = value.get("dtype"), shape = value.get("shape"), offsets = value.get("data_offsets");
  const known = typeof dtype === "string" ? DTYPES.get(dtype) : undefined;
  if (typeof dtype !== "string" || known === undefined) throw fail(`Expected a known dtype but received ${String(dtype).slice(0, 40)}`);
  if (!isSizes(shape) || shape.length > MAX_DIMENSIONS) throw fail(`Expected at most ${MAX_DIMENSIONS} sizes for shape`);
  if (!isSizes(offsets) || offsets.length !== 2) throw fail("Expected two sizes for data_offsets");
  const [begin, end] = offsets as [number, number];
  const bits = checkedProduct(...shape, known.bits);
  if (bits === undefined || bits % 8 !== 0) throw fail(`Expected whole bytes below 2^53 but received ${dtype} of the shape [${shape.join(", ")}]`);
  if (end < begin || end - begin !== bits / 8) throw fail(`Expected ${bits / 8} bytes for ${dtype} of the shape [${shape.join(", ")}] but data_offsets are [${begin}, ${end}]`);
  return { range: { name, begin, end }, dtype, shape };
}

function isSizes(value: JsonValue | undefined): value is number[] {
  return Array.isArray(value) && value.every((entry) => Number.isSafeInteger(entry) && (entry as number) >= 0 && !Object.is(entry, -0));
}

/** The tensors must cover the data exactly: no hole, no overlap, nothing after the last. */
function checkTiling(ranges: Range[], dataBytes: number, file: string): void {
  ranges.sort((a, b) => a.begin - b.begin || a.end - b.end);
  let end = 0;
  for (const range of ranges) {
    if (range.begin !== end) {
      throw new ModelFormatError(`Expected the tensor to begin at ${end} of the data, where the one before ends, but it begins at ${range.begin}`, { tensor: range.name, offset: range.begin, file });
    }
    end = range.end;
  }
  if (end !== dataBytes) throw new ModelFormatError(`Expected ${end} bytes of data for the tensors but the file has ${dataBytes}`, { offset: end, file });
}
