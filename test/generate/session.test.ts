import { readFile } from "node:fs/promises";
import t from "tap";
import { StopFilter } from "#lib/generate/text.js";
import { AbortError, ArgumentError, BusyError, ContextOverflowError, DisposedError, loadModel, OutOfMemoryError, type GenerateOptions, type Prompt, type Session } from "tokenloom";
import { settledMemory } from "../support/leaks.js";

interface Continuation { prompt: string; ids: number[]; out: number[]; margin: number[]; text: string }
const oracle = JSON.parse(await readFile(new URL("../../../test/fixtures/tiny.json", import.meta.url), "utf8")) as { greedy: Continuation[] };
const model = await loadModel("tiny");

async function read(session: Session, prompt: Prompt, options: GenerateOptions = {}): Promise<{ text: string; tokens: number[]; logProb: number }> {
  const all = { text: "", tokens: [] as number[], logProb: 0 };
  for await (const piece of session.generate(prompt, options)) {
    all.text += piece.text;
    all.tokens.push(...piece.tokens);
    all.logProb += piece.logProb;
  }
  return all;
}

t.test("greedy text follows the reference wherever its margin is clear", async (t) => {
  for (const { prompt, ids, out, margin } of oracle.greedy) {
    using session = model.session();
    t.same(model.tokenize(prompt), ids);
    const { tokens } = await read(session, ids, { maxTokens: out.length });
    const differs = tokens.findIndex((token, i) => token !== out[i]);
    t.ok(differs < 0 || margin[differs]! < 0.5, `${JSON.stringify(prompt)}: first difference at ${differs}, margin ${margin[differs]}`);
  }
});

t.test("the same seed gives the same text, another one another; stats tell what was done", async (t) => {
  using session = model.session();
  const options = { maxTokens: 40, temperature: 1, topK: 0, topP: 1, minP: 0 };
  const first = await read(session, "Once upon a time", { ...options, seed: 1 });
  const stats = session.stats();
  t.equal(stats.generatedTokens, 40);
  t.equal(stats.finishReason, "length");
  t.equal(stats.seed, 1);
  t.ok(stats.tokensPerSecond > 0 && stats.promptTokensPerSecond > 0 && stats.cacheBytes > 0);
  session.reset();
  t.equal(session.stats().cachedTokens, 0);
  t.same(await read(session, "Once upon a time", { ...options, seed: 1 }), first);
  session.reset();
  t.not((await read(session, "Once upon a time", { ...options, seed: 2 })).text, first.text);
});

t.test("a session goes on where it stood: in pieces as in one go", async (t) => {
  using whole = model.session();
  using parts = model.session();
  const long = "The queen looked at the garden and said that it was late. ".repeat(6);
  const expected = await read(whole, long, { maxTokens: 24 });
  const ids = model.tokenize(long), middle = 37;
  await read(parts, ids.slice(0, middle), { maxTokens: 0 });
  const got = await read(parts, ids.slice(middle), { maxTokens: 10 });
  const rest = await read(parts, "", { maxTokens: 14 });
  t.same([...got.tokens, ...rest.tokens], expected.tokens);
});

t.test("conversations reuse what they have in common", async (t) => {
  using session = model.session();
  const user = { role: "user", content: "Tell me a story." };
  const answer = await read(session, [user], { maxTokens: 8 });
  const first = session.stats().promptTokens;
  t.ok(first > 0);
  await read(session, [user, { role: "assistant", content: answer.text }, { role: "user", content: "More!" }], { maxTokens: 4 });
  const again = session.stats();
  const whole = model.tokenize(model.applyChatTemplate([user, { role: "assistant", content: answer.text }, { role: "user", content: "More!" }], { addGenerationPrompt: true }), { special: true }).length;
  t.ok(again.promptTokens < whole, `${again.promptTokens} of ${whole} tokens were computed`);
});

t.test("stop strings end the text before them, also across pieces", async (t) => {
  using session = model.session();
  const plain = await read(session, "Once upon a time", { maxTokens: 60 });
  const stop = plain.text.slice(20, 26);
  session.reset();
  const cut = await read(session, "Once upon a time", { maxTokens: 60, stop: ["\u0000never", stop] });
  t.equal(cut.text, plain.text.slice(0, plain.text.indexOf(stop)));
  t.equal(session.stats().finishReason, "stop");
});

t.test("the stop filter holds back no more than it must", (t) => {
  const filter = new StopFilter(["abc", "xy"]);
  t.equal(filter.push("hello a"), "hello ");
  t.equal(filter.push("b"), "");
  t.equal(filter.push("d x"), "abd ");
  t.equal(filter.push("ab"), "x");
  t.equal(filter.push("cde"), "");
  t.equal(filter.found, "abc");
  const other = new StopFilter(["abc"]);
  other.push("ab");
  t.equal(other.end(), "ab");
  t.end();
});

t.test("abort: before the start, in the prompt, between tokens; the session stays usable", async (t) => {
  using session = model.session();
  await t.rejects(read(session, "x", { signal: AbortSignal.abort() }), AbortError);
  const controller = new AbortController();
  const long = model.tokenize("Alice was beginning to get very tired. ".repeat(40)).slice(0, 500);
  const aborted = read(session, long, { maxTokens: 2, signal: controller.signal, onProgress: () => controller.abort(new Error("enough")) });
  await t.rejects(aborted, { name: "AbortError", message: /aborted/ });
  t.equal(session.stats().finishReason, "aborted");
  session.reset();
  const second = new AbortController();
  const seen: number[] = [];
  await t.rejects(async () => {
    for await (const piece of session.generate("Once upon a time", { signal: second.signal })) {
      seen.push(...piece.tokens);
      if (seen.length >= 5) second.abort();
    }
  }, AbortError);
  using fresh = model.session();
  const expected = await read(fresh, "Once upon a time", { maxTokens: seen.length + 5 });
  const rest = await read(session, "", { maxTokens: 5 });
  t.same([...seen, ...rest.tokens], expected.tokens, "as if nothing had happened");
});

t.test("leaving the loop frees the session at once", async (t) => {
  using session = model.session();
  for await (const piece of session.generate("Once upon a time")) if (piece.text !== "") break;
  t.ok((await read(session, "", { maxTokens: 3 })).tokens.length > 0);
});

t.test("two generations at once on one session are refused, the first goes on", async (t) => {
  using session = model.session();
  const first = read(session, "Once upon a time", { maxTokens: 20 });
  await t.rejects(read(session, "Hello", { maxTokens: 2 }), BusyError);
  t.throws(() => session.reset(), BusyError);
  t.ok((await first).tokens.length > 0);
});

t.test("several sessions at once give each the text it has alone", async (t) => {
  const prompts = ["Once upon a time", "The king", "Alice", "In the garden"];
  const alone: string[] = [];
  for (const prompt of prompts) {
    using session = model.session();
    alone.push((await read(session, prompt, { maxTokens: 30 })).text);
  }
  const sessions = prompts.map((_, i) => model.session({ threads: 1 + (i % 2) }));
  const together = await Promise.all(prompts.map((prompt, i) => read(sessions[i]!, prompt, { maxTokens: 30 })));
  t.same(together.map(({ text }) => text), alone);
  for (const session of sessions) session.dispose();
});

t.test("wrong arguments are refused at once, by name", (t) => {
  using session = model.session();
  const wrong: [unknown, unknown, RegExp][] = [
    [5, {}, /Expected a string, an array of token ids or an array of messages for prompt but received 5 of type number/],
    [null, {}, /for prompt/], [[1, -1], {}, /prompt\[1\]/], [[1.5], {}, /prompt\[0\]/], [[model.config.vocabulary], {}, /a token id from 0 to/],
    [[{ role: "user" }], {}, /prompt\[0\]\.content/],
    ["x", { maxTokens: -1 }, /options\.maxTokens/], ["x", { maxTokens: 1.5 }, /options\.maxTokens/], ["x", { temperature: "1" }, /options\.temperature/],
    ["x", { temperature: NaN }, /options\.temperature/], ["x", { topK: -1 }, /options\.topK/], ["x", { topP: 2 }, /options\.topP/], ["x", { minP: -1 }, /options\.minP/],
    ["x", { repeatPenalty: 0 }, /options\.repeatPenalty/], ["x", { seed: -1 }, /options\.seed/], ["x", { seed: 2 ** 60 }, /options\.seed/],
    ["x", { stop: 5 }, /options\.stop/], ["x", { stop: [""] }, /options\.stop/], ["x", { signal: {} }, /options\.signal/], ["x", { onProgress: 1 }, /options\.onProgress/],
    ["x", 7, /options/],
  ];
  for (const [prompt, options, message] of wrong) {
    try {
      session.generate(prompt as Prompt, options as GenerateOptions);
      t.fail(`accepted ${JSON.stringify([prompt, options])}`);
    } catch (error) {
      t.ok(error instanceof ArgumentError, String(error));
      t.match((error as Error).message, message);
    }
  }
  t.throws(() => model.session({ threads: 0 }), ArgumentError);
  t.end();
});

t.test("empty prompt, full context, cache limit", async (t) => {
  using session = model.session();
  await t.rejects(read(session, ""), ArgumentError);
  await t.rejects(read(session, new Array<number>(model.contextLength + 1).fill(5)), ContextOverflowError);
  const filled = new Array<number>(model.contextLength - 3).fill(5);
  const seen: number[] = [];
  await t.rejects(async () => {
    for await (const piece of session.generate(filled)) seen.push(...piece.tokens);
  }, ContextOverflowError);
  t.ok(seen.length >= 1, "what was written until then was given out");
  const small = await loadModel("tiny", { cacheBytes: 60_000 });
  using limited = small.session();
  await t.rejects(read(limited, "Once upon a time ".repeat(30), { maxTokens: 4 }), OutOfMemoryError);
  limited.reset();
  t.equal((await read(limited, "Once", { maxTokens: 4 })).tokens.length, 4, "usable afterwards");
  small.dispose();
});

t.test("dispose in mid-generation ends it with DisposedError; twice is fine", async (t) => {
  const session = model.session();
  await t.rejects(async () => {
    for await (const _ of session.generate("Once upon a time")) session.dispose();
  }, DisposedError);
  session.dispose();
  t.throws(() => session.generate("x"), DisposedError);
  const other = await loadModel("tiny");
  const orphan = other.session();
  const reading = read(orphan, "Once upon a time", { maxTokens: 200 });
  other.dispose();
  other.dispose();
  await t.rejects(reading, DisposedError);
  t.throws(() => other.session(), DisposedError);
  t.throws(() => other.tokenize("x"), DisposedError);
  orphan.dispose();
});

t.test("scores are what softmax says", async (t) => {
  const score = await model.score("Alice was beginning to get very tired of sitting by her sister on the bank.", { top: model.config.vocabulary <= 1024 ? model.config.vocabulary : 1024 });
  score.ids.slice(1).forEach((id, i) => {
    const row = score.topLogits[i]!, ids = score.topIds[i]!;
    const max = row[0]!, lse = max + Math.log(row.reduce((sum, logit) => sum + Math.exp(logit - max), 0));
    if (ids.length === model.config.vocabulary) {
      t.ok(Math.abs(lse - score.logSumExp[i]!) < 1e-4);
      t.ok(Math.abs(row[ids.indexOf(id)]! - lse - score.logProbs[i]!) < 1e-4);
    }
    t.same([...row].sort((a, b) => b - a), [...row]);
  });
  const mean = -score.logProbs.reduce((sum, p) => sum + p, 0) / score.logProbs.length;
  t.ok(Math.abs(score.perplexity - Math.exp(mean)) < 1e-6);
  await t.rejects(model.score("x", { top: 0 }), ArgumentError);
  await t.rejects(model.score([]), ArgumentError);
});

t.test("loading: wrong options, unknown names, abort", async (t) => {
  await t.rejects(loadModel(5 as unknown as string), ArgumentError);
  await t.rejects(loadModel("no-such-model", { offline: true }));
  await t.rejects(loadModel("tiny", { threads: 1.5 }), ArgumentError);
  await t.rejects(loadModel("tiny", { contextLength: 0 }), ArgumentError);
  await t.rejects(loadModel("tiny", { cacheType: "f8" as "f16" }), ArgumentError);
  await t.rejects(loadModel("tiny", { signal: AbortSignal.abort() }), AbortError);
  const controller = new AbortController(), stages = new Set<string>();
  await t.rejects(loadModel("tiny", { signal: controller.signal, onProgress: ({ stage }) => {
    stages.add(stage);
    if (stage === "weights") controller.abort();
  } }), AbortError);
  t.ok(stages.has("weights"));
});

t.test("nothing is left behind", async (t) => {
  model.dispose();
  t.match(await settledMemory(), { handles: 0, weights: 0, cache: 0 });
});
