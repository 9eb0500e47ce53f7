import { ModelFormatError } from "../errors.js";
import type { SpecialTokens } from "./special.js";
import type { Vocabulary } from "./vocabulary.js";

/** What the file formats make, and ModelTokenizer runs. */
export interface TokenizerParts {
  readonly vocabulary: Vocabulary;
  readonly special: SpecialTokens;
  readonly bosId: number | undefined;
  readonly eosIds: readonly number[];
  readonly addBos: boolean;
  readonly addEos: boolean;
  /** Tokens before and after a sequence. */
  readonly prefix: readonly number[];
  readonly suffix: readonly number[];
  /** The first token's space does not belong to the text. */
  readonly dropSpace: boolean;
  /** Encodes a stretch of text without special tokens; `first`: no token stands before it. */
  encodeText(text: string, first: boolean, out: number[]): Generator<void, void>;
  bytes(id: number): Uint8Array;
}

/** Checks an id that a file states. */
export function checkedId(value: number, size: number, key: string, file: string): number {
  if (!Number.isInteger(value) || value < 0 || value >= size) {
    throw new ModelFormatError(`Expected a token in 0 … ${size - 1} for ${key} but received ${value}`, { file });
  }
  return value;
}
