import { callNative, native, type CudaDevice } from "./native.js";
import { tensorCount } from "./tensor.js";

/** Native bytes by owner, of this process. */
export interface MemoryUse {
  /** Intermediate values: one arena, shared by all runs, which take turns. */
  readonly arena: number;
  readonly weights: number;
  readonly cache: number;
  /** Tiles of kernels, one block a thread. */
  readonly scratch: number;
  /** Tensors of this thread that are neither disposed of nor collected, in JavaScript memory. */
  readonly tensors: number;
  /** Native objects that JavaScript holds. */
  readonly handles: number;
}

/** Who holds how many native bytes. */
export function memory(): MemoryUse {
  const { arena, weight, cache, scratch, handles } = callNative(() => native.memory());
  return { arena, weights: weight, cache, scratch, tensors: tensorCount().bytes, handles };
}

export interface SystemInfo {
  /** Instruction set in use: "scalar", "avx2", "avx512", "avx512bf16", "neon" or "neondot"; TOKENLOOM_ISA forces one. */
  readonly isa: string;
  readonly availableIsas: readonly string[];
  /** Cores that this process may use. */
  readonly cores: number;
  /** The CUDA device, or why there is none. */
  readonly cuda: CudaDevice;
}

export function systemInfo(): SystemInfo {
  const { isa, available, cores } = callNative(() => native.info());
  return { isa, availableIsas: available, cores, get cuda() { return callNative(() => native.cudaDevice()); } }; // opened only for those who ask
}
