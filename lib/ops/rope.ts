import { ShapeError } from "../errors.js";
import type { Value } from "../graph/value.js";
import { expectRank, expectType, fixedDim } from "./check.js";

/** Rotary position embedding (arXiv 2104.09864) and its context extensions. */
export interface RopeConfig {
  /** "interleaved" rotates pairs (2i, 2i+1), "half" pairs (i, i + dim/2). */
  readonly style: "interleaved" | "half";
  readonly theta: number;
  /** How many of headDim's elements rotate; the rest is copied. */
  readonly dim: number;
  readonly scaling?: RopeScaling;
}

export type RopeScaling =
  | { readonly type: "linear"; readonly factor: number }
  | { readonly type: "ntk"; readonly factor: number }
  | { readonly type: "yarn"; readonly factor: number; readonly originalMaxPosition: number; readonly betaFast?: number; readonly betaSlow?: number; readonly attentionFactor?: number }
  | { readonly type: "llama3"; readonly factor: number; readonly lowFreqFactor: number; readonly highFreqFactor: number; readonly originalMaxPosition: number }
  /** Phi-3's LongRoPE: one divisor a frequency, short or long by the context in use. */
  | { readonly type: "factors"; readonly short: readonly number[]; readonly long: readonly number[]; readonly originalMaxPosition: number; readonly attentionFactor: number }
  /** The same divisors where they are tensors of the file, named here (GGUF's `rope_freqs.weight`, `rope_factors_short.weight`): `withStoredFactors` turns this into "factors". */
  | { readonly type: "stored-factors"; readonly short: string; readonly long: string; readonly originalMaxPosition: number; readonly attentionFactor: number };

/** Angle per position of each rotated pair, and what cosines and sines are multiplied by. */
export interface RopeFrequencies {
  readonly frequencies: Float64Array;
  readonly magnitude: number;
}

function yarn(base: Float64Array, dim: number, theta: number, scaling: Extract<RopeScaling, { type: "yarn" }>): RopeFrequencies {
  const { factor, originalMaxPosition: length } = scaling;
  const corner = (rotations: number): number => (dim * Math.log(length / (2 * Math.PI * rotations))) / (2 * Math.log(theta));
  const low = Math.max(Math.floor(corner(scaling.betaFast ?? 32)), 0), high = Math.min(Math.ceil(corner(scaling.betaSlow ?? 1)), dim - 1);
  const frequencies = base.map((frequency, i) => {
    const ramp = Math.min(1, Math.max(0, (i - low) / (high === low ? 0.001 : high - low)));
    return frequency * (1 - ramp) + (frequency / factor) * ramp;
  });
  return { frequencies, magnitude: scaling.attentionFactor ?? (factor > 1 ? 0.1 * Math.log(factor) + 1 : 1) };
}

function llama3(base: Float64Array, scaling: Extract<RopeScaling, { type: "llama3" }>): RopeFrequencies {
  const { factor, lowFreqFactor, highFreqFactor, originalMaxPosition: length } = scaling;
  const frequencies = base.map((frequency) => {
    const wavelength = (2 * Math.PI) / frequency;
    if (wavelength > length / lowFreqFactor) return frequency / factor;
    if (wavelength < length / highFreqFactor) return frequency;
    const t = (length / wavelength - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
    return ((1 - t) * frequency) / factor + t * frequency;
  });
  return { frequencies, magnitude: 1 };
}

/**
 * The frequencies of rotary embedding (arXiv 2104.09864) under a context extension: linear, NTK, YaRN (2309.00071),
 * Llama 3, or a divisor a frequency (LongRoPE, 2402.13753; `contextLength` picks the short or the long list).
 */
export function ropeFrequencies(rope: Pick<RopeConfig, "theta" | "dim" | "scaling">, contextLength = 0): RopeFrequencies {
  const { dim, scaling } = rope;
  const at = (theta: number): Float64Array => Float64Array.from({ length: dim / 2 }, (_, i) => theta ** ((-2 * i) / dim));
  const base = at(rope.theta);
  if (!scaling) return { frequencies: base, magnitude: 1 };
  switch (scaling.type) {
    case "linear": return { frequencies: base.map((frequency) => frequency / scaling.factor), magnitude: 1 };
    case "ntk": return { frequencies: at(rope.theta * scaling.factor ** (dim / (dim - 2))), magnitude: 1 };
    case "yarn": return yarn(base, dim, rope.theta, scaling);
    case "llama3": return llama3(base, scaling);
    case "factors": {
      const divisors = contextLength > scaling.originalMaxPosition ? scaling.long : scaling.short;
      if (divisors.length !== dim / 2) throw new ShapeError("rope", "scaling", `Expected ${dim / 2} rope factors but received ${divisors.length}`);
      return { frequencies: base.map((frequency, i) => frequency / divisors[i]!), magnitude: scaling.attentionFactor };
    }
    default: throw new ShapeError("rope", "scaling", `Expected a known scaling type but received ${(scaling as RopeScaling).type}`);
  }
}

/** The cosines and sines of a step, for all layers: positions i32 `[n]` → f32 `[n, dim]`. Angles are formed in double. */
export function ropeTable(positions: Value, { frequencies, magnitude }: RopeFrequencies): Value {
  const bits = new BigInt64Array(frequencies.buffer, frequencies.byteOffset, frequencies.length);
  const graph = positions.graph;
  return graph.add("ropeTable", {
    inputs: { positions, frequencies: graph.constant("frequencies", "i64", bits, [bits.length]) },
    outputs: { out: { type: "f32", dims: [positions.dims[0]!, bits.length * 2] } },
    parameters: { magnitude },
  }).out;
}

/** Rotates x f32 `[n, heads, headDim]` in place. "interleaved" pairs (2i, 2i+1), "half" pairs (i, i + dim/2). */
export function rope(x: Value, table: Value, style: RopeConfig["style"], name = "rope"): Value {
  expectType("rope", "x", x, "f32");
  expectRank("rope", "x", x, 3);
  if (fixedDim("rope", "table", table, 1) > fixedDim("rope", "x", x, 2)) throw new ShapeError("rope", "table", `rope: Expected a table of at most headDim columns for ${x} but received ${table}`);
  return x.graph.add("rope", { inputs: { x, table }, outputs: { out: { type: "f32", dims: x.dims, into: x } }, parameters: { interleaved: style === "interleaved" ? 1 : 0 }, name }).out;
}
