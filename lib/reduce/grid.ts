import { invalidArgument } from "../errors.js";
import { chainSource, mergeRows, resizeGrid } from "../ops/reduce.js";
import { evenBounds, integer, viewAs } from "../ops/reduce-eager.js";
import { Value } from "../graph/value.js";
import type { Reduction } from "./reduction.js";

export interface Window {
  readonly height: number;
  readonly width: number;
  /** What is pooled of it, from the top left; the rest is dropped. */
  readonly usedHeight: number;
  readonly usedWidth: number;
  readonly outHeight: number;
  readonly outWidth: number;
}

export const checkSide = (name: string, value: unknown): number => integer(name, value, 1, 65536);

/** Which output along one axis is the first to read each input; −1: none. */
function readers(size: number, used: number, out: number): number[] {
  const first = new Array<number>(size).fill(-1);
  for (let i = out - 1; i >= 0; i--) first.fill(i, Math.floor((i * used) / out), Math.ceil(((i + 1) * used) / out));
  return first;
}

/** A reduction of grids of tokens to a smaller or larger grid by means; a token's source is the first mean it is in. */
export function gridPool(name: string, window: Window): Reduction {
  const { height, width, usedHeight, usedWidth, outHeight, outWidth } = window, tokens = height * width, out = outHeight * outWidth;
  const down = readers(height, usedHeight, outHeight), across = readers(width, usedWidth, outWidth);
  return {
    name,
    key: `${name} ${JSON.stringify(window)}`,
    needs: { metric: false, scores: false },
    proportional: false,
    dataDependent: false,
    keep: () => out,
    apply({ x, bounds, sizes, source, original }, { rows }) {
      const { graph } = x, [all, columns] = x.dims as [number, number], batch = all / tokens;
      if (!Number.isSafeInteger(batch)) throw invalidArgument("tokens", `a grid of ${width} × ${height} tokens`, String(x));
      const grid = new Value(graph, "f32", [batch, usedHeight, usedWidth, columns], x.storage, [tokens * columns, width * columns, columns, 1], x.offset);
      const repeat = (one: number[]): number[] => Array.from({ length: batch }, () => one).flat();
      const map = graph.constant("map", "i32", Int32Array.from(repeat(down.flatMap((y) => across.map((at) => (y < 0 || at < 0 ? -1 : y * outWidth + at))))), [all]);
      const after = evenBounds(graph, batch, out);
      const places = { map, bounds: after }, before = source ?? graph.constant("source", "i32", Int32Array.from({ length: all }, (_, i) => i % tokens), [all]);
      return {
        x: viewAs(resizeGrid(grid, [batch, outHeight, outWidth, columns], false), [batch * out, columns]), bounds: after, original,
        // Windows may overlap: sizes count each token once, where its source says.
        sizes: mergeRows(x.columns(0, 1), places, bounds, { rows, sizes }).sizes, source: chainSource(before, original, map, bounds),
      };
    },
  };
}
