import { operations } from "./operations.js";
import { readVector } from "./read.js";
import { compareOutputs, firstBitDifference, type Operation, type Outputs, type Vector } from "./vector.js";

/** What the runner asks of its child process, one file at a time. */
export interface Request {
  readonly path: string;
  readonly threads: readonly number[];
}

export interface Reply {
  readonly status: "passed" | "failed" | "unknown";
  readonly detail: string;
}

/** Runs one file with each number of threads; the outputs have to be the same bits. */
export async function runFile({ path, threads }: Request): Promise<Reply> {
  try {
    const vector = await readVector(path);
    if (vector === undefined) return { status: "unknown", detail: "no vector: its metadata names no op" };
    const operation = operations.get(vector.op);
    if (operation === undefined) return { status: "unknown", detail: `unknown op ${vector.op}` };
    const problem = await runVector(vector, operation, threads);
    return problem === undefined ? { status: "passed", detail: "" } : { status: "failed", detail: problem };
  } catch (error) {
    return { status: "failed", detail: error instanceof Error ? `${error.name}: ${error.message}` : String(error) };
  }
}

async function runVector(vector: Vector, operation: Operation, threads: readonly number[]): Promise<string | undefined> {
  let first: Outputs | undefined;
  for (const count of threads) {
    const outputs = await operation.run(vector, { threads: count });
    const problem = operation.check === undefined ? compareOutputs(vector, outputs) : operation.check(vector, outputs);
    if (problem !== undefined) return `${count} thread${count === 1 ? "" : "s"}: ${problem}`;
    const name = first === undefined ? undefined : firstBitDifference(first, outputs);
    if (name !== undefined) return `${name} differs between ${threads[0]} and ${count} threads`;
    first ??= outputs;
  }
  return undefined;
}
