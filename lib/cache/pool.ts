import { deviceCode, deviceOf } from "../device.js";
import { callNative, dtypeCode, native, type NativeHandle } from "../native.js";
import { cacheTypes, type CacheType } from "./types.js";

/** Where caches of one shape get their pages from, on the default device; `byteLimit` for all of them together, 0: none. */
export function createPool({ layers, kvHeads, headDim, type }: { layers: number; kvHeads: number; headDim: number; type: CacheType }, byteLimit: number): NativeHandle {
  const device = deviceCode[deviceOf(undefined)];
  return callNative(() => native.createPool(layers, kvHeads, headDim, dtypeCode[cacheTypes[type]], byteLimit, device));
}
