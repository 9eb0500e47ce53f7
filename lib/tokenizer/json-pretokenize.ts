import { ModelFormatError } from "../errors.js";
import { type JsonObject, type JsonValue, toPlain } from "../models/json.js";
import { bertNormalizer } from "./bert.js";
import { tokenizersLibrary, type TokenizersLibrary } from "./library.js";
import { byteLevelRule, type PreTokenizer, type SplitRule } from "./pretokenize.js";

/** What `tokenizer.json` does with text before its model sees it. */
export interface JsonSteps extends PreTokenizer {
  readonly byteLevel: boolean;
  /** Whether a space is put before a text. */
  readonly putsSpace: boolean;
  /** Done to the whole text, not to chunks of it. */
  prepare(text: string, first: boolean): string;
}

/** Normalizers of the library that treat each character (with its marks) alone, so that text can be cut between words. */
const LOCAL_NORMALIZERS = new Set(["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer"]);

const CASED = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]", UNCASED = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]", SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const TAIL = "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const twoCased = (tail: string): string => `[^\\r\\n\\p{L}\\p{N}]?${CASED}*${UNCASED}+${tail}|[^\\r\\n\\p{L}\\p{N}]?${CASED}+${UNCASED}*${tail}`;

/** The \w of the original library: letters, marks, digits, connectors and joiners. */
const WORD = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}";

/** Expressions of well-known models that cut between a letter and a space with a letter after it. Others run on whole texts. */
const CHUNKABLE = new Set([
  `${SHORT}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|${TAIL}`,
  `${SHORT}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|${TAIL}`,
  `${twoCased("")}|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|${TAIL}`,
  `${twoCased(`${SHORT}?`)}|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|${TAIL}`,
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
  "\\p{N}", "\\p{N}+", "\\p{N}{1,3}",
]);

/** Reads `normalizer` and `pre_tokenizer`. A step that is not known is a ModelFormatError that names it. */
export async function preTokenization(root: JsonObject, model: "BPE" | "WordPiece", path: string): Promise<JsonSteps> {
  const library = await tokenizersLibrary();
  const normalizer = flatten(root.get("normalizer") ?? null, "normalizers");
  const steps = flatten(root.get("pre_tokenizer") ?? null, "pretokenizers");
  const local = normalizer.every((step) => LOCAL_NORMALIZERS.has(String(step.get("type"))));
  const normalize = normalizerOf(library, normalizer, path);
  const shared = { byteLevel: steps.some((step) => step.get("type") === "ByteLevel"), putsSpace: false, rules: [] };
  const asIs = (text: string): string => text;
  if (model === "WordPiece") {
    const [only] = steps;
    if (steps.length !== 1 || only?.get("type") !== "BertPreTokenizer") throw unsupported("pre_tokenizer", steps.find((step) => step.get("type") !== "BertPreTokenizer"), path);
    return { ...shared, chunkable: local, normalize, prepare: asIs };
  }
  const translated = steps.map((step, index) => translate(library, step, index, path));
  const chunkable = local && translated.length > 0 && translated.every((step) => step.chunkable);
  const prefix = translated[0]?.prepare;
  const whole = (text: string, first: boolean): string => (prefix ?? asIs)(normalize(text), first);
  return {
    ...shared,
    rules: translated.flatMap(({ rules }) => rules),
    chunkable,
    // Text is normalized chunk by chunk where that gives the same, else as a whole before the other steps.
    ...(local && prefix === undefined ? { normalize } : {}),
    putsSpace: /^[ \u2581]/.test(whole("x", true)),
    prepare: local && prefix === undefined ? asIs : whole,
  };
}

function flatten(value: JsonValue, children: string): JsonObject[] {
  if (!(value instanceof Map)) return [];
  const list = value.get(children);
  if (value.get("type") !== "Sequence" || !Array.isArray(list)) return [value];
  return list.flatMap((entry) => flatten(entry, children));
}

function normalizerOf(library: TokenizersLibrary, steps: readonly JsonObject[], path: string): (text: string) => string {
  const normalizers = steps.map((step) => {
    if (step.get("type") === "BertNormalizer") return bertNormalizer(step);
    try {
      const normalizer = new library.SequenceNormalizer({ type: "Sequence", normalizers: [toPlain(step)] });
      return (text: string): string => normalizer.normalize(text);
    } catch (cause) {
      throw new ModelFormatError(`Expected a known normalizer but received ${String(step.get("type"))}: ${(cause as Error).message}`, { file: path });
    }
  });
  return (text) => normalizers.reduce((result, normalizer) => normalizer(result), text);
}

interface Translated {
  readonly rules: readonly SplitRule[];
  readonly chunkable: boolean;
  readonly prepare?: (text: string, first: boolean) => string;
}

const BEHAVIORS: ReadonlyMap<string, SplitRule["behavior"]> = new Map<string, SplitRule["behavior"]>([
  ["isolated", "isolated"], ["removed", "removed"], ["mergedwithprevious", "previous"], ["mergedwithnext", "next"],
]);

function translate(library: TokenizersLibrary, step: JsonObject, index: number, path: string): Translated {
  const isolated = (source: string): SplitRule => ({ pattern: new RegExp(source, "gu"), behavior: "isolated" });
  switch (step.get("type")) {
    case "ByteLevel": return byteLevel(step, index, path);
    case "Split": return split(library, step, path);
    // The library's own step takes ASCII digits only.
    case "Digits": return { rules: [isolated(step.get("individual_digits") === true ? "\\p{N}" : "\\p{N}+")], chunkable: true };
    case "Punctuation": {
      const behavior = BEHAVIORS.get(String(step.get("behavior") ?? "Isolated").toLowerCase());
      if (behavior === undefined) throw unsupported("pre_tokenizer", step, path);
      return { rules: [{ pattern: /[\p{P}$+<=>^`|~]/gu, behavior }], chunkable: true };
    }
    // Words and runs of anything else but white space.
    case "Whitespace": return { rules: [{ pattern: new RegExp(`[${WORD}]+|[^${WORD}\\p{White_Space}]+`, "gu"), behavior: "removed", invert: true }], chunkable: true };
    case "WhitespaceSplit": return { rules: [{ pattern: /\p{White_Space}/gu, behavior: "removed" }], chunkable: true };
    case "Metaspace": return metaspace(step, index, path);
    default: throw unsupported("pre_tokenizer", step, path);
  }
}

function byteLevel(step: JsonObject, index: number, path: string): Translated {
  // The library's own expression takes U+FEFF for white space and U+0085 not.
  const rules = step.get("use_regex") === false ? [] : [byteLevelRule()];
  if (step.get("add_prefix_space") !== true) return { rules, chunkable: true };
  if (index > 0) throw unsupported("pre_tokenizer", step, path);
  return { rules, chunkable: true, prepare: (text) => (text.startsWith(" ") ? text : ` ${text}`) };
}

function split(library: TokenizersLibrary, step: JsonObject, path: string): Translated {
  const behavior = BEHAVIORS.get(String(step.get("behavior")).toLowerCase());
  const pattern = step.get("pattern");
  if (behavior === undefined || !(pattern instanceof Map)) throw unsupported("pre_tokenizer", step, path);
  const regex = pattern.get("Regex");
  const rule = patternRule(library, regex ?? pattern, behavior, step.get("invert") === true, path);
  return { rules: [rule], chunkable: typeof regex === "string" && CHUNKABLE.has(regex) && behavior === "isolated" };
}

/** The library translates the expressions of tokenizer.json (Oniguruma's) to JavaScript's. */
function patternRule(library: TokenizersLibrary, source: JsonValue, behavior: SplitRule["behavior"], invert: boolean, path: string): SplitRule {
  const config = { type: "Split", pattern: typeof source === "string" ? { Regex: source } : toPlain(source), behavior: "Isolated", invert };
  let pattern: RegExp | null;
  try {
    ({ pattern } = new library.SplitPreTokenizer(config));
  } catch (cause) {
    throw new ModelFormatError(`Expected an expression that JavaScript can express for Split: ${(cause as Error).message}`, { file: path });
  }
  if (pattern === null) throw new ModelFormatError("Expected a Regex or a String for Split", { file: path });
  return { pattern, behavior, invert };
}

function metaspace(step: JsonObject, index: number, path: string): Translated {
  if (index > 0) throw unsupported("pre_tokenizer", step, path);
  const replacement = step.get("replacement") ?? "\u2581";
  if (typeof replacement !== "string" || replacement === "") throw unsupported("pre_tokenizer", step, path);
  const scheme = step.get("prepend_scheme") ?? (step.get("add_prefix_space") === false ? "never" : "always");
  const prepare = (text: string, first: boolean): string => {
    const replaced = text.replaceAll(" ", replacement);
    return (scheme === "always" || (scheme === "first" && first)) && !replaced.startsWith(replacement) ? replacement + replaced : replaced;
  };
  const pattern = new RegExp(replacement.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "gu");
  return { rules: step.get("split") === false ? [] : [{ pattern, behavior: "next" }], chunkable: false, prepare };
}

function unsupported(part: string, step: JsonObject | undefined, path: string): ModelFormatError {
  return new ModelFormatError(`Expected a known ${part} but received ${JSON.stringify(step === undefined ? null : toPlain(step)).slice(0, 200)}`, { file: path });
}
