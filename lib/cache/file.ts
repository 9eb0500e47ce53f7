import { createHash } from "node:crypto";
import { open, rename, rm } from "node:fs/promises";
import { ModelFormatError } from "../errors.js";
import { callNative, fromNative, native, type NativeHandle } from "../native.js";
import type { KvCacheShape } from "./kv-cache.js";

// A cache on disk: magic and version (u32 each), length of the header (u32), its SHA-256, header (JSON), then each layer's bytes and the
// query statistics, little-endian, at the header's sizes, each with its SHA-256.
const magic = 0x564b4c54; // "TLKV"
const version = 2; // 1: int4 pages with f32 scales for each 32 dimensions, keys not rotated
const mostHeaderBytes = 1 << 24, prefixBytes = 12 + 32;

/** What a file says of a cache besides its pages. */
export interface SavedCache extends KvCacheShape {
  readonly heads: number;
  readonly observing: boolean;
  readonly evicted: number;
  /** What the owner of the cache adds, as JSON. */
  readonly extra?: Readonly<Record<string, unknown>> | undefined;
}

/** Who holds a cache that is read from a file. */
export interface CacheOwner extends Disposable {
  readonly handle: NativeHandle;
  restoreStatistics(statistics: Float32Array): void;
}

interface Part {
  readonly bytes: number;
  readonly sha256: string;
}

const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

/** Writes beside `path` first: a file of that name is whole or absent. */
export async function saveCache(path: string, cache: NativeHandle, saved: SavedCache, statistics: Float32Array | undefined): Promise<void> {
  const beside = `${path}.${process.pid}.partial`;
  const file = await open(beside, "w");
  try {
    const parts: Part[] = [];
    const header = (): Buffer => Buffer.from(JSON.stringify({ ...saved, statistics: statistics !== undefined, parts }));
    // Sizes are known before the bytes are; the digests take the place that is kept for them.
    for (let layer = 0; layer < saved.layers; layer++) parts.push({ bytes: callNative(() => native.cacheLayerBytes(cache, layer)), sha256: "0".repeat(64) });
    if (statistics) parts.push({ bytes: statistics.byteLength, sha256: "0".repeat(64) });
    let offset = prefixBytes + header().length;
    for (const [i, { bytes }] of parts.entries()) {
      const data = i < saved.layers ? new Uint8Array(bytes) : new Uint8Array(statistics!.buffer, statistics!.byteOffset, bytes);
      if (i < saved.layers) await translated(() => native.saveCacheLayer(cache, i, data));
      parts[i] = { bytes, sha256: sha256(data) };
      await file.write(data, 0, bytes, offset);
      offset += bytes;
    }
    const text = header();
    await file.write(Buffer.concat([Buffer.from(Uint32Array.of(magic, version, text.length).buffer), createHash("sha256").update(text).digest(), text]), 0, prefixBytes + text.length, 0);
    await file.close();
    await rename(beside, path);
  } catch (error) {
    await file.close().catch(() => undefined);
    await rm(beside, { force: true });
    throw error;
  }
}

/** Reads layer by layer into the cache that `make` makes; it is disposed of where the file turns out damaged. */
export async function loadCache<Owner extends CacheOwner>(path: string, make: (saved: SavedCache) => Owner): Promise<Owner> {
  await using file = await open(path, "r");
  const damaged = (what: string, offset: number): ModelFormatError => new ModelFormatError(`The saved cache is damaged: ${what}`, { offset, file: path });
  const read = async (bytes: number, offset: number): Promise<Uint8Array> => {
    const { size } = await file.stat(); // before anything is allocated
    if (offset + bytes > size) throw damaged(`it ends within ${bytes} bytes`, offset);
    const data = new Uint8Array(bytes);
    if (bytes > 0 && (await file.read(data, 0, bytes, offset)).bytesRead !== bytes) throw damaged(`it ends within ${bytes} bytes`, offset);
    return data;
  };
  const [found, ofVersion, headerBytes] = new Uint32Array((await read(12, 0)).buffer) as unknown as [number, number, number];
  if (found !== magic) throw new ModelFormatError("This file is no saved cache", { offset: 0, file: path });
  if (ofVersion !== version) throw new ModelFormatError(`The saved cache is of version ${ofVersion}, this package reads ${version}`, { offset: 4, file: path });
  if (headerBytes > mostHeaderBytes) throw damaged(`a header of ${headerBytes} bytes`, 8);
  const digest = Buffer.from(await read(32, 12)).toString("hex"), header = await read(headerBytes, prefixBytes);
  if (sha256(header) !== digest) throw damaged("its header has another checksum", 12);
  const { saved, parts, hasStatistics } = parseHeader(header, (what) => damaged(what, prefixBytes));
  let offset = prefixBytes + headerBytes, cache: Owner | undefined;
  try {
    const part = async (i: number): Promise<Uint8Array> => {
      const { bytes, sha256: wanted } = parts[i]!, data = await read(bytes, offset);
      if (sha256(data) !== wanted) throw damaged(i < saved.layers ? `layer ${i} has another checksum` : "the statistics have another checksum", offset);
      offset += bytes;
      return data;
    };
    cache = make(saved);
    for (let layer = 0; layer < saved.layers; layer++) {
      const at = offset, data = await part(layer), { handle } = cache;
      await translated(() => native.loadCacheLayer(handle, layer, data)).catch((error: unknown) => {
        throw error instanceof Error && error.name === "ArgumentError" ? damaged(`layer ${layer} does not fit the header`, at) : error;
      });
    }
    if (hasStatistics) cache.restoreStatistics(new Float32Array((await part(saved.layers)).buffer));
    return cache;
  } catch (error) {
    cache?.[Symbol.dispose]();
    throw error;
  }
}

function parseHeader(bytes: Uint8Array, damaged: (what: string) => ModelFormatError): { readonly saved: SavedCache; readonly parts: readonly Part[]; readonly hasStatistics: boolean } {
  let header: Record<string, unknown>;
  try {
    header = JSON.parse(Buffer.from(bytes).toString("utf8")) as Record<string, unknown>;
  } catch {
    throw damaged("its header is no JSON");
  }
  if (typeof header !== "object" || header === null) throw damaged("its header is no object");
  const { parts, statistics, ...saved } = header as unknown as SavedCache & { parts: readonly Part[]; statistics: boolean };
  const sizes = [saved.layers, saved.kvHeads, saved.headDim, saved.heads];
  const sound =
    sizes.every((size) => Number.isSafeInteger(size) && size >= 1 && size <= 65536) && ["f32", "f16", "bf16", "int8", "int4"].includes(saved.type) &&
    typeof saved.observing === "boolean" && Number.isSafeInteger(saved.evicted) && typeof statistics === "boolean" && (saved.extra === undefined || (typeof saved.extra === "object" && saved.extra !== null)) && saved.heads % saved.kvHeads === 0 &&
    Array.isArray(parts) && parts.length === saved.layers + (statistics ? 1 : 0) &&
    parts.every((part: Partial<Part> | null) => Number.isSafeInteger(part?.bytes) && part!.bytes! >= 0 && typeof part!.sha256 === "string");
  if (!sound) throw damaged("its header lacks a field or has a wrong one");
  return { saved, parts, hasStatistics: statistics };
}

/** What a call throws at once and what it rejects with, as typed errors. */
async function translated<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw fromNative(error);
  }
}
