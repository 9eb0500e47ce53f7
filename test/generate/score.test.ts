import t from "tap";
import { expectedAttention, h2o, kNorm, loadModel, memory, snapKV, streamingLlm, type CachePolicy } from "tokenloom";

const model = await loadModel("tiny");
const ids = model.tokenize("The queen looked at the garden and said that it was late. The king said that the roses were red. ".repeat(4)).slice(0, 130);

const policies: Readonly<Record<string, (budget: number) => CachePolicy>> = {
  streamingLlm: (budget) => streamingLlm({ budget, decode: false }),
  h2o: (budget) => h2o({ budget, decode: false }),
  snapKV: (budget) => snapKV({ budget, window: 8, decode: false }),
  kNorm: (budget) => kNorm({ budget, decode: false }),
  expectedAttention: (budget) => expectedAttention({ budget }),
};

t.test("rows that begin behind a context are those of the whole text", async (t) => {
  const whole = await model.score(ids, { top: 5 });
  for (const after of [1, 33, 129]) {
    const { logProbs, topIds, topLogits, logSumExp } = await model.score(ids, { top: 5, after });
    t.same({ logProbs, topIds, topLogits, logSumExp }, { logProbs: whole.logProbs.slice(after), topIds: whole.topIds.slice(after), topLogits: whole.topLogits.slice(after), logSumExp: whole.logSumExp.slice(after) });
  }
});

for (const [name, make] of Object.entries(policies)) {
  t.test(`${name}: a budget that is never reached changes nothing, a small one scores as a session under it writes`, async (t) => {
    const plain = await model.score(ids, { top: 5, after: 100 });
    t.same(await model.score(ids, { top: 5, after: 100, cache: make(4096) }), plain);

    const cache = make(32), tokens: number[] = [], logProbs: number[] = [];
    using session = model.session({ cache });
    for (let i = 0; i < 20; i++) {
      for await (const piece of session.generate(i === 0 ? ids.slice(0, 100) : "", { maxTokens: 1, ignoreEndOfText: true })) {
        tokens.push(...piece.tokens);
        logProbs.push(piece.logProb);
      }
    }
    const cut = await model.score([...ids.slice(0, 100), ...tokens], { cache, after: 100 });
    // The session's first token came before the cut.
    t.equal(cut.logProbs.length, 19);
    cut.logProbs.forEach((logProb, i) => t.ok(Math.abs(logProb - logProbs[i + 1]!) < 1e-5, `${logProb} and ${logProbs[i + 1]}`));
    const uncut = await model.score([...ids.slice(0, 100), ...tokens], { after: 100 });
    t.ok(cut.logProbs.some((logProb, i) => Math.abs(logProb - uncut.logProbs[i]!) > 1e-3), "and not as without");
  });
}

t.test("wrong options are refused, and no cache stays behind", async (t) => {
  for (const after of [-1, 1.5, 130]) await t.rejects(model.score(ids, { after }), { name: "ArgumentError", message: /options.after/ });
  await t.rejects(model.score(ids, { cache: kNorm({ budget: 8 }) }), { name: "ArgumentError", message: /an integer from 1 to 129 for options.after/ });
  await t.rejects(model.score(ids, { after: 5, cache: {} as CachePolicy }), { name: "ArgumentError", message: /snapKV/ });
  await t.rejects(model.score(ids, { after: 100, cache: kNorm({ budget: 8 }), signal: AbortSignal.abort() }), { name: "AbortError" });
  t.equal(memory().cache, 0);
});

t.teardown(() => model.dispose());
