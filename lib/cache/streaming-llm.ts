import { baselines, checkInteger, policy, type Budget, type CachePolicy } from "./policy.js";

export const method = { recipe: "streamingLlm", paper: baselines, arxiv: "2309.17453", summary: "attention sinks and the newest tokens" };

export type StreamingLlmOptions = Budget & {
  /** Tokens at the start that always stay; 4. */
  readonly sinks?: number;
  /** Positions stay dense: generation without end; true. */
  readonly rerotate?: boolean;
};

/** StreamingLLM (arXiv 2309.17453): the first `sinks` tokens and the newest ones. */
export function streamingLlm(options: StreamingLlmOptions): CachePolicy {
  const { sinks = 4, rerotate = true } = options ?? {};
  checkInteger("options.sinks", sinks, 0);
  return policy(options, { name: "streamingLlm", rerotate, protect: () => ({ first: sinks, last: 0 }) });
}
