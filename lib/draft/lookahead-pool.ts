import { checkArray, checkOptionsObject } from "../check.js";
import { invalidArgument } from "../errors.js";
import { integer } from "./check.js";

/** The n-grams of lookahead decoding (arXiv 2402.02057): for each first token the latest few continuations, oldest first. */
export class LookaheadPool {
  readonly vocabulary: number;
  readonly ngram: number;
  readonly guessSet: number;
  /** i32 `[vocabulary, guessSet, ngram − 1]`; rows behind a token's length hold −1. */
  readonly entries: Int32Array;
  /** i32 `[vocabulary]`: how many each token has. */
  readonly lengths: Int32Array;

  constructor(options: { readonly vocabulary: number; readonly ngram: number; readonly guessSet: number; readonly entries?: Int32Array; readonly lengths?: Int32Array }) {
    const { entries, lengths } = checkOptionsObject(options, "an object with vocabulary, ngram and guessSet");
    for (const [name, value] of Object.entries({ entries, lengths })) if (value !== undefined) checkArray(`options.${name}`, value, Int32Array);
    this.vocabulary = integer("options.vocabulary", options.vocabulary, 0, 1, 1 << 24);
    this.ngram = integer("options.ngram", options.ngram, 0, 2, 64);
    this.guessSet = integer("options.guessSet", options.guessSet, 0, 1, 1024);
    const size = this.vocabulary * this.guessSet * (this.ngram - 1);
    if (entries && entries.length !== size) throw invalidArgument("options.entries", `${size} numbers`, entries);
    if (lengths && (lengths.length !== this.vocabulary || lengths.some((length) => length < 0 || length > this.guessSet))) throw invalidArgument("options.lengths", `${this.vocabulary} numbers up to ${this.guessSet}`, lengths);
    this.entries = entries?.slice() ?? new Int32Array(size).fill(-1);
    this.lengths = lengths?.slice() ?? new Int32Array(this.vocabulary);
  }

  get bytes(): number {
    return this.entries.byteLength + this.lengths.byteLength;
  }

  /** Adds what followed `first`; one that is there becomes the latest, and where all places are taken the oldest goes. */
  add(first: number, following: ArrayLike<number>): void {
    const width = this.ngram - 1, begin = first * this.guessSet * width, length = this.lengths[first]!;
    if (following.length !== width) throw invalidArgument("following", `${width} tokens`, following);
    let row = 0;
    while (row < length && !this.holds(begin + row * width, following)) row++;
    if (row === this.guessSet) row = 0; // all taken and none the same: the oldest goes
    else if (row === length) this.lengths[first] = length + 1;
    const last = this.lengths[first]! - 1;
    this.entries.copyWithin(begin + row * width, begin + (row + 1) * width, begin + (last + 1) * width);
    for (let i = 0; i < width; i++) this.entries[begin + last * width + i] = following[i]!;
  }

  private holds(at: number, following: ArrayLike<number>): boolean {
    for (let i = 0; i < following.length; i++) if (this.entries[at + i] !== following[i]) return false;
    return true;
  }

  /** A step of the Jacobi window i32 `[ngram − 1, columns]` whose columns predict `predicted` i32 `[columns]`. */
  update(window: Int32Array, predicted: Int32Array): void {
    const columns = predicted.length, width = this.ngram - 1;
    if (window.length !== width * columns) throw invalidArgument("window", `${width * columns} tokens`, window);
    for (let i = 0; i < columns; i++) {
      const following = Array.from({ length: width }, (_, j) => (j < width - 1 ? window[(j + 1) * columns + i]! : predicted[i]!));
      this.add(window[i]!, following);
    }
  }

  /** What followed `first`, oldest first: each of ngram − 1 tokens. */
  guesses(first: number): Int32Array[] {
    const width = this.ngram - 1, begin = first * this.guessSet * width;
    return Array.from({ length: this.lengths[first]! }, (_, row) => this.entries.slice(begin + row * width, begin + (row + 1) * width));
  }
}
