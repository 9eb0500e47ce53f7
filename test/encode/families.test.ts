import { join } from "node:path";
import t from "tap";
import { loadModel } from "tokenloom";
import { encoderFolder, expectedEncodings, largestDifference, tinyBert, tinyText } from "../support/encoders.js";
import { scratch } from "../support/paths.js";

/** Of tiny random models whose hidden states are a few units large, against float32 of another library. */
const tolerance = 2e-5;

const images = {
  vit: { pool: "cls", tokens: 10 }, deit: { pool: "cls", tokens: 11 }, dinov2: { pool: "cls", tokens: 10 }, "dinov2-registers": { pool: "cls", tokens: 12 },
  "dinov2-gated": { pool: "cls", tokens: 10 }, clip: { pool: "cls", tokens: 10 }, siglip: { pool: "attention", tokens: 9 },
} as const;

for (const [name, { pool, tokens }] of Object.entries(images)) {
  t.test(`${name} computes what transformers computes`, async (t) => {
    using model = await loadModel(join(encoderFolder, name), { kind: "encoder" });
    t.equal(model.config.pool, pool);
    for (const { pixels, size, tokens: wanted, embedding } of expectedEncodings(name)) {
      const seen = await model.encode({ data: Uint8Array.from(pixels!), width: size!, height: size! });
      t.same(seen.tokens.shape, [tokens, 16]);
      t.ok(largestDifference(seen.tokens.data, wanted) < tolerance, `tokens: ${largestDifference(seen.tokens.data, wanted)}`);
      t.ok(largestDifference(seen.embedding.data, embedding) < tolerance, `embedding: ${largestDifference(seen.embedding.data, embedding)}`);
      t.same(Array.from(seen.source.data), Array.from({ length: tokens }, (_, i) => i));
      t.same(Array.from(seen.sizes.data), new Array<number>(tokens).fill(1));
    }
  });
}

t.test("BERT computes what transformers computes, in one packed batch", async (t) => {
  using model = await loadModel(tinyBert(scratch(t)), { kind: "encoder" });
  t.equal(model.config.pool, "mean");
  t.equal(model.config.contextLength, 20);
  const expected = expectedEncodings("bert"), results = await model.encode(expected.map(({ ids }) => tinyText(ids!)));
  results.forEach((result, i) => {
    t.same(result.tokens.shape, [expected[i]!.ids!.length, 16]);
    t.ok(largestDifference(result.tokens.data, expected[i]!.tokens) < tolerance, `tokens: ${largestDifference(result.tokens.data, expected[i]!.tokens)}`);
    t.ok(largestDifference(result.embedding.data, expected[i]!.embedding) < tolerance);
  });
});
