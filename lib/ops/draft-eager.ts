import { checkOptionsObject } from "../check.js";
import { invalidArgument } from "../errors.js";
import { evaluate, expectTensor } from "../graph/evaluate.js";
import type { Value } from "../graph/value.js";
import { runOptions, type RunOptions } from "../schedule.js";
import type { Tensor } from "../tensor.js";
import * as graphs from "./draft.js";

type Int = Tensor<"i32">;
type Float = Tensor<"f32">;

/** Token Recycling's update (arXiv 2408.08696), in place: row tokens[i] of matrix i32 `[vocabulary, k]` becomes the top k of logits[i]. */
export async function recycleUpdate(matrix: Int, tokens: Int, logits: Float, options: RunOptions = {}): Promise<void> {
  const inputs = { matrix: expectTensor("matrix", matrix, "i32"), tokens: expectTensor("tokens", tokens, "i32"), logits: expectTensor("logits", logits, "f32") };
  await evaluate("recycleUpdate", inputs, "", (v) => {
    graphs.recycleUpdate(v["tokens"]!, v["logits"]!, v["matrix"]!);
    return {};
  }, runOptions(options));
}

/** Token Recycling's tree: tokens[0] = root `[1]`, tokens[i] = matrix[tokens[parents[i]], ranks[i]], and depths; i32. */
export function expandTree(matrix: Int, root: Int, parents: Int, ranks: Int, options: RunOptions = {}): Promise<{ tokens: Int; depths: Int }> {
  const inputs = { matrix: expectTensor("matrix", matrix, "i32"), root: expectTensor("root", root, "i32"), parents: expectTensor("parents", parents, "i32"), ranks: expectTensor("ranks", ranks, "i32") };
  return evaluate("expandTree", inputs, "", (v) => graphs.expandTree(v["matrix"]!, v["root"]!, v["parents"]!, v["ranks"]!), runOptions(options)) as Promise<{ tokens: Int; depths: Int }>;
}

/** Ancestor bits i32 `[n, ⌈n / 32⌉]`, the same as mask u8 `[n, n]`, depths and positions i32 `[n]`, see the graph form in ops/draft.ts. */
export function treeMask(parents: Int, options: { readonly past?: number } & RunOptions = {}): Promise<{ mask: Tensor<"u8">; bits: Int; depths: Int; positions: Int }> {
  const { past = 0 } = checkOptionsObject(options), words = Math.ceil(expectTensor("parents", parents, "i32").size / 32);
  if (!Number.isSafeInteger(past) || past < 0) throw invalidArgument("options.past", "a non-negative integer", past);
  const made = evaluate("treeMask", { parents }, "", (v, graph) => graphs.treeMask(v["parents"]!, { words, past: graph.scalar("past") }) as Record<string, Value>, runOptions(options), { past });
  return made as unknown as Promise<{ mask: Tensor<"u8">; bits: Int; depths: Int; positions: Int }>;
}

/** The sampler chain, as for a generation; temperature 0, the default, takes the likeliest token. */
export interface VerifyTreeOptions extends RunOptions {
  readonly temperature?: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly minP?: number;
  readonly repeatPenalty?: number;
  /** Tokens that the penalty looks at, root last; i32. */
  readonly history?: Int;
  readonly repeatLastTokens?: number;
  readonly seed?: number;
  readonly stream?: number;
  /** Of the token that follows the root. */
  readonly position?: number;
}

const chain = { temperature: 0, topK: 0, topP: 1, minP: 0, repeatPenalty: 1, repeatLastTokens: 64, seed: 0, stream: 0, position: 0 };

/**
 * Which nodes of a tree are accepted, and the tokens drawn, see the graph form in ops/draft.ts: path, accepted i32 `[n]`, logProb
 * f32 `[n]`, count i32 `[1]`.
 */
export function verifyTree(logits: Float, tokens: Int, parents: Int, options: VerifyTreeOptions = {}): Promise<{ path: Int; accepted: Int; logProb: Float; count: Int }> {
  const { history } = checkOptionsObject(options), scalars = { ...chain };
  for (const name of Object.keys(chain) as (keyof typeof chain)[]) {
    const value = options[name] ?? chain[name];
    if (typeof value !== "number") throw invalidArgument(`options.${name}`, "a number", value);
    scalars[name] = value;
  }
  const inputs = {
    logits: expectTensor("logits", logits, "f32"), tokens: expectTensor("tokens", tokens, "i32"), parents: expectTensor("parents", parents, "i32"),
    ...(history !== undefined && { history: expectTensor("options.history", history, "i32") }),
  };
  const made = evaluate("verifyTree", inputs, "", (v, graph) => {
    const parameters = Object.fromEntries(Object.keys(chain).map((name) => [name, graph.scalar(name)])) as unknown as graphs.VerifyTreeParameters;
    return { ...graphs.verifyTree(v["logits"]!, v["tokens"]!, v["parents"]!, v["history"], {}, parameters) };
  }, runOptions(options), scalars);
  return made as Promise<{ path: Int; accepted: Int; logProb: Float; count: Int }>;
}

/** Verification with given distributions and random numbers, see the graph form in ops/draft.ts. */
export function verifySampling(
  tokens: Int, parents: Int, target: Float, random: { readonly draft?: Float; readonly uniform: Float; readonly uniformFinal: Float }, options: RunOptions = {},
): Promise<{ path: Int; accepted: Int; count: Int; residual: Float }> {
  if (typeof random !== "object" || random === null) throw invalidArgument("random", "an object with uniform and uniformFinal", random);
  const { draft, uniform, uniformFinal } = random;
  const inputs = {
    tokens: expectTensor("tokens", tokens, "i32"), parents: expectTensor("parents", parents, "i32"), target: expectTensor("target", target, "f32"),
    ...(draft !== undefined && { draft: expectTensor("draft", draft, "f32") }),
    uniform: expectTensor("uniform", uniform, "f32"), uniformFinal: expectTensor("uniformFinal", uniformFinal, "f32"),
  };
  const made = evaluate("verifySampling", inputs, "", (v) => ({ ...graphs.verifySampling(v["tokens"]!, v["parents"]!, v["target"]!, v["draft"], v["uniform"]!, v["uniformFinal"]!) }), runOptions(options));
  return made as Promise<{ path: Int; accepted: Int; count: Int; residual: Float }>;
}
