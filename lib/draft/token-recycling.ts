import { ArgumentError, invalidArgument } from "../errors.js";
import { integer, optionsObject } from "./check.js";
import type { Drafter, DraftMethod, DraftState } from "./drafter.js";
import { RecyclingMatrix } from "./recycling-matrix.js";
import { checkTemplate, recyclingTemplate, type TreeTemplate } from "./template.js";
import { DraftTree, TreeBuilder } from "./tree.js";

export const method: DraftMethod = {
  recipe: "tokenRecycling",
  paper: "Token Recycling (Trash into Treasure)",
  arxiv: "2408.08696",
  summary: "a matrix of each token's likeliest followers, rewritten at every step, unrolled into a tree; grown by their probabilities or by the paper's template",
};

export interface TokenRecyclingOptions {
  /** Followers kept of each token. Default 8, fewer where the byte budget asks for it. */
  readonly k?: number;
  /** Most bytes of the matrix. Default 2 MiB. */
  readonly byteBudget?: number;
  /** "confidence" (default) grows the likeliest nodes, "paper" and templates are static shapes cut to the likeliest nodes. */
  readonly shape?: "confidence" | "paper" | TreeTemplate;
  /** Deepest level of "confidence". Default 8. */
  readonly depth?: number;
  /** A matrix that save() wrote for the same tokenizer: a hot start. */
  readonly matrix?: Uint8Array;
}

/** Token Recycling with its matrix, which all sessions that name the same drafter share. */
export interface TokenRecycling extends Drafter {
  /** The matrix as bytes, for `tokenRecycling({ matrix })`. Throws ArgumentError before a session has used it. */
  save(): Uint8Array;
}

/** The likeliest nodes first: each node taken offers its first child and its next sibling. */
export function growByConfidence(matrix: RecyclingMatrix, root: number, nodes: number, depth: number): DraftTree {
  const builder = new TreeBuilder(root), parents: number[] = [], ranks: number[] = [], scores: number[] = [], depths: number[] = [0];
  const offer = (parent: number, rank: number): void => {
    if (rank >= matrix.k || depths[parent]! >= depth) return;
    const probability = matrix.probability(builder.tokens[parent]!, rank);
    if (probability === 0) return;
    parents.push(parent);
    ranks.push(rank);
    scores.push(builder.probabilities[parent]! * probability);
  };
  offer(0, 0);
  while (builder.size < nodes && scores.length > 0) {
    let best = 0;
    for (let i = 1; i < scores.length; i++) if (scores[i]! > scores[best]!) best = i;
    const parent = parents[best]!, rank = ranks[best]!, node = builder.append(parent, matrix.follower(builder.tokens[parent]!, rank), scores[best]!);
    depths.push(depths[parent]! + 1);
    const last = scores.length - 1;
    [parents[best], ranks[best], scores[best]] = [parents[last]!, ranks[last]!, scores[last]!];
    parents.length = ranks.length = scores.length = last;
    offer(parent, rank + 1);
    offer(node, 0);
  }
  return builder.finish();
}

/** A static shape filled from the matrix; nodes whose token was never computed have no children. */
export function growByTemplate(matrix: RecyclingMatrix, root: number, template: TreeTemplate, nodes: number): DraftTree {
  const builder = new TreeBuilder(root), place = new Int32Array(template.parents.length).fill(-1);
  place[0] = 0;
  for (let i = 1; i < template.parents.length; i++) {
    const parent = place[template.parents[i]!]!, rank = template.ranks[i]!;
    if (parent < 0) continue;
    const token = builder.tokens[parent]!, probability = matrix.probability(token, rank);
    if (probability > 0) place[i] = builder.append(parent, matrix.follower(token, rank), builder.probabilities[parent]! * probability);
  }
  return builder.finish(nodes);
}

/** Recycles the candidates of every forward pass, rejected ones included, as drafts of later ones; no training, under 2 MiB. */
export function tokenRecycling(options?: TokenRecyclingOptions): TokenRecycling {
  const { shape = "confidence", matrix: saved, ...o } = optionsObject(options);
  const k = integer("options.k", o.k, 8, 1, 64), byteBudget = integer("options.byteBudget", o.byteBudget, 2 << 20, 1, Number.MAX_SAFE_INTEGER), depth = integer("options.depth", o.depth, 8, 1, 64);
  if (shape !== "confidence" && shape !== "paper") checkTemplate("options.shape", shape, k);
  if (saved !== undefined && !(saved instanceof Uint8Array)) throw invalidArgument("options.matrix", "the bytes that save() gave", saved);
  const template = shape === "paper" ? recyclingTemplate : shape === "confidence" ? undefined : shape;
  let matrix: RecyclingMatrix | undefined;
  const matrixFor = (vocabulary: number): RecyclingMatrix => {
    if (matrix && matrix.vocabulary !== vocabulary) throw new ArgumentError("draft", `Expected a model of ${matrix.vocabulary} tokens for this tokenRecycling() but received one of ${vocabulary}: make one for each model`);
    if (matrix) return matrix;
    if (saved) return (matrix = RecyclingMatrix.load(saved, vocabulary));
    const most = Math.floor(byteBudget / (vocabulary * RecyclingMatrix.entryBytes(vocabulary)));
    if (most < 1) throw new ArgumentError("options.byteBudget", `Expected at least ${vocabulary * RecyclingMatrix.entryBytes(vocabulary)} bytes for options.byteBudget but received ${byteBudget}`);
    return (matrix = new RecyclingMatrix(vocabulary, Math.min(k, most)));
  };
  return {
    name: method.recipe,
    open({ vocabulary }): DraftState {
      const own = matrixFor(vocabulary);
      return {
        topTokens: own.k,
        stateBytes: own.bytes,
        propose(tokens, nodes) {
          const root = tokens.at(-1)!;
          return template ? growByTemplate(own, root, template, nodes) : growByConfidence(own, root, nodes, depth);
        },
        learn({ tree, top }) {
          if (top) own.update(tree.tokens, top);
        },
        rewind: () => undefined,
        [Symbol.dispose]: () => undefined,
      };
    },
    save() {
      if (!matrix) throw new ArgumentError("save", "Expected a session to have used this tokenRecycling() before save()");
      return matrix.save();
    },
  };
}
