import type { Dim } from "../graph/dims.js";
import type { Graph } from "../graph/graph.js";
import type { Value } from "../graph/value.js";
import { activation, convert } from "../ops/activation.js";
import { gatherRows } from "../ops/embedding.js";
import { interpolateRows } from "../ops/encoder.js";
import { matmul } from "../ops/matmul.js";
import type { ImageConfig } from "./encoder-config.js";
import { bilinearTaps } from "./interpolate.js";
import type { Tensors } from "./tensors.js";
import type { PackedWeight, Vector, WeightLoader } from "./weights.js";

/** Three times transposed convolution 4 × 4, stride 2, padding 1 → batch norm → ReLU; a 1 × 1 convolution; bilinear; sigmoid. */
export interface SaliencyNames {
  /** Channels into each stage, and out of the last. */
  readonly channels: readonly number[];
}

const batchNormEpsilon = 1e-5;

export function describeSaliency(tensors: Tensors, width: number): SaliencyNames {
  const channels = [width];
  for (let stage = 1; tensors.has(`decoder.upconv${stage}.weight`); stage++) {
    const from = channels.at(-1)!, to = tensors.shape(`decoder.upconv${stage}.weight`)[1] ?? 0;
    tensors.floats(`decoder.upconv${stage}.weight`, [from, to, 4, 4]);
    tensors.vector(`decoder.upconv${stage}.bias`, to);
    for (const part of ["weight", "bias", "running_mean", "running_var"]) tensors.vector(`decoder.bn${stage}.${part}`, to);
    channels.push(to);
  }
  tensors.floats("decoder.final_conv.weight", [1, channels.at(-1)!, 1, 1]);
  tensors.vector("decoder.final_conv.bias", 1);
  return { channels };
}

interface Stage {
  readonly weight: PackedWeight;
  readonly bias: Vector;
  readonly channels: number;
}

export interface SaliencyHead {
  readonly stages: readonly Stage[];
  readonly final: { readonly weight: PackedWeight; readonly bias: Vector };
}

/**
 * A cell is the corner where four inputs meet: output pixels (2i − 1 + a, 2j − 1 + b), a and b 0 or 1, depend on the inputs (i − 1 … i,
 * j − 1 … j) and no others. So a stage is a gather of four inputs a cell and one matmul; batch norm is folded into its weight.
 */
function cellWeight(kernel: Float32Array, scale: Float32Array, from: number, to: number): Float32Array {
  const rows = new Float32Array(4 * to * 4 * from);
  for (let pixel = 0; pixel < 4; pixel++) {
    for (let input = 0; input < 4; input++) {
      const ky = (pixel >> 1) + 2 * (1 - (input >> 1)), kx = (pixel & 1) + 2 * (1 - (input & 1));
      for (let channel = 0; channel < from; channel++) {
        for (let out = 0; out < to; out++) rows[((pixel * to + out) * 4 + input) * from + channel] = kernel[(channel * to + out) * 16 + ky * 4 + kx]! * scale[out]!;
      }
    }
  }
  return rows;
}

async function loadStage(loader: WeightLoader, stage: number, from: number, to: number): Promise<Stage> {
  const names = ["upconv%.weight", "upconv%.bias", "bn%.weight", "bn%.bias", "bn%.running_mean", "bn%.running_var"].map((name) => `decoder.${name.replace("%", String(stage))}`);
  const [kernel, bias, gain, shift, mean, variance] = (await Promise.all(names.map((name) => loader.numbers(name)))) as [Float32Array, Float32Array, Float32Array, Float32Array, Float32Array, Float32Array];
  const scale = gain.map((value, channel) => value / Math.sqrt(variance[channel]! + batchNormEpsilon));
  const folded = Float32Array.from({ length: 4 * to }, (_, i) => (bias[i % to]! - mean[i % to]!) * scale[i % to]! + shift[i % to]!);
  return { weight: await loader.pack(cellWeight(kernel, scale, from, to), 4 * from), bias: loader.constant(folded), channels: to };
}

export async function loadSaliency(loader: WeightLoader, { channels }: SaliencyNames): Promise<SaliencyHead> {
  const stages: Stage[] = [];
  for (let stage = 1; stage < channels.length; stage++) stages.push(await loadStage(loader, stage, channels[stage - 1]!, channels[stage]!));
  const weight = await loader.pack(await loader.numbers("decoder.final_conv.weight"), channels.at(-1)!, { exact: true });
  return { stages, final: { weight, bias: await loader.vector("decoder.final_conv.bias") } };
}

/** Where a stage's inputs lie for each cell: in rows of `row(y, x)`, −1 outside of the image. */
function cellInputs(height: number, width: number, row: (y: number, x: number) => number): Int32Array {
  const index = new Int32Array((height + 1) * (width + 1) * 4);
  let at = 0;
  for (let i = 0; i <= height; i++) {
    for (let j = 0; j <= width; j++) {
      for (let input = 0; input < 4; input++) {
        const y = i - 1 + (input >> 1), x = j - 1 + (input & 1);
        index[at++] = y < 0 || x < 0 || y >= height || x >= width ? -1 : row(y, x);
      }
    }
  }
  return index;
}

/** Tokens f32 `[images · (prefix + patches), width]` → f32 `[images · height · width, 1]`, 0 … 1. */
export function saliencyMap(graph: Graph, head: SaliencyHead, tokens: Value, image: ImageConfig, images: Dim): Value {
  let height = image.height / image.patch, width = image.width / image.patch, x = tokens;
  const patchesAcross = width;
  let row = (y: number, across: number): number => image.prefix + y * patchesAcross + across;
  head.stages.forEach((stage, number) => {
    const inputs = cellInputs(height, width, row);
    const gathered = gatherRows(x, graph.constant(`cells${number}`, "i32", inputs, [inputs.length]), images).joinRows(4);
    const bias = graph.shared(`saliency${number}.bias`, "f32", [stage.bias.length], stage.bias.handle);
    x = matmul(stage.weight.quantized ? convert(gathered, "q8") : gathered, graph.weight(`saliency${number}`, stage.weight), { bias, activation: "relu", name: `saliency${number}` }).splitRows(4);
    const across = width + 1;
    [height, width] = [2 * height, 2 * width];
    row = (y, at) => (((y + 1) >> 1) * across + ((at + 1) >> 1)) * 4 + ((y + 1) & 1) * 2 + ((at + 1) & 1);
  });
  const bias = graph.shared("saliency.final.bias", "f32", [1], head.final.bias.handle);
  const logits = matmul(x, graph.weight("saliency.final", head.final.weight), { bias, name: "saliency.final" });
  const { index, weights, taps } = bilinearTaps([height, width], [image.height, image.width]), pixels = image.height * image.width, from = width;
  const places = index.map((at) => row(Math.floor(at / from), at % from));
  const resized = interpolateRows(logits, graph.constant("pixels", "i32", places, [pixels, taps]), graph.constant("taps", "f32", weights, [pixels, taps]), images);
  return activation(resized, "sigmoid");
}
