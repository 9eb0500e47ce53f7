import { join } from "node:path";
import sharp from "sharp";
import t from "tap";
import { eVit, loadModel, toMe, type EncoderModel, type Pixels } from "tokenloom";
import { encoderFolder, expectedEncodings, largestDifference, tinyBert, tinyText } from "../support/encoders.js";
import { scratch } from "../support/paths.js";

const bytes = (values: ArrayLike<number>): Buffer => Buffer.from(Float32Array.from(values).buffer);
const vit = (): Promise<EncoderModel> => loadModel(join(encoderFolder, "vit"), { kind: "encoder" });
const [{ pixels = [], size = 0 } = {}] = expectedEncodings("vit");
const picture: Pixels = { data: Uint8Array.from(pixels), width: size, height: size };
const noise: Pixels = { ...picture, data: picture.data.map((value, i) => (value * 7 + i * 13) & 255) };

t.test("results depend neither on neighbours in the batch nor on threads", async (t) => {
  using text = await loadModel(tinyBert(scratch(t)), { kind: "encoder" });
  const texts = expectedEncodings("bert").map(({ ids }) => tinyText(ids!)), many = [...texts, ...texts, "a b", "c"];
  const alone = await Promise.all(many.map((one) => text.encode(one, { threads: 1 })));
  for (const threads of [1, 2]) {
    const together = await text.encode(many, { threads });
    together.forEach((result, i) => t.ok(bytes(result.tokens.data).equals(bytes(alone[i]!.tokens.data)) && bytes(result.embedding.data).equals(bytes(alone[i]!.embedding.data)), `text ${i}, ${threads} threads`));
  }
  using model = await vit();
  const reduce = toMe(2), [first, second] = await model.encode([picture, noise], { reduce, threads: 2 }), single = await model.encode(noise, { reduce, threads: 1 });
  t.ok(bytes(second!.tokens.data).equals(bytes(single.tokens.data)));
  t.notOk(bytes(first!.tokens.data).equals(bytes(single.tokens.data)));
});

t.test("more inputs than one run takes", async (t) => {
  using model = await vit();
  const all = await model.encode(Array.from({ length: 19 }, (_, i) => (i % 2 === 0 ? picture : noise)), {});
  t.equal(all.length, 19);
  all.forEach((one, i) => t.ok(bytes(one.embedding.data).equals(bytes(all[i % 2]!.embedding.data))));
  t.same(await model.encode([]), []);
});

t.test("reductions run inside of the model", async (t) => {
  using model = await vit();
  const reduced = await model.encode(picture, { reduce: toMe(2) });
  t.same(reduced.tokens.shape, [6, 16]);
  t.equal(reduced.sizes.data.reduce((sum, count) => sum + count, 0), 10);
  const counted = new Array<number>(6).fill(0);
  for (const row of reduced.source.data) counted[row]!++;
  t.same(counted, Array.from(reduced.sizes.data), "sizes are how many tokens have a row as their source");
  t.equal(reduced.source.data[0], 0, "the class token stays first");
  const none = await model.encode(picture, { reduce: toMe(0) }), plain = await model.encode(picture);
  t.ok(bytes(none.tokens.data).equals(bytes(plain.tokens.data)));
  const pruned = await model.encode(picture, { reduce: eVit({ keepRate: 0.5 }) });
  t.ok(pruned.tokens.shape[0]! < 10);
  using text = await loadModel(tinyBert(scratch(t)), { kind: "encoder" });
  const texts = expectedEncodings("bert").map(({ ids }) => tinyText(ids!)), merged = await text.encode(texts, { reduce: toMe(1) });
  t.same(merged.map(({ tokens }) => tokens.shape[0]), [3, 2, 6], "the last pair of two tokens cannot merge: one is the class token");
  const [alone] = await text.encode([texts[0]!], { reduce: toMe(1) });
  t.ok(bytes(alone!.embedding.data).equals(bytes(merged[0]!.embedding.data)));
});

t.test("hidden states, pooling and direction", async (t) => {
  using model = await vit();
  const { hiddenStates, tokens } = await model.encode(picture, { hiddenStates: true });
  t.equal(hiddenStates?.length, 3);
  t.same(hiddenStates![2]!.shape, [10, 16]);
  const plain = await model.encode(picture);
  t.ok(bytes(plain.tokens.data).equals(bytes(tokens.data)));
  const mean = await model.encode(picture, { pool: "mean", normalize: true }), most = await model.encode(picture, { pool: "max" });
  const columns = Array.from({ length: 16 }, (_, c) => Array.from({ length: 10 }, (_, r) => tokens.data[r * 16 + c]!));
  const means = columns.map((column) => column.reduce((sum, value) => sum + value, 0) / 10), norm = Math.hypot(...means);
  t.ok(largestDifference(mean.embedding.data, means.map((value) => value / norm)) < 1e-6);
  t.same(Array.from(most.embedding.data), columns.map((column) => Math.max(...column)));
});

t.test("images by path, bytes and pixels of any size", async (t) => {
  using model = await vit();
  const png = await sharp(picture.data, { raw: { width: size, height: size, channels: 3 } }).png().toBuffer(), path = scratch(t).write("image.png", png);
  const want = await model.encode(picture);
  for (const input of [path, png, new Uint8Array(png)]) t.ok(bytes((await model.encode(input)).embedding.data).equals(bytes(want.embedding.data)));
  const grey = await model.encode({ data: new Uint8Array(50 * 30).fill(128), width: 50, height: 30, channels: 1 });
  const same = await model.encode({ data: new Uint8Array(size * size * 3).fill(128), width: size, height: size });
  t.ok(largestDifference(grey.embedding.data, same.embedding.data) < 1e-6);
});

t.test("rounded weights say what rounding lost", async (t) => {
  const want = await (await vit()).encode(picture);
  for (const [weights, most] of [["bf16", 0.004], ["int8", 0.01]] as const) {
    using model = await loadModel(join(encoderFolder, "clip"), { kind: "encoder", weights });
    t.equal(model.weights.type, weights);
    if (weights === "bf16") t.ok(model.weights.relativeError > 1e-4 && model.weights.relativeError < most, String(model.weights.relativeError));
    using full = await loadModel(join(encoderFolder, "clip"), { kind: "encoder" });
    const [a, b] = [(await model.encode(picture)).embedding.data, (await full.encode(picture)).embedding.data];
    const dot = a.reduce((sum, value, i) => sum + value * b[i]!, 0);
    t.ok(dot / Math.hypot(...a) / Math.hypot(...b) > 0.999, String(dot));
  }
  t.equal(want.embedding.shape[0], 16);
});

t.test("wrong arguments", async (t) => {
  using model = await vit();
  using text = await loadModel(tinyBert(scratch(t)), { kind: "encoder" });
  const rejects = async (promise: Promise<unknown>, name: string, message: RegExp): Promise<void> => void (await t.rejects(promise, { name, message }));
  await rejects(model.encode({ data: new Uint8Array(5), width: 2, height: 2 }), "ArgumentError", /12 bytes for input\.data \(2 × 2 × 3\) but received 5/);
  await rejects(model.encode({ ...picture, channels: 2 as 3 }), "ArgumentError", /1, 3 or 4 for input\.channels/);
  await rejects(model.encode([picture, 5 as unknown as string]), "ArgumentError", /for input\[1\] but received 5/);
  await rejects(model.encode("/nowhere/image.png"), "ArgumentError", /an image that can be read for input/);
  await rejects(model.encode(Buffer.from("no image")), "ArgumentError", /an image that can be read/);
  await rejects(model.encode(picture, { pool: "attention" }), "ArgumentError", /one of cls, mean, max for options\.pool/);
  await rejects(model.encode(picture, { reduce: 13 as never }), "ArgumentError", /a reduction such as toMe\(13\)/);
  await rejects(model.encode(picture, { saliency: true }), "ArgumentError", /without a saliency head/);
  await rejects(model.encode(picture, { threads: 0 }), "ArgumentError", /threads/);
  await rejects(text.encode(picture as never), "ArgumentError", /a string for input, since this model reads texts/);
  await rejects(text.encode("a ".repeat(30)), "ContextOverflowError", /at most 20 tokens for input but it has 32/);
  t.same((await text.encode("a ".repeat(30), { truncate: true })).tokens.shape, [20, 16]);
  await rejects(loadModel(join(encoderFolder, "vit"), { kind: "language" }), "ArgumentError", /a language model but .* is an encoder/);
  await rejects(loadModel(join(encoderFolder, "vit"), { weights: "int4" as never }), "ArgumentError", /'f32', 'bf16' or 'int8' for options\.weights/);
});

t.test("abort, dispose, several at once", async (t) => {
  const model = await vit();
  const controller = new AbortController();
  const aborted = model.encode(Array.from({ length: 64 }, () => picture), { signal: controller.signal });
  controller.abort();
  await t.rejects(aborted, { name: "AbortError" });
  const all = await Promise.all(Array.from({ length: 6 }, (_, i) => model.encode(i % 2 === 0 ? picture : noise, i < 3 ? {} : { reduce: toMe(i) })));
  t.equal(all.length, 6);
  const running = model.encode(picture);
  model.dispose();
  model.dispose();
  t.ok(model.isDisposed);
  await running.catch((error: Error) => t.equal(error.name, "DisposedError"));
  await t.rejects(model.encode(picture), { name: "DisposedError" });
});
