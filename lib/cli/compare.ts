import { writeFile } from "node:fs/promises";
import { basename } from "node:path";
import type { Encoding } from "../index.js";
import { toPixels, toPng } from "../encode/image.js";
import { escapeXml } from "../svg.js";
import { openEncoder, openLibrary, type CommonOptions } from "./library.js";
import { readReduction } from "./reductions.js";
import { agreement, heat, tokenPatches } from "./see.js";
import { interruptSignal, printJson, table, UsageError, write } from "./terminal.js";

export interface CompareFlags extends CommonOptions {
  readonly reduce?: readonly string[];
  readonly out: string;
}

/** About a third to two thirds of a DINOv2's tokens, by each method. */
const usual = ["toMe:8", "toMe:13", "toMe:16", "eVit:0.7", "dpcKnn:0.7", "divPrune:0.7", "toDre:0.7", "tokenTransforming:0.7"];

interface Row {
  readonly method: string;
  readonly image: string;
  readonly tokens: number;
  readonly ms: number;
  readonly agreement: number;
}

/** `tokenloom compare MODEL IMAGE… --out table.html`: all methods on all images, the best of three runs each, with pictures. */
export async function compare(name: string, images: readonly string[], flags: CompareFlags): Promise<void> {
  const library = await openLibrary(flags), methods = [...(flags.reduce ?? usual)].map((text) => ({ text, make: readReduction(library, text) })), signal = interruptSignal();
  using model = await openEncoder(library, name, flags, signal);
  const { image: config, layers } = model.config;
  if (!config) throw new UsageError("Expected a model that reads images");
  const rows: Row[] = [], cells: string[] = [], size = { width: config.width, height: config.height };
  const best = async (data: Uint8Array, options: object): Promise<{ seen: Encoding; ms: number }> => {
    let ms = Infinity, seen: Encoding | undefined;
    for (let run = 0; run < 3; run++) {
      const began = performance.now();
      seen = await model.encode({ data, ...size }, { signal, ...options });
      ms = Math.min(ms, performance.now() - began);
    }
    return { seen: seen!, ms };
  };
  const picture = async (data: Uint8Array): Promise<string> => `<img src="data:image/png;base64,${(await toPng(data, size)).toString("base64")}" width="${size.width}" height="${size.height}" alt="">`;
  for (const path of images) {
    const pixels = await toPixels("image", path, config), plain = await best(pixels, {}), image = basename(path);
    for (const { text, make } of [{ text: "none", make: undefined }, ...methods]) {
      const { seen, ms } = make ? await best(pixels, { reduce: make(layers) }) : plain, row = { method: text, image, tokens: seen.tokens.shape[0]!, ms, agreement: agreement(plain.seen, seen) };
      rows.push(row);
      const shown = [await picture(make ? tokenPatches(pixels, seen.source.data, config) : pixels), ...(seen.saliency ? [await picture(heat(pixels, seen.saliency.data))] : [])];
      cells.push(`<tr><td>${escapeXml(text)}<td>${escapeXml(image)}<td>${row.tokens}<td>${ms.toFixed(1)}<td>${(plain.ms / ms).toFixed(2)}×<td>${row.agreement.toFixed(4)}<td>${shown.join(" ")}</tr>`);
    }
  }
  await writeFile(flags.out, page(model.name, cells));
  if (flags.json) return printJson({ model: model.name, rows, out: flags.out });
  await write(process.stdout, `${table(["method", "image", "tokens", "ms", "agreement"], rows.map((row) => [row.method, row.image, row.tokens, row.ms.toFixed(1), row.agreement.toFixed(4)]))}\n${flags.out}\n`);
}

function page(model: string, cells: readonly string[]): string {
  return `<!doctype html><meta charset="utf-8"><title>Token reductions on ${escapeXml(model)}</title>
<style>body{font:14px system-ui;margin:2em}td,th{padding:.3em .8em;text-align:left;vertical-align:top;border-top:1px solid #ccc}</style>
<h1>Token reductions on ${escapeXml(model)}</h1><p>Agreement with what no reduction gives: Pearson of the saliency maps, or the cosine of the embeddings of a model without.
<table><tr><th>method<th>image<th>tokens<th>ms<th>speed<th>agreement<th>tokens and saliency</tr>
${cells.join("\n")}
</table>
`;
}
