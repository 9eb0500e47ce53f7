import type { StorageType } from "./file.js";

/** A storage type's block: `elements` consecutive elements of a row take `bytes` bytes. */
export interface StorageBlock {
  readonly elements: number;
  readonly bytes: number;
}

const BLOCKS: Readonly<Record<StorageType, StorageBlock>> = {
  f32: { elements: 1, bytes: 4 },
  f16: { elements: 1, bytes: 2 },
  bf16: { elements: 1, bytes: 2 },
  i32: { elements: 1, bytes: 4 },
  q4_0: { elements: 32, bytes: 18 },
  q4_1: { elements: 32, bytes: 20 },
  q5_0: { elements: 32, bytes: 22 },
  q5_1: { elements: 32, bytes: 24 },
  q8_0: { elements: 32, bytes: 34 },
  q2_k: { elements: 256, bytes: 84 },
  q3_k: { elements: 256, bytes: 110 },
  q4_k: { elements: 256, bytes: 144 },
  q5_k: { elements: 256, bytes: 176 },
  q6_k: { elements: 256, bytes: 210 },
  iq4_nl: { elements: 32, bytes: 18 },
};

export function storageBlock(type: StorageType): StorageBlock {
  return BLOCKS[type];
}

/** GGUF's type numbers that this package reads. */
export const GGUF_STORAGE: ReadonlyMap<number, StorageType> = new Map<number, StorageType>([
  [0, "f32"], [1, "f16"], [2, "q4_0"], [3, "q4_1"], [6, "q5_0"], [7, "q5_1"], [8, "q8_0"], [10, "q2_k"], [11, "q3_k"],
  [12, "q4_k"], [13, "q5_k"], [14, "q6_k"], [20, "iq4_nl"], [26, "i32"], [30, "bf16"],
]);

/** Names of the type numbers that GGUF knows and this package does not read, for messages. */
export const GGUF_OTHER_STORAGE: ReadonlyMap<number, string> = new Map([
  [4, "Q4_2"], [5, "Q4_3"], [9, "Q8_1"], [15, "Q8_K"], [16, "IQ2_XXS"], [17, "IQ2_XS"], [18, "IQ3_XXS"], [19, "IQ1_S"],
  [21, "IQ3_S"], [22, "IQ2_S"], [23, "IQ4_XS"], [24, "I8"], [25, "I16"], [27, "I64"], [28, "F64"], [29, "IQ1_M"],
  [31, "Q4_0_4_4"], [32, "Q4_0_4_8"], [33, "Q4_0_8_8"], [34, "TQ1_0"], [35, "TQ2_0"], [36, "IQ4_NL_4_4"], [39, "MXFP4"],
]);
