import { utf8Length } from "./bytes.js";
import { SymbolMerger, type PairRule } from "./merge.js";
import type { Vocabulary } from "./vocabulary.js";

const STEPS = 100;

/**
 * SentencePiece's BPE as GGUF stores it (`tokenizer.ggml.model` = "llama"): no list of merges, but a score for each
 * token; of all neighbours whose texts together are a token, those of the best score are joined first. Characters that
 * end up in no token become `<0xNN>` tokens. The library has byte-pair encoding by merges only, hence this file.
 */
export class SentencePieceModel {
  readonly #vocabulary: Vocabulary;
  readonly #scores: Float32Array;
  readonly #unknownId: number | undefined;
  readonly #byteIds: Int32Array;

  /** @param scores one a token */
  constructor(vocabulary: Vocabulary, scores: Float32Array, unknownId: number | undefined) {
    this.#vocabulary = vocabulary;
    this.#scores = scores;
    this.#unknownId = unknownId;
    this.#byteIds = Int32Array.from({ length: 256 }, (_, byte) => {
      const token = vocabulary.findText(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
      return token >= 0 ? token : vocabulary.find(Uint8Array.of(byte), 0, 1);
    });
  }

  /** Encodes well-formed text (whole: any two neighbours may join), yielding between short stretches of work. */
  *encode(text: string, out: number[]): Generator<void, void> {
    if (text === "") return;
    const bytes = Buffer.from(text.replaceAll(" ", "\u2581"));
    const merger = new SymbolMerger(this.#rule(bytes));
    yield;
    const count = yield* this.#characters(merger, bytes);
    merger.reset(count);
    while (!merger.advance(STEPS)) yield;
    let work = 0;
    for (let symbol = 0; symbol >= 0; symbol = merger.after(symbol)) {
      this.#emit(bytes, merger.starts[symbol] as number, merger.ends[symbol] as number, out);
      if (++work % STEPS === 0) yield;
    }
  }

  #rule(bytes: Uint8Array): PairRule {
    const vocabulary = this.#vocabulary, scores = this.#scores;
    return {
      priority: 0,
      find(merger, left, right) {
        const id = vocabulary.find(bytes, merger.starts[left] as number, merger.ends[right] as number);
        if (id >= 0) this.priority = -(scores[id] as number);
        return id;
      },
    };
  }

  *#characters(merger: SymbolMerger, bytes: Uint8Array): Generator<void, number> {
    let count = 0;
    for (let at = 0; at < bytes.length;) {
      if (count % 1024 === 0) {
        merger.reserve(count + 1024);
        yield;
      }
      const next = at + utf8Length(bytes[at] as number);
      merger.starts[count] = at;
      merger.ends[count++] = next;
      at = next;
    }
    return count;
  }

  #emit(bytes: Uint8Array, begin: number, end: number, out: number[]): void {
    const id = this.#vocabulary.find(bytes, begin, end);
    if (id >= 0) {
      out.push(id);
      return;
    }
    for (let at = begin; at < end; at++) {
      const byte = this.#byteIds[bytes[at] as number] as number;
      if (byte >= 0) out.push(byte);
      else if (this.#unknownId !== undefined) out.push(this.#unknownId);
    }
  }
}
