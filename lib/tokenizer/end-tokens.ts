import { TokenKind, type Vocabulary } from "./vocabulary.js";

/** Texts of tokens that end a generation, by model family: files often name only one of theirs. */
const END_TEXTS = [
  "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>",
  "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
];

/** Of each group the first that the vocabulary has: padding, repository and file marks of fill-in-the-middle. */
const FILL_TEXTS = [
  ["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
  ["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
  ["<|file_sep|>"],
];

/**
 * All tokens that end a generation: those that the file names, then those known by their text, as llama.cpp finds
 * them. A token of such a text counts as a control token whatever the file says.
 * @param named ids from the file, the end of the sequence first
 */
export function endTokens(vocabulary: Vocabulary, named: readonly (number | undefined)[], find: (text: string) => number): number[] {
  const ends = new Set<number>();
  for (const id of named) if (id !== undefined) ends.add(id);
  const byText = new Map(END_TEXTS.map((text) => [text, find(text)] as const).filter(([, id]) => id >= 0));
  const fill = FILL_TEXTS.map((texts) => texts.map(find).find((id) => id >= 0));
  for (const id of [...byText.values(), ...fill]) {
    if (id === undefined) continue;
    ends.add(id);
    vocabulary.kinds[id] = TokenKind.control;
  }
  const has = (text: string): boolean => byText.has(text);
  // Models that answer with a call or a return use <|end|> between the parts of an answer.
  const between = byText.get("<|end|>");
  if (between !== undefined && ((has("<|return|>") && (has("<|call|>") || has("<|calls|>"))) || ((has("<|call|>") || has("<|calls|>")) && has("<|flush|>")))) {
    ends.delete(between);
    vocabulary.kinds[between] = TokenKind.userDefined;
  }
  const old = byText.get("</s>");
  if (old !== undefined && has("<|tool_response>")) {
    ends.delete(old);
    vocabulary.kinds[old] = TokenKind.normal;
  }
  return [...ends];
}
