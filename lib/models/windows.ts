import type { LayerConfig, RopeConfig } from "./config.js";
import type { Fields, Sizes } from "./fields.js";

/** One entry a layer: `sliding(index)` says which see only the last `window` tokens. */
export function slidingLayers(sizes: Sizes, window: number | undefined, sliding: (index: number) => boolean, rope: (sliding: boolean) => RopeConfig): readonly LayerConfig[] {
  const [local, global]: readonly LayerConfig[] = [{ rope: rope(true), ...(window !== undefined && { window }) }, { rope: rope(false) }];
  return Array.from({ length: sizes.layers }, (_, index) => (sliding(index) ? local! : global!));
}

/** The window's width in tokens; undefined where it is off: 0, null, or absent without a fallback. */
export function readWindow(fields: Fields, fallback?: number): number | undefined {
  const window = fields.integer("attention.sliding_window", "sliding_window", 0, fields.isNull("sliding_window") ? 0 : (fallback ?? 0));
  return window === 0 ? undefined : window;
}

/** Which layers slide: `layer_types` of config.json, one flag a layer in GGUF, or the pattern that holds without them. */
export function readSliding(fields: Fields, sizes: Sizes, pattern: (index: number) => boolean): (index: number) => boolean {
  const key = fields.key("attention.sliding_window_pattern", "layer_types");
  if (fields.gguf) {
    const flags = fields.file.metadata.raw(key);
    if (!Array.isArray(flags)) return pattern;
    if (flags.length !== sizes.layers) throw fields.error(`${sizes.layers} entries of ${key}`, flags.length);
    return (index) => flags[index] === true;
  }
  const types = fields.file.metadata.strings(key);
  if (types === undefined) return pattern;
  if (types.length !== sizes.layers) throw fields.error(`${sizes.layers} entries of ${key}`, types.length);
  const other = types.find((type) => type !== "sliding_attention" && type !== "full_attention");
  if (other !== undefined) throw fields.error("full_attention or sliding_attention in layer_types", other);
  return (index) => types[index] === "sliding_attention";
}
