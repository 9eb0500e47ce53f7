import { ArgumentError, invalidArgument } from "../errors.js";
import type { TopTokens } from "./drafter.js";

const magic = 0x52544c54, version = 1, headerWords = 6;
/** Probabilities as one byte: 0 = never seen, else 2^((code − 255) / 16). */
const probabilityOf = Float32Array.from({ length: 256 }, (_, code) => (code === 0 ? 0 : 2 ** ((code - 255) / 16)));

function codeOf(logProbability: number): number {
  return Math.min(255, Math.max(1, Math.round(255 + (logProbability / Math.LN2) * 16)));
}

/** FNV-1a over the bytes. */
function checksum(bytes: Uint8Array): number {
  let hash = 0x811c9dc5;
  for (const byte of bytes) hash = Math.imul(hash ^ byte, 0x01000193);
  return hash >>> 0;
}

/**
 * Token Recycling's adjacency matrix (arXiv 2408.08696): for each token the k tokens that were likeliest behind it when it was
 * last computed, and how likely they were. Rows of 2-byte ids where the vocabulary fits them.
 */
export class RecyclingMatrix {
  private readonly ids: Uint16Array | Int32Array;
  private readonly codes: Uint8Array;

  constructor(readonly vocabulary: number, readonly k: number) {
    this.ids = vocabulary <= 65536 ? new Uint16Array(vocabulary * k) : new Int32Array(vocabulary * k);
    this.codes = new Uint8Array(vocabulary * k);
  }

  /** Bytes of one token with one follower. */
  static entryBytes(vocabulary: number): number {
    return vocabulary <= 65536 ? 3 : 5;
  }

  get bytes(): number {
    return this.ids.byteLength + this.codes.byteLength;
  }

  follower(token: number, rank: number): number {
    return this.ids[token * this.k + rank]!;
  }

  /** 0 where the token was never computed. */
  probability(token: number, rank: number): number {
    return probabilityOf[this.codes[token * this.k + rank]!]!;
  }

  /** Row tokens[i] becomes what the forward pass found behind node i; of equal tokens the last node's row stays. */
  update(tokens: Int32Array, top: TopTokens): void {
    const { k } = this, given = Math.min(k, top.k);
    for (let i = 0; i < tokens.length; i++) {
      const at = tokens[i]! * k;
      for (let rank = 0; rank < given; rank++) {
        this.ids[at + rank] = top.indices[i * top.k + rank]!;
        this.codes[at + rank] = codeOf(top.values[i * top.k + rank]! - top.logSumExp[i]!);
      }
    }
  }

  /** A copy for a later hot start: header, ids, probabilities; little-endian. */
  save(): Uint8Array {
    const ids = new Uint8Array(this.ids.buffer), bytes = new Uint8Array(headerWords * 4 + ids.length + this.codes.length), header = new DataView(bytes.buffer);
    bytes.set(ids, headerWords * 4);
    bytes.set(this.codes, headerWords * 4 + ids.length);
    [magic, version, this.vocabulary, this.k, this.ids.BYTES_PER_ELEMENT, checksum(bytes.subarray(headerWords * 4))].forEach((word, i) => header.setUint32(i * 4, word, true));
    return bytes;
  }

  /** The matrix that save() wrote. Throws ArgumentError for anything else: damaged bytes, another version or vocabulary. */
  static load(bytes: Uint8Array, vocabulary: number): RecyclingMatrix {
    if (!(bytes instanceof Uint8Array) || bytes.length < headerWords * 4) throw invalidArgument("matrix", "the bytes that save() gave", bytes);
    const header = new DataView(bytes.buffer, bytes.byteOffset), word = (i: number): number => header.getUint32(i * 4, true);
    const fail = (what: string): never => {
      throw new ArgumentError("matrix", `Expected the bytes that save() gave for matrix but ${what}`);
    };
    if (word(0) !== magic || word(1) !== version) fail(`their mark is ${word(0)}, version ${word(1)}`);
    if (word(2) !== vocabulary) fail(`they are for a vocabulary of ${word(2)} tokens, not ${vocabulary}`);
    const k = word(3), idBytes = vocabulary <= 65536 ? 2 : 4;
    if (k < 1 || k > 64 || word(4) !== idBytes || bytes.length !== headerWords * 4 + vocabulary * k * (idBytes + 1)) fail(`their length of ${bytes.length} does not fit`);
    const body = bytes.slice(headerWords * 4);
    if (checksum(body) !== word(5)) fail("their checksum is wrong");
    const matrix = new RecyclingMatrix(vocabulary, k);
    new Uint8Array(matrix.ids.buffer).set(body.subarray(0, matrix.ids.byteLength));
    matrix.codes.set(body.subarray(matrix.ids.byteLength));
    if (matrix.ids.some((id) => id >= vocabulary || id < 0)) fail("they name tokens outside the vocabulary");
    return matrix;
  }
}
