// A conversation in one session: only what is new in each turn is computed, the rest is in the cache.
import { openModel } from "./model.mjs";

const questions = ["What is a loom?", "Who uses one?", "Say that in five words."];
const model = await openModel();
const session = model.session();
const messages = [{ role: "system", content: "You answer in one sentence." }];

for (const content of questions) {
  messages.push({ role: "user", content });
  let answer = "";
  for await (const piece of session.generate(messages, { maxTokens: 60 })) answer += piece.text;
  messages.push({ role: "assistant", content: answer });
  const { promptTokens, cachedTokens } = session.stats();
  console.log(`> ${content}\n${answer.trim()}\n(${promptTokens} tokens computed for this turn's prompt, ${cachedTokens} in the cache)\n`);
}

session.dispose();
model.dispose();
