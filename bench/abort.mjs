// How soon an AbortSignal is obeyed: while a model loads, in the middle of a prompt of 2,048 tokens, and while decoding.
// A child of llm.mjs: the request `{ model, threads, rounds }` comes as JSON in argv; the answer, the longest of each kind in
// milliseconds, goes to the parent as a message.
import { setTimeout as sleep } from "node:timers/promises";
import { loadModel } from "tokenloom";
import { prompt } from "./peers/measurement.mjs";

const { model: path, threads, rounds } = JSON.parse(process.argv[2]);

/** Milliseconds from abort(), which comes `after` milliseconds, to the end of the work; undefined where the work was over before. */
async function latency(work, after) {
  const controller = new AbortController();
  let over = false;
  const ended = work(controller.signal).then(
    (result) => result?.dispose?.(),
    (error) => {
      if (error.name !== "AbortError") throw error;
    },
  ).finally(() => (over = true));
  await sleep(after);
  if (over) return undefined;
  const began = performance.now();
  controller.abort();
  await ended;
  return performance.now() - began;
}

/** The longest of `rounds` aborts, spread over the time that the whole work takes. */
async function longest(work) {
  const began = performance.now();
  (await work(undefined))?.dispose?.();
  const whole = performance.now() - began;
  const found = [];
  for (let round = 0; round < rounds; round++) found.push(await latency(work, (whole * (round + 0.5)) / rounds));
  return Math.max(...found.filter((ms) => ms !== undefined));
}

const load = (signal) => loadModel(path, { threads, offline: true, signal });
const model = await load();
const generate = (promptTokens, maxTokens) => async (signal) => {
  const session = model.session();
  try {
    for await (const _ of session.generate(prompt(promptTokens, model.config.vocabulary), { maxTokens, ignoreEndOfText: true, signal })) { /* only the time counts */ }
  } finally {
    session.dispose();
  }
};
const answer = { loading: await longest(load), prompt: await longest(generate(2048, 1)), decoding: await longest(generate(16, 256)) };
process.send(answer, () => process.exit(0));
