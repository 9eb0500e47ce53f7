import { open, readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { ArgumentError, invalidArgument, ModelFormatError } from "../errors.js";
import { throwIfAborted } from "../slice.js";
import type { ModelFile } from "./file.js";
import { openGguf } from "./gguf.js";
import { openSafetensors } from "./safetensors.js";

/**
 * Opens a model of either format, recognised by content: a GGUF file (or any part of a split one), a safetensors file,
 * its index, or a folder that holds one of these. Only headers are read, and checked. Throws ArgumentError (nothing
 * there), ModelFormatError (something else, or broken), AbortError.
 */
export async function openModel(path: string, options: { signal?: AbortSignal | undefined } = {}): Promise<ModelFile> {
  if (typeof path !== "string" || path === "" || path.includes("\0")) throw invalidArgument("path", "the path of a model", path);
  throwIfAborted(options.signal);
  const found = await stat(path).catch((cause: unknown) => {
    throw new ArgumentError("path", `Expected the path of a model but ${JSON.stringify(path)} cannot be read: ${(cause as Error).message}`);
  });
  if (found.isDirectory()) return openFolder(path, options);
  if (!found.isFile()) throw new ModelFormatError("Expected a model but this is neither a file nor a folder", { file: path });
  const start = await firstBytes(path);
  if (start.subarray(0, 4).toString("latin1") === "GGUF") return openGguf(path, options);
  if (path.endsWith(".json") && start[0] === 0x7b) return openSafetensors(path, options);
  if (start.length >= 9 && start[8] === 0x7b && start.readBigUInt64LE(0) <= BigInt(Math.max(0, found.size - 8))) return openSafetensors(path, options);
  throw new ModelFormatError(`Expected a GGUF or safetensors model but this is ${guess(start)}`, { file: path, offset: 0 });
}

async function openFolder(folder: string, options: { signal?: AbortSignal | undefined }): Promise<ModelFile> {
  const names = await readdir(folder);
  if (names.includes("model.safetensors.index.json") || names.includes("model.safetensors")) return openSafetensors(folder, options);
  // Of a split model only the first part counts.
  const models = names.filter((name) => /\.(gguf|safetensors)$/.test(name) && !/-(?!00001)\d{5}-of-\d{5}\.gguf$/.test(name)).sort();
  const [only] = models;
  if (only === undefined) throw new ModelFormatError("Expected a model in the folder but it holds no GGUF or safetensors file", { file: folder });
  if (models.length > 1) throw new ModelFormatError(`Expected one model in the folder but it holds ${models.join(", ")}: give the path of one of them`, { file: folder });
  return openModel(join(folder, only), options);
}

async function firstBytes(file: string): Promise<Buffer> {
  const handle = await open(file, "r").catch((cause: unknown) => {
    throw new ArgumentError("path", `Expected the path of a model but ${JSON.stringify(file)} cannot be read: ${(cause as Error).message}`);
  });
  try {
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(64), 0, 64, 0);
    return buffer.subarray(0, bytesRead);
  } finally {
    await handle.close();
  }
}

/** What people pass by mistake. */
function guess(start: Buffer): string {
  const text = start.toString("latin1");
  if (start.length === 0) return "an empty file";
  if (text.startsWith("version https://git-lfs")) return "a Git LFS pointer: the model itself has not been fetched";
  if (text.startsWith("PK")) return "a zip archive (perhaps a PyTorch checkpoint, which is not read)";
  if (text.startsWith("\x80")) return "a Python pickle, which is not read";
  if (/^(ggml|lmgg|ggjt|tjgg|fmgg|algg)/.test(text)) return "a GGML file from before GGUF: convert it first";
  if (/^\s*<(!doctype|html)/i.test(text)) return "a web page: the download went wrong";
  if (/^[\t\n\r\x20-\x7e\x80-\xff]*$/.test(text)) return "a text file";
  return "something else";
}
