import { mkdir, writeFile } from "node:fs/promises";
import { basename, dirname } from "node:path";
import type { EncoderModel, Encoding } from "../index.js";
import { escapeXml } from "../svg.js";
import { openEncoder, openLibrary, type CommonOptions } from "./library.js";
import { correlation, cosine, drawPanels, Picture } from "./picture.js";
import { readReduction, reductionNames } from "./reductions.js";
import { interruptSignal, printJson, table, UsageError } from "./terminal.js";

export interface CompareFlags extends CommonOptions {
  readonly reduce?: readonly string[];
  readonly out: string;
  readonly runs: number;
  readonly pictures?: number;
}

interface Row {
  readonly reduce: string;
  readonly tokens: number;
  readonly ms: number;
  readonly embeddingCosine: number;
  readonly saliencyPearson?: number;
  readonly pictures: readonly string[];
}

/** `tokenloom compare MODEL IMAGE…`: every reduction on the same pictures, as an HTML table with a picture each. */
export async function compare(name: string, files: readonly string[], flags: CompareFlags): Promise<void> {
  const library = await openLibrary(flags), signal = interruptSignal();
  using model = await openEncoder(library, name, flags, signal);
  if (!model.config.image) throw new UsageError(`${model.name} reads texts: compare draws images`);
  const chosen = flags.reduce ?? reductionNames.map(({ example }) => example), reductions = chosen.map((text) => [text, readReduction(library, text, model.config.layers)] as const);
  const drawn = files.slice(0, flags.pictures ?? files.length), pictures = await Promise.all(drawn.map((file) => Picture.open(model, file)));
  const whole = await timed(() => model.encode(files, { signal }), flags.runs), rows: Row[] = [await rowOf("all tokens", whole.results, whole, pictures, drawn)];
  for (const [text, reduce] of reductions) {
    const made = await timed(() => model.encode(files, { signal, reduce }), flags.runs);
    rows.push(await rowOf(text, made.results, { ...whole, ms: made.ms }, pictures, drawn));
    for (const result of made.results) result[Symbol.dispose]();
  }
  await mkdir(dirname(flags.out), { recursive: true });
  await writeFile(flags.out, page(model, drawn, rows));
  if (flags.json) await printJson({ model: model.name, images: files, out: flags.out, rows: rows.map(({ pictures: _, ...row }) => row) });
  else process.stdout.write(`${table(["reduction", "tokens", "ms an image", "embedding, cosine", "saliency, Pearson"], rows.map(cells))}\n`);
}

async function timed(run: () => Promise<Encoding[]>, runs: number): Promise<{ readonly results: Encoding[]; readonly ms: number }> {
  let results = await run(), ms = Infinity;
  for (let i = 0; i < runs; i++) {
    for (const result of results) result[Symbol.dispose]();
    const began = performance.now();
    results = await run();
    ms = Math.min(ms, (performance.now() - began) / results.length);
  }
  return { results, ms };
}

async function rowOf(reduce: string, results: readonly Encoding[], whole: { readonly results: readonly Encoding[]; readonly ms: number }, pictures: readonly Picture[], files: readonly string[]): Promise<Row> {
  const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
  const drawn = await Promise.all(pictures.map(async (picture, i) => {
    const result = results[i]!;
    const panels = [{ title: `${result.tokens.shape[0]} tokens`, body: picture.tokens(result) }, ...(result.saliency ? [{ title: "saliency", body: await picture.heat(result.saliency.data) }] : [])];
    return drawPanels(picture, panels, `${reduce} on ${basename(files[i]!)}`);
  }));
  return {
    reduce, tokens: mean(results.map(({ tokens }) => tokens.shape[0]!)), ms: whole.ms, embeddingCosine: mean(results.map(({ embedding }, i) => cosine(embedding.data, whole.results[i]!.embedding.data))),
    ...(results[0]?.saliency && { saliencyPearson: mean(results.map(({ saliency }, i) => correlation(saliency!.data, whole.results[i]!.saliency!.data))) }), pictures: drawn,
  };
}

const cells = (row: Row): string[] => [row.reduce, row.tokens.toFixed(row.tokens % 1 === 0 ? 0 : 1), row.ms.toFixed(1), row.embeddingCosine.toFixed(4), row.saliencyPearson?.toFixed(4) ?? ""];

function page(model: EncoderModel, files: readonly string[], rows: readonly Row[]): string {
  const head = ["reduction", "tokens", "ms an image", "embedding, cosine", "saliency, Pearson", ...files.map((file) => basename(file))].map((text) => `<th>${escapeXml(text)}</th>`).join("");
  const body = rows.map((row) => `<tr>${cells(row).map((text) => `<td>${escapeXml(text)}</td>`).join("")}${row.pictures.map((svg) => `<td>${svg}</td>`).join("")}</tr>`).join("\n");
  const style = "body{font:14px sans-serif;margin:2em}td,th{padding:.4em .8em;text-align:left;vertical-align:top;border-top:1px solid #ccc}svg{height:10em;width:auto}";
  return `<!doctype html>\n<meta charset="utf-8">\n<title>Reductions of ${escapeXml(model.name)}</title>\n<style>${style}</style>\n<h1>${escapeXml(model.name)}</h1>\n<table>\n<tr>${head}</tr>\n${body}\n</table>\n`;
}
