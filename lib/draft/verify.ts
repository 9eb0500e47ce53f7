import { invalidArgument, ShapeError } from "../errors.js";
import { verifySampling, verifyTree } from "../ops/draft-eager.js";
import type { RunOptions } from "../schedule.js";
import { tensor, Tensor } from "../tensor.js";
import { DraftTree } from "./tree.js";

/** What a verification found. */
export interface Verification {
  /** Accepted nodes, root first. */
  readonly path: Int32Array;
  /** The accepted drafts, then one token more. */
  readonly tokens: Int32Array;
  /** Accepted drafts, the root not among them. */
  readonly accepted: number;
}

function nodeRows(name: string, rows: Tensor<"f32">, tree: DraftTree): void {
  if (!(tree instanceof DraftTree)) throw invalidArgument("tree", "a DraftTree", tree);
  if (!(rows instanceof Tensor)) throw invalidArgument(name, "a tensor", rows);
  if (rows.shape.length !== 2 || rows.shape[0] !== tree.size) throw new ShapeError("verify", name, `Expected f32 [${tree.size}, vocabulary] for ${name} but received [${rows.shape.join(", ")}]`);
}

function outcome(path: Tensor<"i32">, tokens: Tensor<"i32">, count: Tensor<"i32">): Verification {
  const length = count.data[0]!;
  return { path: path.data.slice(0, length), tokens: tokens.data.slice(0, length), accepted: length - 1 };
}

/**
 * Greedy verification (arXiv 2305.09781): a node is accepted where its parent is and its token is the arg-max of the parent's
 * logits f32 `[n, vocabulary]`. The deepest accepted node, of equals the lowest, then the arg-max behind it.
 */
export async function verifyGreedy(tree: DraftTree, logits: Tensor<"f32">, options: RunOptions = {}): Promise<Verification> {
  nodeRows("logits", logits, tree);
  using tokens = tensor(tree.tokens), parents = tensor(tree.parents);
  const { path, accepted, logProb, count } = await verifyTree(logits, tokens, parents, options);
  const found = outcome(path, accepted, count);
  for (const each of [path, accepted, logProb, count]) each.dispose();
  return found;
}

export interface SampledVerification {
  /** Target probabilities at each node, f32 `[n, vocabulary]`; rows need not sum to 1. */
  readonly target: Tensor<"f32">;
  /** "sampled": children were drawn from `draft` without replacement, in order. "deterministic": a rule chose them. */
  readonly mode: "sampled" | "deterministic";
  /** f32 `[n, vocabulary]`, for "sampled". */
  readonly draft?: Tensor<"f32">;
  /** Random numbers in [0, 1): one a node, and one for the last token. */
  readonly uniform: Float32Array;
  readonly uniformFinal: number;
}

/**
 * Verification that keeps the target's distribution exactly (arXiv 2305.09781, 2401.15077), with the distribution `residual` that
 * the last token was drawn from.
 */
export async function verifySampled(tree: DraftTree, given: SampledVerification, options: RunOptions = {}): Promise<Verification & { readonly residual: Float32Array }> {
  if (typeof given !== "object" || given === null) throw invalidArgument("given", "an object with target, mode and random numbers", given);
  const { target, mode, draft } = given;
  nodeRows("target", target, tree);
  if (mode !== "deterministic" && !draft) throw new ShapeError("verify", "draft", "Expected the draft's probabilities for mode 'sampled' but received none");
  using tokens = tensor(tree.tokens), parents = tensor(tree.parents), uniform = tensor(given.uniform), uniformFinal = tensor(Float32Array.of(given.uniformFinal));
  const { path, accepted, count, residual } = await verifySampling(tokens, parents, target, { ...(mode === "sampled" && { draft: draft! }), uniform, uniformFinal }, options);
  const found = { ...outcome(path, accepted, count), residual: residual.data };
  for (const each of [path, accepted, count, residual]) each.dispose();
  return found;
}
