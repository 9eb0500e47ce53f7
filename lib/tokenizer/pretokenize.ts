import { ModelFormatError } from "../errors.js";

/** One step that cuts pieces of text into smaller ones. */
export interface SplitRule {
  /** Flags "gu". */
  readonly pattern: RegExp;
  /** What becomes of a match: a piece of its own, dropped, or joined to the text before or after it. */
  readonly behavior: "isolated" | "removed" | "previous" | "next";
  /** The pattern describes the separators' complement. */
  readonly invert?: boolean;
}

/** How text is cut into the pieces over which no merge reaches. */
export interface PreTokenizer {
  readonly rules: readonly SplitRule[];
  /** Whether every rule cuts between an ASCII letter and a space that a letter follows, whatever stands around. */
  readonly chunkable: boolean;
  /** Done to the text (to each chunk of it) before the rules. */
  readonly normalize?: (text: string) => string;
}

/** What the name in `tokenizer.ggml.pre` means beyond the rules. */
export interface NamedPreTokenizer extends PreTokenizer {
  readonly ignoreMerges: boolean;
  readonly addBos: boolean;
}

// \s and \d of the original expressions are Unicode's White_Space (JavaScript's \s adds U+FEFF and lacks U+0085) and Nd.
const CONTRACTIONS = "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]";
const SPACE_TAIL = "\\p{White_Space}*[\\r\\n]+|\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}+";
const WORD = "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+";
const OTHER = " ?[^\\p{White_Space}\\p{L}\\p{N}]+[\\r\\n]*";

const GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\p{White_Space}\\p{L}\\p{N}]+|\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}+";
const LLAMA3 = `${CONTRACTIONS}|${WORD}|\\p{N}{1,3}|${OTHER}|${SPACE_TAIL}`;
const QWEN2 = `${CONTRACTIONS}|${WORD}|\\p{N}|${OTHER}|${SPACE_TAIL}`;
const QWEN35 = `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\p{White_Space}\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|${SPACE_TAIL}`;
const SEED_CODER = `${CONTRACTIONS}|${WORD}|\\p{N}| ?[^\\p{White_Space}\\p{L}\\p{N}\\r\\n]+|${SPACE_TAIL}`;
const BAILING = `'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|${WORD}|\\p{N}|${OTHER}|\\p{White_Space}*[\\r\\n]|\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}+`;
// Upper- and lowercase by ASCII, as llama.cpp takes the \p{Lu} and \p{Ll} of the models' own expressions.
const UPPER = "(?:(?=\\p{L})[^a-z])", LOWER = "(?:(?=\\p{L})[^A-Z])";
const cased = (tail: string): string =>
  `[^\\r\\n\\p{L}\\p{N}]?${UPPER}*${LOWER}+${tail}|[^\\r\\n\\p{L}\\p{N}]?${UPPER}+${LOWER}*${tail}`;
const OTHER_SLASH = " ?[^\\p{White_Space}\\p{L}\\p{N}]+[\\r\\n/]*";
const TEKKEN = `${cased("")}|\\p{N}|${OTHER_SLASH}|${SPACE_TAIL}`;
const GPT4O = `${cased(`(?:${CONTRACTIONS})?`)}|\\p{N}{1,3}|${OTHER_SLASH}|${SPACE_TAIL}`;
const DEEPSEEK3 = `[!"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_\`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|${SPACE_TAIL}`;
const BLOOM = " ?[^(\\p{White_Space}|.,!?…。，、।۔،)]+";

function rules(...sources: readonly string[]): readonly SplitRule[] {
  return sources.map((source) => ({ pattern: new RegExp(source, "gu"), behavior: "isolated" as const }));
}

interface Definition {
  readonly names: readonly string[];
  readonly sources: readonly string[];
  readonly ignoreMerges?: true;
  readonly addBos?: true;
}

/** The values of `tokenizer.ggml.pre` that are understood, each with the expressions that llama.cpp gives it. */
const DEFINITIONS: readonly Definition[] = [
  { names: ["default"], sources: ["[\\p{P}$+<=>^~|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"] },
  {
    names: ["gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "gigachat", "mellum", "modern-bert", "a.x-4.0",
      "jina-es", "jina-de", "jina-v2-es", "jina-v2-de"],
    sources: [GPT2],
  },
  { names: ["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"], sources: ["\\p{N}", GPT2] },
  { names: ["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"], sources: [LLAMA3], ignoreMerges: true, addBos: true },
  { names: ["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], sources: [LLAMA3] },
  { names: ["qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "solar-open", "grok-2"], sources: [QWEN2] },
  { names: ["qwen35"], sources: [QWEN35] },
  { names: ["tekken"], sources: [TEKKEN], ignoreMerges: true, addBos: true },
  { names: ["gpt-4o", "llama4", "kanana2", "minimax-m2"], sources: [GPT4O] },
  { names: ["deepseek-v3", "hunyuan-dense"], sources: ["\\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3] },
  { names: ["deepseek-coder"], sources: ["[\\r\\n]", "\\p{White_Space}?\\p{L}+", "\\p{White_Space}?\\p{P}+", "(?:(?!\\p{White_Space})[一-龥ࠀ-一가-퟿])+", "\\p{N}"] },
  { names: ["falcon"], sources: ["[\\p{P}$+<=>^~|`]+", GPT2, "[0-9][0-9][0-9]"] },
  { names: ["bailingmoe", "bailingmoe2", "llada-moe"], sources: [BAILING] },
  { names: ["seed-coder"], sources: [SEED_CODER] },
  { names: ["bloom", "poro-chat", "gpt3-finnish"], sources: [BLOOM] },
  { names: ["viking"], sources: [BLOOM, "\\p{N}"] },
];

/** The pre-tokenizer of a `tokenizer.ggml.pre` name. An unknown name is a ModelFormatError: any guess would tokenize wrongly. */
export function namedPreTokenizer(name: string, file: string): NamedPreTokenizer {
  const definition = DEFINITIONS.find(({ names }) => names.includes(name));
  if (definition === undefined) {
    const known = DEFINITIONS.flatMap(({ names }) => names).join(", ");
    throw new ModelFormatError(`Expected a known pre-tokenizer for tokenizer.ggml.pre but received '${name}'; known are ${known}`, { file });
  }
  return { rules: rules(...definition.sources), chunkable: true, ignoreMerges: definition.ignoreMerges === true, addBos: definition.addBos === true };
}

/** The rule of the ByteLevel step of tokenizer.json. */
export function byteLevelRule(): SplitRule {
  return { pattern: new RegExp(GPT2, "gu"), behavior: "isolated" };
}

const CHUNK = 4096;

/**
 * Where the chunk that begins at `begin` ends: in front of a space between two ASCII letters, where every rule of
 * this file cuts, so that encoding chunk by chunk gives what encoding the whole gives.
 */
export function chunkEnd(text: string, begin: number): number {
  if (text.length - begin <= CHUNK) return text.length;
  const middle = begin + CHUNK / 2;
  for (let at = begin + CHUNK; at > middle; at--) if (isBoundary(text, at)) return at;
  for (let at = begin + CHUNK + 1; at < text.length - 1; at++) if (isBoundary(text, at)) return at;
  return text.length;
}

function isBoundary(text: string, at: number): boolean {
  return text.charCodeAt(at) === 0x20 && isLetter(text.charCodeAt(at - 1)) && isLetter(text.charCodeAt(at + 1));
}

function isLetter(code: number): boolean {
  const lower = code | 0x20;
  return lower >= 0x61 && lower <= 0x7a;
}

/** Applies the rules one after the other, each to every piece of the one before; yields between short stretches of work. */
export function* splitChunk(text: string, preTokenizer: PreTokenizer): Generator<void, string[]> {
  let pieces = [preTokenizer.normalize === undefined ? text : preTokenizer.normalize(text)];
  for (const rule of preTokenizer.rules) {
    const next: string[] = [];
    for (const piece of pieces) yield* splitPiece(piece, rule, next);
    pieces = next;
  }
  return pieces;
}

function* splitPiece(text: string, rule: SplitRule, out: string[]): Generator<void, void> {
  const { pattern, behavior } = rule;
  const inverted = rule.invert === true;
  const first = out.length;
  let begin = 0;
  let afterMatch = false;
  /** A match that waits for the text after it ("next"). */
  let held = "";
  const emit = (piece: string, match: boolean): void => {
    if (piece === "") return;
    if (match && behavior === "next") {
      if (held !== "") out.push(held);
      held = piece;
    } else if (match && behavior === "previous" && !afterMatch && out.length > first) {
      out[out.length - 1] += piece;
    } else if (!match || behavior !== "removed") {
      out.push(held + piece);
      held = "";
    }
    afterMatch = match;
  };
  // The pattern is shared with other calls that run between the slices of this one: its position is kept here.
  for (let at = 0, count = 1; ; count++) {
    pattern.lastIndex = at;
    const match = pattern.exec(text);
    if (match === null) break;
    at = pattern.lastIndex;
    const found = match[0];
    if (found === "") {
      at += (text.codePointAt(match.index) ?? 0) > 0xffff ? 2 : 1;
      continue;
    }
    if (count % 128 === 0) yield;
    emit(text.slice(begin, match.index), inverted);
    emit(found, !inverted);
    begin = match.index + found.length;
  }
  emit(text.slice(begin), inverted);
  if (held !== "") out.push(held);
}
