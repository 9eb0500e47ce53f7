import { dirname, join } from "node:path";
import { ModelFormatError } from "../errors.js";
import type { ModelFile } from "../models/file.js";
import { type JsonObject, type JsonValue, toPlain } from "../models/json.js";
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

/** Builds the tokenizer of `tokenizer.json` beside safetensors files: byte-pair encoding, or BERT's WordPiece. */
export async function jsonTokenizer(file: ModelFile, slicer: Slicer): Promise<TokenizerParts> {
  const folder = dirname(file.path);
  const path = join(folder, "tokenizer.json");
  if (!(await exists(path))) throw new ModelFormatError("Expected tokenizer.json beside the model's weights", { file: path });
  const root = await readJsonObject(path, slicer);
  const model = objectAt(root, "model", path);
  const type = model.get("type") ?? (model.has("merges") ? "BPE" : undefined);
  if (type !== "BPE" && type !== "WordPiece") {
    throw new ModelFormatError(`Expected BPE or WordPiece for the tokenizer's model but received ${String(type)}`, { file: path });
  }
  const added = addedTokens(root, path);
  const ids = vocabularyOf(model, path);
  const steps = await preTokenization(root, type, path);
  const vocabulary = await buildVocabulary(ids, added, type === "BPE" && steps.byteLevel, model.get("byte_fallback") === true, path, slicer);
  const find = (text: string): number => added.find(({ content }) => content === text)?.id ?? ids.get(text) ?? -1;
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
    const word = await wordPieceEncoder(model, ids, steps, path);
    return { ...shared, dropSpace: true, encodeText: (text, _first, out) => word.encode(text, out), bytes: (id) => word.bytes(vocabulary, id) };
  }
  const unknown = model.get("unk_token");
  const merges = await mergeTable(model, path, slicer);
  const pairs = await BytePairModel.create(vocabulary, merges.table, {
    ignoreMerges: model.get("ignore_merges") === true,
    byteLevel: steps.byteLevel,
    byteFallback: model.get("byte_fallback") === true,
    unknownId: typeof unknown === "string" && find(unknown) >= 0 ? find(unknown) : undefined,
    fuseUnknown: model.get("fuse_unk") === true,
    separator: merges.separator,
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

function vocabularyOf(model: JsonObject, path: string): Map<string, number> {
  const vocabulary = objectAt(model, "vocab", path);
  for (const [token, id] of vocabulary) {
    if (typeof id !== "number") throw new ModelFormatError(`Expected a number for the token ${JSON.stringify(token)}`, { file: path });
  }
  return vocabulary as Map<string, number>;
}

async function buildVocabulary(ids: ReadonlyMap<string, number>, added: readonly AddedToken[], byteLevel: boolean, byteFallback: boolean, path: string, slicer: Slicer): Promise<Vocabulary> {
  // Ids may have gaps, but not so many that a small file makes a large table.
  const most = 4 * (ids.size + added.length) + 1024;
  const texts: string[] = [];
  const kinds: number[] = [];
  const put = (id: number, text: string, kind: number): void => {
    checkedId(id, most, "the vocabulary", path);
    while (texts.length <= id) {
      texts.push("");
      kinds.push(TokenKind.unused);
    }
    texts[id] = text;
    kinds[id] = kind;
  };
  let count = 0;
  for (const [text, id] of ids) {
    if ((++count & 255) === 0 && slicer.due) await slicer.pause();
    put(id, text, byteFallback && /^<0x[0-9A-F]{2}>$/.test(text) ? TokenKind.byte : TokenKind.normal);
  }
  for (const token of added) put(token.id, token.content, token.special ? TokenKind.control : TokenKind.userDefined);
  return Vocabulary.create(await packStrings(texts, slicer), Uint8Array.from(kinds), byteLevel, path, slicer);
}

/** StringTable.from in slices. */
async function packStrings(strings: readonly string[], slicer: Slicer): Promise<StringTable> {
  const starts = new Uint32Array(strings.length), ends = new Uint32Array(strings.length);
  let bytes = Buffer.alloc(Math.max(1024, strings.length * 8));
  let used = 0;
  for (const [index, string] of strings.entries()) {
    if ((index & 255) === 0 && slicer.due) await slicer.pause();
    if (used + string.length * 3 > bytes.length) bytes = Buffer.concat([bytes], 2 * bytes.length + string.length * 3);
    starts[index] = used;
    used += bytes.write(string, used);
    ends[index] = used;
  }
  return new StringTable(bytes.subarray(0, used), starts, ends);
}

/** Merges are "left right", or pairs in files of tokens that contain spaces: those are joined by a byte that UTF-8 has not. */
async function mergeTable(model: JsonObject, path: string, slicer: Slicer): Promise<{ table: StringTable; separator: number }> {
  const merges = model.get("merges");
  if (!Array.isArray(merges)) throw new ModelFormatError("Expected a list for merges", { file: path });
  for (const key of ["continuing_subword_prefix", "end_of_word_suffix"]) {
    if (model.get(key)) throw new ModelFormatError(`Expected no ${key} but the tokenizer has one, which is not supported`, { file: path });
  }
  if (merges.every((merge) => typeof merge === "string")) return { table: await packStrings(merges, slicer), separator: 0x20 };
  const starts = new Uint32Array(merges.length), ends = new Uint32Array(merges.length);
  const parts: Buffer[] = [];
  let used = 0;
  for (const [index, merge] of merges.entries()) {
    if ((index & 255) === 0 && slicer.due) await slicer.pause();
    const [left, right] = Array.isArray(merge) && merge.length === 2 ? merge : [];
    if (typeof left !== "string" || typeof right !== "string") throw new ModelFormatError(`Expected two strings for merge ${index}`, { file: path });
    const part = Buffer.concat([Buffer.from(left), Buffer.of(0xff), Buffer.from(right)]);
    parts.push(part);
    starts[index] = used;
    used += part.length;
    ends[index] = used;
  }
  return { table: new StringTable(Buffer.concat(parts), starts, ends), separator: 0xff };
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
