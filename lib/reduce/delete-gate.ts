import { checkOptionsObject } from "../check.js";
import { rmsNorm } from "../ops/norm.js";
import { number, runOptions, shaped, viewAs } from "../ops/reduce-eager.js";
import { rowProducts } from "../ops/reduce.js";
import { run } from "../ops/run.js";
import type { RunOptions } from "../schedule.js";
import { tensor, type Tensor } from "../tensor.js";
import { choose, type Chosen } from "./select.js";

export const method = { recipe: "deleteGate", paper: "MrT5", arxiv: "2410.20771", summary: "a learned sigmoid gate, soft as an attention mask or hard as deletion" };

export interface DeleteGateWeights {
  /** f32 `[width]` and `[1]`. */
  readonly weight: Tensor<"f32">;
  readonly bias: Tensor<"f32">;
  /** T5's RMS norm before it, f32 `[width]`. */
  readonly norm?: Tensor<"f32">;
}

export interface DeleteGateOptions extends RunOptions {
  /** The gate of what is deleted; −10. */
  readonly k?: number;
  /** Tokens whose gate is above it stay; k / 2. */
  readonly threshold?: number;
  /** Of the norm; 1e-6. */
  readonly epsilon?: number;
  /** u8 `[batch, tokens]`: 1 for padding, which goes. */
  readonly padding?: Tensor<"u8">;
}

/** MrT5's delete gate (arXiv 2410.20771) on x f32 `[batch, tokens, width]`: gate f32 `[batch, tokens]` = k · sigmoid(−(norm(x) · w + b)), which is an additive attention mask too; rows above the threshold are copied. */
export async function deleteGate(x: Tensor<"f32">, weights: DeleteGateWeights, options: DeleteGateOptions = {}): Promise<Chosen & { readonly gate: Tensor<"f32"> }> {
  const [batch, tokens, width] = shaped("x", x, "f32", null, null, null).shape as [number, number, number];
  checkOptionsObject(options);
  const { k = -10, epsilon = 1e-6, padding } = options, { threshold = k / 2 } = options, { norm } = weights ?? {};
  number("options.k", k, -Number.MAX_VALUE, 0);
  number("options.threshold", threshold, -Number.MAX_VALUE, Number.MAX_VALUE);
  number("options.epsilon", epsilon, 0, 1);
  const weight = shaped("weights.weight", weights?.weight, "f32", width), bias = shaped("weights.bias", weights.bias, "f32", 1);
  if (norm) shaped("weights.norm", norm, "f32", width);
  if (padding) shaped("options.padding", padding, "u8", batch, tokens);
  const { logits } = await run("deleteGate", { x, weight, bias, ...(norm && { norm }) }, { epsilon, ...runOptions(options) }, (v) => {
    const rows = v["norm"] ? rmsNorm(v["x"]!, v["norm"], { epsilon }) : v["x"]!;
    return { logits: rowProducts(rows, viewAs(v["weight"]!, [1, 1, width]), { bias: v["bias"] }) };
  });
  const gate = tensor(Float32Array.from(logits.data, (z, i) => (padding?.data[i] ? k : k / (1 + Math.exp(z)))), [batch, tokens]);
  logits.dispose();
  const lists = Array.from({ length: batch }, (_, b) => Array.from({ length: tokens }, (_, i) => i).filter((i) => gate.data[b * tokens + i]! > threshold));
  return { ...(await choose(x, lists, options)), gate };
}
