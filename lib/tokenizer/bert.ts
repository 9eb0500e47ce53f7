import type { JsonObject } from "../models/json.js";

// The library's BERT normalizer takes code units for characters (no spaces around ideographs beyond U+FFFF) and lowers
// Σ by what follows it; the original does neither. Hence these two steps here.

const SPACE = /\p{White_Space}/u;
const DROPPED = /[\0\ufffd\p{Cc}\p{Cf}\p{Co}]/u;
const MARK = /\p{Mn}/gu;
const PUNCTUATION = /[\p{P}$+<=>^`|~]/u;

/** BertNormalizer of tokenizer.json: cleans, sets ideographs apart, strips accents, lowers case, as its options say. */
export function bertNormalizer(config: JsonObject): (text: string) => string {
  const clean = config.get("clean_text") !== false, ideographs = config.get("handle_chinese_chars") !== false;
  const lower = config.get("lowercase") !== false;
  const accents = typeof config.get("strip_accents") === "boolean" ? config.get("strip_accents") === true : lower;
  return (text) => {
    let result = "";
    for (const character of text) {
      const code = character.codePointAt(0) ?? 0;
      if (code >= 0x20 && code < 0x7f) result += character;
      else if (clean && (code === 0x09 || code === 0x0a || code === 0x0d || (SPACE.test(character) && !DROPPED.test(character)))) result += " ";
      else if (clean && DROPPED.test(character)) continue;
      else result += ideographs && isIdeograph(code) ? ` ${character} ` : character;
    }
    if (accents) result = result.normalize("NFD").replace(MARK, "");
    if (!lower) return result;
    // Character by character: in a whole text Σ at a word's end would become ς.
    return result.replace(/[^\0-\x7f]/gu, (character) => character.toLowerCase()).replace(/[A-Z]+/g, (letters) => letters.toLowerCase());
  };
}

/** BertPreTokenizer: words between white space, with every punctuation character on its own. */
export function bertWords(text: string): string[] {
  const words: string[] = [];
  let word = "";
  const end = (): void => {
    if (word !== "") words.push(word);
    word = "";
  };
  for (const character of text) {
    if (character === " " || SPACE.test(character)) {
      end();
    } else if (PUNCTUATION.test(character)) {
      end();
      words.push(character);
    } else {
      word += character;
    }
  }
  end();
  return words;
}

/** The blocks that BERT's own code lists. */
function isIdeograph(code: number): boolean {
  return (code >= 0x4e00 && code <= 0x9fff) || (code >= 0x3400 && code <= 0x4dbf) || (code >= 0x20000 && code <= 0x2a6df) ||
    (code >= 0x2a700 && code <= 0x2b73f) || (code >= 0x2b740 && code <= 0x2b81f) || (code >= 0x2b920 && code <= 0x2ceaf) ||
    (code >= 0xf900 && code <= 0xfaff) || (code >= 0x2f800 && code <= 0x2fa1f);
}
