import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import {
  ArgumentError, adaKV, expectedAttention, gemFilter, h2o, keyDiff, kNorm, loadModel, memory, promptLookup, pyramidKV, quantizeBeyond, randomEviction, snapKV, streamingLlm, tokenRecycling, tova, valueNorm, vatp, type CachePolicy, type GenerateOptions, type LanguageModel, type Prompt, type Session, type SessionOptions,
} from "tokenloom";
import { settledMemory } from "../support/leaks.js";

const model = await loadModel("tiny");
const long = "The queen looked at the garden and said that it was late. The king said that the roses were red. ".repeat(4);
const ids = model.tokenize(long).slice(0, 200);

async function read(session: Session, prompt: Prompt, options: GenerateOptions = {}): Promise<number[]> {
  const tokens: number[] = [];
  for await (const piece of session.generate(prompt, { ignoreEndOfText: true, ...options })) tokens.push(...piece.tokens);
  return tokens;
}

async function write(of: LanguageModel, options: SessionOptions, prompt: Prompt, generate: GenerateOptions = {}): Promise<number[]> {
  using session = of.session(options);
  return await read(session, prompt, generate);
}

const policies: Readonly<Record<string, (budget: number) => CachePolicy>> = {
  streamingLlm: (budget) => streamingLlm({ budget }), h2o: (budget) => h2o({ budget }), tova: (budget) => tova({ budget }), snapKV: (budget) => snapKV({ budget, window: 8 }),
  kNorm: (budget) => kNorm({ budget }), keyDiff: (budget) => keyDiff({ budget }), valueNorm: (budget) => valueNorm({ budget }), randomEviction: (budget) => randomEviction({ budget, seed: 1 }),
};

for (const [name, make] of Object.entries(policies)) {
  t.test(`${name}: a budget that is never reached changes nothing, a small one frees memory and keeps it flat`, async (t) => {
    const plain = await write(model, {}, ids, { maxTokens: 30 });
    t.same(await write(model, { cache: make(4096) }, ids, { maxTokens: 30 }), plain);
    using session = model.session({ cache: make(64) });
    const pageBytes = model.config.layers.length * model.config.kvHeads * (32 * 2 * 2 * model.config.headDim + 256);
    for (let i = 0; i < 4; i++) {
      await read(session, i === 0 ? ids : "", { maxTokens: 25 });
      const { cacheBytes, cachedTokens, evictedTokens } = session.stats();
      t.equal(cachedTokens, ids.length + 25 * (i + 1) - 1);
      t.ok(cachedTokens - evictedTokens <= 64 + 32 + 1, `${cachedTokens - evictedTokens} tokens held`);
      t.ok(cacheBytes <= 4 * pageBytes, `${cacheBytes} bytes held`);
      t.equal(memory().cache, cacheBytes, "and no others");
    }
  });
}

t.test("policies that divide budgets or watch queries cut behind the prompt", async (t) => {
  const plain = await write(model, {}, ids, { maxTokens: 20 });
  for (const make of [(budget: number) => pyramidKV({ budget, window: 8, beta: 4 }), (budget: number) => adaKV({ budget, window: 8 }), (budget: number) => expectedAttention({ budget })]) {
    t.same(await write(model, { cache: make(4096) }, ids, { maxTokens: 20 }), plain);
    using session = model.session({ cache: make(64) });
    await read(session, ids, { maxTokens: 1 });
    const lengths = session.cachedPositions().flat().map(({ length }) => length);
    t.ok(lengths.reduce((sum, length) => sum + length, 0) <= 64 * lengths.length, lengths.join());
    t.equal((await read(session, "", { maxTokens: 20 })).length, 20);
  }
  using mixed = model.session({ cache: quantizeBeyond(snapKV({ budget: 128, window: 8 }), { recent: 32, type: "int8" }) });
  using unmixed = model.session({ cache: snapKV({ budget: 128, window: 8 }) });
  await read(mixed, ids, { maxTokens: 10 });
  await read(unmixed, ids, { maxTokens: 10 });
  t.ok(mixed.stats().cacheBytes < unmixed.stats().cacheBytes);
});

t.test("beyond the context: an error without a policy, one that says why with one that keeps positions, no end with rotation", async (t) => {
  const small = await loadModel("tiny", { contextLength: 96 });
  await t.rejects(write(small, {}, ids), { name: "ContextOverflowError", message: /holds 96/ });
  await t.rejects(write(small, {}, ids.slice(0, 60), { maxTokens: 100 }), { name: "ContextOverflowError", message: /without a cache policy such as streamingLlm/ });
  await t.rejects(write(small, { cache: snapKV({ budget: 32, window: 8 }) }, ids.slice(0, 60), { maxTokens: 100 }), { name: "ContextOverflowError", message: /frees memory but not positions/ });
  using session = small.session({ cache: streamingLlm({ budget: 48 }) });
  t.equal((await read(session, ids, { maxTokens: 700 })).length, 700, "also behind a prompt longer than the context");
  const { cachedTokens, evictedTokens } = session.stats();
  t.ok(cachedTokens - evictedTokens <= 80);
  session.dispose();
  small.dispose();
});

const drafted: Readonly<Record<string, () => CachePolicy>> = {
  streamingLlm: () => streamingLlm({ budget: 48 }), "snapKV, decode: false": () => snapKV({ budget: 64, window: 8, decode: false }), "h2o, ratio": () => h2o({ ratio: 0.5 }),
  h2o: () => h2o({ budget: 48 }), vatp: () => vatp({ budget: 64 }), tova: () => tova({ budget: 48 }), snapKV: () => snapKV({ budget: 64, window: 8 }), kNorm: () => kNorm({ budget: 48 }),
};

for (const [name, make] of Object.entries(drafted)) {
  t.test(`drafts change neither text nor what stays: ${name}`, async (t) => {
    // Three turns: ends in the middle of drafts, by number, by a stop string, by leaving the loop.
    const talk = async (options: SessionOptions): Promise<unknown[]> => {
      using session = model.session({ cache: make(), ...options });
      const seen: unknown[] = [];
      seen.push(await read(session, ids, { maxTokens: 75 }), session.cachedPositions());
      seen.push(await read(session, ids.slice(0, 30), { maxTokens: 60, stop: "said" }), session.cachedPositions());
      for await (const piece of session.generate(ids.slice(10, 50), { ignoreEndOfText: true, temperature: 0.7, seed: 3 })) if (seen.push(piece.text) > 20) break;
      seen.push(session.cachedPositions());
      seen.push(await read(session, ids.slice(50, 90), { maxTokens: 70 }), session.cachedPositions());
      return seen;
    };
    const plain = await talk({});
    for (const draftNodes of [3, 16]) {
      t.same(await talk({ draft: promptLookup(), draftNodes }), plain, `promptLookup, ${draftNodes} nodes`);
      t.same(await talk({ draft: tokenRecycling(), draftNodes }), plain, `tokenRecycling, ${draftNodes} nodes`);
    }
  });
}

t.test("in pieces as in one go, forked, and with another beginning after an eviction", async (t) => {
  const cache = streamingLlm({ budget: 64 });
  const whole = await write(model, { cache }, ids, { maxTokens: 60 });
  using parts = model.session({ cache });
  const first = await read(parts, ids, { maxTokens: 20 });
  using fork = parts.fork();
  t.same([...first, ...(await read(parts, "", { maxTokens: 40 }))], whole);
  t.same([...first, ...(await read(fork, "", { maxTokens: 40 }))], whole);
  const user = { role: "user", content: long };
  const voted = snapKV({ budget: 64, window: 8 });
  using chat = model.session({ cache: voted });
  await read(chat, [user], { maxTokens: 10 });
  t.ok(chat.stats().evictedTokens > 0);
  const other = [{ role: "user", content: long.slice(0, 200) }];
  const again = await read(chat, other, { maxTokens: 10 });
  t.same(again, await write(model, { cache: voted }, other, { maxTokens: 10 }), "a text that was cut cannot be taken over");
});

t.test("the same prompt takes over the pages of a session that has written its first token, not that token", async (t) => {
  using first = model.session();
  const begun = await read(first, ids, { maxTokens: 1 });
  using second = model.session();
  const written = await read(second, ids, { maxTokens: 8 });
  t.ok(second.stats().sharedBytes > 0);
  t.same(written, [...begun, ...(await read(first, "", { maxTokens: 7 }))]);
});

t.test("a full pool: an error that loses nothing, or the policy's eviction", async (t) => {
  const pageBytes = model.config.layers.length * model.config.kvHeads * (32 * 2 * 2 * model.config.headDim + 256);
  const tight = await loadModel("tiny", { cacheBytes: 4 * pageBytes });
  using session = tight.session();
  const before = await read(session, ids.slice(0, 100), { maxTokens: 10 });
  const rest: number[] = [];
  await t.rejects(async () => {
    for await (const piece of session.generate("", { ignoreEndOfText: true })) rest.push(...piece.tokens);
  }, { name: "OutOfMemoryError" });
  t.same([...before, ...rest], await write(model, {}, ids.slice(0, 100), { maxTokens: before.length + rest.length }));
  session.dispose();
  using evicting = tight.session({ cache: streamingLlm({ budget: 96 }), whenFull: "evict" });
  t.equal((await read(evicting, ids.slice(0, 100), { maxTokens: 150 })).length, 150);
  evicting.dispose();
  t.throws(() => tight.session({ whenFull: "evict" }), { name: "ArgumentError", message: /a cache policy to evict by/ });
  tight.dispose();
});

t.test("int8 and int4 caches take about half and a third of the bytes of f16", async (t) => {
  const bytes: number[] = [];
  for (const cacheType of ["f16", "int8", "int4"] as const) {
    const typed = await loadModel("tiny", { cacheType });
    using session = typed.session();
    const tokens = await read(session, ids, { maxTokens: 20 });
    t.equal(tokens.length, 20);
    bytes.push(session.stats().cacheBytes);
    using fork = typed.session({ draft: promptLookup(), draftNodes: 8 });
    t.same(await read(fork, ids, { maxTokens: 20 }), tokens, `${cacheType} with drafts`);
    typed.dispose();
  }
  const [f16, int8, int4] = bytes as [number, number, number];
  t.ok(int8 < 0.62 * f16 && int4 < 0.5 * f16, `${bytes.join(", ")}`);
});

t.test("sessions are saved and restored", async (t) => {
  const folder = t.testdir({}), path = join(folder, "session.kv");
  for (const cache of [undefined, streamingLlm({ budget: 64 }), snapKV({ budget: 64, window: 8 })]) {
    using session = model.session({ cache });
    await read(session, ids, { maxTokens: 10 });
    await session.save(path);
    using restored = await model.restore(path, { cache });
    t.equal(restored.stats().cacheBytes, session.stats().cacheBytes);
    t.same(await read(restored, "", { maxTokens: 40 }), await read(session, "", { maxTokens: 40 }));
  }
  const saved = readFileSync(path);
  await t.rejects(model.restore(path), { name: "ArgumentError", message: /cache policy/ });
  await t.rejects(model.restore(join(folder, "absent")), { code: "ENOENT" });
  const other = await loadModel("tiny", { cacheType: "int8" });
  await t.rejects(other.restore(path, { cache: snapKV({ budget: 64, window: 8 }) }), { name: "ArgumentError", message: /another/ });
  other.dispose();
  for (const [what, bytes] of [
    ["cut", saved.subarray(0, saved.length - 9)], ["flipped", Buffer.from(saved).fill(1, saved.length - 40, saved.length - 39)], ["text", Buffer.from("no cache at all, but long enough")], ["empty", Buffer.alloc(0)],
  ] as const) {
    writeFileSync(path, bytes);
    await t.rejects(model.restore(path, { cache: snapKV({ budget: 64, window: 8 }) }), { name: "ModelFormatError" }, what);
  }
  t.equal(memory().cache, 0);
});

t.test("sessions that share beginnings open, fork and close in random order", async (t) => {
  let state = 12345;
  const random = (n: number): number => (state = (state * 1103515245 + 12345) % 2 ** 31) % n;
  const texts = ["Once upon a time there was a king who had", "Once upon a time there was a queen and she was", "Once upon a time there was a king who lived in a"].map((text) => [...ids.slice(0, 70), ...model.tokenize(text)]);
  const alone = await Promise.all(texts.map((text) => write(model, {}, text, { maxTokens: 4 })));
  const open: { session: Session; text: number }[] = [];
  for (let i = 0; i < 300; i++) {
    const text = random(texts.length), choice = random(4);
    if (choice < 2 || open.length === 0) {
      const session = model.session();
      open.push({ session, text });
      t.same(await read(session, texts[text]!, { maxTokens: 4 }), alone[text]);
    } else if (choice === 2) {
      const from = open[random(open.length)]!;
      open.push({ session: from.session.fork(), text: from.text });
    } else {
      open.splice(random(open.length), 1)[0]!.session.dispose();
    }
  }
  for (const { session } of open) session.dispose();
  t.equal(memory().cache, 0);
});

t.test("a prompt filter keeps the tokens that an early layer chooses", async (t) => {
  const filtered = async (budget: number): Promise<{ tokens: number[]; prompt: number }> => {
    using session = model.session({ filter: gemFilter({ layer: 1, budget }) });
    return { tokens: await read(session, ids, { maxTokens: 20 }), prompt: session.stats().promptTokens };
  };
  t.same(await filtered(1000), { tokens: await write(model, {}, ids, { maxTokens: 20 }), prompt: ids.length }, "a prompt within the budget stays");
  t.equal((await filtered(80)).prompt, 80);
  t.same((await filtered(80)).tokens, (await filtered(80)).tokens);
  t.throws(() => model.session({ filter: gemFilter({ layer: 99, budget: 8 }) }), { name: "ArgumentError", message: /filter\.layer/ });
});

t.test("wrong options are refused by name", (t) => {
  t.throws(() => model.session({ cache: {} as CachePolicy }), { name: "ArgumentError", message: /options\.cache/ });
  t.throws(() => model.session({ cache: snapKV({ budget: 9 }), whenFull: "maybe" as never }), { message: /'error' or 'evict'/ });
  t.throws(() => snapKV({} as never), ArgumentError);
  t.throws(() => snapKV({ budget: 5, decode: 1 as never }), { message: /options\.decode/ });
  t.end();
});

t.test("nothing is left", async (t) => {
  model.dispose();
  t.match(await settledMemory(), { weights: 0, cache: 0, handles: 0 });
});
