import { randomInt } from "node:crypto";
import { ModelFormatError } from "../errors.js";
import type { StringTable } from "../models/strings.js";
import type { Slicer } from "../slice.js";
import { decodeAlphabet, utf8Length, writeUtf8 } from "./bytes.js";
import { SymbolMerger, type PairRule } from "./merge.js";
import { type PreTokenizer, chunkEnd, splitChunk } from "./pretokenize.js";
import { slotCount, type Vocabulary } from "./vocabulary.js";

const MAX_PROBES = 2000;
/** Work between two looks at the clock. */
const STEPS = 250;

/** Which pairs of symbols are joined, by rank: the merges of a byte-pair encoding as one hash table of numbers. */
export class MergeTable implements PairRule {
  priority = 0;
  readonly #left: Int32Array;
  readonly #right: Int32Array;
  readonly #result: Int32Array;
  /** rank + 1, 0 = empty. */
  readonly #slots: Int32Array;
  readonly #seed = randomInt(0x7fff_ffff) | 1;
  readonly #file: string;

  constructor(count: number, file: string) {
    this.#left = new Int32Array(count);
    this.#right = new Int32Array(count);
    this.#result = new Int32Array(count);
    this.#slots = new Int32Array(slotCount(count));
    this.#file = file;
  }

  /** Of two equal pairs the first, that is the better, counts. */
  add(rank: number, left: number, right: number, result: number): void {
    const mask = this.#slots.length - 1;
    let slot = this.#hash(left, right) & mask;
    for (let probes = 0; this.#slots[slot] !== 0; slot = (slot + 1) & mask) {
      const other = (this.#slots[slot] as number) - 1;
      if (this.#left[other] === left && this.#right[other] === right) return;
      if (++probes > MAX_PROBES) throw new ModelFormatError("Expected merges of distinct pairs but too many of them have the same hash", { file: this.#file });
    }
    this.#slots[slot] = rank + 1;
    this.#left[rank] = left;
    this.#right[rank] = right;
    this.#result[rank] = result;
  }

  find(merger: SymbolMerger, left: number, right: number): number {
    const leftId = merger.ids[left] as number, rightId = merger.ids[right] as number;
    const mask = this.#slots.length - 1;
    for (let slot = this.#hash(leftId, rightId) & mask; ; slot = (slot + 1) & mask) {
      const rank = (this.#slots[slot] as number) - 1;
      if (rank < 0) return -1;
      if (this.#left[rank] === leftId && this.#right[rank] === rightId) {
        this.priority = rank;
        return this.#result[rank] as number;
      }
    }
  }

  #hash(left: number, right: number): number {
    let hash = Math.imul(left ^ this.#seed, 0x9e3779b1 | 0) ^ Math.imul(right + this.#seed, 0x85ebca6b | 0);
    hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d);
    return hash ^ (hash >>> 13);
  }
}

export interface BytePairOptions {
  /** A piece that is a token as it stands is not taken apart. */
  readonly ignoreMerges: boolean;
  /** Symbols are bytes (a byte-level vocabulary), or else characters. */
  readonly byteLevel: boolean;
  /** Characters that are no token become `<0xNN>` tokens. */
  readonly byteFallback?: boolean;
  /** Between the two sides of a merge. 0x20 by default; 0xff where the sides may contain spaces. */
  readonly separator?: number;
  /** Stands for what cannot be written otherwise; undefined: it is left out. */
  readonly unknownId?: number | undefined;
  /** Several unknown characters in a row become one token. */
  readonly fuseUnknown?: boolean;
}

/** Byte-pair encoding of pieces of text into ids. Symbols that the merges name and the vocabulary lacks get ids above it. */
export class BytePairModel {
  readonly #vocabulary: Vocabulary;
  readonly #options: BytePairOptions;
  /** byte → symbol of byte-level vocabularies, `<0xNN>` tokens of the others; −1 where there is none. */
  readonly #byteIds = new Int32Array(256).fill(-1);
  readonly #extra = new Map<string, number>();
  readonly #extraTexts: string[] = [];
  readonly #merges: MergeTable;
  #scratch = new Uint8Array(256);

  private constructor(vocabulary: Vocabulary, options: BytePairOptions, merges: MergeTable) {
    this.#vocabulary = vocabulary;
    this.#options = options;
    this.#merges = merges;
    if (!options.byteLevel && options.byteFallback !== true) return;
    for (let byte = 0; byte < 256; byte++) {
      this.#byteIds[byte] = options.byteLevel
        ? vocabulary.find(Uint8Array.of(byte), 0, 1)
        : vocabulary.findText(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
    }
  }

  /** @param merges "left right" each, in order of rank */
  static async create(vocabulary: Vocabulary, merges: StringTable, options: BytePairOptions, file: string, slicer: Slicer): Promise<BytePairModel> {
    const table = new MergeTable(merges.count, file);
    const model = new BytePairModel(vocabulary, options, table);
    await slicer.batches(merges.count, 128, (begin, end) => model.#addMerges(merges, begin, end));
    // A byte that is no token of its own can still be part of one.
    if (options.byteLevel) {
      for (let byte = 0; byte < 256; byte++) {
        if ((model.#byteIds[byte] as number) < 0) model.#byteIds[byte] = model.#extra.get(String.fromCharCode(byte)) ?? -1;
      }
    }
    return model;
  }

  #addMerges(merges: StringTable, first: number, last: number): void {
    const { separator = 0x20 } = this.#options;
    for (let rank = first; rank < last; rank++) {
      const begin = merges.starts[rank] as number, end = merges.ends[rank] as number;
      // The first separator that is not the first character.
      let space = begin + 1;
      while (space < end && merges.bytes[space] !== separator) space++;
      if (space >= end) continue;
      if (end - begin > this.#scratch.length) this.#scratch = new Uint8Array(2 * (end - begin));
      const middle = this.#decode(merges.bytes, begin, space, this.#scratch, 0);
      const length = middle < 0 ? -1 : this.#decode(merges.bytes, space + 1, end, this.#scratch, middle);
      // No text leads to a symbol outside of the byte alphabet.
      if (length < 0) continue;
      this.#merges.add(rank, this.#symbol(this.#scratch, 0, middle), this.#symbol(this.#scratch, middle, length), this.#symbol(this.#scratch, 0, length));
    }
  }

  /** Encodes well-formed text, yielding between short stretches of work. */
  *encode(text: string, preTokenizer: PreTokenizer, out: number[]): Generator<void, void> {
    const merger = new SymbolMerger(this.#merges);
    let scratch = new Uint8Array(1024);
    for (let begin = 0; begin < text.length;) {
      const end = preTokenizer.chunkable ? chunkEnd(text, begin) : text.length;
      const pieces = yield* splitChunk(begin === 0 && end === text.length ? text : text.slice(begin, end), preTokenizer);
      begin = end;
      let work = 0;
      for (const piece of pieces) {
        if (piece.length * 3 > scratch.length) scratch = new Uint8Array(piece.length * 6);
        const length = writeUtf8(piece, 0, piece.length, scratch, 0);
        if (this.#options.ignoreMerges) {
          const id = this.#vocabulary.find(scratch, 0, length);
          if (id >= 0) {
            out.push(id);
            continue;
          }
        }
        const count = this.#options.byteLevel ? this.#bytes(merger, scratch, length) : this.#characters(merger, scratch, length);
        merger.reset(count);
        while (!merger.advance(STEPS)) yield;
        for (let symbol = count > 0 ? 0 : -1; symbol >= 0; symbol = merger.after(symbol)) this.#emit(merger.ids[symbol] as number, out);
        if ((work += count) >= STEPS) {
          work = 0;
          yield;
        }
      }
      yield;
    }
  }

  /** Sets one symbol a byte. */
  #bytes(merger: SymbolMerger, scratch: Uint8Array, length: number): number {
    merger.reserve(length);
    const { ids, starts, ends } = merger;
    for (let index = 0; index < length; index++) {
      ids[index] = this.#byteIds[scratch[index] as number] as number;
      starts[index] = index;
      ends[index] = index + 1;
    }
    return length;
  }

  /** Sets one symbol a character, or the `<0xNN>` symbols of those that are not in the vocabulary. */
  #characters(merger: SymbolMerger, scratch: Uint8Array, length: number): number {
    merger.reserve(length);
    const { ids, starts, ends } = merger;
    let count = 0;
    for (let at = 0; at < length;) {
      const next = at + utf8Length(scratch[at] as number);
      const id = this.#vocabulary.find(scratch, at, next);
      let bytesKnown = id < 0;
      for (let byte = at; bytesKnown && byte < next; byte++) bytesKnown = (this.#byteIds[scratch[byte] as number] as number) >= 0;
      const step = bytesKnown ? 1 : next - at;
      for (; at < next; at += step) {
        ids[count] = id >= 0 ? id : bytesKnown ? (this.#byteIds[scratch[at] as number] as number) : -1;
        starts[count] = at;
        ends[count++] = at + step;
      }
    }
    return count;
  }

  #emit(id: number, out: number[]): void {
    if (id >= 0 && id < this.#vocabulary.size) {
      out.push(id);
    } else if (id >= this.#vocabulary.size) {
      // A joined symbol that is no token: those of its characters that are.
      for (const character of this.#extraTexts[id - this.#vocabulary.size] ?? "") {
        const token = character < "\x7f" ? this.#vocabulary.findText(character) : -1;
        if (token >= 0) out.push(token);
      }
    } else if (this.#options.unknownId !== undefined) {
      if (this.#options.fuseUnknown !== true || out[out.length - 1] !== this.#options.unknownId) out.push(this.#options.unknownId);
    }
  }

  #decode(source: Uint8Array, begin: number, end: number, target: Uint8Array, at: number): number {
    if (this.#options.byteLevel) return decodeAlphabet(source, begin, end, target, at);
    target.set(source.subarray(begin, end), at);
    return at + end - begin;
  }

  #symbol(bytes: Uint8Array, begin: number, end: number): number {
    const id = this.#vocabulary.find(bytes, begin, end);
    if (id >= 0) return id;
    const text = Buffer.from(bytes.subarray(begin, end)).toString("latin1");
    let extra = this.#extra.get(text);
    if (extra === undefined) {
      extra = this.#vocabulary.size + this.#extra.size;
      this.#extra.set(text, extra);
      this.#extraTexts.push(text);
    }
    return extra;
  }
}

/** `<0x0A>` → the byte 10; exactly two hexadecimal digits or nothing. */
export function byteToken(bytes: Uint8Array): Uint8Array | undefined {
  if (bytes.length !== 6) return undefined;
  const match = /^<0x([0-9A-Fa-f]{2})>$/.exec(Buffer.from(bytes).toString("latin1"));
  return match === null ? undefined : Uint8Array.of(Number.parseInt(match[1] ?? "", 16));
}
