// How well does the model expect a text? Log-probabilities and perplexity, word order against word salad.
import { openModel } from "./model.mjs";

const model = await openModel();
for (const text of ["The king gave his daughter a golden ring.", "Ring golden a daughter his gave king the."]) {
  const { ids, logProbs, perplexity } = await model.score(text);
  const hardest = logProbs.indexOf(Math.min(...logProbs));
  console.log(`${text}\n  ${ids.length} tokens, perplexity ${perplexity.toFixed(1)}, least expected: ${JSON.stringify(model.detokenize([ids[hardest + 1]]))}`);
}
model.dispose();
