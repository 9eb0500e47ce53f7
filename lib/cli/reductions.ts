import type { Library } from "./library.js";
import { UsageError } from "./terminal.js";
import type { Reduction } from "../index.js";

/** `toMe:13`: a reduction by name and its main number. */
export function readReduction({ toMe }: Library, text: string): Reduction {
  const [name = "", amount = ""] = text.split(":"), count = Number(amount);
  if (name.toLowerCase() !== "tome" || !Number.isSafeInteger(count) || amount === "") throw new UsageError(`Expected a reduction such as toMe:13 but received ${text}`);
  return toMe(count);
}
