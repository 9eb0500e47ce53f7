import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { loadModel, locateModel, toMe, type EncoderModel, type Pixels, type Tensor } from "../../index.js";
import { readVector } from "./read.js";
import { tensorOf, type NamedTensor, type Operation, type Outputs, type Vector } from "./vector.js";

const models = new Map<string, Promise<EncoderModel>>();

/** By name: TOKENLOOM_MODELS, the cache, and the shared folder beside the checkout, with or without its ending. */
async function findModel(name: string): Promise<string> {
  const shared = join(process.env["TOKENLOOM_SHARED"] ?? join("..", "shared"), "models", `${name}.safetensors`);
  if (existsSync(shared)) return shared;
  return locateModel(name).catch((error: unknown) => locateModel(`${name}.safetensors`).catch(() => Promise.reject(error as Error)));
}

function cachedModel({ params }: Vector, threads: number): Promise<EncoderModel> {
  const name = String(params["model"]), key = `${threads} ${name}`;
  const loading = models.get(key) ?? findModel(name).then((path) => loadModel(path, { threads, kind: "encoder" }));
  models.set(key, loading);
  return loading;
}

const named = ({ shape, data }: Tensor<"f32">): NamedTensor => ({ shape, data });

function pixelsOf(vector: Vector): Pixels {
  const { shape: [height = 0, width = 0], data } = tensorOf(vector, "in.pixels");
  return { data: data as Uint8Array, width, height };
}

/** `in.pixels` → `out.tokens`, `out.saliency`, and `out.saliency_r13` with 13 tokens merged in each layer. */
const vit: Operation = {
  async run(vector, { threads }) {
    const model = await cachedModel(vector, threads), pixels = pixelsOf(vector), outputs = new Map<string, NamedTensor>();
    for (const name of [...vector.tensors.keys()].filter((key) => /^out\.saliency(_r\d+)?$/.test(key))) {
      const merged = Number(/_r(\d+)$/.exec(name)?.[1] ?? 0);
      const seen = await model.encode(pixels, merged > 0 ? { reduce: toMe(merged) } : {});
      outputs.set(name, named(seen.saliency!));
      if (merged === 0) outputs.set("out.tokens", named(seen.tokens));
    }
    return outputs;
  },
};

/** The image of another vector → `out.hidden0` …, the tokens at `tokens.at` before the first block and behind each. */
const blocks: Operation = {
  async run(vector, { threads }) {
    const source = join(dirname(vector.path), "..", "vit", `vit__${String(vector.params["image"])}.safetensors`);
    const image = await readVector(source), at = Array.from(tensorOf(vector, "tokens.at").data);
    if (image === undefined) throw new Error(`${source} is no vector`);
    const { hiddenStates = [] } = await (await cachedModel(vector, threads)).encode(pixelsOf(image), { hiddenStates: true, saliency: false });
    return new Map(hiddenStates.map(({ data, shape: [, width = 0] }, i) => [`out.hidden${i}`, { shape: [at.length, width], data: Float32Array.from(at.flatMap((row) => [...data.subarray(row * width, (row + 1) * width)])) }]));
  },
};

/** `params.sentences` as one batch → `out.embeddings`, and the tokens of some: `out.hidden0` … */
const bert: Operation = {
  async run(vector, { threads }): Promise<Outputs> {
    const model = await cachedModel(vector, threads), all = await model.encode(vector.params["sentences"] as string[]);
    const { dimension } = model.config, embeddings = new Float32Array(all.length * dimension);
    all.forEach(({ embedding }, i) => embeddings.set(embedding.data, i * dimension));
    return new Map([["out.embeddings", { shape: [all.length, dimension], data: embeddings }], ...all.map(({ tokens }, i) => [`out.hidden${i}`, named(tokens)] as const)]);
  },
};

export const encoderOperations: Readonly<Record<string, Operation>> = { "model.vit": vit, "model.vit.blocks": blocks, "model.bert": bert };
