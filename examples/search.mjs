// Which sentence is closest to a question? Vectors of sentences, compared by their cosine.
import { openEncoder } from "./model.mjs";

const sentences = ["A weaver repairs an old wooden loom.", "The harbour was full of ships.", "Bread needs flour, water, salt and time."];
const question = process.argv.slice(2).join(" ") || "Who mends machines for making cloth?";
const model = await openEncoder("all-minilm-l6-v2");
const [asked, ...found] = await model.encode([question, ...sentences], { normalize: true });
const cosines = found.map(({ embedding }) => embedding.data.reduce((sum, x, i) => sum + x * asked.embedding.data[i], 0));

console.log(`> ${question}`);
for (const [i, cosine] of [...cosines.entries()].sort((a, b) => b[1] - a[1])) console.log(`${cosine.toFixed(3)}  ${sentences[i]}`);
model.dispose();
