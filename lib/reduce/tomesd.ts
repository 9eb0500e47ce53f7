import { checkOptionsObject } from "../check.js";
import { invalidArgument } from "../errors.js";
import { checkSide } from "./grid.js";
import { bipartiteMatch } from "../ops/reduce.js";
import { applyMap, baselines, type Reduction } from "./reduction.js";
import { checkSchedule, scheduled, type Schedule } from "./schedule.js";

export const method = { recipe: "toMeSd", paper: baselines, arxiv: "2303.17604", summary: "tokens of a grid are merged into one destination of each cell" };

export interface ToMeSdOptions {
  /** Tokens of the grid, row by row. */
  readonly width: number;
  readonly height: number;
  /** Cells hold strideX × strideY tokens; 2. */
  readonly strideX?: number;
  readonly strideY?: number;
  /** Tokens merged away in each layer. */
  readonly perLayer: Schedule;
  /** Numbers of the tokens that others are merged into; absent: the top left one of every whole cell. */
  readonly destinations?: readonly number[];
}

function destinationsOf({ width, height, strideX = 2, strideY = 2, destinations }: ToMeSdOptions): Uint8Array {
  const marks = new Uint8Array(width * height);
  if (destinations) {
    for (const token of destinations) {
      if (!Number.isSafeInteger(token) || token < 0 || token >= marks.length) throw invalidArgument("options.destinations", `numbers of tokens below ${marks.length}`, token);
      marks[token] = 1;
    }
    return marks;
  }
  for (let y = 0; y < Math.floor(height / strideY); y++) for (let x = 0; x < Math.floor(width / strideX); x++) marks[y * strideY * width + x * strideX] = 1;
  return marks;
}

/**
 * Token merging for diffusion (ToMeSD, arXiv 2303.17604): the `perLayer` tokens of a grid most similar to a destination join it, as a plain
 * mean. Order of the result: sources that stay, then destinations. unmerge() gives the grid back. The paper draws destinations at
 * random: give them, or take the corner of every cell.
 */
export function toMeSd(options: ToMeSdOptions): Reduction {
  checkOptionsObject(options, "an object with width, height and perLayer");
  const { perLayer, destinations } = options;
  for (const side of ["width", "height"] as const) checkSide(`options.${side}`, options[side]);
  if (destinations !== undefined && !Array.isArray(destinations)) throw invalidArgument("options.destinations", "an array of numbers", destinations);
  for (const stride of ["strideX", "strideY"] as const) {
    if (options[stride] !== undefined) checkSide(`options.${stride}`, options[stride]);
    if (destinations && options[stride] !== undefined) throw invalidArgument(`options.${stride}`, "nothing beside destinations", options[stride]);
  }
  checkSchedule("options.perLayer", perLayer, { low: 0, high: Infinity, whole: true });
  const marks = destinationsOf(options), sources = marks.filter((mark) => mark === 0).length, merged = (layer: number, layers: number): number => scheduled("options.perLayer", perLayer, layer, layers, true);
  return {
    name: "toMeSd",
    key: `toMeSd ${JSON.stringify(options)}`,
    needs: { metric: false, scores: false },
    proportional: false,
    dataDependent: false,
    keep: (tokens, { layer, layers }) => tokens - Math.min(merged(layer, layers), sources === marks.length ? 0 : sources),
    apply(tokens, { rows, metric = tokens.x, layer, layers }) {
      const { bounds } = tokens, [all] = metric.dims;
      if (typeof all !== "number" || all % marks.length !== 0) throw invalidArgument("tokens", `a grid of ${options.width} × ${options.height} tokens`, String(metric));
      const grids = new Uint8Array(all);
      for (let begin = 0; begin < all; begin += marks.length) grids.set(marks, begin);
      const map = bipartiteMatch(metric, bounds, { destinations: tokens.x.graph.constant("destinations", "u8", grids, [all]), merge: merged(layer, layers) });
      return applyMap(tokens, map, { rows, weights: "even" });
    },
  };
}
