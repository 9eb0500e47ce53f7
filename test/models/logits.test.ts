import { readdirSync, readFileSync } from "node:fs";
import t from "tap";
import { loadModel, type LanguageModel } from "tokenloom";

const FIXTURES = "test/fixtures/architectures";

interface Expected {
  readonly ids: number[];
  readonly logits: number[][];
  readonly features: Record<string, number>;
}

/** Largest distance between all of a model's logits and the reference's. */
async function distance(model: LanguageModel, { ids, logits }: Expected): Promise<number> {
  const { topIds, topLogits } = await model.score(ids, { top: logits[0]!.length });
  return Math.max(...topIds.map((row, i) => Math.max(...row.map((id, j) => Math.abs(topLogits[i]![j]! - logits[i]![id]!)))));
}

t.test("every architecture gives transformers' logits, from GGUF and from safetensors", async (t) => {
  for (const name of readdirSync(FIXTURES).sort()) {
    const expected = JSON.parse(readFileSync(`${FIXTURES}/${name}/expected.json`, "utf8")) as Expected;
    const smallest = Math.min(...Object.values(expected.features));
    for (const path of [`${FIXTURES}/${name}/model.gguf`, `${FIXTURES}/${name}`]) {
      // The cache's f16 is the larger error; a feature left out is at least ten times that.
      for (const [cacheType, bound] of [["f32", 2e-4], ["f16", 1e-2]] as const) {
        const model = await loadModel(path, { cacheType });
        const worst = await distance(model, expected);
        model.dispose();
        t.ok(worst < bound && bound < smallest / 10, `${path}, cache ${cacheType}: ${worst}`);
      }
    }
  }
});

t.test("the tiny model", async (t) => {
  interface Continuation { ids: number[]; out: number[]; margin: number[]; text: string }
  interface Oracle {
    greedy: (Continuation & { prompt: string })[];
    chat: (Continuation & { messages: { role: string; content: string }[]; rendered: string })[];
    score: { text: string; ids: number[]; perplexity: number; top_ids: number[][] }[];
    tokens: { text: string; ids: number[]; decoded: string }[];
  }
  const oracle = JSON.parse(readFileSync("test/fixtures/tiny.json", "utf8")) as Oracle;
  const model = await loadModel("models/tiny.gguf");
  t.teardown(() => model.dispose());

  t.test("token ids and template", async (t) => {
    for (const { text, ids, decoded } of oracle.tokens) {
      t.same(model.tokenize(text, { special: true }), ids, JSON.stringify(text));
      t.equal(model.detokenize(ids, { special: true }), decoded);
    }
    for (const { prompt, ids } of oracle.greedy) t.same(model.tokenize(prompt), ids, prompt);
    for (const { messages, rendered, ids } of oracle.chat) {
      t.equal(model.applyChatTemplate(messages as never, { addGenerationPrompt: true }), rendered);
      t.same(model.tokenize(rendered, { special: true }), ids);
    }
  });

  t.test("perplexity within 1 %", async (t) => {
    for (const { text, ids, perplexity } of oracle.score) {
      const score = await model.score(ids);
      t.ok(Math.abs(score.perplexity / perplexity - 1) < 0.01, `${JSON.stringify(text)}: ${score.perplexity}, reference ${perplexity}`);
    }
  });

  t.test("teacher-forced arg-max wherever the reference's margin is 0.5 or more", async (t) => {
    let [steps, same] = [0, 0];
    for (const { ids, out, margin, text } of [...oracle.greedy, ...oracle.chat]) {
      const { topIds } = await model.score([...ids, ...out], { top: 1 });
      out.forEach((expected, step) => {
        const found = topIds[ids.length - 1 + step]![0];
        steps++;
        if (found === expected) same++;
        else if (margin[step]! >= 0.5) t.fail(`step ${step} of ${JSON.stringify(text)}: ${found} for ${expected} with a margin of ${margin[step]}`);
      });
    }
    t.ok(same >= 0.95 * steps, `${same} of ${steps} steps`);
  });
});
