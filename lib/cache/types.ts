/** Element types of cached keys and values; int8 has a scale a token, int4 scale and minimum for each 16 elements (arXiv 2303.06865, 2402.02750), of keys after a Hadamard rotation (2404.00456). */
export const cacheTypes = { f32: "f32", f16: "f16", bf16: "bf16", int8: "i8", int4: "i4" } as const;
/** Tokens of a page, as in cpp/cache/kv.h. */
export const pageTokens = 32;
export type CacheType = keyof typeof cacheTypes;
