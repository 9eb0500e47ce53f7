// npm start [-- "your prompt"]: streams an answer and says what it cost.
import { memory, systemInfo } from "tokenloom";
import { openModel } from "./model.mjs";

const prompt = process.argv.slice(2).join(" ") || "Explain in three sentences how a Jacquard loom works.";
const model = await openModel();
const session = model.session();

console.log(`${model.name}, loaded in ${model.loadMs.toFixed(0)} ms\n\n> ${prompt}\n`);
for await (const piece of session.generate([{ role: "user", content: prompt }], { maxTokens: 200 })) process.stdout.write(piece.text);

const { promptTokens, promptTokensPerSecond, generatedTokens, tokensPerSecond } = session.stats();
const { isa, cores } = systemInfo();
const owners = Object.entries(memory()).filter(([owner, bytes]) => owner !== "handles" && bytes > 0);
console.log(`
prompt   ${promptTokens} tokens at ${promptTokensPerSecond.toFixed(0)} tokens/s
answer   ${generatedTokens} tokens at ${tokensPerSecond.toFixed(0)} tokens/s
memory   ${owners.map(([owner, bytes]) => `${owner} ${(bytes / 1e6).toFixed(1)} MB`).join(", ")}
machine  ${isa}, ${cores} cores`);

session.dispose();
model.dispose();
