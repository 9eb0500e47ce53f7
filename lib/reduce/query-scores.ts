import { attention } from "../ops/attention.js";
import { reduceRows } from "../ops/cache-policy.js";
import { run } from "../ops/run.js";
import { shaped, viewAs } from "../ops/reduce-eager.js";
import { softmax } from "../ops/softmax.js";
import type { RunOptions } from "../schedule.js";
import type { Tensor } from "../tensor.js";

/** Attention of one query a head over all keys, mean over heads: query f32 `[batch, heads, headDim]`, key `[batch, kvHeads, keys, headDim]` → `[batch, keys]`. */
export async function queryScores(query: Tensor<"f32">, key: Tensor<"f32">, options: RunOptions): Promise<Tensor<"f32">> {
  const [batch, heads, headDim] = shaped("query", query, "f32", null, null, null).shape as [number, number, number];
  const keys = shaped("key", key, "f32", batch, null, null, headDim).shape[2]!;
  const { scores } = await run("queryScores", { query, key }, options, (v) => {
    const made = attention(viewAs(v["query"]!, [batch, heads, 1, headDim]), v["key"]!, v["key"]!, { returnScores: true });
    const weights = softmax(viewAs(made.scores!, [batch * heads, keys]));
    return { scores: reduceRows(weights, { kind: "mean", rows: batch }) };
  });
  return scores;
}
