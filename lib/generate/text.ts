/**
 * Holds text back while it may still become a stop string, and cuts where one is complete.
 */
export class StopFilter {
  private held = "";
  /** The stop string that ended the text. */
  found: string | undefined;

  constructor(private readonly stops: readonly string[]) {}

  /** Text that is safe to show, now that `text` has come. */
  push(text: string): string {
    this.held += text;
    let cut = -1;
    for (const stop of this.stops) {
      const at = this.held.indexOf(stop);
      if (at >= 0 && (cut < 0 || at < cut)) {
        cut = at;
        this.found = stop;
      }
    }
    if (cut >= 0) return this.release(cut, true);
    return this.release(this.held.length - this.heldBack());
  }

  /** What was held back, once no more text comes. */
  end(): string {
    return this.release(this.held.length);
  }

  private release(length: number, discard = false): string {
    const text = this.held.slice(0, length);
    this.held = discard ? "" : this.held.slice(length);
    return text;
  }

  /** Length of the longest end of the text that begins a stop string. */
  private heldBack(): number {
    let most = 0;
    for (const stop of this.stops) {
      for (let length = Math.min(stop.length - 1, this.held.length); length > most; length--) {
        if (this.held.endsWith(stop.slice(0, length))) {
          most = length;
          break;
        }
      }
    }
    return most;
  }
}
