/** Where the numbers of a resized axis come from: `taps` old places and weights for each new one. */
interface Axis {
  readonly taps: number;
  readonly index: Int32Array;
  readonly weights: Float64Array;
}

/** Half-pixel centres, places past the ends taken from the end, no antialiasing: as PyTorch's interpolate(align_corners = false). */
function axis(from: number, to: number, taps: number, kernel: (distance: number) => number): Axis {
  const index = new Int32Array(to * taps), weights = new Float64Array(to * taps);
  for (let i = 0; i < to; i++) {
    const at = ((i + 0.5) * from) / to - 0.5, first = Math.floor(at) - taps / 2 + 1;
    for (let k = 0; k < taps; k++) {
      index[i * taps + k] = Math.min(Math.max(first + k, 0), from - 1);
      weights[i * taps + k] = kernel(Math.abs(at - (first + k)));
    }
  }
  return { taps, index, weights };
}

/** As PyTorch's antialias: where an axis shrinks, the filter grows with it; a = −0.5, weights add up to 1. */
function smoothAxis(from: number, to: number): Axis {
  const scale = from / to, spread = Math.max(scale, 1), taps = Math.ceil(2 * spread) * 2 + 1;
  const index = new Int32Array(to * taps), weights = new Float64Array(to * taps);
  for (let i = 0; i < to; i++) {
    const centre = scale * (i + 0.5), first = Math.max(Math.trunc(centre - 2 * spread + 0.5), 0), last = Math.min(Math.trunc(centre + 2 * spread + 0.5), from);
    let sum = 0;
    for (let j = first; j < last; j++) {
      index[i * taps + j - first] = j;
      sum += weights[i * taps + j - first] = cubic(Math.abs(j - centre + 0.5) / spread, -0.5);
    }
    for (let k = 0; k < taps; k++) weights[i * taps + k]! /= sum;
  }
  return { taps, index, weights };
}

const linear = (x: number): number => Math.max(0, 1 - x);

/** Keys' cubic convolution. */
function cubic(x: number, a = -0.75): number {
  if (x <= 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? ((a * x - 5 * a) * x + 8 * a) * x - 4 * a : 0;
}

export interface Taps {
  /** i32 and f32 `[height · width, taps]`. */
  readonly index: Int32Array;
  readonly weights: Float32Array;
  readonly taps: number;
}

function product(rows: Axis, columns: Axis, fromWidth: number): Taps {
  const taps = rows.taps * columns.taps, height = rows.index.length / rows.taps, width = columns.index.length / columns.taps;
  const index = new Int32Array(height * width * taps), weights = new Float32Array(height * width * taps);
  let at = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let i = 0; i < rows.taps; i++) {
        for (let j = 0; j < columns.taps; j++, at++) {
          index[at] = rows.index[y * rows.taps + i]! * fromWidth + columns.index[x * columns.taps + j]!;
          weights[at] = rows.weights[y * rows.taps + i]! * columns.weights[x * columns.taps + j]!;
        }
      }
    }
  }
  return { index, weights, taps };
}

type Grid = readonly [height: number, width: number];

export function bilinearTaps(from: Grid, to: Grid): Taps {
  return product(axis(from[0], to[0], 2, linear), axis(from[1], to[1], 2, linear), from[1]);
}

/** A table of a grid of rows for another grid, bicubic. */
export function resizeTable(table: Float32Array, width: number, from: Grid, to: Grid, antialias: boolean): Float32Array {
  if (from[0] === to[0] && from[1] === to[1]) return table;
  const resized = (side: 0 | 1): Axis => (antialias ? smoothAxis(from[side], to[side]) : axis(from[side], to[side], 4, cubic));
  const { index, weights, taps } = product(resized(0), resized(1), from[1]);
  const out = new Float32Array(to[0] * to[1] * width);
  for (let row = 0; row < to[0] * to[1]; row++) {
    for (let k = 0; k < taps; k++) {
      const weight = weights[row * taps + k]!, source = index[row * taps + k]! * width;
      for (let i = 0; i < width; i++) out[row * width + i]! += weight * table[source + i]!;
    }
  }
  return out;
}
