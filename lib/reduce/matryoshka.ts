import { checkOptionsObject } from "../check.js";
import { invalidArgument } from "../errors.js";
import { checkSide, gridPool } from "./grid.js";
import type { Reduction } from "./reduction.js";

export const method = { recipe: "matryoshkaPool", paper: "Matryoshka Multimodal Models", arxiv: "2405.17430", summary: "nested means of square windows: 576 → 144 → 36 → 9 → 1 tokens" };

/**
 * Matryoshka pooling (arXiv 2405.17430) of a grid × grid square of tokens: means of windows of side ⌊√(grid² / tokens)⌋. Rows and columns that
 * fill no window are dropped. Throws ArgumentError where that does not give `tokens` tokens.
 */
export function matryoshkaPool(options: { readonly grid: number; readonly tokens: number }): Reduction {
  checkOptionsObject(options, "an object with grid and tokens");
  const grid = checkSide("options.grid", options.grid), tokens = checkSide("options.tokens", options.tokens);
  const window = Math.max(1, Math.trunc(Math.sqrt((grid * grid) / tokens))), out = Math.floor(grid / window);
  if (out * out !== tokens) throw invalidArgument("options.tokens", `a number that windows of a ${grid} × ${grid} grid give, such as ${out * out}`, tokens);
  return gridPool("matryoshkaPool", { height: grid, width: grid, usedHeight: out * window, usedWidth: out * window, outHeight: out, outWidth: out });
}
