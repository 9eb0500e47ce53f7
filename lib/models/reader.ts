import type { FileHandle } from "node:fs/promises";
import { ModelFormatError } from "../errors.js";

const CHUNK = 1 << 18;

/**
 * Reads a header from the front of a file in chunks. `fill(n)` first makes n bytes available (and refuses what the
 * file cannot hold, before anything is allocated); the accessors then take them without waiting.
 */
export class HeaderReader {
  /** Bytes of the file, taken from the open file itself. */
  readonly size: number;
  readonly file: string;
  readonly #handle: FileHandle;
  #buffer: Buffer = Buffer.alloc(0);
  #begin = 0;
  #end = 0;
  /** File offset of the buffer's first byte. */
  #base = 0;

  constructor(handle: FileHandle, size: number, file: string) {
    this.#handle = handle;
    this.size = size;
    this.file = file;
  }

  get offset(): number {
    return this.#base + this.#begin;
  }

  /** Bytes from here to the end of the file. */
  get remaining(): number {
    return this.size - this.offset;
  }

  /** Bytes that can be taken without another fill(). */
  get available(): number {
    return this.#end - this.#begin;
  }

  fail(message: string, offset = this.offset): ModelFormatError {
    return new ModelFormatError(message, { offset, file: this.file });
  }

  /** Refuses `count` items of at least `bytes` bytes each where the rest of the file cannot hold them. */
  require(count: number, bytes: number, what: string): void {
    if (count > this.remaining / bytes) {
      throw this.fail(`Expected ${what} to fit into the file but ${count} of ${bytes} bytes or more are stated and ${this.remaining} bytes are left`);
    }
  }

  async fill(bytes: number): Promise<void> {
    if (this.available >= bytes) return;
    if (bytes > this.remaining) throw this.fail(`Expected ${bytes} more bytes but the file ends after ${this.remaining}`);
    const size = Math.min(Math.max(bytes, CHUNK), this.remaining);
    const target = size <= this.#buffer.length ? this.#buffer : Buffer.allocUnsafe(size);
    this.#buffer.copy(target, 0, this.#begin, this.#end);
    this.#base += this.#begin;
    this.#end -= this.#begin;
    this.#begin = 0;
    this.#buffer = target;
    while (this.#end < size) {
      const { bytesRead } = await this.#handle.read(target, this.#end, size - this.#end, this.#base + this.#end);
      if (bytesRead === 0) throw this.fail("Expected more bytes but the file became shorter while it was read", this.#base + this.#end);
      this.#end += bytesRead;
    }
  }

  /** Copies the next `target.length` bytes, past the chunk where they are many. */
  async copy(target: Uint8Array): Promise<void> {
    if (target.length > this.remaining) throw this.fail(`Expected ${target.length} more bytes but the file ends after ${this.remaining}`);
    let done = 0;
    while (done < target.length) {
      await this.fill(Math.min(target.length - done, CHUNK));
      const step = Math.min(this.available, target.length - done);
      target.set(this.#buffer.subarray(this.#begin, this.#begin + step), done);
      this.#begin += step;
      done += step;
    }
  }

  u8(): number { return this.#buffer.readUInt8(this.#take(1)); }
  i8(): number { return this.#buffer.readInt8(this.#take(1)); }
  u16(): number { return this.#buffer.readUInt16LE(this.#take(2)); }
  i16(): number { return this.#buffer.readInt16LE(this.#take(2)); }
  u32(): number { return this.#buffer.readUInt32LE(this.#take(4)); }
  i32(): number { return this.#buffer.readInt32LE(this.#take(4)); }
  f32(): number { return this.#buffer.readFloatLE(this.#take(4)); }
  f64(): number { return this.#buffer.readDoubleLE(this.#take(8)); }
  i64(): bigint { return this.#buffer.readBigInt64LE(this.#take(8)); }
  u64(): bigint { return this.#buffer.readBigUInt64LE(this.#take(8)); }

  /** A 64-bit size; above 2^53 − 1 it cannot be one of this file. */
  length(what: string): number {
    const at = this.#take(8);
    const low = this.#buffer.readUInt32LE(at);
    const high = this.#buffer.readUInt32LE(at + 4);
    if (high > 0x1f_ffff) throw this.fail(`Expected ${what} below 2^53 but received ${high}·2^32 + ${low}`, this.offset - 8);
    return high * 0x1_0000_0000 + low;
  }

  text(bytes: number): string {
    const at = this.#take(bytes);
    return this.#buffer.toString("utf8", at, at + bytes);
  }

  /**
   * Walks over the strings first … last − 1 (64-bit length, bytes) as far as they lie whole in the chunk and calls none
   * of JavaScript's objects into being: writes where each begins and ends, counted from `used`, moves them with their
   * lengths to `target` (which has room for the chunk) and gives the index of the first string not taken.
   */
  walkStrings(starts: Uint32Array, ends: Uint32Array, first: number, last: number, most: number, target: Buffer, used: number): number {
    const buffer = this.#buffer, end = this.#end, begin = this.#begin;
    let at = begin, index = first;
    while (index < last && at + 8 <= end) {
      const length = (buffer[at] as number) | ((buffer[at + 1] as number) << 8) | ((buffer[at + 2] as number) << 16) | ((buffer[at + 3] as number) << 24);
      const high = (buffer[at + 4] as number) | (buffer[at + 5] as number) | (buffer[at + 6] as number) | (buffer[at + 7] as number);
      if (high !== 0 || length < 0 || length > most) throw this.fail(`Expected at most ${most} bytes for a string`, this.#base + at);
      if (at + 8 + length > end) break;
      starts[index] = used + (at - begin) + 8;
      ends[index] = used + (at - begin) + 8 + length;
      at += 8 + length;
      index++;
    }
    buffer.copy(target, used, begin, at);
    this.#begin = at;
    return index;
  }

  /** The length of the string that begins here, without taking it. */
  async peekLength(what: string): Promise<number> {
    await this.fill(8);
    const length = this.length(what);
    this.#begin -= 8;
    return length;
  }

  #take(bytes: number): number {
    const at = this.#begin;
    if (at + bytes > this.#end) throw this.fail(`Expected ${bytes} more bytes`);
    this.#begin = at + bytes;
    return at;
  }
}
