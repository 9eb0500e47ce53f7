import type { Parameter } from "../graph/graph.js";
import type { Value } from "../graph/value.js";
import { expectType } from "./check.js";

export interface SampleParameters {
  readonly temperature: Parameter;
  readonly topK: Parameter;
  readonly topP: Parameter;
  readonly minP: Parameter;
  readonly repeatPenalty: Parameter;
  readonly seed: Parameter;
  readonly stream: Parameter;
  readonly position: Parameter;
}

/**
 * Draws one token from logits f32 `[1, vocabulary]`: repetition penalty over `history` i32 `[m]`, top-k, top-p, min-p,
 * temperature; temperature 0 is arg-max. Writes token i32 `[1]` and logProb f32 `[1]` (under the plain softmax).
 */
export function sample(logits: Value, history: Value | undefined, into: { readonly token: Value; readonly logProb: Value }, parameters: SampleParameters): void {
  expectType("sample", "logits", logits, "f32");
  logits.graph.add("sample", {
    inputs: { logits, history },
    outputs: { token: { type: "i32", dims: [1], into: into.token }, logProb: { type: "f32", dims: [1], into: into.logProb } },
    parameters: { ...parameters },
  });
}

/** Each row's largest logits in falling order (ties: lowest index), their indices, and log-sum-exp, into bindings. */
export function topK(logits: Value, into: { readonly values: Value; readonly indices: Value; readonly logSumExp: Value }): void {
  logits.graph.add("topK", {
    inputs: { logits },
    outputs: {
      values: { type: "f32", dims: into.values.dims, into: into.values },
      indices: { type: "i32", dims: into.indices.dims, into: into.indices },
      logSumExp: { type: "f32", dims: into.logSumExp.dims, into: into.logSumExp },
    },
  });
}

/** Natural-log probability of targets i32 `[n]` under softmax of each row of logits f32 `[n, vocabulary]`, into a binding `[n]`. */
export function logProb(logits: Value, targets: Value, into: Value): void {
  logits.graph.add("logProb", { inputs: { logits, targets }, outputs: { out: { type: "f32", dims: into.dims, into } } });
}
