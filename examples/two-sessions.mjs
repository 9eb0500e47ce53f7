// Two answers at once from one model: the weights are shared, each session has a cache of its own.
import { memory } from "tokenloom";
import { openModel } from "./model.mjs";

async function answer(model, prompt) {
  const session = model.session();
  let text = "";
  for await (const piece of session.generate(prompt, { maxTokens: 40 })) text += piece.text;
  const { cacheBytes } = session.stats();
  session.dispose();
  return { text, cacheBytes };
}

const model = await openModel();
const prompts = ["The old weaver said", "In the garden there was"];
const answers = await Promise.all(prompts.map((prompt) => answer(model, prompt)));
answers.forEach(({ text, cacheBytes }, index) => console.log(`${prompts[index]}${text}\n  (cache: ${(cacheBytes / 1e3).toFixed(0)} kB)\n`));
console.log(`weights, once: ${(memory().weights / 1e6).toFixed(1)} MB; caches left: ${memory().cache} bytes`);
model.dispose();
