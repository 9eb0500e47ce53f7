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

/** Milliseconds that all slicers together may work in one turn of the event loop. */
const budget = 1;
/** When the present turn's time is used up; undefined until a slicer works in it. */
let turnEnd: number | undefined;
/** Those that pause, in the order in which they go on. */
const paused: (() => void)[] = [];

/** Counts the turn that begins: who works in it shares its time, however many they are. */
function beginTurn(): number {
  setImmediate(endTurn);
  return (turnEnd = performance.now() + budget);
}

/** One of those that pause goes on in the next turn; the time of a second would only begin when the first pauses again. */
function endTurn(): void {
  turnEnd = undefined;
  const resume = paused.shift();
  if (!resume) return;
  beginTurn();
  resume();
}

/**
 * Cuts long JavaScript work into short slices, so that nothing blocks the event loop, however much of it there is at once:
 * `if (slicer.due) await slicer.pause();` inside the loop. A pause also obeys the signal.
 */
export class Slicer {
  readonly signal: AbortSignal | undefined;

  constructor(signal?: AbortSignal) {
    throwIfAborted(signal);
    this.signal = signal;
  }

  /** Whether the slice is used up, or the signal wants an end. */
  get due(): boolean {
    return this.signal?.aborted === true || performance.now() >= (turnEnd ?? beginTurn());
  }

  /** Lets everything else run, then starts the next slice. Throws AbortError. */
  async pause(): Promise<void> {
    throwIfAborted(this.signal);
    await new Promise<void>((resolve) => {
      if (turnEnd === undefined) beginTurn();
      paused.push(resolve);
    });
    throwIfAborted(this.signal);
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
