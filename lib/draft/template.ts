import { invalidArgument } from "../errors.js";
import { mostNodes } from "./tree.js";

/** The shape of a static tree: node i is the child of rank `ranks[i]` of its parent. Breadth first; ranks[0] is 0 and unused. */
export interface TreeTemplate {
  readonly parents: Int32Array;
  readonly ranks: Int32Array;
}

/** Children of each node of Token Recycling's tree "2.2.2" (arXiv 2408.08696), level by level from the root. */
const recyclingChildren = [
  [8],
  [8, 4, 3, 2, 1, 1, 1, 1],
  [8, 3, 2, 1, 1, 1, 1, 1, 2, 1, 0, 0, 1, 0, 0, 1, 0, 1, 1, 0, 0],
  [5, 2, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0],
  [3, 1, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0, 0],
  [2, 0, 0, 1, 0, 0, 0, 0],
];

/** A template from the number of children of each node, breadth first, level by level; the nodes of the last level are leaves. */
export function templateOf(children: readonly (readonly number[])[]): TreeTemplate {
  if (!Array.isArray(children) || !children.every((level) => Array.isArray(level) && level.every((count) => Number.isInteger(count) && count >= 0 && count <= mostNodes))) {
    throw invalidArgument("children", "arrays of numbers of children, one for each level", children);
  }
  const parents = [-1], ranks = [0];
  let begin = 0;
  for (const level of children) {
    const end = parents.length;
    if (level.length !== end - begin) throw invalidArgument("children", "one number a node of each level", children);
    (level as readonly number[]).forEach((count, i) => {
      for (let rank = 0; rank < count; rank++) {
        parents.push(begin + i);
        ranks.push(rank);
      }
    });
    begin = end;
  }
  return { parents: Int32Array.from(parents), ranks: Int32Array.from(ranks) };
}

/** Token Recycling's own tree: 80 drafted nodes and the root, 6 levels deep. */
export const recyclingTemplate: TreeTemplate = templateOf(recyclingChildren);

/** Throws ArgumentError where a template is none, or asks for ranks beyond `k`. */
export function checkTemplate(name: string, template: TreeTemplate, k: number): void {
  const { parents, ranks } = template;
  if (!(parents instanceof Int32Array) || !(ranks instanceof Int32Array) || parents.length !== ranks.length || parents[0] !== -1) {
    throw invalidArgument(name, "a template of parents and ranks, Int32Arrays of one length", template);
  }
  for (let i = 1; i < parents.length; i++) {
    if (!(parents[i]! >= 0 && parents[i]! < i)) throw invalidArgument(`${name}.parents[${i}]`, "an earlier node", parents[i]);
    if (!(ranks[i]! >= 0 && ranks[i]! < k)) throw invalidArgument(`${name}.ranks[${i}]`, `a rank below ${k}`, ranks[i]);
  }
}
