import { writeFile } from "node:fs/promises";
import { basename } from "node:path";
import type { Encoding } from "../index.js";
import { openEncoder, openLibrary, type CommonOptions } from "./library.js";
import { correlation, cosine, drawPanels, Picture, type Panel } from "./picture.js";
import { readReduction } from "./reductions.js";
import { interruptSignal, printJson, table, UsageError } from "./terminal.js";

export interface SeeFlags extends CommonOptions {
  readonly reduce: string;
  readonly out: string;
}

/** `tokenloom see MODEL IMAGE --reduce toMe:13 --out overlay.png`: which patches became one token, and what that does to the answer. */
export async function see(name: string, file: string, flags: SeeFlags): Promise<void> {
  if (!/\.(png|svg)$/i.test(flags.out)) throw new UsageError(`Expected a .png or .svg file for --out but received ${flags.out}`);
  const library = await openLibrary(flags), signal = interruptSignal();
  using model = await openEncoder(library, name, flags, signal);
  if (!model.config.image) throw new UsageError(`${model.name} reads texts: see draws images`);
  const reduce = readReduction(library, flags.reduce, model.config.layers), picture = await Picture.open(model, file);
  using before = await model.encode(file, { signal });
  using after = await model.encode(file, { signal, reduce });
  const svg = drawPanels(picture, await panels(picture, before, after, flags.reduce), `${flags.reduce} on ${basename(file)}`);
  await writeFile(flags.out, /\.svg$/i.test(flags.out) ? svg : await (await import("sharp")).default(Buffer.from(svg), { density: 144 }).png().toBuffer());
  const result = { tokens: before.tokens.shape[0]!, tokensLeft: after.tokens.shape[0]!, embeddingCosine: cosine(before.embedding.data, after.embedding.data), ...(before.saliency && { saliencyPearson: correlation(before.saliency.data, after.saliency!.data) }) };
  if (flags.json) await printJson({ model: model.name, image: file, reduce: flags.reduce, out: flags.out, ...result });
  else process.stdout.write(`${table(["", "before", "after"], [["tokens", result.tokens, result.tokensLeft], ["embedding, cosine", 1, result.embeddingCosine.toFixed(4)], ...(result.saliencyPearson === undefined ? [] : [["saliency, Pearson", 1, result.saliencyPearson.toFixed(4)]])])}\n`);
}

async function panels(picture: Picture, before: Encoding, after: Encoding, name: string): Promise<Panel[]> {
  const tokens = { title: `${name}: ${after.tokens.shape[0]} of ${before.tokens.shape[0]} tokens`, body: picture.tokens(after) }, photo = { title: "picture", body: picture.photograph() };
  if (!before.saliency || !after.saliency) return [photo, tokens];
  return [
    photo, tokens, { title: "saliency, all tokens", body: await picture.heat(before.saliency.data) },
    { title: `reduced: Pearson ${correlation(before.saliency.data, after.saliency.data).toFixed(4)}`, body: await picture.heat(after.saliency.data) },
  ];
}
