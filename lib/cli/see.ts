import { writeFile } from "node:fs/promises";
import type { Encoding } from "../index.js";
import { toPixels, toPng } from "../encode/image.js";
import type { ImageConfig } from "../models/encoder-config.js";
import { openEncoder, openLibrary, type CommonOptions } from "./library.js";
import { readReduction } from "./reductions.js";
import { interruptSignal, printJson, UsageError, write } from "./terminal.js";

export interface SeeFlags extends CommonOptions {
  readonly reduce: string;
  readonly out: string;
}

/** `tokenloom see MODEL IMAGE --reduce toMe:13 --out overlay.png` */
export async function see(name: string, image: string, flags: SeeFlags): Promise<void> {
  const library = await openLibrary(flags), make = readReduction(library, flags.reduce), signal = interruptSignal();
  using model = await openEncoder(library, name, flags, signal);
  const { image: config, layers } = model.config;
  if (!config) throw new UsageError("Expected a model that reads images");
  const reduce = make(layers), pixels = await toPixels("image", image, config), input = { data: pixels, width: config.width, height: config.height };
  const timed = async (options: object): Promise<{ seen: Encoding; ms: number }> => {
    await model.encode(input, { signal, ...options });
    const began = performance.now(), seen = await model.encode(input, { signal, ...options });
    return { seen, ms: performance.now() - began };
  };
  const before = await timed({}), after = await timed({ reduce });
  const panels = [pixels, tokenPatches(pixels, after.seen.source.data, config), ...[before, after].flatMap(({ seen: { saliency } }) => (saliency ? [heat(pixels, saliency.data)] : []))];
  await writeFile(flags.out, await toPng(tiled(panels, config, 2), { width: 2 * (config.width + gap) - gap, height: (panels.length / 2) * (config.height + gap) - gap }, 2));
  const facts = { model: model.name, reduce: flags.reduce, tokens: before.seen.tokens.shape[0], tokensLeft: after.seen.tokens.shape[0], ms: before.ms, msReduced: after.ms, agreement: agreement(before.seen, after.seen), out: flags.out };
  if (flags.json) return printJson(facts);
  await write(process.stdout, `${facts.tokens} → ${facts.tokensLeft} tokens, ${before.ms.toFixed(0)} → ${after.ms.toFixed(0)} ms, ${facts.agreement.toFixed(4)} agreement (${before.seen.saliency ? "Pearson of the saliency maps" : "cosine of the embeddings"}); ${flags.out}\n`);
}

/** Pearson of the saliency maps; of models without, the cosine of the embeddings. */
export function agreement(a: Encoding, b: Encoding): number {
  const [x, y] = a.saliency && b.saliency ? [a.saliency.data, b.saliency.data] : [a.embedding.data, b.embedding.data];
  const mean = (values: Float32Array): number => (a.saliency ? values.reduce((sum, value) => sum + value, 0) / values.length : 0), [mx, my] = [mean(x), mean(y)];
  let xy = 0, xx = 0, yy = 0;
  for (let i = 0; i < x.length; i++) {
    xy += (x[i]! - mx) * (y[i]! - my);
    xx += (x[i]! - mx) ** 2;
    yy += (y[i]! - my) ** 2;
  }
  return xy / Math.sqrt(xx * yy);
}

/** Each token's patches in their mean colour, a dark line where another token begins; dropped patches in grey. */
export function tokenPatches(pixels: Uint8Array, source: Int32Array, { height, width, patch, prefix }: ImageConfig): Uint8Array {
  const across = width / patch, sums = new Map<number, [number, number, number, number]>(), out = new Uint8Array(pixels.length);
  const tokenAt = (y: number, x: number): number => source[prefix + Math.floor(y / patch) * across + Math.floor(x / patch)]!;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const sum = sums.get(tokenAt(y, x)) ?? [0, 0, 0, 0];
      for (let channel = 0; channel < 3; channel++) sum[channel]! += pixels[(y * width + x) * 3 + channel]!;
      sum[3]++;
      sums.set(tokenAt(y, x), sum);
    }
  }
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const token = tokenAt(y, x), [red, green, blue, count] = sums.get(token)!;
      const edge = (y > 0 && y % patch === 0 && tokenAt(y - 1, x) !== token) || (x > 0 && x % patch === 0 && tokenAt(y, x - 1) !== token);
      out.set(edge ? [20, 20, 20] : token < 0 ? [96, 96, 96] : [red / count, green / count, blue / count], (y * width + x) * 3);
    }
  }
  return out;
}

/** A map of 0 … 1 over the picture: from its darkened grey to red and yellow. */
export function heat(pixels: Uint8Array, map: Float32Array): Uint8Array {
  const out = new Uint8Array(pixels.length);
  map.forEach((value, i) => {
    const grey = 0.25 * (0.3 * pixels[3 * i]! + 0.59 * pixels[3 * i + 1]! + 0.11 * pixels[3 * i + 2]!);
    out.set([Math.min(255, grey + 320 * value), Math.min(255, grey + Math.max(0, 400 * value - 170)), grey * (1 - value)], 3 * i);
  });
  return out;
}

/** Pixels between panels. */
const gap = 4;

/** Pictures of one size side by side, `columns` in a row, on white. */
function tiled(panels: readonly Uint8Array[], { height, width }: ImageConfig, columns: number): Uint8Array {
  const rows = Math.ceil(panels.length / columns), across = columns * (width + gap) - gap, out = new Uint8Array(across * (rows * (height + gap) - gap) * 3).fill(255);
  panels.forEach((panel, i) => {
    const left = (i % columns) * (width + gap), top = Math.floor(i / columns) * (height + gap);
    for (let y = 0; y < height; y++) out.set(panel.subarray(y * width * 3, (y + 1) * width * 3), ((top + y) * across + left) * 3);
  });
  return out;
}
