import type { Reduction } from "../index.js";
import type { Library } from "./library.js";
import { UsageError } from "./terminal.js";

interface Named {
  /** What the number is, for messages and tables. */
  readonly amount: string;
  readonly example: string;
  /** `layers`: where tokens go. A number that is out of range is an ArgumentError. */
  make(library: Library, amount: number, layers: readonly number[] | undefined): Reduction;
}

const classToken = true;

/** Reductions that a command line can name: `toMe:13`, `eVit:0.7@3,6,9`. */
const named: Readonly<Record<string, Named>> = {
  toMe: { amount: "tokens merged in each layer", example: "toMe:13", make: ({ toMe }, perLayer) => toMe({ perLayer }) },
  eVit: { amount: "share kept", example: "eVit:0.7@3,6,9", make: ({ eVit }, keepRate, layers) => eVit({ keepRate, fuse: "weightedMean", ...(layers && { layers }) }) },
  dpcKnn: { amount: "share kept", example: "dpcKnn:0.5@5", make: ({ dpcKnn }, keepRate, layers) => dpcKnn({ keepRate, classToken, ...(layers && { layers }) }) },
  divPrune: { amount: "share kept", example: "divPrune:0.5@5", make: ({ divPrune }, keepRate, layers) => divPrune({ keepRate, classToken, ...(layers && { layers }) }) },
  toDre: { amount: "share kept", example: "toDre:0.5@5", make: ({ toDre }, keepRate, layers) => toDre({ keepRate, start: "index", ...(layers && { layers }) }) },
  correlationGuided: { amount: "cosine above which tokens merge", example: "correlationGuided:0.9@5", make: ({ correlationGuided }, threshold, layers) => correlationGuided({ threshold, merge: true, classToken, ...(layers && { layers }) }) },
  tokenTransforming: { amount: "share kept", example: "tokenTransforming:0.7@5", make: ({ tokenTransforming }, keepRate, layers) => tokenTransforming({ keepRate, temperature: 0.001, classToken, ...(layers && { layers }) }) },
};

/** The others have a number for every layer. */
const withLayers = new Set(Object.keys(named).filter((name) => name !== "toMe"));

/** One line for each name: its number, an example. */
export const reductionNames = Object.entries(named).map(([name, { amount, example }]) => ({ name, amount, example }));

/** `name:number`, or `name:number@layer,layer`; without layers tokens go once, in the middle of the model. */
export function readReduction(library: Library, text: string, layers: number): Reduction {
  const [, typed = "", amount = "", at] = /^([a-z]+):([\d.]+)(?:@([\d,]+))?$/i.exec(text) ?? [];
  const name = Object.keys(named).find((one) => one.toLowerCase() === typed.toLowerCase());
  if (name === undefined || amount === "") throw new UsageError(`Expected a reduction such as ${reductionNames.map(({ example }) => example).join(", ")} but received ${text}`);
  const chosen = at?.split(",").map(Number) ?? (withLayers.has(name) ? [Math.floor((layers - 1) / 2)] : undefined);
  if (at !== undefined && !withLayers.has(name)) throw new UsageError(`${name} has no layers to choose: leave @${at} out`);
  const beyond = chosen?.find((layer) => !(layer < layers));
  if (beyond !== undefined) throw new UsageError(`The model has layers 0 to ${layers - 1}, not ${beyond}`);
  return named[name]!.make(library, Number(amount), chosen);
}
