import { ArgumentError, invalidArgument } from "../errors.js";
import type { TopTokens } from "./drafter.js";

const magic = 0x52544c54, version = 1, headerWords = 7;
/** Probabilities as one byte: 0 = never seen, else 2^((code − 255) / 16). */
const probabilityOf = Float32Array.from({ length: 256 }, (_, code) => (code === 0 ? 0 : 2 ** ((code - 255) / 16)));

function codeOf(logProbability: number): number {
  return Math.min(255, Math.max(1, Math.round(255 + (logProbability / Math.LN2) * 16)));
}

/** What a follower counts for that was only read: a quarter behind a token, half behind a pair. */
const notedOfToken = 255 - 32, notedOfPair = 255 - 16;

/** FNV-1a over the bytes. */
function checksum(bytes: Uint8Array): number {
  let hash = 0x811c9dc5;
  for (const byte of bytes) hash = Math.imul(hash ^ byte, 0x01000193);
  return hash >>> 0;
}

/** Murmur3's finaliser over a pair of tokens. */
function hashOf(before: number, token: number): number {
  let hash = Math.imul(before, 0x9e3779b1) ^ token;
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}

export interface MatrixSize {
  readonly vocabulary: number;
  /** Followers of each row. */
  readonly k: number;
  /** Rows of pairs of tokens, a power of two, or 0. */
  readonly pairs: number;
}

/**
 * Token Recycling's adjacency matrix (arXiv 2408.08696): for each token the k tokens that were likeliest behind it when it was
 * last computed, and how likely they were. What the byte budget leaves holds rows of pairs of tokens, the latest ones, found by
 * a hash: behind a pair the same tokens follow far more often than behind one token.
 */
export class RecyclingMatrix {
  readonly k: number;
  private readonly rows: number;
  private readonly ids: Uint16Array | Int32Array;
  private readonly codes: Uint8Array;
  /** Of each row of a pair: 16 more bits of its hash, 0 where it is empty. */
  private readonly tags: Uint16Array;

  constructor(readonly size: MatrixSize) {
    const { vocabulary, k, pairs } = size;
    this.k = k;
    this.rows = vocabulary + pairs;
    this.ids = vocabulary <= 65536 ? new Uint16Array(this.rows * k) : new Int32Array(this.rows * k);
    this.codes = new Uint8Array(this.rows * k);
    this.tags = new Uint16Array(pairs);
  }

  /** The largest matrix of at most `k` followers a row that fits the budget. Throws ArgumentError where none does. */
  static fitting(vocabulary: number, k: number, byteBudget: number): RecyclingMatrix {
    const entry = vocabulary <= 65536 ? 3 : 5, most = Math.min(k, vocabulary, Math.floor(byteBudget / (vocabulary * entry)));
    if (most < 1) throw new ArgumentError("options.byteBudget", `Expected at least ${vocabulary * entry} bytes for options.byteBudget but received ${byteBudget}`);
    const left = Math.floor((byteBudget - vocabulary * most * entry) / (most * entry + 2));
    return new RecyclingMatrix({ vocabulary, k: most, pairs: left < 256 ? 0 : 2 ** Math.min(20, Math.floor(Math.log2(left))) });
  }

  get bytes(): number {
    return this.ids.byteLength + this.codes.byteLength + this.tags.byteLength;
  }

  /** The row that tells what follows `token` behind `before`: that of the pair where it is known, else the token's. */
  row(before: number, token: number): number {
    const { pairs, vocabulary } = this.size;
    if (pairs === 0 || before < 0) return token;
    const hash = hashOf(before, token), at = hash & (pairs - 1);
    return this.tags[at] === tagOf(hash) ? vocabulary + at : token;
  }

  /** Whether a row is that of a pair. */
  isPair(row: number): boolean {
    return row >= this.size.vocabulary;
  }

  follower(row: number, rank: number): number {
    return this.ids[row * this.k + rank]!;
  }

  /** 0 where the row was never written. */
  probability(row: number, rank: number): number {
    return probabilityOf[this.codes[row * this.k + rank]!]!;
  }

  /** What the forward pass found behind `token`, node i of `top`, becomes its row and that of the pair. */
  write(before: number, token: number, top: TopTokens, i: number): void {
    this.fill(token, top, i);
    if (this.size.pairs === 0 || before < 0) return;
    const hash = hashOf(before, token), at = hash & (this.size.pairs - 1);
    this.tags[at] = tagOf(hash);
    this.fill(this.size.vocabulary + at, top, i);
  }

  /** A text had `next` behind `before` and `token`, with nothing computed: it joins their rows, in front where it is new there. */
  note(before: number, token: number, next: number): void {
    if (this.codes[token * this.k] === 0) this.insert(token, next, notedOfToken);
    if (this.size.pairs === 0 || before < 0) return;
    const hash = hashOf(before, token), at = hash & (this.size.pairs - 1), row = this.size.vocabulary + at;
    if (this.tags[at] !== tagOf(hash)) this.codes.fill(0, row * this.k, (row + 1) * this.k);
    this.tags[at] = tagOf(hash);
    this.insert(row, next, notedOfPair);
  }

  private insert(row: number, next: number, code: number): void {
    const begin = row * this.k, end = begin + this.k;
    for (let at = begin; at < end && this.codes[at] !== 0; at++) if (this.ids[at] === next) return;
    this.ids.copyWithin(begin + 1, begin, end - 1);
    this.codes.copyWithin(begin + 1, begin, end - 1);
    this.ids[begin] = next;
    this.codes[begin] = Math.max(code, this.codes[begin]!);
  }

  private fill(row: number, top: TopTokens, i: number): void {
    const given = Math.min(this.k, top.k);
    for (let rank = 0; rank < given; rank++) {
      this.ids[row * this.k + rank] = top.indices[i * top.k + rank]!;
      this.codes[row * this.k + rank] = codeOf(top.values[i * top.k + rank]! - top.logSumExp[i]!);
    }
  }

  private get parts(): Uint8Array[] {
    return [this.ids, this.codes, this.tags].map((part) => new Uint8Array(part.buffer));
  }

  /** A copy for a later hot start: header, ids, probabilities, tags; little-endian. */
  save(): Uint8Array {
    const bytes = new Uint8Array(headerWords * 4 + this.bytes), header = new DataView(bytes.buffer);
    let at = headerWords * 4;
    for (const part of this.parts) {
      bytes.set(part, at);
      at += part.length;
    }
    const { vocabulary, k, pairs } = this.size;
    [magic, version, vocabulary, k, pairs, this.ids.BYTES_PER_ELEMENT, checksum(bytes.subarray(headerWords * 4))].forEach((word, i) => header.setUint32(i * 4, word, true));
    return bytes;
  }

  /** The matrix that save() wrote. Throws ArgumentError for anything else: damaged bytes, another version or vocabulary. */
  static load(bytes: Uint8Array, vocabulary: number): RecyclingMatrix {
    if (!(bytes instanceof Uint8Array) || bytes.length < headerWords * 4) throw invalidArgument("options.matrix", "the bytes that save() gave", bytes);
    const header = new DataView(bytes.buffer, bytes.byteOffset), word = (i: number): number => header.getUint32(i * 4, true);
    const fail = (what: string): never => {
      throw new ArgumentError("options.matrix", `Expected the bytes that save() gave for options.matrix but ${what}`);
    };
    if (word(0) !== magic || word(1) !== version) fail(`their mark is ${word(0)}, version ${word(1)}`);
    if (word(2) !== vocabulary) fail(`they are for a vocabulary of ${word(2)} tokens, not ${vocabulary}`);
    const k = word(3), pairs = word(4), idBytes = vocabulary <= 65536 ? 2 : 4;
    const fits = k >= 1 && k <= 64 && (pairs === 0 || (pairs <= 2 ** 20 && (pairs & (pairs - 1)) === 0)) && word(5) === idBytes;
    if (!fits || bytes.length !== headerWords * 4 + (vocabulary + pairs) * k * (idBytes + 1) + pairs * 2) fail(`their length of ${bytes.length} does not fit`);
    if (checksum(bytes.subarray(headerWords * 4)) !== word(6)) fail("their checksum is wrong");
    const matrix = new RecyclingMatrix({ vocabulary, k, pairs });
    let at = headerWords * 4;
    for (const part of matrix.parts) {
      part.set(bytes.subarray(at, at + part.length));
      at += part.length;
    }
    if (matrix.ids.some((id) => id >= vocabulary || id < 0)) fail("they name tokens outside the vocabulary");
    return matrix;
  }
}

function tagOf(hash: number): number {
  return (hash >>> 16) | 1;
}
