import { checkOptionsObject } from "../check.js";
import { invalidArgument } from "../errors.js";
import { integer, number, shaped } from "../ops/reduce-eager.js";
import type { RunOptions } from "../schedule.js";
import type { Tensor } from "../tensor.js";
import { queryScores } from "./query-scores.js";
import { choose, rowOf, top, type Chosen } from "./select.js";

export const method = { recipe: "pyramidDrop", paper: "PyramidDrop", arxiv: "2410.17247", summary: "stage by stage fewer image tokens: those that the last instruction token attends to" };

export interface PyramidDropOptions extends RunOptions {
  /** Where the image's tokens begin in the sequence. */
  readonly imageStart: number;
  /** How many there were before the first stage. */
  readonly imageTokens: number;
  /** The share of them that is there before each stage, falling; [1, 0.5, 0.25, 0.125]. */
  readonly ratios?: readonly number[];
  /** From ratios[stage] to ratios[stage + 1]; 0. */
  readonly stage?: number;
}

/** Image tokens there are before each stage, and behind the last: int(imageTokens · ratio). */
export function pyramidCounts(imageTokens: number, ratios: readonly number[]): number[] {
  integer("imageTokens", imageTokens, 0);
  if (!Array.isArray(ratios)) throw invalidArgument("ratios", "an array of numbers", ratios);
  return ratios.map((ratio: unknown, i) => Math.trunc(imageTokens * number(`ratios[${i}]`, ratio, 0, 1)));
}

/**
 * PyramidDrop (arXiv 2410.17247), one stage between two layers of a language model: x f32 `[batch, L, width]` the whole sequence, query f32
 * `[batch, heads, headDim]` of the last instruction token behind RoPE, key `[batch, kvHeads, T, headDim]` of the positions it may see.
 * Positions count from 0 again afterwards. `index` holds the sequence's tokens that stay, `kept` i32 those of the image, `scores` f32 `[batch, keys]`.
 */
export async function pyramidDrop(x: Tensor<"f32">, query: Tensor<"f32">, key: Tensor<"f32">, options: PyramidDropOptions): Promise<Chosen & { readonly scores: Tensor<"f32">; readonly kept: readonly (readonly number[])[] }> {
  const [batch, length] = shaped("x", x, "f32", null, null, null).shape as [number, number];
  checkOptionsObject(options, "an object with imageStart and imageTokens");
  const { imageStart, imageTokens, ratios = [1, 0.5, 0.25, 0.125], stage = 0 } = options;
  integer("options.imageStart", imageStart, 0);
  integer("options.imageTokens", imageTokens, 0);
  if (!Array.isArray(ratios) || ratios.length < 2 || !ratios.every((ratio, i) => typeof ratio === "number" && ratio >= 0 && ratio <= 1 && ratio <= (ratios[i - 1] ?? 1))) throw invalidArgument("options.ratios", "falling shares from 0 to 1, at least two", ratios);
  integer("options.stage", stage, 0, ratios.length - 2);
  const counts = pyramidCounts(imageTokens, ratios), there = counts[stage]!, keep = counts[stage + 1]!, seen = key.shape[2] ?? 0;
  if (imageStart + there > Math.min(length, seen)) throw invalidArgument("options.imageTokens", `${there} image tokens from ${imageStart} on within ${Math.min(length, seen)} tokens`, imageTokens);
  const scores = await queryScores(query, key, options);
  const kept = Array.from({ length: batch }, (_, b) => top(rowOf(scores, b).subarray(imageStart, imageStart + there), keep).map((token) => token + imageStart));
  const behind = Array.from({ length: length - imageStart - there }, (_, i) => imageStart + there + i), before = Array.from({ length: imageStart }, (_, i) => i);
  return { ...(await choose(x, kept.map((list) => [...before, ...list, ...behind]), options)), scores, kept };
}
