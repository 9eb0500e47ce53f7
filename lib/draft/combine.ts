import { ArgumentError } from "../errors.js";
import { Calibration } from "./calibration.js";
import type { Drafter, DraftState } from "./drafter.js";
import { DraftTree, mergeTrees } from "./tree.js";

/** One drafter within a combination: its last tree, and what its probabilities have turned out to be worth. */
interface Part {
  readonly state: DraftState;
  readonly calibration: Calibration;
  /** Proposed and not yet learnt from. */
  tree: DraftTree | undefined;
}

/** The trees of several drafters merged into one; each one's probabilities are corrected by how often it was right. */
export function combine(...drafters: readonly Drafter[]): Drafter {
  if (drafters.length === 0) throw new ArgumentError("drafters", "Expected at least one drafter for combine() but received none");
  for (const [i, drafter] of drafters.entries()) {
    if (typeof (drafter as Partial<Drafter> | undefined)?.open !== "function") throw new ArgumentError(`drafters[${i}]`, `Expected a drafter for drafters[${i}] but received ${typeof drafter}`);
  }
  return {
    name: drafters.map(({ name }) => name).join(" + "),
    open(context): DraftState {
      const parts: Part[] = drafters.map((drafter) => ({ state: drafter.open(context), calibration: new Calibration(), tree: undefined }));
      const merge = (trees: readonly DraftTree[], nodes: number): DraftTree =>
        mergeTrees(trees.map((tree, i) => {
          const part = parts[i]!;
          part.tree = tree;
          return part.calibration.correct(tree);
        })).consistent().best(nodes);
      return {
        topTokens: Math.max(...parts.map(({ state }) => state.topTokens)),
        get stateBytes() {
          return parts.reduce((sum, { state }) => sum + state.stateBytes, 0);
        },
        propose(tokens, nodes) {
          const proposed = parts.map(({ state }) => state.propose(tokens, nodes));
          if (proposed.every((tree) => tree instanceof DraftTree)) return merge(proposed, nodes);
          return Promise.all(proposed).then((trees) => merge(trees, nodes));
        },
        learn(step) {
          for (const part of parts) {
            if (part.tree) part.calibration.observe(part.tree, step.accepted);
            part.tree = undefined;
            part.state.learn(step);
          }
        },
        rewind: (length) => parts.forEach(({ state }) => state.rewind(length)),
        [Symbol.dispose]: () => parts.forEach(({ state }) => state[Symbol.dispose]()),
      };
    },
  };
}
