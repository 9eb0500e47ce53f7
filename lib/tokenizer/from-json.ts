import { dirname, join } from "node:path";
import { ModelFormatError } from "../errors.js";
import type { ModelFile } from "../models/file.js";
import { type JsonObject, JsonTable, type JsonValue, toPlain } from "../models/json.js";
import { exists, readJsonObject } from "../models/safetensors.js";
import { StringTable } from "../models/strings.js";
import type { Slicer } from "../slice.js";
import { BytePairModel, byteToken } from "./bpe.js";
import { endTokens } from "./end-tokens.js";
import { unescapeSpaces } from "./from-gguf.js";
import { preTokenization } from "./json-pretokenize.js";
import { checkedId, type TokenizerParts } from "./parts.js";
import { SpecialTokens, type SpecialToken } from "./special.js";
import { TokenKind, Vocabulary } from "./vocabulary.js";
import { wordPieceEncoder } from "./wordpiece.js";

/** Parts of tokenizer.json that are read without an object for each entry. */
const TABLES: ReadonlySet<string> = new Set(["vocab", "merges"]);

/** Builds the tokenizer of `tokenizer.json` beside safetensors files: byte-pair encoding, or BERT's WordPiece. */
export async function jsonTokenizer(file: ModelFile, slicer: Slicer): Promise<TokenizerParts> {
  const folder = dirname(file.path);
  const path = join(folder, "tokenizer.json");
  if (!(await exists(path))) throw new ModelFormatError("Expected tokenizer.json beside the model's weights", { file: path });
  const root = await readJsonObject(path, slicer, TABLES);
  const model = objectAt(root, "model", path);
  const type = model.get("type") ?? (model.has("merges") ? "BPE" : undefined);
  if (type !== "BPE" && type !== "WordPiece") {
    throw new ModelFormatError(`Expected BPE or WordPiece for the tokenizer's model but received ${String(type)}`, { file: path });
  }
  const added = addedTokens(root, path);
  const steps = await preTokenization(root, type, path);
  const vocabulary = await buildVocabulary(vocabularyOf(model, path), added, type === "BPE" && steps.byteLevel, model.get("byte_fallback") === true, path, slicer);
  const find = (text: string): number => added.find(({ content }) => content === text)?.id ?? vocabulary.findText(text);
  const ends = await namedEnds(file, folder, find, vocabulary.size, slicer);
  const eosIds = endTokens(vocabulary, ends.eos, find);
  const wrap = templateTokens(root.get("post_processor") ?? null, vocabulary.size, path);
  const bosId = wrap.prefix[0] ?? ends.bos;
  const eosId = eosIds[0];
  const shared = {
    vocabulary, eosIds, bosId,
    special: new SpecialTokens(added.map((token) => searched(token, vocabulary))),
    addBos: wrap.prefix.length > 0,
    addEos: wrap.suffix.length > 0,
    prefix: wrap.prefix.length > 0 || bosId === undefined ? wrap.prefix : [bosId],
    suffix: wrap.suffix.length > 0 || eosId === undefined ? wrap.suffix : [eosId],
  };
  if (type === "WordPiece") {
    const word = await wordPieceEncoder(model, vocabulary, steps, path, slicer);
    return { ...shared, dropSpace: true, encodeText: (text, _first, out) => word.encode(text, out), bytes: (id) => word.bytes(id) };
  }
  const unknown = model.get("unk_token");
  const merges = mergesOf(model, path);
  const pairs = await BytePairModel.create(vocabulary, merges.strings, {
    ignoreMerges: model.get("ignore_merges") === true,
    byteLevel: steps.byteLevel,
    byteFallback: model.get("byte_fallback") === true,
    unknownId: typeof unknown === "string" && find(unknown) >= 0 ? find(unknown) : undefined,
    fuseUnknown: model.get("fuse_unk") === true,
    separator: merges.pairs ? 0xff : 0x20,
  }, path, slicer);
  return {
    ...shared,
    dropSpace: steps.putsSpace,
    encodeText: (text, first, out) => pairs.encode(steps.prepare(text, first), steps, out),
    bytes: (id) => {
      const bytes = vocabulary.bytes(id);
      if (vocabulary.kinds[id] === TokenKind.byte) return byteToken(bytes) ?? bytes;
      return steps.byteLevel || vocabulary.kinds[id] !== TokenKind.normal ? bytes : unescapeSpaces(bytes);
    },
  };
}

interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly special: boolean;
  readonly stripLeft: boolean;
  readonly stripRight: boolean;
}

function objectAt(object: JsonObject, key: string, path: string): JsonObject {
  const value = object.get(key);
  if (!(value instanceof Map)) throw new ModelFormatError(`Expected an object for ${key} in the tokenizer`, { file: path });
  return value;
}

function addedTokens(root: JsonObject, path: string): AddedToken[] {
  const list = root.get("added_tokens") ?? [];
  if (!Array.isArray(list)) throw new ModelFormatError("Expected a list for added_tokens", { file: path });
  return list.map((entry) => {
    const id = entry instanceof Map ? entry.get("id") : undefined, content = entry instanceof Map ? entry.get("content") : undefined;
    if (!(entry instanceof Map) || typeof content !== "string" || typeof id !== "number") throw new ModelFormatError("Expected id and content for each of added_tokens", { file: path });
    return { id, content, special: entry.get("special") === true, stripLeft: entry.get("lstrip") === true, stripRight: entry.get("rstrip") === true };
  });
}

function searched(token: AddedToken, vocabulary: Vocabulary): SpecialToken {
  return { id: token.id, text: token.content, control: vocabulary.kinds[token.id] === TokenKind.control, stripLeft: token.stripLeft, stripRight: token.stripRight };
}

function vocabularyOf(model: JsonObject, path: string): { strings: StringTable; ids: Float64Array } {
  const table = model.get("vocab");
  if (!(table instanceof JsonTable) || table.numbers === undefined) throw new ModelFormatError("Expected an object for vocab in the tokenizer", { file: path });
  return { strings: table.strings, ids: table.numbers };
}

/** Merges are "left right", or pairs in files of tokens that contain spaces. */
function mergesOf(model: JsonObject, path: string): JsonTable {
  const merges = model.get("merges");
  if (!(merges instanceof JsonTable) || merges.numbers !== undefined) throw new ModelFormatError("Expected a list for merges", { file: path });
  for (const key of ["continuing_subword_prefix", "end_of_word_suffix"]) {
    if (model.get(key)) throw new ModelFormatError(`Expected no ${key} but the tokenizer has one, which is not supported`, { file: path });
  }
  return merges;
}

/** Brings the tokens into the order of their ids: the bytes stay where they are. */
async function buildVocabulary({ strings, ids }: { strings: StringTable; ids: Float64Array }, added: readonly AddedToken[], byteLevel: boolean, byteFallback: boolean, path: string, slicer: Slicer): Promise<Vocabulary> {
  // Ids may have gaps, but not so many that a small file makes a large table.
  const most = 4 * (ids.length + added.length) + 1024;
  let size = 0;
  for (const { id } of added) size = Math.max(size, checkedId(id, most, "added_tokens", path) + 1);
  await slicer.batches(ids.length, 1024, (begin, end) => {
    for (let index = begin; index < end; index++) size = Math.max(size, checkedId(ids[index] as number, most, "the vocabulary", path) + 1);
  });
  const extra = StringTable.from(added.map(({ content }) => content));
  const bytes = Buffer.concat([strings.bytes, extra.bytes]);
  const starts = new Uint32Array(size), ends = new Uint32Array(size), kinds = new Uint8Array(size).fill(TokenKind.unused);
  await slicer.batches(ids.length, 1024, (begin, end) => {
    for (let index = begin; index < end; index++) {
      const id = ids[index] as number;
      if (kinds[id] !== TokenKind.unused) throw new ModelFormatError(`Expected each id once but two tokens have ${id}`, { file: path });
      starts[id] = strings.starts[index] as number;
      ends[id] = strings.ends[index] as number;
      kinds[id] = byteFallback && byteToken(bytes.subarray(starts[id], ends[id])) !== undefined ? TokenKind.byte : TokenKind.normal;
    }
  });
  for (const [index, { id, special }] of added.entries()) {
    starts[id] = strings.bytes.length + (extra.starts[index] as number);
    ends[id] = strings.bytes.length + (extra.ends[index] as number);
    kinds[id] = special ? TokenKind.control : TokenKind.userDefined;
  }
  return Vocabulary.create(new StringTable(bytes, starts, ends), kinds, byteLevel, path, slicer);
}

/** The tokens that the post-processor puts around a single sequence. */
function templateTokens(processor: JsonValue, size: number, path: string): { prefix: number[]; suffix: number[] } {
  const none = { prefix: [], suffix: [] };
  if (!(processor instanceof Map)) return none;
  const type = processor.get("type");
  if (type === "Sequence") {
    const steps = processor.get("processors");
    const found = (Array.isArray(steps) ? steps : []).map((step) => templateTokens(step, size, path));
    return found.find(({ prefix, suffix }) => prefix.length + suffix.length > 0) ?? none;
  }
  if (type === "BertProcessing" || type === "RobertaProcessing") {
    const id = (key: string): number[] => {
      const pair = processor.get(key);
      return Array.isArray(pair) && typeof pair[1] === "number" ? [checkedId(pair[1], size, key, path)] : [];
    };
    return { prefix: id("cls"), suffix: id("sep") };
  }
  if (type !== "TemplateProcessing") return none;
  const plain = toPlain(processor) as { single?: unknown; special_tokens?: Record<string, { ids?: number[] } | undefined> };
  const steps = Array.isArray(plain.single) ? (plain.single as { SpecialToken?: { id: string }; Sequence?: unknown }[]) : [];
  const text = steps.findIndex((step) => step?.Sequence !== undefined);
  const idsOf = (some: typeof steps): number[] =>
    some.flatMap((step) => (step.SpecialToken === undefined ? [] : (plain.special_tokens?.[step.SpecialToken.id]?.ids ?? [])))
      .map((id) => checkedId(id, size, "post_processor", path));
  return { prefix: idsOf(steps.slice(0, Math.max(0, text))), suffix: idsOf(steps.slice(text + 1)) };
}

/** Ends and begin of a sequence as the files beside the tokenizer name them. */
async function namedEnds(file: ModelFile, folder: string, find: (text: string) => number, size: number, slicer: Slicer): Promise<{ eos: number[]; bos: number | undefined }> {
  const read = async (name: string): Promise<JsonObject> => ((await exists(join(folder, name))) ? readJsonObject(join(folder, name), slicer) : new Map<string, JsonValue>());
  const generation = await read("generation_config.json");
  const config = await read("tokenizer_config.json");
  const numbers = (value: unknown): number[] =>
    (Array.isArray(value) ? value : [value]).filter((id): id is number => Number.isInteger(id) && (id as number) >= 0 && (id as number) < size);
  const named = (key: string): number[] => {
    const value = config.get(key);
    const text = value instanceof Map ? value.get("content") : value;
    const id = typeof text === "string" ? find(text) : -1;
    return id >= 0 ? [id] : [];
  };
  const eos = [...named("eos_token"), ...numbers(generation.get("eos_token_id")), ...numbers(file.metadata.raw("eos_token_id"))];
  const [bos] = [...named("bos_token"), ...numbers(generation.get("bos_token_id")), ...numbers(file.metadata.raw("bos_token_id"))];
  return { eos, bos };
}
