import { isUtf8 } from "node:buffer";
import { ModelFormatError } from "../errors.js";
import type { Slicer } from "../slice.js";
import { StringTable } from "./strings.js";

/** JSON with objects as maps: keys from a file never become properties (`__proto__` is a legal key). */
export type JsonValue = null | boolean | number | string | JsonValue[] | JsonObject | JsonTable;
export interface JsonObject extends Map<string, JsonValue> {}

/** A vocabulary or a list of merges of a quarter million entries, without an object for each. */
export class JsonTable {
  /** The keys of an object of numbers, the elements of a list of strings, or those of a list of pairs, joined by a byte 0xff. */
  readonly strings: StringTable;
  /** The values of an object of numbers. */
  readonly numbers: Float64Array | undefined;
  readonly pairs: boolean;

  constructor(strings: StringTable, numbers: Float64Array | undefined, pairs: boolean) {
    this.strings = strings;
    this.numbers = numbers;
    this.pairs = pairs;
  }
}

export interface JsonOptions {
  readonly file: string;
  readonly slicer: Slicer;
  /** Where the text begins in the file, for messages. */
  readonly offset?: number;
  /** Refuse integers above 2^53 − 1 in magnitude, which JavaScript would round. */
  readonly safeIntegers?: boolean;
  /** Keys whose values are read as JsonTable: objects of numbers, lists of strings, of pairs of strings or (the numbers are dropped) of a string and a number. Equal keys are not looked for in them. */
  readonly tables?: ReadonlySet<string>;
}

const MAX_DEPTH = 64;
const QUOTE = 0x22, BACKSLASH = 0x5c, COMMA = 0x2c, COLON = 0x3a, OPEN = 0x7b, CLOSE = 0x7d, OPEN_LIST = 0x5b, CLOSE_LIST = 0x5d;

/**
 * Parses JSON in slices, so that a header or vocabulary of many megabytes does not block. Stricter than JSON.parse: an
 * object with two equal keys is refused (of which JSON.parse would keep the last). Throws ModelFormatError, AbortError.
 */
export async function parseJson(bytes: Buffer, options: JsonOptions): Promise<JsonValue> {
  return new JsonParser(bytes, options).parse();
}

/** Maps to objects without a prototype, for code that expects plain JSON. */
export function toPlain(value: JsonValue): unknown {
  if (value instanceof JsonTable) return undefined;
  if (Array.isArray(value)) return value.map(toPlain);
  if (!(value instanceof Map)) return value;
  const object = Object.create(null) as Record<string, unknown>;
  for (const [key, entry] of value) object[key] = toPlain(entry);
  return object;
}

type Frame = { readonly list: JsonValue[] } | { readonly map: JsonObject; key: string };

class JsonParser {
  readonly #bytes: Buffer;
  readonly #options: JsonOptions;
  #at = 0;

  constructor(bytes: Buffer, options: JsonOptions) {
    this.#bytes = bytes;
    this.#options = options;
  }

  async parse(): Promise<JsonValue> {
    if (!isUtf8(this.#bytes)) throw this.#fail("Expected UTF-8");
    const { slicer } = this.#options;
    const stack: Frame[] = [];
    for (let count = 0; ; count++) {
      if ((count & 127) === 0 && slicer.due) await slicer.pause();
      const frame = stack[stack.length - 1];
      let value = frame !== undefined && "map" in frame && this.#options.tables?.has(frame.key) === true ? await this.#table() : this.#begin(stack);
      if (value === undefined) continue;
      // The value is complete: put it where it belongs, and close what closes after it.
      for (;;) {
        const frame = stack[stack.length - 1];
        if (frame === undefined) return this.#end(value);
        if ("list" in frame) frame.list.push(value);
        else frame.map.set(frame.key, value);
        const next = this.#skip();
        this.#at++;
        if (next === COMMA) {
          if ("map" in frame) frame.key = this.#key(frame.map);
          break;
        }
        if (next !== ("list" in frame ? CLOSE_LIST : CLOSE)) throw this.#fail(`Expected , or ${"list" in frame ? "]" : "}"}`, this.#at - 1);
        stack.pop();
        value = "list" in frame ? frame.list : frame.map;
      }
    }
  }

  /** Reads a scalar or an empty container; of others opens the frame and gives undefined. */
  #begin(stack: Frame[]): JsonValue | undefined {
    const first = this.#skip();
    if (first === OPEN || first === OPEN_LIST) {
      if (stack.length >= MAX_DEPTH) throw this.#fail(`Expected at most ${MAX_DEPTH} nested values`);
      this.#at++;
      if (first === OPEN) {
        const map: JsonObject = new Map();
        if (this.#skip() === CLOSE) return this.#at++, map;
        stack.push({ map, key: this.#key(map) });
      } else {
        const list: JsonValue[] = [];
        if (this.#skip() === CLOSE_LIST) return this.#at++, list;
        stack.push({ list });
      }
      return undefined;
    }
    if (first === QUOTE) return this.#string();
    return this.#word();
  }

  async #table(): Promise<JsonTable> {
    const first = this.#skip();
    if (first !== OPEN && first !== OPEN_LIST) throw this.#fail("Expected an object or a list");
    this.#at++;
    const builder = new TableBuilder(first === OPEN);
    const close = first === OPEN ? CLOSE : CLOSE_LIST;
    if (this.#skip() === close) {
      this.#at++;
      return builder.done();
    }
    const { slicer } = this.#options;
    while (!this.#entries(builder, close, 256)) if (slicer.due) await slicer.pause();
    return builder.done();
  }

  /** Reads up to `most` entries of a table; true at its end. */
  #entries(builder: TableBuilder, close: number, most: number): boolean {
    for (let count = 0; count < most; count++) {
      if (builder.numbered) {
        this.#entry(builder);
        if (this.#skip() !== COLON) throw this.#fail("Expected : after a key");
        this.#at++;
        builder.end(this.#number());
      } else if (this.#skip() === OPEN_LIST) {
        this.#at++;
        this.#entry(builder);
        if (this.#skip() !== COMMA) throw this.#fail("Expected two values");
        this.#at++;
        let number = 0;
        if (this.#skip() === QUOTE) {
          builder.join();
          this.#entry(builder);
        } else {
          number = this.#number();
        }
        if (this.#skip() !== CLOSE_LIST) throw this.#fail("Expected two values");
        this.#at++;
        builder.end(number);
      } else {
        this.#entry(builder);
        builder.end(0);
      }
      const next = this.#skip();
      this.#at++;
      if (next === close) return true;
      if (next !== COMMA) throw this.#fail("Expected , or the end", this.#at - 1);
    }
    return false;
  }

  #number(): number {
    const first = this.#skip(), at = this.#at;
    const number = first === QUOTE ? undefined : this.#word();
    if (typeof number !== "number") throw this.#fail("Expected a number", at);
    return number;
  }

  #entry(builder: TableBuilder): void {
    if (this.#skip() !== QUOTE) throw this.#fail("Expected a string in double quotes");
    const begin = this.#at + 1;
    if (this.#scan()) builder.add(Buffer.from(this.#unescape(begin)), 0, -1);
    else builder.add(this.#bytes, begin, this.#at - 1);
  }

  #key(map: JsonObject): string {
    if (this.#skip() !== QUOTE) throw this.#fail("Expected a key in double quotes");
    const at = this.#at;
    const key = this.#string();
    if (map.has(key)) throw this.#fail(`Expected each key once but ${JSON.stringify(key)} is there twice`, at);
    if (this.#skip() !== COLON) throw this.#fail("Expected : after a key");
    this.#at++;
    return key;
  }

  #string(): string {
    const begin = this.#at + 1;
    return this.#scan() ? this.#unescape(begin) : this.#bytes.toString("utf8", begin, this.#at - 1);
  }

  /** Moves past the string that begins here; true where it has escapes. */
  #scan(): boolean {
    const bytes = this.#bytes, begin = this.#at;
    let escaped = false;
    for (let at = begin + 1; ; at++) {
      const byte = bytes[at];
      if (byte === undefined) throw this.#fail("Expected the end of a string", begin);
      if (byte === QUOTE) {
        this.#at = at + 1;
        return escaped;
      }
      if (byte < 0x20) throw this.#fail("Expected no control character in a string", at);
      if (byte === BACKSLASH) {
        escaped = true;
        at++;
      }
    }
  }

  /** The string from `begin` to the quote before this place. */
  #unescape(begin: number): string {
    try {
      return JSON.parse(this.#bytes.toString("utf8", begin - 1, this.#at)) as string;
    } catch {
      throw this.#fail("Expected a valid string", begin - 1);
    }
  }

  #word(): JsonValue {
    const begin = this.#at;
    const bytes = this.#bytes;
    for (let byte = bytes[this.#at]; byte !== undefined && (byte === 0x2b || byte === 0x2d || byte === 0x2e || (byte >= 0x30 && byte <= 0x39) || (byte >= 0x41 && byte <= 0x5a) || (byte >= 0x61 && byte <= 0x7a)); byte = bytes[this.#at]) this.#at++;
    if (this.#at - begin > 1000) throw this.#fail("Expected a number of reasonable length", begin);
    const word = bytes.toString("latin1", begin, this.#at);
    if (word === "true") return true;
    if (word === "false") return false;
    if (word === "null") return null;
    if (!/^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$/.test(word)) throw this.#fail("Expected a JSON value", begin);
    const number = Number(word);
    if (this.#options.safeIntegers === true && Math.abs(number) > Number.MAX_SAFE_INTEGER) throw this.#fail(`Expected a number below 2^53 but received ${word.slice(0, 40)}`, begin);
    return number;
  }

  #end(value: JsonValue): JsonValue {
    this.#skip();
    if (this.#at < this.#bytes.length) throw this.#fail("Expected nothing after the JSON value");
    return value;
  }

  /** Moves to the next byte that is no white space, and gives it; −1 at the end. */
  #skip(): number {
    for (;; this.#at++) {
      const byte = this.#bytes[this.#at];
      if (byte === undefined) return -1;
      if (byte !== 0x20 && byte !== 0x0a && byte !== 0x0d && byte !== 0x09) return byte;
    }
  }

  #fail(message: string, at = this.#at): ModelFormatError {
    return new ModelFormatError(`${message} in the JSON`, { offset: (this.#options.offset ?? 0) + at, file: this.#options.file });
  }
}

class TableBuilder {
  readonly numbered: boolean;
  #bytes = Buffer.allocUnsafe(1 << 16);
  #used = 0;
  #starts = new Uint32Array(4096);
  #ends = new Uint32Array(4096);
  #numbers = new Float64Array(4096);
  #count = 0;
  #pairs = false;

  constructor(numbered: boolean) {
    this.numbered = numbered;
  }

  /** Appends `source[begin, end)` to the entry; to its end where `end` is −1. */
  add(source: Buffer, begin: number, end: number): void {
    const stop = end < 0 ? source.length : end;
    if (this.#used + stop - begin + 1 > this.#bytes.length) {
      const grown = Buffer.allocUnsafe(2 * this.#bytes.length + stop - begin + 1);
      this.#bytes.copy(grown, 0, 0, this.#used);
      this.#bytes = grown;
    }
    for (let at = begin; at < stop; at++) this.#bytes[this.#used++] = source[at] as number;
  }

  /** Ends the first string of a pair. */
  join(): void {
    this.#pairs = true;
    this.#bytes[this.#used++] = 0xff;
  }

  end(number: number): void {
    const index = this.#count++;
    if (index === this.#starts.length) {
      this.#starts = grow(this.#starts, new Uint32Array(2 * index));
      this.#ends = grow(this.#ends, new Uint32Array(2 * index));
      this.#numbers = grow(this.#numbers, new Float64Array(2 * index));
    }
    this.#starts[index] = index === 0 ? 0 : (this.#ends[index - 1] as number);
    this.#ends[index] = this.#used;
    this.#numbers[index] = number;
  }

  done(): JsonTable {
    const strings = new StringTable(this.#bytes.subarray(0, this.#used), this.#starts.slice(0, this.#count), this.#ends.slice(0, this.#count));
    return new JsonTable(strings, this.numbered ? this.#numbers.slice(0, this.#count) : undefined, this.#pairs);
  }
}

function grow<T extends Uint32Array | Float64Array>(from: T, to: T): T {
  to.set(from);
  return to;
}
