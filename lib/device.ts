import { ArgumentError, invalidArgument } from "./errors.js";
import { native } from "./native.js";

/** Where ops run. "cuda" needs the opt-in library of docs/devices.md and a GPU of compute capability 8.0 or later. */
export type DeviceName = "cpu" | "cuda";

/** The numbers of the native interface. `cache`: where the cache of a run lies. */
export const deviceCode = { cpu: 0, cuda: 1, cache: 2 } as const;

/** What TOKENLOOM_DEVICE names, for whatever is not told otherwise. */
const initial = process.env["TOKENLOOM_DEVICE"] ?? "cpu";

/** A device that was found stays; asking for it again at each run would cost more than many runs. */
let cudaFound = false;

/** The device of a call: its option, or the default. Throws ArgumentError for another name, or where there is no such device. */
export function deviceOf(device: DeviceName | undefined, argument = "device"): DeviceName {
  const name = device ?? initial;
  if (name !== "cpu" && name !== "cuda") throw invalidArgument(device === undefined ? "TOKENLOOM_DEVICE" : argument, "'cpu' or 'cuda'", name);
  if (name === "cuda" && !cudaFound) {
    const found = native.cudaDevice();
    if (!found.available) throw new ArgumentError(argument, `Expected a CUDA device for ${argument} but there is none: ${found.reason}`);
    cudaFound = true;
  }
  return name;
}
