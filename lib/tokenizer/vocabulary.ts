import { randomInt } from "node:crypto";
import { ModelFormatError } from "../errors.js";
import { StringTable } from "../models/strings.js";
import type { Slicer } from "../slice.js";
import { decodeAlphabet } from "./bytes.js";

/** `tokenizer.ggml.token_type`. */
export const TokenKind = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

/** No honest vocabulary comes near: a longer chain means a file made to be slow. */
const MAX_PROBES = 2000;

/**
 * Tokens as byte strings, found by hash: id → bytes and bytes → id, without a string object for any of them.
 * In a byte-level vocabulary normal tokens are held as the bytes they stand for.
 */
export class Vocabulary {
  readonly size: number;
  readonly kinds: Uint8Array;
  readonly #bytes: Uint8Array;
  readonly #starts: Uint32Array;
  readonly #ends: Uint32Array;
  /** id + 1, 0 = empty. */
  readonly #slots: Int32Array;
  readonly #seed = randomInt(0x7fff_ffff);
  readonly #file: string;

  private constructor(table: StringTable, kinds: Uint8Array, file: string) {
    this.size = table.count;
    this.kinds = kinds;
    this.#bytes = table.bytes;
    this.#starts = table.starts;
    this.#ends = table.ends;
    this.#slots = new Int32Array(slotCount(this.size));
    this.#file = file;
  }

  /**
   * @param tokens the texts in order of their ids; the vocabulary takes the table over
   * @param byteLevel whether normal tokens are written in the byte alphabet
   */
  static async create(tokens: StringTable, kinds: Uint8Array, byteLevel: boolean, file: string, slicer: Slicer): Promise<Vocabulary> {
    // Tokens that no bytes of a text can lead to are not to be found: special ones, and those outside of the alphabet.
    const found = new Uint8Array(tokens.count).fill(1);
    const table = byteLevel ? await decodeNormal(tokens, kinds, found, slicer) : tokens;
    const vocabulary = new Vocabulary(table, kinds, file);
    await slicer.batches(vocabulary.size, 256, (begin, end) => {
      for (let id = begin; id < end; id++) if (found[id] === 1 || vocabulary.#isPlain(id)) vocabulary.#insert(id);
    });
    return vocabulary;
  }

  /** Where a token's bytes are: a view, not to be written to. */
  bytes(id: number): Uint8Array {
    return this.#bytes.subarray(this.#starts[id], this.#ends[id]);
  }

  text(id: number): string {
    return Buffer.from(this.#bytes.buffer, this.#bytes.byteOffset + (this.#starts[id] as number), (this.#ends[id] as number) - (this.#starts[id] as number)).toString("utf8");
  }

  /** The id of the token `bytes[begin, end)`, −1 where there is none. */
  find(bytes: Uint8Array, begin: number, end: number): number {
    const mask = this.#slots.length - 1;
    const slots = this.#slots, mine = this.#bytes, starts = this.#starts, ends = this.#ends;
    const length = end - begin;
    for (let slot = this.#hash(bytes, begin, end) & mask; ; slot = (slot + 1) & mask) {
      const id = (slots[slot] as number) - 1;
      if (id < 0) return -1;
      const start = starts[id] as number;
      if ((ends[id] as number) - start !== length) continue;
      let index = 0;
      while (index < length && mine[start + index] === bytes[begin + index]) index++;
      if (index === length) return id;
    }
  }

  findText(text: string): number {
    const bytes = Buffer.from(text);
    return this.find(bytes, 0, bytes.length);
  }

  #insert(id: number): void {
    const begin = this.#starts[id] as number, end = this.#ends[id] as number;
    if (begin === end) return;
    const other = this.find(this.#bytes, begin, end);
    if (other >= 0) {
      // A special token that spells the same as a normal one is found by its own text only.
      if (!isNormal(this.kinds[id]) || !isNormal(this.kinds[other])) return;
      throw new ModelFormatError(`Expected each token once but tokens ${other} and ${id} are both ${JSON.stringify(this.text(id))}`, { file: this.#file });
    }
    const mask = this.#slots.length - 1;
    let slot = this.#hash(this.#bytes, begin, end) & mask;
    let probes = 0;
    while (this.#slots[slot] !== 0) {
      if (++probes > MAX_PROBES) throw new ModelFormatError("Expected a vocabulary of distinct tokens but too many of them have the same hash", { file: this.#file });
      slot = (slot + 1) & mask;
    }
    this.#slots[slot] = id + 1;
  }

  /** Printable ASCII without the space reads the same in the byte alphabet. */
  #isPlain(id: number): boolean {
    for (let at = this.#starts[id] as number; at < (this.#ends[id] as number); at++) {
      const byte = this.#bytes[at] as number;
      if (byte < 0x21 || byte > 0x7e) return false;
    }
    return true;
  }

  #hash(bytes: Uint8Array, begin: number, end: number): number {
    let hash = this.#seed ^ (end - begin);
    for (let at = begin; at < end; at++) {
      hash = Math.imul(hash ^ (bytes[at] as number), 0x01000193);
      hash ^= hash >>> 15;
    }
    hash = Math.imul(hash ^ (hash >>> 16), 0x45d9f3b);
    return hash ^ (hash >>> 13);
  }
}

/** A power of two at least twice as large as the number of entries. */
export function slotCount(entries: number): number {
  let slots = 16;
  while (slots < entries * 2) slots *= 2;
  return slots;
}

function isNormal(kind: number | undefined): boolean {
  return kind === TokenKind.normal || kind === TokenKind.unused;
}

async function decodeNormal(tokens: StringTable, kinds: Uint8Array, found: Uint8Array, slicer: Slicer): Promise<StringTable> {
  const bytes = Buffer.alloc(tokens.bytes.length);
  const starts = new Uint32Array(tokens.count), ends = new Uint32Array(tokens.count);
  let used = 0;
  await slicer.batches(tokens.count, 256, (first, last) => {
    for (let id = first; id < last; id++) {
      const begin = tokens.starts[id] as number, end = tokens.ends[id] as number;
      starts[id] = used;
      const decoded = isNormal(kinds[id]) ? decodeAlphabet(tokens.bytes, begin, end, bytes, used) : -1;
      if (decoded < 0) {
        bytes.set(tokens.bytes.subarray(begin, end), used);
        found[id] = 0;
      }
      used = decoded < 0 ? used + end - begin : decoded;
      ends[id] = used;
    }
  });
  return new StringTable(Buffer.from(bytes.subarray(0, used)), starts, ends);
}
