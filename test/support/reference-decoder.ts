import { readFileSync } from "node:fs";
import type { DecoderDescription, WeightPart } from "#lib/models/config.js";
import type { ModelFile } from "#lib/models/file.js";
import { ropeFrequencies } from "#lib/ops/rope.js";

/** Rows of a stored f32, f16 or bf16 tensor, in double. */
type Matrix = readonly Float64Array[];

/**
 * The plainest decoder: loops in double over what a description says, one token at a time, nothing shared with the kernels.
 * It tells whether a description is right; RoPE's frequencies come from the package.
 * @returns logits `[tokens, vocabulary]`
 */
export function referenceLogits(file: ModelFile, { config, weights }: DecoderDescription, ids: readonly number[]): number[][] {
  const cache = new Map<string, Matrix>();
  const rowsOf = (tensor: string): Matrix => {
    const known = cache.get(tensor) ?? readRows(file, tensor);
    cache.set(tensor, known);
    return known;
  };
  const matrix = (part: WeightPart): Matrix => rowsOf(part.tensor).slice(part.rowBegin, part.rowEnd);
  const vector = (tensor: string | undefined): Float64Array | undefined => (tensor === undefined ? undefined : rowsOf(tensor)[0]);
  const norm = (x: Float64Array, tensor: string): Float64Array => {
    const weight = vector(tensor)!;
    const scale = 1 / Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / x.length + config.normEpsilon);
    return x.map((value, i) => value * scale * (weight[i]! + config.normOffset));
  };
  const embedding = rowsOf(weights.embedding);
  let hidden = ids.map((id) => embedding[id]!.map((value) => value * config.embeddingScale));
  weights.layers.forEach((layer, index) => {
    const { window, rope } = config.layers[index]!;
    const { frequencies, magnitude } = ropeFrequencies(rope, config.contextLength);
    const project = (part: WeightPart, bias: string | undefined, normWeight: string | undefined, rotated: boolean): Float64Array[][] => {
      const [rows, offsets] = [matrix(part), vector(bias)];
      return hidden.map((x, position) => {
        const flat = multiply(rows, norm(x, layer.attentionNorm), offsets);
        return Array.from({ length: flat.length / config.headDim }, (_, head) => {
          let values: Float64Array = flat.slice(head * config.headDim, (head + 1) * config.headDim);
          if (normWeight !== undefined) values = norm(values, normWeight);
          return rotated ? rotate(values, rope.style, frequencies, magnitude, position) : values;
        });
      });
    };
    const query = project(layer.query, layer.queryBias, layer.queryNorm, true);
    const key = project(layer.key, layer.keyBias, layer.keyNorm, true);
    const value = project(layer.value, layer.valueBias, undefined, false);
    const [outputRows, gateRows, upRows, downRows] = [matrix(layer.attentionOutput), matrix(layer.gate), matrix(layer.up), matrix(layer.down)];
    hidden = hidden.map((x, i) => {
      const first = window === undefined ? 0 : Math.max(0, i - window + 1);
      const heads = query[i]!.flatMap((q, head) => {
        const shared = Math.floor((head * config.kvHeads) / config.heads);
        const scores = key.slice(first, i + 1).map((k) => softcap(dot(q, k[shared]!) * config.attentionScale, config.attentionSoftcap));
        const highest = Math.max(...scores);
        const shares = scores.map((score) => Math.exp(score - highest));
        const total = shares.reduce((sum, share) => sum + share, 0);
        return Array.from({ length: config.headDim }, (_, d) => shares.reduce((sum, share, j) => sum + (share / total) * value[first + j]![shared]![d]!, 0));
      });
      let attended = multiply(outputRows, Float64Array.from(heads));
      if (layer.attentionPostNorm !== undefined) attended = norm(attended, layer.attentionPostNorm);
      const middle = x.map((element, d) => element + attended[d]!);
      const normed = norm(middle, layer.feedForwardNorm);
      const [gate, up] = [multiply(gateRows, normed), multiply(upRows, normed)];
      let fed = multiply(downRows, gate.map((element, d) => activate(element, config.activation) * up[d]!));
      if (layer.feedForwardPostNorm !== undefined) fed = norm(fed, layer.feedForwardPostNorm);
      return middle.map((element, d) => element + fed[d]!);
    });
  });
  const output = weights.output === undefined ? embedding : matrix(weights.output);
  return hidden.map((x) => Array.from(multiply(output, norm(x, weights.outputNorm)), (logit) => softcap(logit, config.logitSoftcap)));
}

function readRows(file: ModelFile, name: string): Matrix {
  const { type, shape, offset, byteLength, file: path } = file.tensors.get(name)!;
  const bytes = readFileSync(path).subarray(offset, offset + byteLength);
  const columns = shape.at(-1)!;
  const element = (index: number): number =>
    type === "f32" ? bytes.readFloatLE(4 * index) : type === "bf16" ? bfloat(bytes.readUInt16LE(2 * index)) : half(bytes.readUInt16LE(2 * index));
  const rows = shape.length === 1 ? 1 : shape[0]!;
  return Array.from({ length: rows }, (_, row) => Float64Array.from({ length: columns }, (_, column) => element(row * columns + column)));
}

function bfloat(bits: number): number {
  const word = new DataView(new ArrayBuffer(4));
  word.setUint32(0, bits << 16);
  return word.getFloat32(0);
}

function half(bits: number): number {
  const [sign, exponent, fraction] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25));
}

function dot(a: Float64Array, b: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!;
  return sum;
}

function multiply(rows: Matrix, x: Float64Array, bias?: Float64Array): Float64Array {
  return Float64Array.from(rows, (row, i) => dot(row, x) + (bias?.[i] ?? 0));
}

function softcap(value: number, cap: number | undefined): number {
  return cap === undefined ? value : cap * Math.tanh(value / cap);
}

function activate(x: number, kind: "silu" | "gelu-tanh" | "gelu"): number {
  if (kind === "silu") return x / (1 + Math.exp(-x));
  if (kind === "gelu-tanh") return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
  throw new Error("the fixtures use no exact GELU");
}

function rotate(x: Float64Array, style: "interleaved" | "half", frequencies: Float64Array, magnitude: number, position: number): Float64Array {
  const out = x.slice();
  frequencies.forEach((frequency, i) => {
    const [a, b] = style === "half" ? [i, i + frequencies.length] : [2 * i, 2 * i + 1];
    const [cosine, sine] = [Math.cos(position * frequency) * magnitude, Math.sin(position * frequency) * magnitude];
    out[a] = x[a]! * cosine - x[b]! * sine;
    out[b] = x[b]! * cosine + x[a]! * sine;
  });
  return out;
}
