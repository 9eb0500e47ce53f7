import type { OutputPlan, Parameter } from "../graph/graph.js";
import type { Value } from "../graph/value.js";
import { expectDim, expectRank, expectType } from "./check.js";
import type { SampleParameters } from "./sample.js";

/**
 * Ops on draft trees. A tree is tokens i32 `[n]` and parents i32 `[n]` (parents[0] = −1, parents[i] < i, n ≤ 1024); node 0 is
 * the last token already decided.
 */

/** Token Recycling (arXiv 2408.08696): row tokens[i] of matrix i32 `[vocabulary, k]`, in place, becomes the top k of logits[i]. */
export function recycleUpdate(tokens: Value, logits: Value, matrix: Value): void {
  const op = "recycleUpdate";
  expectType(op, "tokens", tokens, "i32");
  expectType(op, "logits", logits, "f32");
  expectType(op, "matrix", matrix, "i32");
  expectRank(op, "matrix", matrix, 2);
  expectDim(op, "logits", logits, 0, tokens.dims[0]!);
  expectDim(op, "logits", logits, 1, matrix.dims[0]!);
  logits.graph.add(op, { inputs: { tokens, logits }, outputs: { matrix: { type: "i32", dims: matrix.dims, into: matrix } } });
}

/** tokens[0] = root `[1]`, tokens[i] = matrix[tokens[parents[i]], ranks[i]], and the depths of the nodes. */
export function expandTree(matrix: Value, root: Value, parents: Value, ranks: Value): { tokens: Value; depths: Value } {
  const op = "expandTree";
  for (const [name, value] of Object.entries({ matrix, root, parents, ranks })) expectType(op, name, value, "i32");
  expectRank(op, "matrix", matrix, 2);
  expectDim(op, "root", root, 0, 1);
  expectDim(op, "ranks", ranks, 0, parents.dims[0]!);
  const dims = parents.dims;
  return parents.graph.add(op, { inputs: { matrix, root, parents, ranks }, outputs: { tokens: { type: "i32", dims }, depths: { type: "i32", dims } } });
}

/**
 * Who sees whom (arXiv 2305.09781): bits i32 `[n, words]`, bit j % 32 of word j / 32 of row i is set where j is i or an ancestor
 * of i, as tree attention wants them; depths and positions = past + depth, i32 `[n]`; mask u8 `[n, n]` where n is fixed.
 */
export function treeMask(parents: Value, options: { readonly words: number; readonly past: Parameter }): { bits: Value; depths: Value; positions: Value; mask: Value | undefined } {
  expectType("treeMask", "parents", parents, "i32");
  expectRank("treeMask", "parents", parents, 1);
  const n = parents.dims[0]!;
  const outputs: Record<string, OutputPlan> = { bits: { type: "i32", dims: [n, options.words] }, depths: { type: "i32", dims: [n] }, positions: { type: "i32", dims: [n] } };
  if (typeof n === "number") outputs["mask"] = { type: "u8", dims: [n, n] };
  const { bits, depths, positions, mask } = parents.graph.add("treeMask", { inputs: { parents }, outputs, parameters: { past: options.past } });
  return { bits: bits!, depths: depths!, positions: positions!, mask };
}

export interface VerifyTreeParameters extends SampleParameters {
  /** How many tokens of history and path together the penalty looks at. */
  readonly repeatLastTokens: Parameter;
}

/** What a verification writes: path, accepted i32 `[n]`, count i32 `[1]`; see verifyTree. */
export interface Verified {
  readonly path: Value;
  readonly accepted: Value;
  readonly logProb: Value;
  readonly count: Value;
}

/**
 * Draws a token at each accepted node from its logits f32 `[n, vocabulary]` by the chain of sample(), at `position` + depth; a
 * child that holds the drawn token is accepted. The deepest accepted node wins, of equals the lowest. Into path i32 `[n]`
 * (nodes, root first), accepted i32 `[n]` (the accepted drafts, then one token more), logProb f32 `[n]` of each (plain softmax),
 * −1 and 0 behind the first count i32 `[1]`. One node gives exactly what sample() gives; and as the random number belongs to
 * the position, the tokens are those that sample() draws one by one, whatever was drafted.
 */
export function verifyTree(logits: Value, tokens: Value, parents: Value, history: Value | undefined, into: Partial<Verified>, parameters: VerifyTreeParameters): Verified {
  const op = "verifyTree", n = parents.dims[0]!;
  expectType(op, "logits", logits, "f32");
  for (const [name, value] of Object.entries({ tokens, parents, ...(history && { history }) })) expectType(op, name, value, "i32");
  expectDim(op, "logits", logits, 0, n);
  expectDim(op, "tokens", tokens, 0, n);
  return logits.graph.add(op, {
    inputs: { logits, tokens, parents, history },
    outputs: {
      path: { type: "i32", dims: [n], into: into.path },
      accepted: { type: "i32", dims: [n], into: into.accepted },
      logProb: { type: "f32", dims: [n], into: into.logProb },
      count: { type: "i32", dims: [1], into: into.count },
    },
    parameters: { ...parameters },
  });
}

/**
 * Accepts or rejects the children of each node one by one (arXiv 2305.09781, 2401.15077): target f32 `[n, vocabulary]`; draft
 * f32 `[n, vocabulary]` where children were drawn from it without replacement, undefined where a rule chose them; uniform f32
 * `[n]` and uniformFinal f32 `[1]` in [0, 1). residual f32 `[vocabulary]` is what the last token is drawn from.
 */
export function verifySampling(tokens: Value, parents: Value, target: Value, draft: Value | undefined, uniform: Value, uniformFinal: Value): Omit<Verified, "logProb"> & { residual: Value } {
  const op = "verifySampling", n = parents.dims[0]!;
  for (const [name, value] of Object.entries({ tokens, parents })) expectType(op, name, value, "i32");
  for (const [name, value] of Object.entries({ target, uniform, uniformFinal, ...(draft && { draft }) })) expectType(op, name, value, "f32");
  for (const [name, value] of Object.entries({ tokens, target, uniform, ...(draft && { draft }) })) expectDim(op, name, value, 0, n);
  if (draft) expectDim(op, "draft", draft, 1, target.dims[1]!);
  return target.graph.add(op, {
    inputs: { tokens, parents, target, draft, uniform, uniformFinal },
    outputs: {
      path: { type: "i32", dims: [n] }, accepted: { type: "i32", dims: [n] }, count: { type: "i32", dims: [1] }, residual: { type: "f32", dims: [target.dims[1]!] },
    },
  });
}
