import { loadModel, type LanguageModel } from "../../index.js";
import { tensorOf, type NamedTensor, type Operation, type Outputs, type Vector } from "./vector.js";

/**
 * What integer kernels may do to the logits of SmolLM2 (Q4_1): rounding activations to 8 bits in blocks of 32, simulated
 * in the reference, moves the 50 best logits by 0.16 on average and by 1.1 at most, and flips 19 of 424 arg-maxes, none
 * with a margin above 0.24. Another order of the same roundings is another draw from that distribution: half as much
 * again for the largest of 21,200 differences, a quarter for their mean, two standard deviations for the flips.
 */
const limits = { meanLogit: 0.2, maxLogit: 1.65, flippedMargin: 0.5, flippedShare: 0.065 };

/** Best logits asked for at each position: enough that the reference's 50 are among them. */
const best = 1024;

const models = new Map<string, Promise<LanguageModel>>();

function cachedModel(name: string, threads: number): Promise<LanguageModel> {
  const key = `${threads} ${name}`;
  const loading = models.get(key) ?? loadModel(name, { threads });
  models.set(key, loading);
  return loading;
}

/** `params.model` and `ids.T` (i32) → `best_ids.T`, `best_logits.T` [tokens, best] and `lse.T` [tokens] for each text T. */
async function runDecoder(vector: Vector, { threads }: { readonly threads: number }): Promise<Outputs> {
  const model = await cachedModel(String(vector.params["model"]), threads);
  const outputs = new Map<string, NamedTensor>();
  for (const text of textNumbers(vector)) {
    const ids = Array.from(tensorOf(vector, `ids.${text}`).data);
    const score = await model.score(ids, { top: best });
    const shape = [ids.length, best];
    outputs.set(`best_ids.${text}`, { shape, data: Int32Array.from(score.topIds.flat()) });
    outputs.set(`best_logits.${text}`, { shape, data: Float32Array.from(score.topLogits.flat()) });
    outputs.set(`lse.${text}`, { shape: [ids.length], data: Float32Array.from(score.logSumExp) });
  }
  return outputs;
}

function textNumbers(vector: Vector): number[] {
  const numbers = [...vector.tensors.keys()].flatMap((name) => (/^ids\.\d+$/.test(name) ? [Number(name.slice(4))] : []));
  return numbers.sort((a, b) => a - b);
}

/** What the texts of one vector add up to. */
class Tally {
  positions = 0;
  flips = 0;
  worst = 0;
  worstAt = "";
  #sum = 0;
  #count = 0;

  add(got: number, want: number, where: string): void {
    const by = Number.isNaN(got) ? Number.POSITIVE_INFINITY : Math.abs(got - want);
    this.#sum += by;
    this.#count++;
    if (by > this.worst) [this.worst, this.worstAt] = [by, where];
  }

  problem(): string | undefined {
    const mean = this.#sum / this.#count;
    if (this.positions === 0) return "the vector has no text";
    if (this.worst > limits.maxLogit) return `${this.worstAt}: a logit is off by ${this.worst.toFixed(3)}, more than ${limits.maxLogit}`;
    if (mean > limits.meanLogit) return `logits are off by ${mean.toFixed(3)} on average, more than ${limits.meanLogit}`;
    if (this.flips / this.positions > limits.flippedShare) return `${this.flips} of ${this.positions} arg-maxes differ`;
    return undefined;
  }
}

function checkDecoder(vector: Vector, outputs: Outputs): string | undefined {
  const tally = new Tally();
  for (const text of textNumbers(vector)) {
    const length = tensorOf(vector, `ids.${text}`).data.length;
    for (let position = 0; position < length; position++) {
      const problem = checkPosition(vector, outputs, text, position, tally);
      if (problem !== undefined) return `text ${text}, position ${position}: ${problem}`;
    }
  }
  return tally.problem();
}

/** Adds one position's differences to the tally; what no tally may excuse is returned. */
function checkPosition(vector: Vector, outputs: Outputs, text: number, position: number, tally: Tally): string | undefined {
  const where = `text ${text}, position ${position}`;
  const wanted = tensorOf(vector, `top_ids.${text}`);
  const stored = wanted.shape[1] ?? 0;
  const wantIds = wanted.data.subarray(position * stored, (position + 1) * stored);
  const wantLogits = tensorOf(vector, `top_logits.${text}`).data.subarray(position * stored, (position + 1) * stored);
  const got = logitsAt(outputs, text, position);
  for (let rank = 0; rank < stored; rank++) {
    const logit = got.get(wantIds[rank] ?? -1);
    if (logit === undefined) return `token ${wantIds[rank]}, of rank ${rank} in the reference, is not among the ${best} best`;
    tally.add(logit, wantLogits[rank] ?? Number.NaN, where);
  }
  const logSumExp = (tensors: Outputs): number => tensors.get(`lse.${text}`)?.data[position] ?? Number.NaN;
  tally.add(logSumExp(outputs), logSumExp(vector.tensors), `${where}, log-sum-exp`);
  tally.positions++;
  if (got.keys().next().value === wantIds[0]) return undefined;
  tally.flips++;
  const margin = (wantLogits[0] ?? 0) - (wantLogits[1] ?? 0);
  return margin < limits.flippedMargin ? undefined : `another arg-max in spite of a margin of ${margin.toFixed(3)}`;
}

/** Logits by token id, best first. */
function logitsAt(outputs: Outputs, text: number, position: number): Map<number, number> {
  const ids = outputs.get(`best_ids.${text}`)?.data ?? new Int32Array(0);
  const logits = outputs.get(`best_logits.${text}`)?.data ?? new Float32Array(0);
  const logitOf = new Map<number, number>();
  for (let index = position * best; index < (position + 1) * best; index++) logitOf.set(ids[index] ?? -1, logits[index] ?? Number.NaN);
  return logitOf;
}

export const modelOperations: Readonly<Record<string, Operation>> = { "model.llama": { run: runDecoder, check: checkDecoder } };
