import { cacheScores, poolScores } from "../ops/cache-policy.js";
import { baselines, checkChoice, checkInteger, checkKernel, policy, type Budget, type CachePolicy } from "./policy.js";

export const method = { recipe: "snapKV", paper: baselines, arxiv: "2404.14469", summary: "pooled attention of the prompt's last queries ranks what lies before them" };

export interface WindowOptions {
  /** Queries that vote, and newest tokens that always stay; 32. */
  readonly window?: number;
  /** Odd width of the pooling along the tokens; 5. */
  readonly kernel?: number;
  /** "avg". */
  readonly pooling?: "avg" | "max";
}

export type SnapKVOptions = Budget & WindowOptions;

/** The parts that SnapKV's relatives share: who votes, how votes are pooled, what is protected. */
export function windowVotes(options: WindowOptions | undefined): Pick<CachePolicy, "observe" | "score" | "protect"> & { readonly window: number } {
  const { window = 32, kernel = 5, pooling = "avg" } = options ?? {};
  checkInteger("options.window", window, 1);
  checkKernel(kernel);
  checkChoice("options.pooling", pooling, ["avg", "max"]);
  return {
    window,
    observe: { kind: "window", queries: window },
    score: (context) => poolScores(cacheScores(context), { kernel, kind: pooling, last: window, of: context }),
    protect: () => ({ first: 0, last: window }),
  };
}

/** SnapKV (arXiv 2404.14469): the last `window` queries' attention, pooled along the tokens, ranks what lies before them. */
export function snapKV(options: SnapKVOptions): CachePolicy {
  const { window: _, ...votes } = windowVotes(options);
  return policy(options, { name: "snapKV", ...votes });
}
