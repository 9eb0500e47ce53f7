import { attentionOperations } from "./attention.js";
import { draftOperations } from "./draft.js";
import { encoderOperations } from "./encoder.js";
import { kvOperations } from "./kv.js";
import { modelOperations } from "./model.js";
import { reduceOperations } from "./reduce.js";
import type { Operation } from "./vector.js";

/** Every op that vectors can name: one file a family. */
export const operations: ReadonlyMap<string, Operation> = new Map(Object.entries({
  ...modelOperations, ...encoderOperations, ...attentionOperations, ...draftOperations, ...kvOperations, ...reduceOperations,
}));
