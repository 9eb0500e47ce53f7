import type { EncoderConfig, EncoderDescription, EncoderLayerNames, EncoderNames, ImageConfig, LinearNames, NormNames, PatchNames, TextNames } from "./encoder-config.js";
import { resizeTable } from "./interpolate.js";
import { loadSaliency, type SaliencyHead } from "./saliency.js";
import type { PackedWeight, Vector, WeightLoader } from "./weights.js";

export interface Linear {
  readonly weight: PackedWeight;
  readonly bias: Vector | undefined;
}

export interface Norm {
  readonly weight: Vector;
  readonly bias: Vector;
}

export interface EncoderLayer {
  readonly attentionNorm: Norm;
  readonly queryKeyValue: Linear;
  readonly output: Linear;
  readonly feedForwardNorm: Norm;
  readonly up: Linear;
  readonly down: Linear;
}

/** An encoder's weights in memory. */
export interface Encoder {
  readonly config: EncoderConfig;
  /** Words, and positions with the first token type's vector added: f32 `[contextLength, width]`. */
  readonly text?: { readonly words: PackedWeight; readonly positions: Vector; readonly norm: Norm };
  /** Patches' projection, and what is added to each token of an image: f32 `[prefix + patches, width]`. */
  readonly patches?: { readonly projection: PackedWeight; readonly table: Vector; readonly norm?: Norm };
  readonly layers: readonly EncoderLayer[];
  readonly norm?: Norm;
  readonly pooledNorm?: Norm;
  /** `query` f32 `[width]` is the learnt query behind its projection. */
  readonly attentionPool?: { readonly query: Vector; readonly keyValue: Linear; readonly output: Linear; readonly norm: Norm; readonly up: Linear; readonly down: Linear };
  readonly projection?: Linear;
  readonly saliency?: SaliencyHead;
}

/** Reads what a description names. Layer scale and normalisation of pixels are folded into weights here. */
class EncoderLoader {
  constructor(private readonly loader: WeightLoader) {}

  async linear({ weights, biases, scale }: LinearNames): Promise<Linear> {
    const { loader } = this, factors = scale === undefined ? undefined : loader.numbers(scale);
    const parts = weights.map((name) => loader.wholeTensor(name));
    const bias = biases && Promise.all([loader.joined(biases), factors]).then(([values, by]) => loader.constant(by ? values.map((value, i) => value * by[i]!) : values));
    // As stored, straight from the file, where nothing is to be changed.
    const asStored = factors === undefined && loader.weightType === "f32" && parts.every((part) => loader.storageOf(part) === "f32");
    const weight = asStored ? loader.weight(parts) : Promise.all([loader.joined(weights), factors]).then(([values, rowScale]) => loader.pack(values, loader.columnsOf(weights[0]!), { ...(rowScale && { rowScale }) }));
    const [made, added] = await Promise.all([weight, bias]);
    return { weight: made, bias: added };
  }

  async norm({ weight, bias }: NormNames): Promise<Norm> {
    const [scale, shift] = await Promise.all([this.loader.vector(weight), this.loader.vector(bias)]);
    return { weight: scale, bias: shift };
  }

  async layer(names: EncoderLayerNames): Promise<EncoderLayer> {
    const [attentionNorm, queryKeyValue, output, feedForwardNorm, up, down] = await Promise.all([
      this.norm(names.attentionNorm), this.linear(names.queryKeyValue), this.linear(names.output), this.norm(names.feedForwardNorm), this.linear(names.up), this.linear(names.down),
    ]);
    return { attentionNorm, queryKeyValue, output, feedForwardNorm, up, down };
  }

  async text({ words, positions, types, norm }: TextNames, { width }: EncoderConfig): Promise<NonNullable<Encoder["text"]>> {
    const { loader } = this, part = loader.wholeTensor(words);
    const table = loader.storageOf(part) === "f32" ? loader.weight([part]) : loader.numbers(words).then((values) => loader.pack(values, width, { exact: true }));
    const [packed, places, type, made] = await Promise.all([table, loader.numbers(positions), types === undefined ? undefined : loader.numbers(types), this.norm(norm)]);
    return { words: packed, positions: loader.constant(type ? places.map((value, i) => value + type[i % width]!) : places), norm: made };
  }

  async patches(names: PatchNames, { width, image }: EncoderConfig & { readonly image: ImageConfig }): Promise<NonNullable<Encoder["patches"]>> {
    const { loader } = this, { projection, positions, prefix, grid, norm, antialias } = names;
    const [kernel, bias, table, ...tokens] = await Promise.all([
      loader.joined(projection.weights), projection.biases && loader.joined(projection.biases), loader.numbers(positions), ...prefix.map(({ tensor }) => loader.numbers(tensor)),
    ]);
    const { weight, bias: shift } = pixelProjection(kernel, bias, width, image);
    const { height, width: across, patch } = image, patchRows = (height / patch) * (across / patch);
    const positioned = prefix.filter((part) => part.positioned).length;
    const resized = resizeTable(table.subarray(positioned * width), width, grid, [height / patch, across / patch], antialias);
    const rows = new Float32Array((image.prefix + patchRows) * width);
    let at = 0, position = 0;
    prefix.forEach((part, i) => {
      rows.set(tokens[i]!, at);
      if (part.positioned) for (let j = 0; j < width; j++) rows[at + j]! += table[position++]!;
      at += tokens[i]!.length;
    });
    for (let i = 0; i < patchRows * width; i++) rows[at + i] = resized[i]! + shift[i % width]!;
    return { projection: await loader.pack(weight, weight.length / width, { exact: true }), table: loader.constant(rows), ...(norm && { norm: await this.norm(norm) }) };
  }

  async attentionPool(names: NonNullable<EncoderNames["attentionPool"]>, { width }: EncoderConfig): Promise<NonNullable<Encoder["attentionPool"]>> {
    const { loader } = this;
    const [probe, weights, biases] = await Promise.all([loader.numbers(names.probe), loader.joined(names.queryKeyValue.weights), loader.joined(names.queryKeyValue.biases!)]);
    const query = Float32Array.from({ length: width }, (_, row) => probe.reduce((sum, value, column) => sum + value * weights[row * width + column]!, biases[row]!));
    const [weight, output, norm, up, down] = await Promise.all([loader.pack(weights.slice(width * width), width), this.linear(names.output), this.norm(names.norm), this.linear(names.up), this.linear(names.down)]);
    return { query: loader.constant(query), keyValue: { weight, bias: loader.constant(biases.slice(width)) }, output, norm, up, down };
  }
}

/** A patch convolution `[width, 3, patch, patch]` for pixels 0 … 255 that lie row by row, their normalisation folded in. */
function pixelProjection(kernel: Float32Array, bias: Float32Array | undefined, width: number, { patch, mean, deviation }: ImageConfig): { weight: Float32Array; bias: Float32Array } {
  const area = patch * patch, columns = 3 * area, weight = new Float32Array(width * columns), shift = new Float32Array(width);
  for (let row = 0; row < width; row++) {
    let sum = bias?.[row] ?? 0;
    for (let channel = 0; channel < 3; channel++) {
      for (let i = 0; i < area; i++) {
        const value = kernel[row * columns + channel * area + i]! / deviation[channel]!;
        weight[row * columns + i * 3 + channel] = value / 255;
        sum -= value * mean[channel]!;
      }
    }
    shift[row] = sum;
  }
  return { weight, bias: shift };
}

/** Layer after layer: of weights that change on the way, few are in memory twice. */
export async function loadEncoder({ config, names }: EncoderDescription, weights: WeightLoader): Promise<Encoder> {
  const loader = new EncoderLoader(weights), { image } = config;
  const text = names.text && (await loader.text(names.text, config)), patches = names.patches && image && (await loader.patches(names.patches, { ...config, image }));
  const layers: EncoderLayer[] = [];
  for (const layer of names.layers) layers.push(await loader.layer(layer));
  const norm = names.norm && (await loader.norm(names.norm)), pooledNorm = names.pooledNorm && (await loader.norm(names.pooledNorm));
  const projection = names.projection && (await loader.linear(names.projection)), attentionPool = names.attentionPool && (await loader.attentionPool(names.attentionPool, config));
  const saliency = names.saliency && (await loadSaliency(weights, names.saliency));
  return {
    config, layers, ...(text && { text }), ...(patches && { patches }), ...(norm && { norm }), ...(pooledNorm && { pooledNorm }), ...(projection && { projection }),
    ...(attentionPool && { attentionPool }), ...(saliency && { saliency }),
  };
}
