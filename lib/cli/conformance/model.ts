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

/** Sums up the differences of one vector. */
class Differences {
  #sum = 0;
  #count = 0;
  max = 0;
  where = "";

  add(got: number, want: number, where: string): void {
    const by = Number.isNaN(got) ? Number.POSITIVE_INFINITY : Math.abs(got - want);
    this.#sum += by;
    this.#count++;
    if (by > this.max) [this.max, this.where] = [by, where];
  }

  get mean(): number {
    return this.#count === 0 ? 0 : this.#sum / this.#count;
  }
}

function checkDecoder(vector: Vector, outputs: Outputs): string | undefined {
  const differences = new Differences();
  let flips = 0;
  let positions = 0;
  for (const text of textNumbers(vector)) {
    const ids = tensorOf(vector, `ids.${text}`).data;
    const wantIds = tensorOf(vector, `top_ids.${text}`);
    const wantLogits = tensorOf(vector, `top_logits.${text}`).data;
    const logSumExp = tensorOf(vector, `lse.${text}`).data;
    const gotLogSumExp = outputs.get(`lse.${text}`)?.data ?? new Float32Array(0);
    const stored = wantIds.shape[1] ?? 0;
    for (let position = 0; position < ids.length; position++) {
      const where = `text ${text}, position ${position}`;
      const got = logitsAt(outputs, text, position);
      const base = position * stored;
      for (let rank = 0; rank < stored; rank++) {
        const id = wantIds.data[base + rank] ?? -1;
        const logit = got.get(id);
        if (logit === undefined) return `${where}: token ${id}, of rank ${rank} in the reference, is not among the ${best} best`;
        differences.add(logit, wantLogits[base + rank] ?? Number.NaN, where);
      }
      positions++;
      const margin = (wantLogits[base] ?? 0) - (wantLogits[base + 1] ?? 0);
      if (got.keys().next().value !== wantIds.data[base]) {
        flips++;
        if (margin >= limits.flippedMargin) return `${where}: another arg-max in spite of a margin of ${margin.toFixed(3)}`;
      }
      differences.add(gotLogSumExp[position] ?? Number.NaN, logSumExp[position] ?? Number.NaN, `${where}, log-sum-exp`);
    }
  }
  if (positions === 0) return "the vector has no text";
  if (differences.max > limits.maxLogit) return `${differences.where}: a logit is off by ${differences.max.toFixed(3)}, more than ${limits.maxLogit}`;
  if (differences.mean > limits.meanLogit) return `logits are off by ${differences.mean.toFixed(3)} on average, more than ${limits.meanLogit}`;
  if (flips / positions > limits.flippedShare) return `${flips} of ${positions} arg-maxes differ`;
  return undefined;
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
