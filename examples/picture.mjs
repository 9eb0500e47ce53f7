// A picture in fewer tokens: MODEL (a vision encoder's folder or file) and a picture, or a chequered one, with and without merging.
import { toMe } from "tokenloom";
import { openEncoder } from "./model.mjs";

const [path = process.env.TOKENLOOM_MODEL ?? "dinov2-small.safetensors", picture] = process.argv.slice(2);
const model = await openEncoder(path), { width, height } = model.config.image;
const pixels = Uint8Array.from({ length: width * height * 3 }, (_, i) => (((Math.floor(i / 3) % width) >> 3) + (Math.floor(i / 3 / width) >> 3)) % 2 ? 220 : 40);
const image = picture ?? { data: pixels, width, height, channels: 3 };

for (const [name, reduce] of [["all tokens", undefined], ["merged", toMe({ perLayer: 4 })]]) {
  const started = performance.now(), { tokens, embedding, source } = await model.encode(image, { reduce });
  console.log(`${name}: ${tokens.shape[0]} of ${source.data.length} tokens, a vector of ${embedding.data.length}, ${(performance.now() - started).toFixed(0)} ms`);
}
model.dispose();
