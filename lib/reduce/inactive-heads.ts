import { checkOptionsObject } from "../check.js";
import { integer, number, rowProducts, runOptions, shaped } from "../ops/reduce-eager.js";
import type { RunOptions } from "../schedule.js";
import { tensor, type Tensor } from "../tensor.js";

export const method = { recipe: "inactiveHeads", paper: "Treat Visual Tokens as Text?", arxiv: "2410.06169", summary: "heads that give the image little of their attention; ops.attention has the neighbourhood mask" };

export interface InactiveHeadsOptions extends RunOptions {
  /** Where the image's keys begin, and how many they are. */
  readonly visualStart: number;
  readonly visualCount: number;
  /** A sample votes for a head whose visual attention is above threshold times the rest; 0.2. */
  readonly threshold?: number;
  /** Heads with more than this share of the votes are active; 0.4. */
  readonly vote?: number;
}

/** Which heads look at an image (YOPO, arXiv 2410.06169): attention f32 `[samples, heads, queries, keys]` → ratio f32 `[samples, heads]`, votes i32 and active u8 `[heads]`. */
export async function inactiveHeads(attention: Tensor<"f32">, options: InactiveHeadsOptions): Promise<{ readonly ratio: Tensor<"f32">; readonly votes: Tensor<"i32">; readonly active: Tensor<"u8"> }> {
  const [samples, heads, queries, keys] = shaped("attention", attention, "f32", null, null, null, null).shape as [number, number, number, number];
  checkOptionsObject(options, "an object with visualStart and visualCount");
  const { visualStart, visualCount, threshold = 0.2, vote = 0.4 } = options, end = integer("options.visualStart", visualStart, 0, keys) + integer("options.visualCount", visualCount, 0, keys - visualStart);
  number("options.threshold", threshold, 0, Number.MAX_VALUE);
  number("options.vote", vote, 0, 1);
  using parts = tensor(Float32Array.from({ length: 2 * keys }, (_, i) => Number((i % keys >= visualStart && i % keys < end) === i < keys)), [1, 2, keys]), rows = attention.reshape([1, samples * heads * queries, keys]);
  const sums = await rowProducts(rows, parts, runOptions(options)), ratio = new Float32Array(samples * heads), votes = new Int32Array(heads);
  for (let i = 0; i < samples * heads; i++) {
    let visual = 0, rest = 0;
    for (let q = i * queries; q < (i + 1) * queries; q++) {
      visual += sums.data[2 * q]!;
      rest += sums.data[2 * q + 1]!;
    }
    ratio[i] = visual / rest;
    if (visual > threshold * rest) votes[i % heads]!++;
  }
  sums.dispose();
  return { ratio: tensor(ratio, [samples, heads]), votes: tensor(votes), active: tensor(Uint8Array.from(votes, (count) => Number(count > vote * samples))) };
}
