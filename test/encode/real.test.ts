import { readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { loadModel, toMe } from "tokenloom";
import { pearson } from "../support/encoders.js";
import { modelPath, sharedFile, skipWithout } from "../support/paths.js";

const miniLm = modelPath("all-MiniLM-L6-v2"), pairsFile = sharedFile("oracles", "models", "minilm_pairs.json");
const dino = sharedFile("models", "dinov2-small-saliency.safetensors"), toMeFile = sharedFile("oracles", "models", "tome.json"), images = sharedFile("data", "images", "224");

interface Pair { a: string; b: string; cosine: number; ids_a: number[] }

t.test("MiniLM: cosines of sentence pairs", { skip: skipWithout({ "all-MiniLM-L6-v2": miniLm, "minilm_pairs.json": pairsFile }) }, async (t) => {
  const { pairs } = JSON.parse(readFileSync(pairsFile!, "utf8")) as { pairs: Pair[] };
  using model = await loadModel(miniLm!, { kind: "encoder" });
  const encoded = await model.encode(pairs.flatMap(({ a, b }) => [a, b])), wrong: string[] = [];
  pairs.forEach(({ a, cosine, ids_a: ids }, i) => {
    const [x, y] = [encoded[2 * i]!, encoded[2 * i + 1]!], got = x.embedding.data.reduce((sum, value, j) => sum + value * y.embedding.data[j]!, 0);
    if (Math.abs(got - cosine) > 2e-5 || x.source.data.length !== ids.length) wrong.push(`${a}: ${got} instead of ${cosine}`);
  });
  t.same(wrong, []);
  using rounded = await loadModel(miniLm!, { kind: "encoder", weights: "int8" });
  t.ok(rounded.weights.relativeError > 0.002 && rounded.weights.relativeError < 0.01, String(rounded.weights.relativeError));
  const again = await rounded.encode(pairs.map(({ a }) => a));
  again.forEach(({ embedding }, i) => {
    const cosine = embedding.data.reduce((sum, value, j) => sum + value * encoded[2 * i]!.embedding.data[j]!, 0);
    if (cosine < 0.998) wrong.push(`int8 turned sentence ${i} to a cosine of ${cosine}`);
  });
  t.same(wrong, []);
});

interface ToMeRow { r: number; size_weighted_attention: boolean; tokens_left: number; images: { image: string; pearson: number }[] }

t.test("DINOv2: saliency agrees as well with merged tokens as the reference's does", { skip: skipWithout({ "dinov2-small-saliency": dino, "tome.json": toMeFile, images }) }, async (t) => {
  const { rows } = JSON.parse(readFileSync(toMeFile!, "utf8")) as { rows: ToMeRow[] };
  using model = await loadModel(dino!, { kind: "encoder" });
  for (const image of ["astronaut", "chelsea", "coffee"]) {
    const path = join(images!, `${image}.png`), whole = await model.encode(path);
    for (const { r, tokens_left: left, images: wanted } of rows.filter((row) => row.size_weighted_attention)) {
      const seen = await model.encode(path, { reduce: toMe(r) }), agreement = pearson(whole.saliency!.data, seen.saliency!.data);
      t.equal(seen.tokens.shape[0], left);
      t.ok(Math.abs(agreement - wanted.find((one) => one.image === image)!.pearson) < 2e-4, `${image}, ${r} a layer: ${agreement}`);
    }
  }
});
