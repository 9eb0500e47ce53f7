import t from "tap";
import { AbortError, loadModel, memory } from "tokenloom";
import { settledMemory } from "../support/leaks.js";
import { alone, randomOptions, randomPrompt, read } from "./sessions.js";
import { Random, report, sizesOf } from "./support.js";

t.test("generations aborted at random moments leave no page, no reference and no promise", { timeout: 3_600_000 }, async (t) => {
  const { generations, atOnce } = sizesOf("abort") as { generations: number; atOnce: number }, random = new Random(7);
  const model = await loadModel("tiny"), started = memory(), counts = { generations, aborted: 0, ended: 0, before: 0, inPrompt: 0, between: 0, later: 0 };
  const expected = await alone(model, "Once upon a time", { maxTokens: 20 });

  const one = async (): Promise<void> => {
    using session = model.session(randomOptions(random));
    const controller = new AbortController(), { signal } = controller, moment = random.below(5), after = 1 + random.below(12), abort = (): void => controller.abort();
    const options = { maxTokens: 16, signal, seed: random.below(1000), temperature: random.pick([0, 1]), onProgress: () => moment === 1 && abort() };
    if (moment === 0) abort();
    const timer = moment === 3 ? setTimeout(abort, random.below(40)) : undefined;
    try {
      await read(session, randomPrompt(random), options, (tokens) => moment === 2 && tokens >= after && abort());
      counts.ended++;
      if (moment === 4) abort();
    } catch (error) {
      if (!(error instanceof AbortError)) t.fail(`not AbortError: ${(error as Error).stack}`);
      counts.aborted++;
      counts[moment === 0 ? "before" : moment === 1 ? "inPrompt" : moment === 2 ? "between" : "later"]++;
    } finally {
      clearTimeout(timer);
    }
    // What was aborted goes on: the session is as usable as before.
    if (random.chance(0.1)) await read(session, "and then", { maxTokens: 2 });
  };
  let left = generations;
  await Promise.all(Array.from({ length: atOnce }, async () => {
    while (left-- > 0) await one();
  }));
  t.ok(counts.aborted > 0 && counts.ended > 0, JSON.stringify(counts));
  t.equal(memory().cache, 0, "no page is held");
  t.equal(model.sessions.size, 0);
  t.same(await alone(model, "Once upon a time", { maxTokens: 20 }), expected, "the model goes on as before");
  model.dispose();
  t.match(await settledMemory(), { handles: 0, weights: 0, cache: 0 });
  report("abort", { ...counts, pagesLeft: memory().cache, startedWith: started.cache });
});
