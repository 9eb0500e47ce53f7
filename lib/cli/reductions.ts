import type { Library } from "./library.js";
import { UsageError } from "./terminal.js";
import type { Reduction } from "../index.js";

/** Where reductions that keep a share work: at a quarter, half and three quarters of the model's depth, as EViT does. */
const quarters = (layers: number): number[] => [...new Set([0.25, 0.5, 0.75].map((part) => Math.floor(part * layers)))];

/** The first token, a class token where the model has one, stays. */
const classToken = true;

const makers: Readonly<Record<string, (library: Library, amount: number, layers: number) => Reduction>> = {
  toMe: ({ toMe }, amount) => toMe(amount),
  eVit: ({ eVit }, keepRate, layers) => eVit({ keepRate, layers: quarters(layers) }),
  dpcKnn: ({ dpcKnn }, keepRate, layers) => dpcKnn({ keepRate, classToken, layers: quarters(layers) }),
  divPrune: ({ divPrune }, keepRate, layers) => divPrune({ keepRate, classToken, layers: quarters(layers) }),
  toDre: ({ toDre }, keepRate, layers) => toDre({ keepRate, start: "index", layers: quarters(layers) }),
  tokenTransforming: ({ tokenTransforming }, keepRate, layers) => tokenTransforming({ keepRate, temperature: 0.001, classToken, layers: quarters(layers) }),
  correlationGuided: ({ correlationGuided }, threshold, layers) => correlationGuided({ threshold, merge: true, classToken, layers: [Math.floor(layers / 2)] }),
};

export const reductionNames: readonly string[] = Object.keys(makers);
export const reductionHelp = "fewer tokens on the way: toMe:13 (merged a layer), or the share that stays in each of three layers, such as divPrune:0.7";

/** `toMe:13`: a reduction by name and its main number, for a model of so many layers. */
export function readReduction(library: Library, text: string): (layers: number) => Reduction {
  const [name = "", amount = ""] = text.split(":"), make = Object.hasOwn(makers, name) ? makers[name] : undefined, value = Number(amount);
  if (make === undefined || amount === "" || !Number.isFinite(value)) throw new UsageError(`Expected a reduction such as toMe:13 (${reductionNames.join(", ")}) but received ${text}`);
  return (layers) => make(library, value, layers);
}
