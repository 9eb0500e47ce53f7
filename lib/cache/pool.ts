import { deviceCode, deviceOf, type DeviceName } from "../device.js";
import { callNative, dtypeCode, native, type NativeHandle } from "../native.js";
import { cacheTypes, type CacheType } from "./types.js";

/** Where caches of one shape get their pages from, and so where runs on them go; `byteLimit` for all of them together, 0: none. */
export function createPool({ layers, kvHeads, headDim, type }: { layers: number; kvHeads: number; headDim: number; type: CacheType }, byteLimit: number, device?: DeviceName): NativeHandle {
  const code = deviceCode[deviceOf(device, "options.device")];
  return callNative(() => native.createPool(layers, kvHeads, headDim, dtypeCode[cacheTypes[type]], byteLimit, code));
}
