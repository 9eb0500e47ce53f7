import { ModelFormatError } from "../errors.js";
import type { JsonObject } from "../models/json.js";
import type { Slicer } from "../slice.js";
import { bertWords } from "./bert.js";
import type { JsonSteps } from "./json-pretokenize.js";
import { tokenizersLibrary } from "./library.js";
import { chunkEnd } from "./pretokenize.js";
import { TokenKind, type Vocabulary } from "./vocabulary.js";

export interface WordPieceEncoder {
  encode(text: string, out: number[]): Generator<void, void>;
  /** Words begin with a space, which the text's first gives back. */
  bytes(id: number): Uint8Array;
}

/** BERT's WordPiece: the library's, fed with one word after the other. */
export async function wordPieceEncoder(model: JsonObject, vocabulary: Vocabulary, steps: JsonSteps, path: string, slicer: Slicer): Promise<WordPieceEncoder> {
  const library = await tokenizersLibrary();
  const unknown = model.get("unk_token") ?? "[UNK]", prefix = model.get("continuing_subword_prefix") ?? "##";
  const ids = new Map<string, number>();
  await slicer.batches(vocabulary.size, 256, (begin, end) => {
    for (let id = begin; id < end; id++) if (vocabulary.kinds[id] !== TokenKind.unused) ids.set(vocabulary.text(id), id);
  });
  const unknownId = typeof unknown === "string" ? ids.get(unknown) : undefined;
  if (typeof unknown !== "string" || typeof prefix !== "string" || unknownId === undefined) {
    throw new ModelFormatError("Expected unk_token to be a token of the vocabulary", { file: path });
  }
  const most = model.get("max_input_chars_per_word") ?? 100;
  const words = new library.WordPiece({ type: "WordPiece", vocab: {}, unk_token: unknown, continuing_subword_prefix: prefix, max_input_chars_per_word: most });
  // Filled in as it is instead of from an object with a property for each token.
  words.tokens_to_ids = ids;
  const start = Buffer.from(prefix);
  return {
    *encode(text, out) {
      for (let begin = 0; begin < text.length;) {
        const end = steps.chunkable ? chunkEnd(text, begin) : text.length;
        const chunk = text.slice(begin, end);
        begin = end;
        let count = 0;
        for (const word of bertWords(steps.normalize?.(chunk) ?? chunk)) {
          for (const token of words.encode([word])) out.push(ids.get(token) ?? unknownId);
          if (++count % 32 === 0) yield;
        }
        yield;
      }
    },
    bytes(id) {
      const bytes = Buffer.from(vocabulary.bytes(id));
      if (vocabulary.kinds[id] === TokenKind.normal && bytes.subarray(0, start.length).equals(start)) return bytes.subarray(start.length);
      return Buffer.concat([Buffer.of(0x20), bytes]);
    },
  };
}
