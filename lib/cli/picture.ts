import type { Encoding, EncoderModel } from "../index.js";
import { toPixels } from "../encode/image.js";
import { escapeXml } from "../svg.js";

/** Pixels of a model's input, and drawings over them as parts of an SVG. */
export class Picture {
  private constructor(private readonly rgb: Uint8Array, private readonly photo: string, readonly width: number, readonly height: number, private readonly patch: number, private readonly prefix: number) {}

  static async open(model: EncoderModel, file: string): Promise<Picture> {
    const image = model.config.image!, rgb = await toPixels("image", file, image);
    return new Picture(rgb, await jpeg(rgb, image.width, image.height), image.width, image.height, image.patch, image.prefix);
  }

  private image(data: string): string {
    return `<image href="data:image/jpeg;base64,${data}" width="${this.width}" height="${this.height}"/>`;
  }

  photograph(): string {
    return this.image(this.photo);
  }

  /** Patches over the picture: those of one token in its mean colour and one frame, dropped ones dark. */
  tokens({ source }: Encoding): string {
    const across = this.width / this.patch, rows = source.data.subarray(this.prefix), groups = new Map<number, number[]>();
    rows.forEach((row, place) => groups.set(row, [...(groups.get(row) ?? []), place]));
    const square = (place: number, style: string): string => `<rect x="${(place % across) * this.patch}" y="${Math.floor(place / across) * this.patch}" width="${this.patch}" height="${this.patch}" ${style}/>`;
    const parts = [...groups].flatMap(([row, places]) => {
      if (row < 0) return places.map((place) => square(place, 'fill="#000" fill-opacity=".8"'));
      if (places.length === 1) return places.map((place) => square(place, 'fill="none" stroke="#fff" stroke-width=".5" stroke-opacity=".6"'));
      const hue = (row * 137.5) % 360, fill = this.meanColour(places);
      return places.map((place) => square(place, `fill="${fill}" stroke="hsl(${hue.toFixed(0)} 90% 55%)" stroke-width="1.2"`));
    });
    return this.photograph() + parts.join("");
  }

  private meanColour(places: readonly number[]): string {
    const across = this.width / this.patch, sum = [0, 0, 0];
    for (const place of places) for (let y = 0; y < this.patch; y++) for (let x = 0; x < this.patch; x++) {
      const at = ((Math.floor(place / across) * this.patch + y) * this.width + (place % across) * this.patch + x) * 3;
      for (let c = 0; c < 3; c++) sum[c]! += this.rgb[at + c]!;
    }
    return `rgb(${sum.map((value) => Math.round(value / (places.length * this.patch ** 2))).join(" ")})`;
  }

  /** A map of 0 … 1, dark to bright over a faint picture. */
  async heat(map: Float32Array): Promise<string> {
    const rgb = new Uint8ClampedArray(map.length * 3);
    map.forEach((value, i) => {
      const grey = (this.rgb[3 * i]! + this.rgb[3 * i + 1]! + this.rgb[3 * i + 2]!) / 3;
      const heat = [255 * Math.min(1, 1.6 * value), 255 * Math.max(0, 1.5 * value - 0.4), 90 * (1 - value)];
      heat.forEach((colour, c) => (rgb[3 * i + c] = Math.round(0.3 * grey + 0.7 * colour)));
    });
    return this.image(await jpeg(new Uint8Array(rgb.buffer), this.width, this.height));
  }
}

async function jpeg(raw: Uint8Array, width: number, height: number): Promise<string> {
  const { default: sharp } = await import("sharp");
  return (await sharp(raw, { raw: { width, height, channels: 3 } }).jpeg({ quality: 85 }).toBuffer()).toString("base64");
}

export interface Panel {
  readonly title: string;
  readonly body: string;
}

/** Panels side by side, each with its title. */
export function drawPanels({ width, height }: Picture, panels: readonly Panel[], label: string): string {
  const gap = 12, line = 20, full = panels.length * (width + gap) + gap;
  const drawn = panels.map(({ title, body }, i) => `<g transform="translate(${gap + i * (width + gap)} ${line + gap})"><text y="-8">${escapeXml(title)}</text>${body}</g>`);
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${full} ${height + line + 2 * gap}" width="${full}" height="${height + line + 2 * gap}" role="img" aria-label="${escapeXml(label)}"><style>text{font:13px sans-serif;fill:#222}</style><rect width="100%" height="100%" fill="#fff"/>${drawn.join("")}</svg>\n`;
}

/** Pearson's correlation of two maps. */
export function correlation(a: Float32Array, b: Float32Array): number {
  const mean = (x: Float32Array): number => x.reduce((sum, value) => sum + value, 0) / x.length, [meanA, meanB] = [mean(a), mean(b)];
  let both = 0, ofA = 0, ofB = 0;
  a.forEach((value, i) => {
    both += (value - meanA) * (b[i]! - meanB);
    ofA += (value - meanA) ** 2;
    ofB += (b[i]! - meanB) ** 2;
  });
  return both / Math.sqrt(ofA * ofB);
}

export function cosine(a: Float32Array, b: Float32Array): number {
  const dot = (x: Float32Array, y: Float32Array): number => x.reduce((sum, value, i) => sum + value * y[i]!, 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}
