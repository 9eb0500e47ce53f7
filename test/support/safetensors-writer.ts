import { toBfloat16, toFloat16 } from "./gguf-writer.js";

/** A safetensors writer that shares nothing with the package's reader. */
export interface SafetensorToWrite {
  name: string;
  dtype: string;
  shape: readonly number[];
  /** The stored bytes; of F32, F16 and BF16 tensors also the numbers. */
  data: Uint8Array | Float32Array;
}

export function writeSafetensors(tensors: readonly SafetensorToWrite[], metadata?: Readonly<Record<string, string>>): Uint8Array {
  const blobs = tensors.map(({ dtype, data }) => bytesOf(dtype, data));
  let end = 0;
  const entries = tensors.map(({ name, dtype, shape }, index) => {
    const begin = end;
    end += blobs[index]!.length;
    return `${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [begin, end] })}`;
  });
  if (metadata !== undefined) entries.unshift(`"__metadata__":${JSON.stringify(metadata)}`);
  return joinSafetensors(`{${entries.join(",")}}`, Buffer.concat(blobs));
}

/** Any header over any data, for broken files. The header is padded with spaces to a multiple of 8. */
export function joinSafetensors(header: string, data: Uint8Array): Uint8Array {
  const text = Buffer.from(header);
  const padded = Buffer.concat([text, Buffer.alloc((8 - (text.length % 8)) % 8, " ")]);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(padded.length));
  return new Uint8Array(Buffer.concat([length, padded, data]));
}

function bytesOf(dtype: string, data: Uint8Array | Float32Array): Buffer {
  if (data instanceof Uint8Array) return Buffer.from(data);
  if (dtype === "F32") return Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  return Buffer.from(Uint16Array.from(data, dtype === "BF16" ? toBfloat16 : toFloat16).buffer);
}
