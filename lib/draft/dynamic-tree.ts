import { invalidArgument } from "../errors.js";
import { integer, optionsObject } from "./check.js";
import { DraftTree, mostNodes } from "./tree.js";

export interface DynamicTreeOptions {
  /** Children of each expanded node, and nodes expanded of each level. Default 10. */
  readonly topK?: number;
  /** Expansions behind the root's. Default 5. */
  readonly depth?: number;
  /** Nodes kept at the end, root included. Default 60. */
  readonly nodes?: number;
}

/**
 * EAGLE-2's dynamic tree (arXiv 2406.16858): level by level the likeliest nodes are expanded by a model, and in the end the
 * likeliest of all nodes stay. Ask `frontier` which nodes to expand, compute them in one pass over `tree()`, give their
 * candidates to expand(), until `done`.
 */
export class DynamicTree {
  private readonly tokens: number[];
  private readonly parents: number[] = [-1];
  private readonly scores: number[] = [0];
  private next: number[] = [0];
  private level = 0;
  private readonly topK: number;
  private readonly depth: number;
  private readonly nodes: number;

  constructor(root: number, options?: DynamicTreeOptions) {
    const o = optionsObject(options);
    this.tokens = [root];
    this.topK = integer("options.topK", o.topK, 10, 1, mostNodes);
    this.depth = integer("options.depth", o.depth, 5, 0, mostNodes);
    this.nodes = integer("options.nodes", o.nodes, 60, 1, mostNodes);
  }

  /** Nodes whose followers are wanted, likeliest first. */
  get frontier(): readonly number[] {
    return this.next;
  }

  get done(): boolean {
    return this.level > this.depth;
  }

  /** All nodes so far, in order of creation. */
  tree(): DraftTree {
    return this.treeOf(Array.from(this.tokens.keys()));
  }

  /** Children of the frontier's nodes: `width` candidates a node, largest first, and their natural-log probabilities. */
  expand(candidates: ArrayLike<number>, logProbs: ArrayLike<number>, width: number): void {
    if (this.done) throw invalidArgument("candidates", "none: the tree is complete", candidates);
    if (candidates.length !== this.next.length * width || logProbs.length !== candidates.length) throw invalidArgument("candidates", `${this.next.length * width} tokens and log-probabilities`, candidates);
    const made: number[] = [];
    this.next.forEach((parent, row) => {
      for (let rank = 0; rank < Math.min(this.topK, width); rank++) {
        made.push(this.tokens.length);
        this.tokens.push(candidates[row * width + rank]!);
        this.parents.push(parent);
        this.scores.push(this.scores[parent]! + logProbs[row * width + rank]!);
      }
    });
    // The root's children are expanded in the order of their rank, which is that of their score.
    this.next = this.likeliest(made, this.topK);
    this.level++;
  }

  /** The likeliest nodes in order of creation, and the log-probability of the path to each. */
  finish(): { readonly tree: DraftTree; readonly scores: Float32Array } {
    const all = Array.from(this.tokens.keys());
    const kept = [0, ...this.likeliest(all.slice(1), this.nodes - 1)].sort((a, b) => a - b);
    return { tree: this.treeOf(kept), scores: Float32Array.from(kept, (node) => this.scores[node]!) };
  }

  private likeliest(nodes: readonly number[], count: number): number[] {
    return [...nodes].sort((a, b) => this.scores[b]! - this.scores[a]! || a - b).slice(0, count);
  }

  private treeOf(nodes: readonly number[]): DraftTree {
    const place = new Map(nodes.map((node, i) => [node, i]));
    return new DraftTree(
      Int32Array.from(nodes, (node) => this.tokens[node]!), Int32Array.from(nodes, (node) => (node === 0 ? -1 : place.get(this.parents[node]!)!)), Float32Array.from(nodes, (node) => Math.exp(this.scores[node]!)),
    );
  }
}
