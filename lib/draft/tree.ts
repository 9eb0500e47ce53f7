import { checkArray } from "../check.js";
import { invalidArgument } from "../errors.js";

/** Nodes that one verification takes at most, root included. */
export const mostNodes = 1024;

/**
 * Drafted continuations of a text as a tree (arXiv 2305.09781). Node 0 is the root: the last token already decided, which the
 * next forward pass computes anyway. Nodes are in breadth-first order; `parents[0]` is −1 and `parents[i] < i`.
 */
export class DraftTree {
  readonly depths: Int32Array;
  /** Estimated probability that the text goes along the path to the node: 1 at the root, never above the parent's. */
  readonly probabilities: Float32Array;

  /**
   * @param tokens i32 `[n]`, 1 ≤ n ≤ 1024. @param parents i32 `[n]`. @param probabilities f32 `[n]`; without them each node is
   * taken to be half as likely as its parent. Throws ArgumentError where these are no tree.
   */
  constructor(readonly tokens: Int32Array, readonly parents: Int32Array, probabilities?: Float32Array) {
    checkArray("tokens", tokens, Int32Array);
    checkArray("parents", parents, Int32Array);
    if (probabilities !== undefined) checkArray("probabilities", probabilities, Float32Array);
    const n = tokens.length;
    if (n < 1 || n > mostNodes) throw invalidArgument("tokens", `1 to ${mostNodes} nodes`, n);
    if (parents.length !== n || parents[0] !== -1) throw invalidArgument("parents", `${n} numbers, the first −1`, parents);
    if (probabilities && probabilities.length !== n) throw invalidArgument("probabilities", `${n} numbers`, probabilities);
    this.depths = new Int32Array(n);
    this.probabilities = new Float32Array(n);
    this.probabilities[0] = 1;
    for (let i = 1; i < n; i++) {
      const parent = parents[i]!;
      if (!(parent >= 0 && parent < i)) throw invalidArgument(`parents[${i}]`, "an earlier node", parent);
      this.depths[i] = this.depths[parent]! + 1;
      const most = this.probabilities[parent]!;
      this.probabilities[i] = probabilities ? Math.min(Math.max(probabilities[i]!, 0), most) : most / 2;
    }
  }

  /** One continuation: the root's token, then the drafted ones. */
  static chain(tokens: readonly number[] | Int32Array, probabilities?: Float32Array): DraftTree {
    return new DraftTree(Int32Array.from(tokens), Int32Array.from(tokens, (_, i) => i - 1), probabilities);
  }

  /** Nodes, root included. */
  get size(): number {
    return this.tokens.length;
  }

  /** The child of `node` that holds `token`, the lowest of several, or −1. */
  child(node: number, token: number): number {
    for (let i = node + 1; i < this.size; i++) if (this.parents[i] === node && this.tokens[i] === token) return i;
    return -1;
  }

  /** i32 `[n, ⌈n / 32⌉]`: bit j % 32 of word j / 32 of row i is set where j is i or an ancestor of i. */
  ancestors(): Int32Array {
    const words = Math.ceil(this.size / 32), bits = new Int32Array(this.size * words);
    for (let i = 0; i < this.size; i++) {
      const parent = this.parents[i]!;
      if (parent >= 0) bits.copyWithin(i * words, parent * words, (parent + 1) * words);
      bits[i * words + (i >> 5)]! |= 1 << (i & 31);
    }
    return bits;
  }

  /** i32 `[n]`: where the nodes stand behind `past` cached tokens. */
  positions(past: number): Int32Array {
    return this.depths.map((depth) => past + depth);
  }

  /** The `nodes` most probable nodes, root included; of equals the earlier. A parent is never less probable, so it stays too. */
  best(nodes: number): DraftTree {
    if (nodes >= this.size) return this;
    const { probabilities } = this, order = upTo(this.size).sort((a, b) => probabilities[b]! - probabilities[a]! || a - b);
    return this.only(order.subarray(0, Math.max(1, nodes)).sort());
  }

  /** The nodes at most `depth` below the root. */
  shallow(depth: number): DraftTree {
    if (this.depths.every((own) => own <= depth)) return this;
    return this.only(upTo(this.size).filter((node) => this.depths[node]! <= depth));
  }

  /**
   * The same nodes with probabilities that siblings can have: where a node's children claim more than 1 together, the likeliest
   * keeps its own and the others share what it leaves.
   */
  consistent(): DraftTree {
    const { size, parents, probabilities } = this, largest = new Float64Array(size), total = new Float64Array(size), corrected = new Float32Array(size);
    const conditional = (i: number): number => (probabilities[i]! > 0 ? probabilities[i]! / probabilities[parents[i]!]! : 0);
    for (let i = 1; i < size; i++) {
      const parent = parents[i]!, own = conditional(i);
      largest[parent] = Math.max(largest[parent]!, own);
      total[parent]! += own;
    }
    if (total.every((claimed) => claimed <= 1)) return this;
    corrected[0] = 1;
    for (let i = 1; i < size; i++) {
      const parent = parents[i]!, own = conditional(i), most = largest[parent]!;
      const kept = total[parent]! <= 1 || own === most ? own : own * Math.min(1, (1 - most) / (total[parent]! - most));
      corrected[i] = corrected[parent]! * kept;
    }
    return new DraftTree(this.tokens, parents, corrected);
  }

  /** Only these nodes, in rising order, each with all its ancestors among them. */
  private only(nodes: Int32Array): DraftTree {
    return renumbered(nodes, this.tokens, this.parents, this.probabilities);
  }
}

function upTo(count: number): Int32Array<ArrayBuffer> {
  const numbers = new Int32Array(count);
  for (let i = 0; i < count; i++) numbers[i] = i;
  return numbers;
}

/** The tree of these nodes in this order, parents before children; the first is the root. */
function renumbered(order: Int32Array, tokens: ArrayLike<number>, parents: ArrayLike<number>, probabilities: ArrayLike<number>): DraftTree {
  const n = order.length, place = new Int32Array(tokens.length), picked = [new Int32Array(n), new Int32Array(n), new Float32Array(n)] as const;
  for (let i = 0; i < n; i++) {
    const node = order[i]!;
    place[node] = i;
    picked[0][i] = tokens[node]!;
    picked[1][i] = i === 0 ? -1 : place[parents[node]!]!;
    picked[2][i] = probabilities[node]!;
  }
  return new DraftTree(...picked);
}

/** Grows a tree node by node. A child that is there already is joined, not added twice. */
export class TreeBuilder {
  readonly tokens: number[];
  readonly parents: number[] = [-1];
  readonly probabilities: number[] = [1];
  private readonly depths: number[] = [0];

  constructor(root: number) {
    this.tokens = [root];
  }

  get size(): number {
    return this.tokens.length;
  }

  depth(node: number): number {
    return this.depths[node]!;
  }

  /** The new or joined child; a joined one keeps the larger probability. */
  add(parent: number, token: number, probability: number): number {
    for (let i = parent + 1; i < this.size; i++) {
      if (this.parents[i] !== parent || this.tokens[i] !== token) continue;
      this.probabilities[i] = Math.max(this.probabilities[i]!, probability);
      return i;
    }
    return this.append(parent, token, probability);
  }

  /** A child that is known to be new. */
  append(parent: number, token: number, probability: number): number {
    this.tokens.push(token);
    this.parents.push(parent);
    this.probabilities.push(probability);
    this.depths.push(this.depths[parent]! + 1);
    return this.size - 1;
  }

  /** The tree in breadth-first order, cut to its `nodes` most probable nodes. */
  finish(nodes: number = mostNodes): DraftTree {
    const { depths } = this, order = upTo(this.size).sort((a, b) => depths[a]! - depths[b]! || a - b);
    return renumbered(order, this.tokens, this.parents, this.probabilities).best(nodes);
  }
}

/** One tree of all: paths that begin alike are joined, the same path is there once. Cut to the `nodes` most probable nodes. */
export function mergeTrees(trees: readonly DraftTree[], nodes: number = mostNodes): DraftTree {
  if (!Array.isArray(trees) || !trees.every((tree) => tree instanceof DraftTree)) throw invalidArgument("trees", "an array of DraftTree", trees);
  if (!Number.isInteger(nodes) || nodes < 1) throw invalidArgument("nodes", "a positive integer", nodes);
  const root = trees[0]?.tokens[0];
  if (root === undefined || trees.some((tree) => tree.tokens[0] !== root)) throw invalidArgument("trees", "trees of one root", trees);
  const builder = new TreeBuilder(root);
  for (const tree of trees) {
    const place = new Int32Array(tree.size);
    for (let i = 1; i < tree.size; i++) place[i] = builder.add(place[tree.parents[i]!]!, tree.tokens[i]!, tree.probabilities[i]!);
  }
  return builder.finish(nodes);
}
