import { checkOptionsObject } from "../check.js";
import { invalidArgument } from "../errors.js";
import { integer, number, resizeBilinear, runOptions, shaped } from "../ops/reduce-eager.js";
import type { RunOptions } from "../schedule.js";
import { tensor, type Tensor } from "../tensor.js";
import { choose, indexRows, rowOf, top, type Chosen } from "./select.js";

export const method = { recipe: "globalCom2", paper: "GlobalCom² (Compression with Global Guidance)", arxiv: "2501.05179", summary: "the thumbnail's attention says how much of each crop stays, and with the crop's own which tokens" };

export interface GlobalCom2Options extends RunOptions {
  /** Crops lie in rows × cols, each a grid × grid square of tokens. */
  readonly rows: number;
  readonly cols: number;
  readonly grid: number;
  /** The share that stays; 0.25. */
  readonly ratio?: number;
  /** Of the softmax over regions; 10. */
  readonly temperature?: number;
  /** The picture's size in pixels, where it does not fill the crops: both or neither. */
  readonly imageWidth?: number;
  readonly imageHeight?: number;
}

interface Checked {
  readonly rows: number;
  readonly cols: number;
  readonly grid: number;
  readonly ratio: number;
  readonly temperature: number;
  readonly image: { readonly width: number; readonly height: number } | undefined;
}

function checked(options: GlobalCom2Options): Checked {
  checkOptionsObject(options, "an object with rows, cols and grid");
  const { rows, cols, grid, ratio = 0.25, temperature = 10, imageWidth, imageHeight } = options;
  for (const [name, value] of Object.entries({ rows, cols, grid })) integer(`options.${name}`, value, 1, 4096);
  number("options.ratio", ratio, 0, 1);
  number("options.temperature", temperature, 1e-6, 1e6);
  if ((imageWidth === undefined) !== (imageHeight === undefined)) throw invalidArgument("options", "imageWidth and imageHeight, or neither", options);
  const image = imageWidth === undefined ? undefined : { width: number("options.imageWidth", imageWidth, 1, 1e9), height: number("options.imageHeight", imageHeight, 1, 1e9) };
  return { rows, cols, grid, ratio, temperature, image };
}

/** How much of each crop stays: sums of the thumbnail's attention over its region, through a softmax, around `ratio`. */
function cropScales(attention: Float32Array, side: number, { rows, cols, ratio, temperature }: Checked): number[] {
  const sums = new Array<number>(rows * cols).fill(0), region = (at: number, parts: number): number => Math.min(Math.floor(at / Math.max(Math.floor(side / parts), 1)), parts - 1);
  attention.forEach((value, token) => (sums[region(Math.floor(token / side), rows) * cols + region(token % side, cols)]! += value));
  const most = Math.max(...sums), exps = sums.map((sum) => Math.exp((sum - most) / temperature)), total = exps.reduce((sum, e) => sum + e, 0) + 1e-8;
  const shares = exps.map((e) => e / total), mean = shares.reduce((sum, share) => sum + share, 0) / shares.length;
  return shares.map((share) => Math.min(1, ratio * (1 + share - mean)));
}

/** The part of the canvas of all crops that the picture covers. */
function validPart({ rows, cols, grid, image }: Checked): { readonly top: number; readonly left: number; readonly height: number; readonly width: number } {
  const height = rows * grid, width = cols * grid;
  if (!image) return { top: 0, left: 0, height, width };
  if (image.width / image.height > width / height) {
    const pad = Math.floor((height - Math.trunc((image.height * width) / image.width)) / 2);
    return { top: pad, left: 0, height: height - 2 * pad, width };
  }
  const pad = Math.floor((width - Math.trunc((image.width * height) / image.height)) / 2);
  return { top: 0, left: pad, height, width: width - 2 * pad };
}

const lengthOf = (values: readonly number[]): number => Math.max(Math.sqrt(values.reduce((sum, value) => sum + value * value, 0)), 1e-12);

export interface GlobalCom2Result extends Chosen {
  /** i32 `[batch, kept]` of the thumbnail's tokens. */
  readonly thumbIndex: Tensor<"i32">;
  /** i32 `[batch, crops, grid²]`, within each crop, padded with −1. */
  readonly cropIndex: Tensor<"i32">;
  /** The share of each crop that stays, f32 `[batch, crops]`. */
  readonly scales: Tensor<"f32">;
  /** Tokens of each crop that stay, `[batch · crops]`. */
  readonly cropCounts: Int32Array;
}

/**
 * GlobalCom² (arXiv 2501.05179): thumb f32 `[batch, G², width]` and crops `[batch, rows · cols, grid², width]` with the class token's attention to
 * each, `[batch, G²]` and `[batch, rows · cols, grid²]`. The result is the thumbnail's best int(G² · ratio) tokens, then each crop's, all in
 * rising order; `index` and `source` count the thumbnail's tokens, then the crops'.
 */
export async function globalCom2(thumb: Tensor<"f32">, thumbAttention: Tensor<"f32">, crops: Tensor<"f32">, cropAttention: Tensor<"f32">, options: GlobalCom2Options): Promise<GlobalCom2Result> {
  const given = checked(options), { rows, cols, grid, ratio } = given, parts = rows * cols, own = grid * grid;
  const [batch, global, width] = shaped("thumb", thumb, "f32", null, null, null).shape as [number, number, number], side = Math.round(Math.sqrt(global));
  if (side * side !== global) throw invalidArgument("thumb", "a square of tokens", `[${thumb.shape.join(", ")}]`);
  shaped("thumbAttention", thumbAttention, "f32", batch, global);
  shaped("crops", crops, "f32", batch, parts, own, width);
  shaped("cropAttention", cropAttention, "f32", batch, parts, own);
  const valid = validPart(given), square = thumbAttention.reshape([batch, side, side, 1]);
  const resized = await resizeBilinear(square, valid, runOptions(options));
  const thumbs = Array.from({ length: batch }, (_, b) => top(rowOf(thumbAttention, b), Math.trunc(global * ratio)));
  const scales = Array.from({ length: batch }, (_, b) => cropScales(rowOf(thumbAttention, b), side, given));
  const chosen = Array.from({ length: batch * parts }, (_, i) => {
    const crop = i % parts, b = (i - crop) / parts, tokens: number[] = [], local: number[] = [], guide: number[] = [];
    for (let token = 0; token < own; token++) {
      const y = Math.floor(crop / cols) * grid + Math.floor(token / grid) - valid.top, at = (crop % cols) * grid + (token % grid) - valid.left;
      if (y < 0 || y >= valid.height || at < 0 || at >= valid.width) continue;
      tokens.push(token);
      local.push(rowOf(cropAttention, i)[token]!);
      guide.push(resized.data[(b * valid.height + y) * valid.width + at]!);
    }
    const localLength = lengthOf(local), guideLength = lengthOf(guide);
    return top(local.map((value, j) => value / localLength + guide[j]! / guideLength), Math.trunc(tokens.length * scales[b]![crop]!)).map((j) => tokens[j]!);
  });
  for (const used of [resized, square]) used.dispose();
  const all = new Float32Array(batch * (global + parts * own) * width), each = (global + parts * own) * width;
  for (let b = 0; b < batch; b++) {
    all.set(thumb.data.subarray(b * global * width, (b + 1) * global * width), b * each);
    all.set(crops.data.subarray(b * parts * own * width, (b + 1) * parts * own * width), b * each + global * width);
  }
  using joined = tensor(all, [batch, global + parts * own, width]);
  const lists = thumbs.map((list, b) => [...list, ...chosen.slice(b * parts, (b + 1) * parts).flatMap((crop, i) => crop.map((token) => global + i * own + token))]);
  const made = await choose(joined, lists, options);
  return {
    ...made, thumbIndex: indexRows(thumbs), cropIndex: tensor(indexRows(chosen, own).data, [batch, parts, own]), scales: tensor(Float32Array.from(scales.flat()), [batch, parts]),
    cropCounts: Int32Array.from(chosen, (list) => list.length),
  };
}
