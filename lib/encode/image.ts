import { ArgumentError, describe, invalidArgument, TokenloomError } from "../errors.js";
import type { ImageConfig } from "../models/encoder-config.js";

/** Pixels row by row, 0 … 255: grey (1 channel), RGB (3) or RGB with alpha, which is dropped (4). */
export interface Pixels {
  readonly data: Uint8Array | Uint8ClampedArray;
  readonly width: number;
  readonly height: number;
  /** 3. */
  readonly channels?: 1 | 3 | 4;
}

/** The path of a file, the bytes of one (JPEG, PNG, WebP, AVIF, TIFF, GIF), or pixels. */
export type ImageInput = string | Uint8Array | Pixels;

interface Raw {
  readonly raw: { readonly width: number; readonly height: number; readonly channels: 1 | 3 | 4 };
}
type Sharp = (input: string | Uint8Array, options?: Raw) => import("sharp").Sharp;

let loading: Promise<Sharp> | undefined;

/** Decoding and resizing is sharp's work. It is no dependency: who gives pixels of the right size needs none. */
async function sharpLibrary(): Promise<Sharp> {
  loading ??= import("sharp").then((library) => library.default as unknown as Sharp);
  try {
    return await loading;
  } catch (cause) {
    loading = undefined;
    throw new TokenloomError("TL_DEPENDENCY", "Images are decoded and resized with the package sharp, which is not installed: npm install sharp, or pass pixels of the model's own size", { cause });
  }
}

function isPixels(image: unknown): image is Pixels {
  return typeof image === "object" && image !== null && !(image instanceof Uint8Array) && "data" in image;
}

function checkPixels(name: string, { data, width, height, channels = 3 }: Pixels): void {
  if (!(data instanceof Uint8Array || data instanceof Uint8ClampedArray)) throw invalidArgument(`${name}.data`, "a Uint8Array", data);
  for (const [key, value] of Object.entries({ width, height })) if (!Number.isSafeInteger(value) || value < 1 || value > 65_535) throw invalidArgument(`${name}.${key}`, "an integer from 1 to 65535", value);
  if (![1, 3, 4].includes(channels)) throw invalidArgument(`${name}.channels`, "1, 3 or 4", channels);
  if (data.length !== width * height * channels) throw new ArgumentError(`${name}.data`, `Expected ${width * height * channels} bytes for ${name}.data (${width} × ${height} × ${channels}) but received ${data.length}`);
}

/** What can be said of an image before it is decoded. */
export function checkImage(name: string, image: unknown): asserts image is ImageInput {
  if (isPixels(image)) return checkPixels(name, image);
  if (typeof image === "string" ? image === "" : !(image instanceof Uint8Array) || image.length === 0) {
    throw new ArgumentError(name, `Expected the path of an image, its bytes, or { data, width, height } for ${name} but received ${describe(image)}`);
  }
}

/** An image as the model wants it: RGB `[height, width, 3]`, each 0 … 255. */
export async function toPixels(name: string, image: ImageInput, { height, width, interpolation, cropFrom }: ImageConfig): Promise<Uint8Array> {
  if (isPixels(image) && image.width === width && image.height === height && (image.channels ?? 3) === 3) return new Uint8Array(image.data);
  const sharp = await sharpLibrary();
  try {
    const source = isPixels(image) ? sharp(new Uint8Array(image.data), { raw: { width: image.width, height: image.height, channels: image.channels ?? 3 } }) : sharp(image).rotate();
    const rgb = source.toColourspace("srgb").removeAlpha(), kernel = interpolation === "linear" ? "linear" : interpolation;
    if (cropFrom === undefined) return new Uint8Array(await rgb.resize(width, height, { fit: "fill", kernel }).raw().toBuffer());
    const whole = await rgb.resize(cropFrom, cropFrom, { fit: "outside", kernel }).raw().toBuffer({ resolveWithObject: true });
    const left = Math.floor((whole.info.width - width) / 2), top = Math.floor((whole.info.height - height) / 2);
    if (left < 0 || top < 0) throw new Error(`its shorter edge is resized to ${cropFrom}, which is below ${Math.min(width, height)}`);
    return new Uint8Array(await sharp(whole.data, { raw: { width: whole.info.width, height: whole.info.height, channels: 3 } }).extract({ left, top, width, height }).raw().toBuffer());
  } catch (cause) {
    throw new ArgumentError(name, `Expected an image that can be read for ${name} but ${(cause as Error).message}`);
  }
}

/** RGB pixels as a PNG, each of them `zoom` × `zoom` large. */
export async function toPng(data: Uint8Array, size: { readonly width: number; readonly height: number }, zoom = 1): Promise<Buffer> {
  const sharp = await sharpLibrary();
  return sharp(data, { raw: { ...size, channels: 3 } }).resize(size.width * zoom, size.height * zoom, { kernel: "nearest" }).png().toBuffer();
}
