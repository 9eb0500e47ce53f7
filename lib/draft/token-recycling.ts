import { ArgumentError, invalidArgument } from "../errors.js";
import { integer, optionsObject } from "./check.js";
import { Calibration } from "./calibration.js";
import type { Drafter, DraftMethod, DraftState, DraftStep } from "./drafter.js";
import { RecyclingMatrix } from "./recycling-matrix.js";
import { checkTemplate, recyclingTemplate, type TreeTemplate } from "./template.js";
import { TreeBuilder, type DraftTree } from "./tree.js";

export const method: DraftMethod = {
  recipe: "tokenRecycling",
  paper: "Token Recycling (Trash into Treasure)",
  arxiv: "2408.08696",
  summary: "a matrix of each token's likeliest followers, rewritten at every step, unrolled into a tree; grown by their probabilities or by the paper's template",
};

/** Paths less likely than this are not followed: no machine verifies them for nothing. */
const least = 1 / 128;

export interface TokenRecyclingOptions {
  /** Followers kept of each token. Default 8, fewer where the byte budget asks for it. */
  readonly k?: number;
  /** Most bytes of the matrix. Default 2 MiB. What the tokens' rows leave of it is for rows of pairs of tokens. */
  readonly byteBudget?: number;
  /** "confidence" (default) grows the likeliest nodes, "paper" and templates are static shapes cut to the likeliest nodes. */
  readonly shape?: "confidence" | "paper" | TreeTemplate;
  /** Deepest level of "confidence". Default 16. */
  readonly depth?: number;
  /** A matrix that save() wrote for the same tokenizer: a hot start. */
  readonly matrix?: Uint8Array;
}

/** Token Recycling with its matrix, which all sessions that name the same drafter share. What its rows are worth each text shows anew. */
export interface TokenRecycling extends Drafter {
  /** The matrix as bytes, for `tokenRecycling({ matrix })`. Throws ArgumentError before a session has used it. */
  save(): Uint8Array;
}

/**
 * What a row's followers are worth: whether the first one comes again depends on whether the row is of a pair far more than on
 * how likely it was; the others come about as often as they were likely. Only a start, corrected by what comes.
 */
class Trust {
  /** Of tokens and of pairs: first followers, and the others. */
  private readonly calibrations = [new Calibration(), new Calibration(), new Calibration(), new Calibration()] as const;

  constructor(private readonly matrix: RecyclingMatrix) {}

  private calibration(row: number, rank: number): Calibration {
    return this.calibrations[(this.matrix.isPair(row) ? 2 : 0) + (rank === 0 ? 0 : 1)]!;
  }

  private estimate(row: number, rank: number): number {
    const probability = this.matrix.probability(row, rank);
    if (probability === 0 || rank > 0) return 0.7 * probability;
    return this.matrix.isPair(row) ? 0.45 + 0.33 * Math.min(1, 2 * probability) : 0.12 + 0.2 * probability;
  }

  probability(row: number, rank: number): number {
    return this.calibration(row, rank).conditional(this.estimate(row, rank));
  }

  /** `token` came where the row had its followers to offer. */
  observe(row: number, token: number): void {
    for (let rank = 0; rank < this.matrix.k; rank++) {
      const estimate = this.estimate(row, rank), calibration = this.calibration(row, rank);
      if (rank <= 1) calibration.fade();
      if (estimate > 0) calibration.trial(estimate, this.matrix.follower(row, rank) === token);
    }
  }
}

/** Grows trees from the matrix, each node's followers from the row of its token and the one before it. */
class Recycler {
  /** Of a proposal that nothing was learnt from yet: the token before its root; else −1. */
  private before = -1;
  /** Tokens whose followers are in the matrix: read in the text, or computed. */
  private known = 1;

  constructor(private readonly matrix: RecyclingMatrix, private readonly trust: Trust, private readonly depth: number) {}

  /** A new tree on the text, after reading what is new to it. */
  private root(tokens: readonly number[]): TreeBuilder {
    for (; this.known < tokens.length; this.known++) this.matrix.note(tokens[this.known - 2] ?? -1, tokens[this.known - 1]!, tokens[this.known]!);
    this.before = tokens.at(-2) ?? -1;
    return new TreeBuilder(tokens.at(-1)!);
  }

  rewind(length: number): void {
    this.known = Math.max(1, Math.min(this.known, length));
  }

  private tokenBefore(builder: TreeBuilder, node: number): number {
    return node === 0 ? this.before : builder.tokens[builder.parents[node]!]!;
  }

  /** The likeliest nodes first: each node taken offers its first child and its next sibling. */
  byConfidence(tokens: readonly number[], nodes: number): DraftTree {
    const { matrix, trust } = this, builder = this.root(tokens), parents: number[] = [], rows: number[] = [], ranks: number[] = [], scores: number[] = [];
    const offer = (parent: number, row: number, rank: number): void => {
      const score = rank < matrix.k ? builder.probabilities[parent]! * trust.probability(row, rank) : 0;
      if (score < least) return;
      parents.push(parent);
      rows.push(row);
      ranks.push(rank);
      scores.push(score);
    };
    offer(0, matrix.row(this.before, builder.tokens[0]!), 0);
    while (builder.size < nodes && scores.length > 0) {
      let best = 0;
      for (let i = 1; i < scores.length; i++) if (scores[i]! > scores[best]!) best = i;
      const parent = parents[best]!, row = rows[best]!, rank = ranks[best]!, node = builder.append(parent, matrix.follower(row, rank), scores[best]!), last = scores.length - 1;
      [parents[best], rows[best], ranks[best], scores[best]] = [parents[last]!, rows[last]!, ranks[last]!, scores[last]!];
      parents.length = rows.length = ranks.length = scores.length = last;
      offer(parent, row, rank + 1);
      if (builder.depth(node) < this.depth) offer(node, matrix.row(this.tokenBefore(builder, node), builder.tokens[node]!), 0);
    }
    return builder.finish();
  }

  /** A static shape; nodes whose token was never computed have no children. */
  byTemplate(tokens: readonly number[], template: TreeTemplate, nodes: number): DraftTree {
    const { matrix, trust } = this, builder = this.root(tokens), place = new Int32Array(template.parents.length).fill(-1);
    place[0] = 0;
    for (let i = 1; i < template.parents.length; i++) {
      const parent = place[template.parents[i]!]!, rank = template.ranks[i]!;
      if (parent < 0 || rank >= matrix.k) continue;
      const row = matrix.row(this.tokenBefore(builder, parent), builder.tokens[parent]!), probability = trust.probability(row, rank);
      if (probability > 0) place[i] = builder.append(parent, matrix.follower(row, rank), builder.probabilities[parent]! * probability);
    }
    return builder.finish(nodes);
  }

  learn({ tree, path, accepted, top }: DraftStep): void {
    if (!top) return;
    if (this.before >= 0) this.known += accepted.length;
    const tokenBefore = (node: number): number => (node === 0 ? this.before : tree.tokens[tree.parents[node]!]!);
    for (let i = 0; i < path.length; i++) this.trust.observe(this.matrix.row(tokenBefore(path[i]!), tree.tokens[path[i]!]!), accepted[i]!);
    for (let node = 0; node < tree.size; node++) this.matrix.write(tokenBefore(node), tree.tokens[node]!, top, node);
    this.before = -1;
  }
}

/** Recycles the candidates of every forward pass, rejected ones included, as drafts of later ones; no training, under 2 MiB. */
export function tokenRecycling(options?: TokenRecyclingOptions): TokenRecycling {
  const { shape = "confidence", matrix: saved, ...o } = optionsObject(options);
  const k = integer("options.k", o.k, 8, 1, 64), byteBudget = integer("options.byteBudget", o.byteBudget, 2 << 20, 1, Number.MAX_SAFE_INTEGER), depth = integer("options.depth", o.depth, 16, 1, 64);
  if (shape !== "confidence" && shape !== "paper") checkTemplate("options.shape", shape, k);
  if (saved !== undefined && !(saved instanceof Uint8Array)) throw invalidArgument("options.matrix", "the bytes that save() gave", saved);
  const template = shape === "paper" ? recyclingTemplate : shape === "confidence" ? undefined : shape;
  let matrix: RecyclingMatrix | undefined;
  const matrixFor = (vocabulary: number): RecyclingMatrix => {
    if (matrix && matrix.size.vocabulary !== vocabulary) throw new ArgumentError("draft", `Expected a model of ${matrix.size.vocabulary} tokens for this tokenRecycling() but received one of ${vocabulary}: make one for each model`);
    if (matrix) return matrix;
    if (saved) return (matrix = RecyclingMatrix.load(saved, vocabulary));
    return (matrix = RecyclingMatrix.fitting(vocabulary, k, byteBudget));
  };
  return {
    name: method.recipe,
    open({ vocabulary }): DraftState {
      const own = matrixFor(vocabulary), recycler = new Recycler(own, new Trust(own), depth);
      return {
        topTokens: own.k,
        stateBytes: own.bytes,
        propose: (tokens, nodes) => (template ? recycler.byTemplate(tokens, template, nodes) : recycler.byConfidence(tokens, nodes)),
        learn: (step) => recycler.learn(step),
        rewind: (length) => recycler.rewind(length),
        [Symbol.dispose]: () => undefined,
      };
    },
    save() {
      if (!matrix) throw new ArgumentError("save", "Expected a session to have used this tokenRecycling() before save()");
      return matrix.save();
    },
  };
}
