const none = -1;

/** (state, token) → state, by open addressing; the edges of one state are also a list, for cloning. */
class Edges {
  private keys = new Int32Array(1 << 8);
  private slots = this.keys.length - 1;
  private states = new Int32Array(1 << 7);
  private tokens = new Int32Array(1 << 7);
  private targets = new Int32Array(1 << 7);
  private nexts = new Int32Array(1 << 7);
  private count = 0;

  constructor(private readonly heads: () => Int32Array) {
    this.keys.fill(none);
  }

  get bytes(): number {
    return this.keys.byteLength + 4 * this.states.byteLength;
  }

  private slot(state: number, token: number): number {
    let at = (Math.imul(state, 0x9e3779b1) ^ Math.imul(token, 0x85ebca6b)) >>> 0;
    at = (at ^ (at >>> 15)) & this.slots;
    for (;;) {
      const edge = this.keys[at]!;
      if (edge === none || (this.states[edge] === state && this.tokens[edge] === token)) return at;
      at = (at + 1) & this.slots;
    }
  }

  get(state: number, token: number): number {
    const edge = this.keys[this.slot(state, token)]!;
    return edge === none ? none : this.targets[edge]!;
  }

  set(state: number, token: number, target: number): void {
    const at = this.slot(state, token), edge = this.keys[at]!;
    if (edge !== none) {
      this.targets[edge] = target;
      return;
    }
    const made = this.count++, heads = this.heads();
    if (made === this.states.length) [this.states, this.tokens, this.targets, this.nexts] = [grown(this.states), grown(this.tokens), grown(this.targets), grown(this.nexts)];
    this.states[made] = state;
    this.tokens[made] = token;
    this.targets[made] = target;
    this.nexts[made] = heads[state]!;
    heads[state] = made;
    this.keys[at] = made;
    if (this.count * 2 > this.slots) this.rehash();
  }

  copy(from: number, to: number): void {
    for (let edge = this.heads()[from]!; edge !== none; edge = this.nexts[edge]!) this.set(to, this.tokens[edge]!, this.targets[edge]!);
  }

  private rehash(): void {
    this.keys = new Int32Array(this.keys.length * 2).fill(none);
    this.slots = this.keys.length - 1;
    for (let edge = 0; edge < this.count; edge++) this.keys[this.slot(this.states[edge]!, this.tokens[edge]!)] = edge;
  }
}

function grown(array: Int32Array<ArrayBuffer>): Int32Array<ArrayBuffer> {
  const larger = new Int32Array(array.length * 2);
  larger.set(array);
  return larger;
}

/** A place where the last tokens stood before: `length` of them, and the position of the token that followed. */
export interface SuffixMatch {
  readonly length: number;
  readonly end: number;
}

/**
 * The suffix automaton of a growing text (Blumer et al. 1985): every substring is a path from state 0, and the states hold where
 * their substrings ended most recently. Appending a token costs amortised constant time and the depth of the text's repetition.
 */
export class SuffixAutomaton {
  private lengths = new Int32Array(1 << 7);
  private links = new Int32Array(1 << 7);
  private ends = new Int32Array(1 << 7);
  private heads = new Int32Array(1 << 7).fill(none);
  private readonly edges = new Edges(() => this.heads);
  private states = 1;
  private last = 0;
  private size = 0;

  constructor() {
    this.links[0] = none;
    this.ends[0] = none;
  }

  /** Tokens appended so far. */
  get length(): number {
    return this.size;
  }

  get bytes(): number {
    return 4 * this.lengths.byteLength + this.edges.bytes;
  }

  private state(length: number, link: number, end: number): number {
    if (this.states === this.lengths.length) {
      [this.lengths, this.links, this.ends, this.heads] = [grown(this.lengths), grown(this.links), grown(this.ends), grown(this.heads)];
    }
    const made = this.states++;
    this.lengths[made] = length;
    this.links[made] = link;
    this.ends[made] = end;
    this.heads[made] = none;
    return made;
  }

  /** Extends the text; the ends of its suffixes are not updated yet. */
  private extend(token: number): void {
    const made = this.state(++this.size, 0, none);
    let p = this.last;
    for (; p !== none && this.edges.get(p, token) === none; p = this.links[p]!) this.edges.set(p, token, made);
    if (p !== none) {
      const q = this.edges.get(p, token);
      this.links[made] = this.lengths[p]! + 1 === this.lengths[q] ? q : this.clone(p, q, token);
    }
    this.last = made;
  }

  /** Splits the shorter substrings off state q. */
  private clone(from: number, q: number, token: number): number {
    const copy = this.state(this.lengths[from]! + 1, this.links[q]!, this.ends[q]!);
    this.edges.copy(q, copy);
    for (let p = from; p !== none && this.edges.get(p, token) === q; p = this.links[p]!) this.edges.set(p, token, copy);
    this.links[q] = copy;
    return copy;
  }

  /**
   * Appends a token. Returns where the last tokens, this one included, stood before: the longest first, then the ever more recent
   * ones of shorter suffixes, at most `most`; lengths are cut to `cap`.
   */
  append(token: number, cap: number, most: number): SuffixMatch[] {
    this.extend(token);
    const found = this.matches(this.links[this.last]!, Infinity, cap, most);
    for (let state = this.last; state !== none; state = this.links[state]!) this.ends[state] = this.size;
    return found;
  }

  /** Matches from `state`, of whose substrings `length` tokens fit, along its suffixes. */
  matches(state: number, length: number, cap: number, most: number): SuffixMatch[] {
    const found: SuffixMatch[] = [];
    let newest = none;
    for (let at = state, fits = length; at > 0 && found.length < most; at = this.links[at]!, fits = Infinity) {
      if (this.lengths[this.links[at]!]! >= cap || this.ends[at]! <= newest) continue;
      newest = this.ends[at]!;
      found.push({ length: Math.min(this.lengths[at]!, fits, cap), end: newest });
    }
    return found;
  }

  /**
   * Appends a whole text in which `followed(i)` tells whether the first i tokens have a continuation: only there a match may
   * end. The automaton is complete afterwards; walk it with step() and matches().
   */
  build(text: ArrayLike<number>, followed: (end: number) => boolean): void {
    for (let i = 0; i < text.length; i++) {
      this.extend(text[i]!);
      if (followed(this.size)) this.ends[this.last] = this.size;
    }
    const order = Array.from({ length: this.states }, (_, state) => state).sort((a, b) => this.lengths[b]! - this.lengths[a]!);
    for (const state of order) if (state > 0) this.ends[this.links[state]!] = Math.max(this.ends[this.links[state]!]!, this.ends[state]!);
  }

  /** Where a reader stands who was at `state` with `length` tokens matched and reads `token`. */
  step(state: number, length: number, token: number): { state: number; length: number } {
    for (let at = state, fits = length; at !== none; at = this.links[at]!, fits = at === none ? 0 : this.lengths[at]!) {
      const next = this.edges.get(at, token);
      if (next !== none) return { state: next, length: fits + 1 };
    }
    return { state: 0, length: 0 };
  }
}
