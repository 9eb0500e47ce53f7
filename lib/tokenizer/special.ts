/** A token that is found in the text before anything else is done with it. */
export interface SpecialToken {
  readonly id: number;
  readonly text: string;
  /** Control tokens are read from text only where the caller trusts it; the others always. */
  readonly control: boolean;
  /** White space before (after) the token belongs to it. */
  readonly stripLeft: boolean;
  readonly stripRight: boolean;
}

/** Text between special tokens, or a token. */
export type Fragment = string | number;

const SCAN = 8192;
const SPACES = " \t\n\v\f\r";

/** Finds special tokens in text, the longest first, as llama.cpp does. */
export class SpecialTokens {
  /** In order: longest first. */
  readonly #tokens: readonly SpecialToken[];
  /** Indices into #tokens by the first two code units, so that thousands of tokens cost nothing where none begins. */
  readonly #byStart = new Map<number, number[]>();
  /** 1 for the code units with which any token begins. */
  readonly #first = new Uint8Array(65536);

  constructor(tokens: readonly SpecialToken[]) {
    const bytes = new Map(tokens.map((token) => [token, Buffer.byteLength(token.text)]));
    this.#tokens = tokens.filter(({ text }) => text !== "").sort((a, b) => (bytes.get(b) ?? 0) - (bytes.get(a) ?? 0));
    for (const [index, { text }] of this.#tokens.entries()) {
      const key = startKey(text, 0);
      const list = this.#byStart.get(key);
      this.#first[text.charCodeAt(0)] = 1;
      if (list === undefined) this.#byStart.set(key, [index]);
      else list.push(index);
    }
  }

  /**
   * Cuts the text at special tokens, yielding between short stretches of work.
   * @param control whether the text of control tokens stands for the tokens
   */
  *split(text: string, control: boolean): Generator<void, Fragment[]> {
    const present = yield* this.#present(text, control);
    let fragments: Fragment[] = text === "" ? [] : [text];
    for (const index of present) {
      const token = this.#tokens[index] as SpecialToken;
      const next: Fragment[] = [];
      for (const fragment of fragments) {
        if (typeof fragment === "number") next.push(fragment);
        else cut(fragment, token, next);
      }
      fragments = next;
      yield;
    }
    return fragments;
  }

  /** Indices of the tokens whose text occurs, ascending. */
  *#present(text: string, control: boolean): Generator<void, number[]> {
    const found = new Set<number>();
    for (let at = 0; at < text.length; at++) {
      if (at % SCAN === SCAN - 1) yield;
      if (this.#first[text.charCodeAt(at)] === 0) continue;
      for (const key of [startKey(text, at), text.charCodeAt(at) * 65536]) {
        for (const index of this.#byStart.get(key) ?? []) {
          const token = this.#tokens[index] as SpecialToken;
          if ((control || !token.control) && !found.has(index) && text.startsWith(token.text, at)) found.add(index);
        }
      }
    }
    return [...found].sort((a, b) => a - b);
  }
}

/** The first two code units as one number; of a text of one, that unit and 0. */
function startKey(text: string, at: number): number {
  return text.charCodeAt(at) * 65536 + (at + 1 < text.length ? text.charCodeAt(at + 1) : 0);
}

function cut(text: string, token: SpecialToken, out: Fragment[]): void {
  let begin = 0;
  for (let at = text.indexOf(token.text); at >= 0; at = text.indexOf(token.text, begin)) {
    let left = text.slice(begin, at);
    if (token.stripLeft) {
      let end = left.length;
      while (end > 0 && SPACES.includes(left.charAt(end - 1))) end--;
      left = left.slice(0, end);
    }
    if (left !== "") out.push(left);
    out.push(token.id);
    begin = at + token.text.length;
    if (token.stripRight) while (begin < text.length && SPACES.includes(text.charAt(begin))) begin++;
  }
  if (begin < text.length) out.push(text.slice(begin));
}
