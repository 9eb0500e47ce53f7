import { ModelFormatError } from "../errors.js";
import type { Metadata, ModelFile } from "../models/file.js";
import { MapMetadata } from "../models/metadata.js";
import type { StringTable } from "../models/strings.js";
import type { Slicer } from "../slice.js";
import { BytePairModel, byteToken } from "./bpe.js";
import { endTokens } from "./end-tokens.js";
import { checkedId, type TokenizerParts } from "./parts.js";
import { namedPreTokenizer } from "./pretokenize.js";
import { SentencePieceModel } from "./sentencepiece.js";
import { SpecialTokens, type SpecialToken } from "./special.js";
import { TokenKind, Vocabulary } from "./vocabulary.js";

/** Builds the tokenizer that a GGUF file's metadata describes: `gpt2` (byte-level BPE) or `llama` (SentencePiece). */
export async function ggufTokenizer(file: ModelFile, slicer: Slicer): Promise<TokenizerParts> {
  const { metadata, path } = file;
  const model = metadata.string("tokenizer.ggml.model");
  if (model !== "gpt2" && model !== "llama") {
    throw new ModelFormatError(`Expected 'gpt2' or 'llama' for tokenizer.ggml.model but received '${model}'`, { file: path });
  }
  const tokens = table(metadata, "tokenizer.ggml.tokens", path);
  const kinds = await tokenKinds(metadata, tokens.count, path, slicer);
  const vocabulary = await Vocabulary.create(tokens, kinds, model === "gpt2", path, slicer);
  const id = (key: string, fallback?: number): number | undefined => {
    const name = `tokenizer.ggml.${key}_token_id`;
    if (!metadata.has(name)) return fallback !== undefined && fallback < vocabulary.size ? fallback : undefined;
    return checkedId(metadata.integer(name), vocabulary.size, name, path);
  };
  const specials = new Map<string, number>();
  await slicer.batches(vocabulary.size, 1024, (begin, end) => {
    for (let token = begin; token < end; token++) if (isSearched(kinds[token])) specials.set(vocabulary.text(token), token);
  });
  await slicer.pause();
  const find = (text: string): number => specials.get(text) ?? vocabulary.findText(text);
  const sentencePiece = model === "llama";
  const eosId = id("eos", sentencePiece ? 2 : undefined);
  const eosIds = endTokens(vocabulary, [eosId, id("eot"), id("eom")], find);
  const bosId = id("bos", sentencePiece ? 1 : undefined);
  const addSpacePrefix = metadata.boolean("tokenizer.ggml.add_space_prefix", sentencePiece);
  await slicer.pause();
  const shared = {
    vocabulary,
    special: new SpecialTokens(specialTokens([...new Set([...specials.values(), ...eosIds])], vocabulary, metadata)),
    bosId,
    eosIds,
    addEos: metadata.boolean("tokenizer.ggml.add_eos_token", false) && eosId !== undefined,
    prefix: bosId === undefined ? [] : [bosId],
    suffix: eosId === undefined ? [] : [eosId],
  };
  const parts = sentencePiece
    ? sentencePieceParts(vocabulary, metadata, id("unknown", 0), addSpacePrefix, path)
    : await bytePairParts(vocabulary, metadata, path, slicer);
  return { ...shared, ...parts, addBos: parts.addBos && bosId !== undefined };
}

type ModelParts = Pick<TokenizerParts, "addBos" | "dropSpace" | "encodeText" | "bytes">;

async function bytePairParts(vocabulary: Vocabulary, metadata: Metadata, path: string, slicer: Slicer): Promise<ModelParts> {
  const preTokenizer = namedPreTokenizer(metadata.string("tokenizer.ggml.pre", "default"), path);
  const options = { ignoreMerges: preTokenizer.ignoreMerges, byteLevel: true };
  await slicer.pause();
  const merges = table(metadata, "tokenizer.ggml.merges", path);
  const model = await BytePairModel.create(vocabulary, merges, options, path, slicer);
  return {
    addBos: metadata.boolean("tokenizer.ggml.add_bos_token", preTokenizer.addBos),
    dropSpace: false,
    encodeText: (text, _first, out) => model.encode(text, preTokenizer, out),
    bytes: (id) => tokenBytes(vocabulary, id),
  };
}

function sentencePieceParts(vocabulary: Vocabulary, metadata: Metadata, unknownId: number | undefined, addSpacePrefix: boolean, path: string): ModelParts {
  const key = "tokenizer.ggml.scores";
  const scores = metadata.has(key) ? Float32Array.from(metadata.numbers(key) ?? []) : new Float32Array(vocabulary.size);
  if (scores.length < vocabulary.size) {
    throw new ModelFormatError(`Expected ${vocabulary.size} numbers for ${key} but received ${scores.length}`, { file: path });
  }
  const model = new SentencePieceModel(vocabulary, scores, unknownId);
  return {
    addBos: metadata.boolean("tokenizer.ggml.add_bos_token", true),
    dropSpace: addSpacePrefix,
    encodeText: (text, _first, out) => model.encode(addSpacePrefix ? ` ${text}` : text, out),
    bytes: (id) => (vocabulary.kinds[id] === TokenKind.normal || vocabulary.kinds[id] === TokenKind.unused ? unescapeSpaces(vocabulary.bytes(id)) : tokenBytes(vocabulary, id)),
  };
}

function tokenBytes(vocabulary: Vocabulary, id: number): Uint8Array {
  const bytes = vocabulary.bytes(id);
  return vocabulary.kinds[id] === TokenKind.byte ? (byteToken(bytes) ?? bytes) : bytes;
}

/** U+2581, which stands for a space in SentencePiece's tokens, back to the space. */
export function unescapeSpaces(bytes: Uint8Array): Uint8Array {
  if (!bytes.includes(0xe2)) return bytes;
  const result = new Uint8Array(bytes.length);
  let length = 0;
  for (let at = 0; at < bytes.length; at++) {
    if (bytes[at] === 0xe2 && bytes[at + 1] === 0x96 && bytes[at + 2] === 0x81) {
      result[length++] = 0x20;
      at += 2;
    } else {
      result[length++] = bytes[at] as number;
    }
  }
  return result.subarray(0, length);
}

function table(metadata: Metadata, key: string, path: string): StringTable {
  const found = metadata instanceof MapMetadata ? metadata.table(key) : undefined;
  if (found === undefined || (found.count === 0 && key.endsWith("tokens"))) {
    throw new ModelFormatError(`Expected an array of strings for ${key} but the model's metadata has none`, { file: path });
  }
  return found;
}

async function tokenKinds(metadata: Metadata, count: number, path: string, slicer: Slicer): Promise<Uint8Array> {
  const key = "tokenizer.ggml.token_type";
  const raw = metadata.raw(key);
  const types = raw instanceof Int32Array ? raw : metadata.numbers(key);
  const kinds = new Uint8Array(count).fill(TokenKind.normal);
  if (types === undefined) return kinds;
  if (types.length < count) throw new ModelFormatError(`Expected ${count} numbers for ${key} but received ${types.length}`, { file: path });
  await slicer.batches(count, 1024, (begin, end) => {
    for (let id = begin; id < end; id++) {
      const type = types[id] as number;
      kinds[id] = type >= 1 && type <= 6 ? type : TokenKind.unused;
    }
  });
  return kinds;
}

function isSearched(kind: number | undefined): boolean {
  return kind === TokenKind.control || kind === TokenKind.userDefined || kind === TokenKind.unknown;
}

/** Those of the candidates that are searched for. Phi-3's take the white space after them, which its files do not say. */
function specialTokens(candidates: readonly number[], vocabulary: Vocabulary, metadata: Metadata): SpecialToken[] {
  const strips = /phi-?3/i.test(metadata.string("general.name", ""));
  const plain = new Set(["<unk>", "<s>", "<|endoftext|>"]);
  return candidates.filter((id) => isSearched(vocabulary.kinds[id])).map((id) => {
    const text = vocabulary.text(id);
    return { id, text, control: vocabulary.kinds[id] !== TokenKind.userDefined, stripLeft: false, stripRight: strips && !plain.has(text) };
  });
}
