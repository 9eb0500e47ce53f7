import t from "tap";
import {
  ArgumentError, combine, draftModel, loadModel, lookahead, promptLookup, suffixLookup, tokenRecycling, type Drafter, type GenerateOptions, type SessionOptions, type VerifiedDraft,
} from "tokenloom";
import { settledMemory } from "../support/leaks.js";

const model = await loadModel("tiny");
const other = await loadModel("tiny");
const prompts = [
  "Once upon a time", "The king said to the queen that the king said to the", "Alice was beginning to get very tired of sitting by her sister. Alice was beginning to",
  "One, two, three, one, two, three, one, two,", "x", "In the garden there was a tree. In the garden there was a tree. In the",
];
const drafters: Readonly<Record<string, () => Drafter>> = {
  tokenRecycling: () => tokenRecycling(),
  "tokenRecycling, the paper's template": () => tokenRecycling({ shape: "paper" }),
  promptLookup: () => promptLookup(),
  suffixLookup: () => suffixLookup(),
  lookahead: () => lookahead(),
  draftModel: () => draftModel(other),
  combine: () => combine(promptLookup(), tokenRecycling()),
};

async function write(prompt: string, session: SessionOptions, options: GenerateOptions): Promise<{ tokens: number[]; logProbs: number[]; text: string }> {
  using own = model.session(session);
  const all = { tokens: [] as number[], logProbs: [] as number[], text: "" };
  for await (const piece of own.generate(prompt, options)) {
    all.tokens.push(...piece.tokens);
    all.logProbs.push(piece.logProb);
    all.text += piece.text;
  }
  return all;
}

for (const [name, make] of Object.entries(drafters)) {
  t.test(`${name}: the text is that of plain decoding, greedy and sampled, whatever the tree's size`, async (t) => {
    const options: GenerateOptions[] = [{}, { temperature: 1, topK: 0, topP: 1, minP: 0 }, { temperature: 0.7, repeatPenalty: 1.3 }];
    for (const [i, prompt] of prompts.entries()) {
      const chosen = { ...options[i % options.length], maxTokens: 60, seed: i };
      const plain = await write(prompt, {}, chosen);
      for (const draftNodes of [undefined, 2, 7, 64]) t.same(await write(prompt, { draft: make(), draftNodes }, chosen), plain, `${JSON.stringify(prompt)}, ${draftNodes ?? "measured"} nodes`);
    }
  });
}

t.test("stop strings, limits, aborts and leaving the loop end as if decoded one by one", async (t) => {
  const prompt = prompts[3]!, plain = await write(prompt, {}, { maxTokens: 60 });
  const stop = plain.text.slice(11, 17);
  t.equal((await write(prompt, { draft: promptLookup(), draftNodes: 16 }, { maxTokens: 60, stop })).text, plain.text.slice(0, plain.text.indexOf(stop)));
  for (const length of [1, 2, 3, 5, 9, 14]) {
    using session = model.session({ draft: combine(promptLookup(), tokenRecycling()), draftNodes: 16 });
    const first: number[] = [];
    if (length % 2 === 1) {
      for await (const piece of session.generate(prompt, { maxTokens: length })) first.push(...piece.tokens);
      t.equal(first.length, length);
    } else {
      for await (const piece of session.generate(prompt, { maxTokens: 60 })) if (first.push(...piece.tokens) >= length) break;
    }
    t.equal(session.stats().cachedTokens <= model.tokenize(prompt, { bos: model.tokenizer.addBos }).length + first.length, true, "no rejected or unread draft stays");
    const rest: number[] = [];
    for await (const piece of session.generate("", { maxTokens: 20 })) rest.push(...piece.tokens);
    t.same([...first, ...rest], plain.tokens.slice(0, first.length + 20), `after ${length} tokens`);
  }
  const controller = new AbortController(), seen: number[] = [];
  using session = model.session({ draft: tokenRecycling(), draftNodes: 16 });
  await t.rejects(async () => {
    for await (const piece of session.generate(prompt, { signal: controller.signal })) if (seen.push(...piece.tokens) > 7) controller.abort();
  }, { name: "AbortError" });
  const rest: number[] = [];
  for await (const piece of session.generate("", { maxTokens: 20 })) rest.push(...piece.tokens);
  t.same([...seen, ...rest], plain.tokens.slice(0, seen.length + 20));
});

t.test("four sessions at once with one drafter write what they write alone", async (t) => {
  const draft = tokenRecycling();
  const alone = await Promise.all(prompts.slice(0, 4).map((prompt) => write(prompt, {}, { maxTokens: 50 })));
  t.same(await Promise.all(prompts.slice(0, 4).map((prompt) => write(prompt, { draft, draftNodes: 12 }, { maxTokens: 50 }))), alone);
  t.ok(draft.save().byteLength > 0);
});

t.test("drafts up to the end of the context", async (t) => {
  const small = await loadModel("tiny", { contextLength: 48 });
  const read = async (options: SessionOptions): Promise<number[]> => {
    using session = small.session(options);
    const tokens: number[] = [];
    await t.rejects(async () => {
      for await (const piece of session.generate(prompts[3]!, { ignoreEndOfText: true })) tokens.push(...piece.tokens);
    }, { name: "ContextOverflowError" });
    return tokens;
  };
  t.same(await read({ draft: promptLookup(), draftNodes: 32 }), await read({}));
  small.dispose();
});

t.test("a session tells what drafting did", async (t) => {
  const seen: VerifiedDraft[] = [];
  using session = model.session({ draft: promptLookup(), draftNodes: 8, onDraft: (draft) => seen.push(draft) });
  for await (const _ of session.generate(prompts[3]!, { maxTokens: 40 }));
  const { draft, generatedTokens } = session.stats();
  t.ok(draft && draft.steps === seen.length && draft.tokensPerStep > 1 && draft.forwardMs > 0);
  t.equal(generatedTokens, 40);
  for (const { tree, path, accepted } of seen) {
    t.equal(path.length, accepted.length);
    for (let i = 1; i < path.length; i++) t.equal(tree.tokens[path[i]!], accepted[i - 1], "an accepted draft is what was drawn");
  }
  using plain = model.session();
  t.equal(plain.stats().draft, undefined);
});

t.test("a recycling matrix starts hot from what another session learnt", async (t) => {
  const first = tokenRecycling();
  await write(prompts[0]!, { draft: first, draftNodes: 8 }, { maxTokens: 60 });
  const steps = async (draft: Drafter): Promise<number> => {
    using session = model.session({ draft, draftNodes: 8 });
    for await (const _ of session.generate(prompts[0]!, { maxTokens: 60 }));
    return session.stats().draft!.steps;
  };
  t.ok((await steps(tokenRecycling({ matrix: first.save() }))) < (await steps(tokenRecycling())));
});

t.test("wrong drafting options are refused by name", (t) => {
  t.throws(() => model.session({ draft: {} as Drafter }), { name: "ArgumentError", message: /options\.draft/ });
  t.throws(() => model.session({ draftNodes: 0 }), { name: "ArgumentError", message: /options\.draftNodes/ });
  t.throws(() => model.session({ draftNodes: 65 }), { message: /an integer from 1 to 64/ });
  t.throws(() => draftModel({} as never), ArgumentError);
  t.end();
});

t.test("open sessions share the pages of a common beginning", async (t) => {
  const text = "The queen looked at the garden and said that it was late. ".repeat(4);
  using first = model.session();
  for await (const _ of first.generate(text, { maxTokens: 3 }));
  using second = model.session();
  const tokens: number[] = [];
  for await (const piece of second.generate(text + "And then", { maxTokens: 12 })) tokens.push(...piece.tokens);
  t.ok(second.stats().promptTokens < 40, `${second.stats().promptTokens} tokens were computed`);
  first.dispose();
  t.same(tokens, (await write(text + "And then", {}, { maxTokens: 12 })).tokens);
  using fork = second.fork();
  const read = async (session: typeof fork): Promise<number[]> => {
    const ids: number[] = [];
    for await (const piece of session.generate("", { maxTokens: 10 })) ids.push(...piece.tokens);
    return ids;
  };
  t.same(await read(fork), await read(second));
});

t.test("nothing is left", async (t) => {
  model.dispose();
  other.dispose();
  t.match(await settledMemory(), { weights: 0, cache: 0, handles: 0 });
});
