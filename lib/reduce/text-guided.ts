import { checkOptionsObject } from "../check.js";
import { invalidArgument } from "../errors.js";
import { integer, number, shaped } from "../ops/reduce-eager.js";
import type { RunOptions } from "../schedule.js";
import { tensor, type Tensor } from "../tensor.js";
import { queryScores } from "./query-scores.js";
import { descending, indexRows, rowOf, top } from "./select.js";

export const method = {
  recipe: "textGuided", paper: "Coarse-to-Fine Text-Guided Pruning for Remote Sensing (LRS-VQA)", arxiv: "2503.07588", summary: "the text's attention picks tokens, and the tiles of the next pyramid level",
};

export type TextGuidedOptions = RunOptions & {
  /** The image tokens' grid. */
  readonly height: number;
  readonly width: number;
  /** Tiles of the next level. */
  readonly tilesHeight: number;
  readonly tilesWidth: number;
  /** At most so many tiles; all that got a vote. */
  readonly maxTiles?: number;
} & (
  /** The best int(tokens · ratio) tokens. */
  | { readonly ratio: number; readonly threshold?: undefined }
  /** Tokens whose score, between the 5 % and 95 % quantiles scaled to 0 … 1, is above it. */
  | { readonly threshold: number; readonly ratio?: undefined }
);

export interface TextGuided {
  readonly scores: Tensor<"f32">;
  /** i32 `[batch, most kept]`, padded with −1. */
  readonly index: Tensor<"i32">;
  readonly counts: Int32Array;
  /** Votes of the kept tokens, i32 `[batch, tiles]`. */
  readonly tiles: Tensor<"i32">;
  /** u8 `[batch, tiles]`: tiles to look at. */
  readonly tileKeep: Tensor<"u8">;
}

/** Linear interpolation between order statistics. */
function quantile(sorted: Float64Array, share: number): number {
  const at = share * (sorted.length - 1), low = Math.floor(at), high = Math.min(low + 1, sorted.length - 1);
  return sorted[low]! + (sorted[high]! - sorted[low]!) * (at - low);
}

function above(scores: Float32Array, threshold: number): number[] {
  const sorted = Float64Array.from(scores).sort(), low = quantile(sorted, 0.05), high = quantile(sorted, 0.95);
  return Array.from(scores, (score, token) => [token, high === low ? 0 : Math.min(1, Math.max(0, (score - low) / (high - low)))] as const).filter(([, z]) => z > threshold).map(([token]) => token);
}

/**
 * LRS-VQA's choice (arXiv 2503.07588): query f32 `[batch, heads, headDim]` of the last text token, key f32 `[batch, kvHeads, tokens, headDim]` of the image's
 * tokens; softmax over those, mean over heads.
 */
export async function textGuided(query: Tensor<"f32">, key: Tensor<"f32">, options: TextGuidedOptions): Promise<TextGuided> {
  checkOptionsObject(options, "an object with height, width, tilesHeight, tilesWidth and ratio or threshold");
  const { height, width, tilesHeight, tilesWidth, maxTiles, ratio, threshold } = options, n = integer("options.height", height, 1) * integer("options.width", width, 1);
  const tiles = integer("options.tilesHeight", tilesHeight, 1) * integer("options.tilesWidth", tilesWidth, 1);
  if ((ratio === undefined) === (threshold === undefined)) throw invalidArgument("options", "either ratio or threshold", options);
  if (ratio !== undefined) number("options.ratio", ratio, 0, 1);
  else number("options.threshold", threshold, 0, 1);
  if (maxTiles !== undefined) integer("options.maxTiles", maxTiles, 0);
  const batch = shaped("key", key, "f32", null, null, n, null).shape[0]!, scores = await queryScores(query, key, options);
  const lists = Array.from({ length: batch }, (_, b) => (ratio !== undefined ? top(rowOf(scores, b), Math.trunc(n * ratio)) : above(rowOf(scores, b), threshold!)));
  const votes = new Int32Array(batch * tiles), keep = new Uint8Array(batch * tiles);
  lists.forEach((list, b) => {
    for (const token of list) votes[b * tiles + Math.floor((Math.floor(token / width) * tilesHeight) / height) * tilesWidth + Math.floor(((token % width) * tilesWidth) / width)]!++;
    const own = votes.subarray(b * tiles, (b + 1) * tiles);
    for (const tile of descending(own).slice(0, maxTiles ?? tiles)) keep[b * tiles + tile] = own[tile]! > 0 ? 1 : 0;
  });
  return { scores, index: indexRows(lists), counts: Int32Array.from(lists, (list) => list.length), tiles: tensor(votes, [batch, tiles]), tileKeep: tensor(keep, [batch, tiles]) };
}
