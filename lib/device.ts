import { ArgumentError, invalidArgument } from "./errors.js";
import { native } from "./native.js";

/** Where ops run. "cuda" needs the opt-in library of docs/devices.md and a GPU of compute capability 8.0 or later. */
export type DeviceName = "cpu" | "cuda";

/** The numbers of the native interface. */
export const deviceCode = { cpu: 0, cuda: 1 } as const;

/** What TOKENLOOM_DEVICE names, for whatever is not told otherwise. */
const initial = process.env["TOKENLOOM_DEVICE"] ?? "cpu";

/** The device of a call: its option, or the default. Throws ArgumentError for another name, or where there is no such device. */
export function deviceOf(device: DeviceName | undefined): DeviceName {
  const name = device ?? initial;
  if (name !== "cpu" && name !== "cuda") throw invalidArgument(device === undefined ? "TOKENLOOM_DEVICE" : "device", "'cpu' or 'cuda'", name);
  if (name === "cuda") {
    const found = native.cudaDevice();
    if (!found.available) throw new ArgumentError("device", `Expected a CUDA device for device but there is none: ${found.reason}`);
  }
  return name;
}
