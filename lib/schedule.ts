import { checkOptionsObject, checkSignal } from "./check.js";
import { deviceOf, type DeviceName } from "./device.js";
import { AbortError, invalidArgument } from "./errors.js";
import { callNative, fromNative, native } from "./native.js";

export interface RunOptions {
  /** Aborts between two ops of a run: within milliseconds. */
  readonly signal?: AbortSignal | undefined;
  /** Cores to use; by default all that this process may use. */
  readonly threads?: number | undefined;
  /** Where the ops run; "cpu" unless the environment variable TOKENLOOM_DEVICE names another. */
  readonly device?: DeviceName | undefined;
}

/**
 * Native work takes turns, first come first served. Those that wait do so here, not in libuv's few threads, which stay free for
 * file and network work however many sessions there are.
 */
class Turns {
  private readonly waiting: (() => void)[] = [];

  constructor(private free: number) {}

  take(signal: AbortSignal | undefined): Promise<void> {
    if (this.free > 0) {
      this.free--;
      return Promise.resolve();
    }
    const { waiting } = this;
    return new Promise((resolve, reject) => {
      const abort = (): void => {
        waiting.splice(waiting.indexOf(start), 1);
        reject(new AbortError(signal?.reason));
      };
      const start = (): void => {
        signal?.removeEventListener("abort", abort);
        resolve();
      };
      signal?.addEventListener("abort", abort, { once: true });
      waiting.push(start);
    });
  }

  give(): void {
    const start = this.waiting.shift();
    if (start) start();
    else this.free++;
  }
}

/** On the processor one piece of work at a time, with all its threads; on a device two, each on a stream of its own: one prepares its step while the other waits for its. */
const turns: Readonly<Record<DeviceName, Turns>> = { cpu: new Turns(1), cuda: new Turns(2) };

let cores: number | undefined;

export function threadCount(threads: number | undefined): number {
  if (threads === undefined) return (cores ??= callNative(() => native.info()).cores);
  if (!Number.isInteger(threads) || threads < 1 || threads > 128) throw invalidArgument("threads", "an integer from 1 to 128", threads);
  return threads;
}

/** The options of a run among those of an op; throws ArgumentError for wrong ones before anything is begun. */
export function runOptions(options: RunOptions): RunOptions {
  const { signal, threads, device } = checkOptionsObject(options);
  checkSignal("options.signal", signal);
  threadCount(threads);
  if (device !== undefined) deviceOf(device);
  return { signal, threads, device };
}

/** Runs one piece of native work in turn, of those on `place`; `signal` reaches it also while it waits. */
export async function schedule<T>(work: (threads: number, cancel: Int32Array) => Promise<T>, options: RunOptions = {}, place: DeviceName = "cpu"): Promise<T> {
  const { signal } = runOptions(options); // wrong ones must not reach the turn: nobody would end it
  const threads = threadCount(options.threads);
  if (signal?.aborted) throw new AbortError(signal.reason);
  await turns[place].take(signal);
  const cancel = new Int32Array(1);
  const abort = (): void => void Atomics.store(cancel, 0, 1);
  try {
    if (signal?.aborted) throw new AbortError(signal.reason);
    signal?.addEventListener("abort", abort, { once: true });
    return await work(threads, cancel);
  } catch (error) {
    throw fromNative(error, signal?.reason);
  } finally {
    signal?.removeEventListener("abort", abort);
    turns[place].give();
  }
}
