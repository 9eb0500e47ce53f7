import { memory, type MemoryUse } from "tokenloom";

/** memory() once the collector has had its chance: tests expect `handles`, `weights` and `cache` to be 0 at their end. */
export async function settledMemory(): Promise<MemoryUse> {
  for (let i = 0; i < 50 && memory().handles > 0; i++) {
    globalThis.gc?.();
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  return memory();
}
