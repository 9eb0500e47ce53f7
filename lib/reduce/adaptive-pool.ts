import { checkOptionsObject } from "../check.js";
import { checkSide, gridPool } from "./grid.js";
import type { Reduction } from "./reduction.js";

export const method = { recipe: "adaptivePool", paper: "TokenFLEX", arxiv: "2504.03154", summary: "adaptive average pooling of the grid to any size; the projector behind it is a model's own" };

export interface AdaptivePoolOptions {
  readonly height: number;
  readonly width: number;
  readonly outHeight: number;
  readonly outWidth: number;
}

/** Any number of tokens out of a grid (TokenFLEX's pooling, arXiv 2504.03154): new (i, j) is the mean over rows ⌊i·h/outH⌋ … ⌈(i+1)·h/outH⌉−1, columns likewise. */
export function adaptivePool(options: AdaptivePoolOptions): Reduction {
  checkOptionsObject(options, "an object with height, width, outHeight and outWidth");
  const [height, width, outHeight, outWidth] = (["height", "width", "outHeight", "outWidth"] as const).map((side) => checkSide(`options.${side}`, options[side])) as [number, number, number, number];
  return gridPool("adaptivePool", { height, width, usedHeight: height, usedWidth: width, outHeight, outWidth });
}
