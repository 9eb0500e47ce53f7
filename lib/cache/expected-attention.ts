import { ArgumentError } from "../errors.js";
import { cacheExpectedLogits, cacheNorms, reduceRows } from "../ops/cache-policy.js";
import { softmax } from "../ops/softmax.js";
import { baselines, checkInteger, checkNumber, policy, type Budget, type CachePolicy } from "./policy.js";

export const method = { recipe: "expectedAttention", paper: baselines, arxiv: "2510.00636", summary: "what queries to come will attend to, by the distribution of those so far" };

export type ExpectedAttentionOptions = Budget & {
  /** Tokens at the start that stay, and whose queries do not count; 4. */
  readonly sinks?: number;
  /** Positions to come that are averaged over; 512. */
  readonly futurePositions?: number;
  /** The queries' covariance counts besides their mean; true. */
  readonly covariance?: boolean;
  /** Scores are multiplied by the values' norms; true. */
  readonly valueNorm?: boolean;
  /** Added to scores before that; 0. */
  readonly epsilon?: number;
};

/** ExpectedAttention (arXiv 2510.00636): softmax of E[q·k] over the queries of the next positions, times ‖v‖. */
export function expectedAttention(options: ExpectedAttentionOptions): CachePolicy {
  const { sinks = 4, futurePositions = 512, covariance = true, valueNorm = true, epsilon = 0 } = options ?? {};
  checkInteger("options.sinks", sinks, 0);
  checkInteger("options.futurePositions", futurePositions, 1);
  checkNumber("options.epsilon", epsilon, 0, Number.MAX_VALUE);
  return policy(options, {
    name: "expectedAttention",
    observe: { kind: "queries", sinks },
    score(context) {
      const { statistics, rotation, kvHeads, headDim } = context;
      if (!statistics || !rotation) throw new ArgumentError("rope", "Expected the rotary embedding of the keys, by which expectedAttention foresees queries");
      const logits = cacheExpectedLogits(statistics, context, { rotation: rotation.mean(futurePositions), style: rotation.style, scale: 1 / Math.sqrt(headDim), sinks, covariance });
      const weights = valueNorm ? cacheNorms(context, { values: true }) : undefined;
      return reduceRows(softmax(logits, { into: logits }), { kind: "mean", rows: kvHeads, weights, epsilon });
    },
    protect: () => ({ first: sinks, last: 0 }),
    when: { decode: false },
  });
}
