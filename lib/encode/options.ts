import { checkOptionsObject, checkSignal } from "../check.js";
import { deviceOf, type DeviceName } from "../device.js";
import { invalidArgument } from "../errors.js";
import type { EncoderConfig, Pooling } from "../models/encoder-config.js";
import { checkReduction, type Reduction } from "../reduce/reduction.js";
import type { RunOptions } from "../schedule.js";

export interface EncodeModelOptions extends RunOptions {
  /** Takes tokens away on the way, inside the compiled graph: `toMe(13)`. */
  readonly reduce?: Reduction | undefined;
  /** How a vector is made of tokens; by default as the model was trained. "attention" only where the model has such a head. */
  readonly pool?: Pooling | undefined;
  /** The embedding is divided by its 2-norm; by default as the model was trained. */
  readonly normalize?: boolean | undefined;
  /** Texts of more tokens than the model takes are cut instead of a ContextOverflowError; false. */
  readonly truncate?: boolean | undefined;
  /** The map of a model with a saliency head; true. */
  readonly saliency?: boolean | undefined;
  /** Also the tokens before the first block and behind each; false. */
  readonly hiddenStates?: boolean | undefined;
}

export interface CheckedEncodeOptions {
  readonly reduce: Reduction | undefined;
  readonly pool: Pooling;
  readonly normalize: boolean;
  readonly truncate: boolean;
  readonly saliency: boolean;
  readonly hiddenStates: boolean;
  readonly signal: AbortSignal | undefined;
  readonly threads: number | undefined;
  readonly device: DeviceName | undefined;
}

export function checkEncodeOptions(options: EncodeModelOptions, config: EncoderConfig): CheckedEncodeOptions {
  checkOptionsObject(options);
  const { reduce, pool = config.pool, normalize = config.normalize, truncate = false, saliency = config.saliency, hiddenStates = false, signal, threads, device } = options;
  if (reduce !== undefined) {
    checkReduction("options.reduce", reduce);
    if (reduce.needs.scores && !config.classToken) throw invalidArgument("options.reduce", "a reduction that needs no class token, which this model does not have", reduce.name);
  }
  if (hiddenStates && reduce?.dataDependent) throw invalidArgument("options.hiddenStates", `false with ${reduce.name}, whose counts depend on data`, hiddenStates);
  const pools = ["cls", "mean", "max", ...(config.pool === "attention" ? ["attention"] : [])];
  if (!pools.includes(pool) || (pool === "cls" && !config.classToken)) throw invalidArgument("options.pool", `one of ${pools.filter((name) => name !== "cls" || config.classToken).join(", ")}`, pool);
  for (const [name, value] of Object.entries({ normalize, truncate, saliency, hiddenStates })) if (typeof value !== "boolean") throw invalidArgument(`options.${name}`, "a boolean", value);
  if (saliency && !config.saliency) throw invalidArgument("options.saliency", "false for a model without a saliency head", saliency);
  checkSignal("options.signal", signal);
  if (device !== undefined) deviceOf(device, "options.device");
  return { reduce, pool, normalize, truncate, saliency, hiddenStates, signal, threads, device };
}
