import { invalidArgument } from "../errors.js";
import { closestRows, reshaped, runOptions, shaped, unmerge } from "../ops/reduce-eager.js";
import type { RunOptions } from "../schedule.js";
import { tensor, type Tensor } from "../tensor.js";

export const method = { recipe: "vqNearest", paper: "SEED (Planting a SEED)", arxiv: "2307.08041", summary: "the nearest code of a codebook; the causal query attention before it is a model's own" };

/**
 * Vector quantisation (SEED, arXiv 2307.08041): for each of x f32 `[batch, n, width]` the nearest row of codebook f32 `[codes, width]`, of equal ones the first, by
 * squared distance or 1 − cosine. index i32 and distance f32 `[batch, n]`; tokens: the codes, copied.
 */
export async function vqNearest(
  x: Tensor<"f32">, codebook: Tensor<"f32">, options: { readonly metric?: "l2" | "cosine" } & RunOptions = {},
): Promise<{ readonly tokens: Tensor<"f32">; readonly index: Tensor<"i32">; readonly distance: Tensor<"f32"> }> {
  const [batch, n, width] = shaped("x", x, "f32", null, null, null).shape as [number, number, number], codes = shaped("codebook", codebook, "f32", null, width).shape[0]!, { metric = "l2" } = options;
  if (metric !== "l2" && metric !== "cosine") throw invalidArgument("options.metric", "'l2' or 'cosine'", metric);
  if (codes === 0) throw invalidArgument("codebook", "at least one code", "none");
  using table = codebook.reshape([1, codes, width]);
  const { index, best } = await closestRows(x, table, { distance: metric === "l2" ? "euclidean" : "cosine", ...runOptions(options) });
  using list = index.reshape([1, batch * n]);
  const tokens = reshaped<Tensor<"f32">>(await unmerge(table, list, runOptions(options)), [batch, n, width]);
  const distance = tensor(best.data.map((value) => (metric === "l2" ? 0 - value : 1 - value)), [batch, n]);
  best.dispose();
  return { tokens, index, distance };
}
