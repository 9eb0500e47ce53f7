import { copyFileSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** Tiny random encoders and what transformers computes with them: tools/encoder-oracles.py. */
export const encoderFolder = join(process.cwd(), "test", "fixtures", "encoders");

export interface ExpectedEncoding {
  readonly ids?: readonly number[];
  readonly pixels?: readonly number[];
  readonly size?: number;
  readonly tokens: readonly number[];
  readonly embedding: readonly number[];
}

export function expectedEncodings(name: string): ExpectedEncoding[] {
  return JSON.parse(readFileSync(join(encoderFolder, name, "expected.json"), "utf8")) as ExpectedEncoding[];
}

/** The words of the tiny BERT's vocabulary, by id. */
export const tinyWords = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ..."abcdefghijklmnopqrs"];

const tinyTokenizer = {
  version: "1.0",
  added_tokens: [0, 1, 2, 3, 4].map((id) => ({ id, content: tinyWords[id], single_word: false, lstrip: false, rstrip: false, normalized: false, special: true })),
  normalizer: { type: "BertNormalizer", clean_text: true, handle_chinese_chars: true, strip_accents: null, lowercase: true },
  pre_tokenizer: { type: "BertPreTokenizer" },
  post_processor: {
    type: "TemplateProcessing",
    single: [{ SpecialToken: { id: "[CLS]", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }, { SpecialToken: { id: "[SEP]", type_id: 0 } }],
    pair: [], special_tokens: { "[CLS]": { id: "[CLS]", ids: [2], tokens: ["[CLS]"] }, "[SEP]": { id: "[SEP]", ids: [3], tokens: ["[SEP]"] } },
  },
  decoder: { type: "WordPiece", prefix: "##", cleanup: true },
  model: { type: "WordPiece", unk_token: "[UNK]", continuing_subword_prefix: "##", max_input_chars_per_word: 100, vocab: Object.fromEntries(tinyWords.map((word, id) => [word, id])) },
};

/** The tiny BERT with a tokenizer of one-letter words, in a folder of the test's own. */
export function tinyBert(folder: { path: string; write(name: string, bytes: string): string }): string {
  for (const name of readdirSync(join(encoderFolder, "bert"))) copyFileSync(join(encoderFolder, "bert", name), join(folder.path, name));
  folder.write("tokenizer.json", JSON.stringify(tinyTokenizer));
  return folder.path;
}

/** The text that the tiny BERT's tokenizer makes these ids of. */
export function tinyText(ids: readonly number[]): string {
  return ids.slice(1, -1).map((id) => tinyWords[id]).join(" ");
}

export function largestDifference(got: ArrayLike<number>, want: ArrayLike<number>): number {
  if (got.length !== want.length) return Infinity;
  let most = 0;
  for (let i = 0; i < want.length; i++) most = Math.max(most, Number.isNaN(got[i]) ? Infinity : Math.abs(got[i]! - want[i]!));
  return most;
}

export function pearson(a: ArrayLike<number>, b: ArrayLike<number>): number {
  const mean = (x: ArrayLike<number>): number => Array.from(x).reduce((sum, value) => sum + value, 0) / x.length;
  const [ma, mb] = [mean(a), mean(b)];
  let ab = 0, aa = 0, bb = 0;
  for (let i = 0; i < a.length; i++) {
    ab += (a[i]! - ma) * (b[i]! - mb);
    aa += (a[i]! - ma) ** 2;
    bb += (b[i]! - mb) ** 2;
  }
  return ab / Math.sqrt(aa * bb);
}
