import { DisposedError } from "./errors.js";
import { native, type NativeHandle } from "./native.js";

const net = new FinalizationRegistry<NativeHandle>((handle) => native.release(handle));

/**
 * Something that owns native memory. dispose() twice is fine; use afterwards throws DisposedError; dispose() during a run
 * lets the run end first and then frees. What is never disposed of is freed by the garbage collector.
 */
export abstract class NativeResource implements Disposable {
  private running = 0;
  private disposed = false;
  private freed = false;

  protected constructor(private readonly what: string, private readonly owned: NativeHandle) {
    net.register(this, owned, this);
  }

  get isDisposed(): boolean {
    return this.disposed;
  }

  /** The handle, for as long as this is not disposed of. */
  get handle(): NativeHandle {
    if (this.disposed) throw new DisposedError(this.what);
    return this.owned;
  }

  /** Holds the memory until `work` has settled. */
  protected async during<T>(work: () => Promise<T>): Promise<T> {
    if (this.disposed) throw new DisposedError(this.what);
    this.running++;
    try {
      return await work();
    } finally {
      this.running--;
      this.free();
    }
  }

  dispose(): void {
    this.disposed = true;
    this.free();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  private free(): void {
    if (!this.disposed || this.running > 0 || this.freed) return;
    this.freed = true;
    net.unregister(this);
    native.release(this.owned);
  }
}
