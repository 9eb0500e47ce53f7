import { alibiSlopes, ops, tensor, type AttentionOptions, type RopeScaling, type Tensor } from "../../index.js";
import { tensorOf, type NamedTensor, type Operation, type Outputs, type Vector } from "./vector.js";

type Options = AttentionOptions<Tensor>;

/** A vector's tensor as the public interface takes it. */
function given(vector: Vector, name: string): Tensor {
  const { data, shape } = tensorOf(vector, `in.${name}`);
  return tensor(data, shape);
}

function number(vector: Vector, name: string): number | undefined {
  const value = vector.params[name];
  return typeof value === "number" ? value : undefined;
}

const flag = (vector: Vector, name: string, fallback = false): boolean => (vector.params[name] as boolean | null | undefined) ?? fallback;

/** Names of results → names of the vectors' outputs. */
const outputNames: Readonly<Record<string, string>> = { out: "out", logSumExp: "lse", columnSums: "sums", remainder: "remainder", assignment: "assign" };

function collect(results: object): Outputs {
  const outputs = new Map<string, NamedTensor>();
  for (const [name, result] of Object.entries(results) as [string, Tensor][]) {
    if (outputNames[name] !== undefined) outputs.set(`out.${outputNames[name]}`, { shape: result.shape, data: result.data as Float32Array });
  }
  return outputs;
}

/** One variant of softmax attention: what its parameters and extra inputs mean as options. */
function variant(options: (vector: Vector) => Options, names: { key?: string; value?: string } = {}): Operation {
  return {
    async run(vector, { threads }) {
      const scale = number(vector, "scale");
      const all = { ...options(vector), ...(scale !== undefined && { scale }), returnLse: true as const, threads };
      return collect(await ops.attention(given(vector, "q"), given(vector, names.key ?? "k"), given(vector, names.value ?? "v"), all));
    },
  };
}

const causal = (vector: Vector, fallback = false): { causal: boolean } => ({ causal: flag(vector, "causal", fallback) });

function slopes(vector: Vector): Tensor {
  return vector.tensors.has("in.slopes") ? given(vector, "slopes") : tensor(alibiSlopes(tensorOf(vector, "in.q").shape[1]!));
}

function quantized(vector: Vector): Options {
  const [keyScale, valueScale] = [given(vector, "kScale"), given(vector, "vScale")];
  return vector.params["format"] === "int8"
    ? { ...causal(vector), quantized: { format: "int8", keyScale, valueScale } }
    : { ...causal(vector), quantized: { format: "int4", keyScale, valueScale, keyMinimum: given(vector, "kMin"), valueMinimum: given(vector, "vMin") } };
}

/** The public op takes `[tokens, heads, headDim]` at one position a token: each batch entry by itself, heads and tokens swapped. */
const rope: Operation = {
  async run(vector, { threads }) {
    const { data, shape } = tensorOf(vector, "in.x"), [batch, heads, tokens, headDim] = shape as [number, number, number, number];
    const positions = vector.tensors.get("in.positions")?.data, offset = number(vector, "offset") ?? 0;
    const out = new Float32Array(data.length);
    const { theta, style, rotaryDim, scaling } = vector.params as { theta?: number; style?: "half" | "interleaved"; rotaryDim?: number; scaling?: RopeScaling };
    const at = (b: number, h: number, i: number): number => ((b * heads + h) * tokens + i) * headDim;
    for (let b = 0; b < batch; b++) {
      const x = new Float32Array(tokens * heads * headDim);
      for (let h = 0; h < heads; h++) for (let i = 0; i < tokens; i++) x.set((data as Float32Array).subarray(at(b, h, i), at(b, h, i) + headDim), (i * heads + h) * headDim);
      const where = Int32Array.from({ length: tokens }, (_, i) => positions?.[b * tokens + i] ?? offset + i);
      const options = { ...(theta != null && { theta }), ...(style != null && { style }), ...(rotaryDim != null && { rotaryDim }), ...(scaling != null && { scaling }) };
      using rotated = await ops.rope(tensor(x, [tokens, heads, headDim]), tensor(where), { ...options, threads });
      for (let h = 0; h < heads; h++) for (let i = 0; i < tokens; i++) out.set(rotated.out.data.subarray((i * heads + h) * headDim, (i * heads + h + 1) * headDim), at(b, h, i));
    }
    return new Map([["out.out", { shape, data: out }]]);
  },
};

const relatives: Readonly<Record<string, (vector: Vector, threads: number) => Promise<object>>> = {
  "attention.merge-states": (vector, threads) => ops.mergeStates(given(vector, "out"), given(vector, "lse"), { threads }),
  "attention.stick-breaking": (vector, threads) =>
    ops.stickBreaking(given(vector, "q"), given(vector, "k"), given(vector, "v"), {
      attendCurrent: flag(vector, "attendCurrent"), remainder: (vector.params["remainder"] as "drop" | "current-value" | undefined) ?? "drop", threads,
    }),
  "attention.pattention": (vector, threads) => ops.pattention(given(vector, "x"), given(vector, "keys"), given(vector, "values"), { scale: number(vector, "scale") ?? 1, threads }),
  "attention.slot": (vector, threads) => {
    const scale = number(vector, "scale"), epsilon = number(vector, "eps");
    return ops.slotAttention(given(vector, "q"), given(vector, "k"), given(vector, "v"), {
      softmaxOver: (vector.params["softmaxOver"] as "slots" | "heads-slots" | undefined) ?? "slots", ...(scale !== undefined && { scale }), ...(epsilon !== undefined && { epsilon }), threads,
    });
  },
  "attention.landmark": (vector, threads) => ops.landmarkAttention(given(vector, "q"), given(vector, "k"), given(vector, "v"), given(vector, "isLandmark") as Tensor<"u8">, { threads }),
};

export const attentionOperations: Readonly<Record<string, Operation>> = {
  "attention.sdpa": variant((vector) => causal(vector)),
  "attention.sliding-window": variant((vector) => ({ ...causal(vector, true), window: number(vector, "window")!, sinks: number(vector, "sinks") ?? 0 })),
  "attention.softcap": variant((vector) => ({ ...causal(vector), softcap: number(vector, "softcap")! })),
  "attention.alibi": variant((vector) => ({ ...causal(vector, true), slopes: slopes(vector) })),
  "attention.bias": variant((vector) => ({ ...causal(vector), bias: given(vector, "bias") })),
  "attention.varlen": variant((vector) => ({ ...causal(vector), ragged: { cuQuery: given(vector, "cuQ"), cuKey: given(vector, "cuK") } })),
  "attention.tree": variant((vector) => ({ tree: given(vector, "mask") })),
  "attention.block-sparse": variant((vector) => ({ ...causal(vector), blocks: { mask: given(vector, "blockMask"), query: number(vector, "blockQ")!, key: number(vector, "blockK")! } })),
  "attention.neighbor": variant((vector) => ({
    neighborhood: { start: number(vector, "visualStart")!, height: number(vector, "gridH")!, width: number(vector, "gridW")!, radius: number(vector, "radius")!, causal: flag(vector, "causalVisual") },
  })),
  "attention.column-sums": variant((vector) => {
    const window = number(vector, "window");
    return { ...causal(vector), columnSums: window === undefined ? true : { queries: window } };
  }),
  "attention.paged": variant((vector) => ({ ...causal(vector), paged: { blockTable: given(vector, "blockTable"), lengths: given(vector, "lengths") } }), { key: "kPages", value: "vPages" }),
  "attention.quantized-kv": variant(quantized, { key: "kQ", value: "vQ" }),
  "attention.softmax-off-by-one": variant((vector) => ({ ...causal(vector), offByOne: true })),
  "attention.sinks": variant((vector) => {
    const window = number(vector, "window");
    return { ...causal(vector, true), ...(window !== undefined && { window }), sinkLogits: given(vector, "sinks") };
  }),
  "attention.cross-region-to-point": variant((vector) => ({ regionToPoint: { height: number(vector, "gridH")!, width: number(vector, "gridW")!, factor: number(vector, "scaleFactor")! } })),
  "attention.rope": rope,
  ...Object.fromEntries(Object.entries(relatives).map(([name, run]) => [name, { run: async (vector: Vector, { threads }: { readonly threads: number }) => collect(await run(vector, threads)) }])),
};
