import { ContextOverflowError, invalidArgument } from "../errors.js";
import type { ModelFile } from "../models/file.js";
import { finishAtOnce, Slicer } from "../slice.js";
import { wellFormed } from "./bytes.js";
import { ggufTokenizer } from "./from-gguf.js";
import { jsonTokenizer } from "./from-json.js";
import type { TokenizerParts } from "./parts.js";
import type { Fragment } from "./special.js";
import { TokenKind } from "./vocabulary.js";

export interface EncodeOptions {
  /**
   * Whether the text of control tokens (`<|im_start|>`) stands for the tokens. False by default: text from outside must
   * not be able to forge turns of a chat. Rendered templates are encoded with true. (llama.cpp: parse_special.)
   * Tokens that the model's author added as ordinary text ("user defined") are always found.
   */
  readonly special?: boolean | undefined;
  /**
   * Begin with the tokens that begin a sequence (BOS, [CLS]), where the vocabulary has them and the text (a rendered
   * template) does not begin with them already. False by default.
   */
  readonly bos?: boolean | undefined;
  /** End with the tokens that end a sequence (EOS, [SEP]), where the vocabulary has them. False by default. */
  readonly eos?: boolean | undefined;
}

export interface EncodeAsyncOptions extends EncodeOptions {
  readonly signal?: AbortSignal | undefined;
  /** More tokens than this are a ContextOverflowError, thrown as soon as that is clear. */
  readonly limit?: number | undefined;
}

export interface Tokenizer {
  /** Number of tokens; ids are 0 … vocabulary − 1. */
  readonly vocabulary: number;
  readonly bosId?: number;
  /** Texts of the tokens that begin and end a sequence, for templates; "" where there is none. */
  readonly bosToken: string;
  readonly eosToken: string;
  /** Every token that ends a generation: end of sequence, of turn, of message. The file's own end of sequence first. */
  readonly eosIds: readonly number[];
  /** Whether the model was trained on texts that begin with BOS. */
  readonly addBos: boolean;
  /** Whether the model was trained on texts that end with EOS or a separator. */
  readonly addEos: boolean;
  /** Ids of the text, computed in one go. */
  encode(text: string, options?: EncodeOptions): number[];
  /** The same ids, computed in slices that leave the event loop free. Throws AbortError, ContextOverflowError. */
  encodeAsync(text: string, options?: EncodeAsyncOptions): Promise<number[]>;
  /** The bytes that a token stands for; of a special token those of its text. May be part of a UTF-8 character only. */
  tokenBytes(id: number): Uint8Array;
  /** Whether a control token (or the unknown token), which decode leaves out by default. */
  isSpecial(id: number): boolean;
  /** Text of the tokens; broken UTF-8 becomes U+FFFD. The space that encode() puts before a text is taken off again. */
  decode(ids: Iterable<number>, options?: { special?: boolean | undefined }): string;
  /** Decodes one token after the other, giving out whole characters only. */
  stream(options?: { special?: boolean | undefined }): TokenStream;
  /** A token for display: its text where that is whole UTF-8, `<0x..>` bytes otherwise. */
  tokenText(id: number): string;
}

export interface TokenStream {
  /** The characters that this token completes, perhaps none. */
  push(id: number): string;
  /** What is left: U+FFFD where the last character was never completed. */
  end(): string;
}

/**
 * The tokenizer of a model: from a GGUF file's own metadata, or from `tokenizer.json` beside safetensors files.
 * Built in slices that leave the event loop free. Throws ModelFormatError (an unknown kind of tokenizer is named), AbortError.
 */
export async function createTokenizer(file: ModelFile, options: { signal?: AbortSignal | undefined } = {}): Promise<Tokenizer> {
  const slicer = new Slicer(options.signal);
  return new ModelTokenizer(file.format === "gguf" ? await ggufTokenizer(file, slicer) : await jsonTokenizer(file, slicer));
}

class ModelTokenizer implements Tokenizer {
  readonly vocabulary: number;
  declare readonly bosId?: number;
  readonly bosToken: string;
  readonly eosToken: string;
  readonly eosIds: readonly number[];
  readonly addBos: boolean;
  readonly addEos: boolean;
  readonly #parts: TokenizerParts;

  constructor(parts: TokenizerParts) {
    this.#parts = parts;
    this.vocabulary = parts.vocabulary.size;
    if (parts.bosId !== undefined) this.bosId = parts.bosId;
    this.bosToken = parts.bosId === undefined ? "" : parts.vocabulary.text(parts.bosId);
    this.eosToken = parts.eosIds[0] === undefined ? "" : parts.vocabulary.text(parts.eosIds[0]);
    this.eosIds = parts.eosIds;
    this.addBos = parts.addBos;
    this.addEos = parts.addEos;
  }

  encode(text: string, options: EncodeOptions = {}): number[] {
    const ids: number[] = [];
    finishAtOnce(this.#encode(text, options, ids));
    return ids;
  }

  async encodeAsync(text: string, options: EncodeAsyncOptions = {}): Promise<number[]> {
    const slicer = new Slicer(options.signal);
    const { limit = Number.POSITIVE_INFINITY } = options;
    const ids: number[] = [];
    for (const _ of this.#encode(text, options, ids)) {
      if (ids.length > limit) break;
      if (slicer.due) await slicer.pause();
    }
    if (ids.length > limit) throw new ContextOverflowError(`Expected a text of at most ${limit} tokens but this one has more`);
    return ids;
  }

  tokenBytes(id: number): Uint8Array {
    return this.#parts.bytes(this.#check(id)).slice();
  }

  isSpecial(id: number): boolean {
    const kind = this.#parts.vocabulary.kinds[this.#check(id)];
    return kind === TokenKind.control || kind === TokenKind.unknown;
  }

  decode(ids: Iterable<number>, options: { special?: boolean | undefined } = {}): string {
    const pieces: Uint8Array[] = [];
    for (const id of ids) if (options.special === true || !this.isSpecial(id)) pieces.push(this.#parts.bytes(this.#check(id)));
    const [first] = pieces;
    if (this.#parts.dropSpace && first?.[0] === 0x20) pieces[0] = first.subarray(1);
    return Buffer.concat(pieces).toString("utf8");
  }

  stream(options: { special?: boolean | undefined } = {}): TokenStream {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    const special = options.special === true;
    return {
      push: (id) => (special || !this.isSpecial(id) ? decoder.decode(this.#parts.bytes(this.#check(id)), { stream: true }) : ""),
      end: () => decoder.decode(),
    };
  }

  tokenText(id: number): string {
    const bytes = this.#parts.bytes(this.#check(id));
    try {
      return new TextDecoder("utf-8", { ignoreBOM: true, fatal: true }).decode(bytes);
    } catch {
      return Array.from(bytes, (byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`).join("");
    }
  }

  *#encode(raw: string, options: EncodeOptions, out: number[]): Generator<void, void> {
    if (typeof raw !== "string") throw invalidArgument("text", "a string", raw);
    const parts = this.#parts;
    const fragments: Fragment[] = yield* parts.special.split(wellFormed(raw), options.special === true);
    if (options.bos === true && fragments[0] !== parts.prefix[0]) out.push(...parts.prefix);
    for (const [index, fragment] of fragments.entries()) {
      if (typeof fragment === "number") out.push(fragment);
      else yield* parts.encodeText(fragment, index === 0, out);
    }
    if (options.eos === true) out.push(...parts.suffix);
  }

  #check(id: number): number {
    if (!Number.isInteger(id) || id < 0 || id >= this.vocabulary) throw invalidArgument("id", `a token in 0 … ${this.vocabulary - 1}`, id);
    return id;
  }
}
