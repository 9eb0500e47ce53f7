/**
 * Many short strings as one block of UTF-8 bytes: a vocabulary of 50,000 strings read so makes no work for the garbage
 * collector, whose pauses would otherwise be the longest of a load. String i is `bytes[starts[i], ends[i])`; what lies
 * between two strings means nothing.
 */
export class StringTable {
  readonly bytes: Buffer;
  readonly starts: Uint32Array;
  readonly ends: Uint32Array;

  constructor(bytes: Buffer, starts: Uint32Array, ends: Uint32Array) {
    this.bytes = bytes;
    this.starts = starts;
    this.ends = ends;
  }

  static from(strings: readonly string[]): StringTable {
    const parts = strings.map((string) => Buffer.from(string));
    const starts = new Uint32Array(parts.length), ends = new Uint32Array(parts.length);
    let end = 0;
    for (const [index, part] of parts.entries()) {
      starts[index] = end;
      end += part.length;
      ends[index] = end;
    }
    return new StringTable(Buffer.concat(parts), starts, ends);
  }

  get count(): number {
    return this.starts.length;
  }

  text(index: number): string {
    return this.bytes.toString("utf8", this.starts[index], this.ends[index]);
  }

  toArray(): string[] {
    return Array.from({ length: this.count }, (_, index) => this.text(index));
  }
}
