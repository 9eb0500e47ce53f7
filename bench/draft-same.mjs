// node bench/draft-same.mjs [--model tiny --prompts 200 --tokens 128 --nodes auto,4,16,64 --temperature 0]
// Writes from many prompts with every drafter and tree size, and compares each text with plain decoding, token by token. Fails
// at the first difference. With --temperature above 0 the same seed is used for both.
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { combine, loadModel, lookahead, promptLookup, suffixLookup, tokenRecycling, draftModel } from "tokenloom";

const { values: flags } = parseArgs({
  options: {
    model: { type: "string", default: "tiny" }, prompts: { type: "string", default: "200" }, tokens: { type: "string", default: "128" },
    nodes: { type: "string", default: "auto,4,16,64" }, temperature: { type: "string", default: "0" },
  },
});
const model = await loadModel(flags.model, { offline: true });
const drafters = {
  tokenRecycling: tokenRecycling(), "tokenRecycling, paper": tokenRecycling({ shape: "paper" }), promptLookup: promptLookup(), suffixLookup: suffixLookup(),
  lookahead: lookahead(), draftModel: draftModel(model, { numTokens: 4 }), combine: combine(suffixLookup(), tokenRecycling()),
};
// Beginnings of the lines of this package's own texts: prose and code.
const lines = ["README.md", "docs/draft.md", "bench/draft.mjs", "lib/draft/tree.ts"].flatMap((path) => readFileSync(new URL(`../${path}`, import.meta.url), "utf8").split("\n")).filter((line) => line.length > 24);
const prompts = Array.from({ length: Number(flags.prompts) }, (_, i) => lines[(i * 7) % lines.length]);

async function write(prompt, seed, options) {
  const session = model.session(options), ids = [];
  for await (const piece of session.generate(prompt, { maxTokens: Number(flags.tokens), temperature: Number(flags.temperature), seed, ignoreEndOfText: true })) ids.push(...piece.tokens);
  const { draft } = session.stats();
  session.dispose();
  return { ids, draft };
}

const plain = [];
for (const [i, prompt] of prompts.entries()) plain.push((await write(prompt, i)).ids.join());
let compared = 0;
for (const [name, draft] of Object.entries(drafters)) {
  for (const nodes of flags.nodes.split(",")) {
    let steps = 0;
    for (const [i, prompt] of prompts.entries()) {
      const got = await write(prompt, i, { draft, draftNodes: nodes === "auto" ? undefined : Number(nodes) });
      if (got.ids.join() !== plain[i]) throw new Error(`${name}, ${nodes} nodes: another text behind ${JSON.stringify(prompt)}`);
      steps += got.draft.steps;
      compared += got.ids.length;
    }
    console.log(`${name}, ${nodes} nodes: ${prompts.length} prompts the same, ${((prompts.length * (Number(flags.tokens) - 1)) / steps).toFixed(2)} tokens a step`);
  }
}
console.log(`${compared} tokens compared, all the same`);
model.dispose();
