/** Which neighbours may be joined. `find` gives the joined symbol's id or −1, and its `priority` (least is joined first). */
export interface PairRule {
  priority: number;
  find(merger: SymbolMerger, left: number, right: number): number;
}

/**
 * Joins neighbouring symbols, best pair first (of equal ones the leftmost), until no pair can be joined: the inner loop
 * of byte-pair encoding (arXiv 1508.07909) and of SentencePiece's BPE. O(n log n), and resumable, so that a word of a
 * million letters does not block: `reset(n)`, then `advance(steps)` until it says true.
 *
 * Symbol i covers `[starts[i], ends[i])` of the text and has the id `ids[i]`; the caller sets these before reset.
 */
export class SymbolMerger {
  ids = new Int32Array(64);
  starts = new Int32Array(64);
  ends = new Int32Array(64);
  #previous = new Int32Array(64);
  #next = new Int32Array(64);
  readonly #rule: PairRule;
  #count = 0;
  /** Pairs before this one have been looked at. */
  #seeded = 0;

  // A binary heap of candidates: (priority, left symbol, where the right one ended, id of the joined symbol).
  #heapSize = 0;
  #priority = new Float64Array(64);
  #left = new Int32Array(64);
  #end = new Int32Array(64);
  #result = new Int32Array(64);

  constructor(rule: PairRule) {
    this.#rule = rule;
  }

  /** Makes room for `count` symbols; what was set before is kept. */
  reserve(count: number): void {
    if (count <= this.ids.length) return;
    const size = Math.max(count, this.ids.length * 2);
    this.ids = grown(this.ids, size);
    this.starts = grown(this.starts, size);
    this.ends = grown(this.ends, size);
    this.#previous = new Int32Array(size);
    this.#next = new Int32Array(size);
  }

  reset(count: number): void {
    this.#count = count;
    this.#seeded = 0;
    this.#heapSize = 0;
  }

  /** Does up to `steps` steps of work; true when nothing is left to be joined. */
  advance(steps: number): boolean {
    const last = this.#count - 1;
    for (; this.#seeded <= last; this.#seeded++) {
      if (steps-- <= 0) return false;
      const symbol = this.#seeded;
      this.#previous[symbol] = symbol - 1;
      this.#next[symbol] = symbol === last ? -1 : symbol + 1;
      if (symbol > 0) this.#consider(symbol - 1, symbol);
    }
    while (this.#heapSize > 0) {
      if (steps-- <= 0) return false;
      this.#join();
    }
    return true;
  }

  /** The first symbol left is 0; −1 after the last. */
  after(symbol: number): number {
    return this.#next[symbol] as number;
  }

  #join(): void {
    const left = this.#left[0] as number, end = this.#end[0] as number, result = this.#result[0] as number;
    this.#pop();
    const right = this.#next[left] as number;
    // Candidates whose symbols were joined with others meanwhile: a joined right symbol is marked by its end.
    if (right < 0 || this.ends[left] === -1 || this.ends[right] !== end) return;
    this.ids[left] = result;
    this.ends[left] = end;
    this.ends[right] = -1;
    const next = this.#next[right] as number;
    this.#next[left] = next;
    if (next >= 0) this.#previous[next] = left;
    const previous = this.#previous[left] as number;
    if (previous >= 0) this.#consider(previous, left);
    if (next >= 0) this.#consider(left, next);
  }

  #consider(left: number, right: number): void {
    const result = this.#rule.find(this, left, right);
    if (result >= 0) this.#push(this.#rule.priority, left, this.ends[right] as number, result);
  }

  #push(priority: number, left: number, end: number, result: number): void {
    let at = this.#heapSize++;
    if (at === this.#priority.length) {
      this.#priority = grown(this.#priority, at * 2);
      this.#left = grown(this.#left, at * 2);
      this.#end = grown(this.#end, at * 2);
      this.#result = grown(this.#result, at * 2);
    }
    while (at > 0) {
      const parent = (at - 1) >> 1;
      const other = this.#priority[parent] as number;
      if (other < priority || (other === priority && (this.#left[parent] as number) <= left)) break;
      this.#moveEntry(parent, at);
      at = parent;
    }
    this.#setEntry(at, priority, left, end, result);
  }

  #pop(): void {
    const last = --this.#heapSize;
    if (last === 0) return;
    const priority = this.#priority[last] as number, left = this.#left[last] as number;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= last) break;
      if (child + 1 < last && this.#before(child + 1, this.#priority[child] as number, this.#left[child] as number)) child++;
      if (!this.#before(child, priority, left)) break;
      this.#moveEntry(child, at);
      at = child;
    }
    this.#setEntry(at, priority, left, this.#end[last] as number, this.#result[last] as number);
  }

  #before(entry: number, priority: number, left: number): boolean {
    const own = this.#priority[entry] as number;
    return own < priority || (own === priority && (this.#left[entry] as number) < left);
  }

  #moveEntry(from: number, to: number): void {
    this.#setEntry(to, this.#priority[from] as number, this.#left[from] as number, this.#end[from] as number, this.#result[from] as number);
  }

  #setEntry(at: number, priority: number, left: number, end: number, result: number): void {
    this.#priority[at] = priority;
    this.#left[at] = left;
    this.#end[at] = end;
    this.#result[at] = result;
  }
}

function grown<T extends Int32Array | Float64Array>(array: T, size: number): T {
  const larger = new (array.constructor as new (size: number) => T)(size);
  larger.set(array);
  return larger;
}
