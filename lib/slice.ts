import { AbortError } from "./errors.js";

/** Throws AbortError where the signal has been aborted. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new AbortError(signal.reason);
}

/** Runs a generator, which yields between short steps of work, to its end in one go. */
export function finishAtOnce<T>(steps: Generator<void, T>): T {
  for (;;) {
    const step = steps.next();
    if (step.done === true) return step.value;
  }
}

/**
 * Cuts long JavaScript work into short slices, so that nothing blocks the event loop:
 * `if (slicer.due) await slicer.pause();` inside the loop. A pause also obeys the signal.
 */
export class Slicer {
  readonly signal: AbortSignal | undefined;
  readonly #budget: number;
  #end: number;

  /** @param budget length of a slice in milliseconds */
  constructor(signal?: AbortSignal, budget = 1) {
    throwIfAborted(signal);
    this.signal = signal;
    this.#budget = budget;
    this.#end = performance.now() + budget;
  }

  /** Whether the slice is used up. */
  get due(): boolean {
    return performance.now() >= this.#end;
  }

  /** Lets everything else run, then starts the next slice. Throws AbortError. */
  async pause(): Promise<void> {
    throwIfAborted(this.signal);
    await new Promise<void>((resolve) => setImmediate(resolve));
    throwIfAborted(this.signal);
    this.#end = performance.now() + this.#budget;
  }

  /** Runs a generator to its end with pauses where it yields. */
  async finish<T>(steps: Generator<void, T>): Promise<T> {
    for (;;) {
      const step = steps.next();
      if (step.done === true) return step.value;
      if (this.due) await this.pause();
    }
  }

  /**
   * Calls `work(begin, end)` for stretches of 0 … count − 1 with pauses between them. The loop over a stretch stands in
   * a plain function: one that contains `await` would stay in the interpreter.
   */
  async batches(count: number, size: number, work: (begin: number, end: number) => void): Promise<void> {
    for (let begin = 0; begin < count; begin += size) {
      if (this.due) await this.pause();
      work(begin, Math.min(begin + size, count));
    }
  }
}
