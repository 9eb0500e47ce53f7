import { invalidArgument } from "../errors.js";
import { numberOption } from "../check.js";
import { checkDistance } from "../ops/reduce-eager.js";
import { countTokens, farthestRows, keptMap, type Distance } from "../ops/reduce.js";
import { applyMap, needed, type Reduction } from "./reduction.js";
import { keeping, type KeepOptions } from "./schedule.js";

export const method = { recipe: "toDre", paper: "ToDRE", arxiv: "2505.18757", summary: "greedy k-centre before the decoder; what pyramidDrop does inside it is the second stage" };

export type ToDreOptions = KeepOptions & {
  /** The first centre: the token of the largest score, or number `first`; "score". */
  readonly start?: "score" | "index";
  /** With start "index"; 0. */
  readonly first?: number;
  readonly distance?: Distance;
  /** "maxmin": the token farthest from its nearest centre is next (k-centre); "maxsum": that of the largest sum of distances to all. */
  readonly objective?: "maxmin" | "maxsum";
};

/**
 * ToDRE's choice of diverse tokens (arXiv 2505.18757), greedy k-centre. How the paper picks the first centre was out of reach: it is an option.
 * What stays is copied, in its order.
 */
export function toDre(options: ToDreOptions): Reduction {
  const kept = keeping(options, "truncate"), { start = "score", first, objective = "maxmin" } = options, distance = checkDistance(options.distance);
  if (start !== "score" && start !== "index") throw invalidArgument("options.start", "'score' or 'index'", start);
  if (start === "score" && first !== undefined) throw invalidArgument("options.first", "nothing beside start 'score'", first);
  if (objective !== "maxmin" && objective !== "maxsum") throw invalidArgument("options.objective", "'maxmin' or 'maxsum'", objective);
  const at0 = numberOption("options.first", first, 0, 0, Number.MAX_SAFE_INTEGER, true);
  return {
    name: "toDre",
    key: `toDre ${kept.key} ${start} ${at0} ${distance} ${objective}`,
    needs: { metric: false, scores: start === "score" },
    proportional: false,
    dataDependent: false,
    keep: (tokens, at) => kept.count(tokens, 0, at),
    apply(tokens, { rows, metric = tokens.x, scores, ...at }) {
      const { bounds } = tokens, counts = countTokens(bounds, kept.plan(0, at));
      const { kept: marks } = farthestRows(metric, bounds, counts, { start, first: at0, distance, sum: objective === "maxsum", scores: start === "score" ? needed("toDre", "scores", scores) : undefined });
      return applyMap(tokens, keptMap(marks, bounds), { rows, kept: marks });
    },
  };
}
