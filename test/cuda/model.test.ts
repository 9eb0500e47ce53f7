import { readFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import { KvCache, loadModel, memory, snapKV, streamingLlm, systemInfo, type EncoderModel, type LanguageModel, type Session } from "tokenloom";
import { encoderFolder, expectedEncodings } from "../support/encoders.js";

interface Continuation { prompt: string; ids: number[]; out: number[]; margin: number[] }
const oracle = JSON.parse(await readFile(new URL("../../../test/fixtures/tiny.json", import.meta.url), "utf8")) as { greedy: Continuation[] };

const { cuda } = systemInfo();
const skip = !cuda.available && `no CUDA device: ${cuda.reason}`;

async function greedy(session: Session, ids: readonly number[], maxTokens: number): Promise<number[]> {
  const tokens: number[] = [];
  for await (const piece of session.generate(ids, { maxTokens, temperature: 0 })) tokens.push(...piece.tokens);
  return tokens;
}

t.test("a model asks for a device by name", async (t) => {
  await t.rejects(loadModel("tiny", { device: "gpu" as "cuda" }), { name: "ArgumentError", argument: "options.device", message: /'cpu' or 'cuda'/ });
  using here = await loadModel("tiny", { device: "cpu" });
  t.equal(here.device, "cpu");
});

t.test("where CUDA is off a model says why", { skip: cuda.available && "there is a CUDA device here" }, async (t) => {
  await t.rejects(loadModel("tiny", { device: "cuda" }), { name: "ArgumentError", argument: "options.device", message: /there is none: \S/ });
});

t.test("a language model on the device gives the reference's tokens, and its caches lie there", { skip }, async (t) => {
  using model: LanguageModel = await loadModel("tiny", { device: "cuda" });
  t.equal(model.device, "cuda");
  const before = memory().cache, pagesBefore = held();
  for (const { prompt, ids, out, margin } of oracle.greedy.slice(0, 2)) {
    using session = model.session();
    const tokens = await greedy(session, ids, 8), differs = tokens.findIndex((token, i) => token !== out[i]);
    t.ok(differs < 0 || margin[differs]! < 0.5, `${JSON.stringify(prompt)}: first difference at ${differs}`);
    t.ok(memory().cache > before && held() > pagesBefore, "memory() tells the device's pages too");
  }
  t.equal(memory().cache, before);
});

t.test("a policy cuts a cache on the device as on the processor", { skip }, async (t) => {
  const ids = oracle.greedy[0]!.ids, long = Array.from({ length: 96 }, (_, i) => ids[i % ids.length]!);
  const kept: { lengths: number; tokens: number[] }[] = [];
  for (const device of ["cpu", "cuda"] as const) {
    using model = await loadModel("tiny", { device });
    using session = model.session({ cache: snapKV({ budget: 48 }) });
    const tokens = await greedy(session, long, 3);
    kept.push({ lengths: session.stats().cachedTokens, tokens });
  }
  t.same(kept[1], kept[0]);
});

t.test("an encoder on the device", { skip }, async (t) => {
  const [{ pixels = [], size = 0 } = {}] = expectedEncodings("vit"), picture = { data: Uint8Array.from(pixels), width: size, height: size };
  using here: EncoderModel = await loadModel(join(encoderFolder, "vit"), { kind: "encoder", device: "cpu" });
  using there: EncoderModel = await loadModel(join(encoderFolder, "vit"), { kind: "encoder", device: "cuda" });
  t.equal(there.device, "cuda");
  const copied = bytesOut(), want = await here.encode(picture);
  t.equal(bytesOut(), copied, "nothing of the processor's passes through the device");
  for (const [model, options] of [[there, {}], [here, { device: "cuda" }]] as const) {
    const got = await model.encode(picture, options);
    t.ok(Math.max(...got.tokens.data.map((x, i) => Math.abs(x - want.tokens.data[i]!))) < 1e-4);
  }
  t.ok(bytesOut() > copied);
});

function held(): number {
  const { cuda: now } = systemInfo();
  return now.available ? now.bytesHeld : 0;
}

function bytesOut(): number {
  const { cuda: now } = systemInfo();
  return now.available ? now.bytesOut : 0;
}

t.test("a cache of its own on the device", { skip }, async (t) => {
  const rows = (tokens: number, heads: number, seed: number): Float32Array => Float32Array.from({ length: tokens * heads * 8 }, (_, i) => Math.sin(seed + i));
  const step = [{ key: rows(40, 2, 1), value: rows(40, 2, 2), query: rows(40, 4, 3) }], outputs: Float32Array[] = [], kept: Float32Array[] = [];
  for (const device of ["cpu", "cuda"] as const) {
    using cache = new KvCache({ layers: 1, kvHeads: 2, headDim: 8, type: "f32", device });
    const pages = held();
    const [out] = await cache.append(step);
    t.equal(held() > pages, device === "cuda");
    outputs.push(out!.data);
    await cache.evict(streamingLlm({ budget: 20, rerotate: false }));
    kept.push(cache.read(0, 1).keys);
  }
  t.ok(outputs[0]!.every((x, i) => Math.abs(x - outputs[1]![i]!) < 1e-5));
  t.same(kept[1], kept[0]);
  t.throws(() => new KvCache({ layers: 1, kvHeads: 1, headDim: 8, type: "f32", device: "gpu" as "cpu" }), { name: "ArgumentError", argument: "options.device" });
});
