// Stopping an answer: after a while, by a signal, or by just leaving the loop. The session stays usable each time.
import { openModel } from "./model.mjs";

const model = await openModel();
const session = model.session();

try {
  const options = { signal: AbortSignal.timeout(40), maxTokens: 300 };
  for await (const piece of session.generate("Once upon a time", options)) process.stdout.write(piece.text);
  console.log("\n[the answer was done before the time was up]\n");
} catch (error) {
  if (error.name !== "AbortError") throw error;
  console.log(`\n[aborted after ${session.stats().generatedTokens} tokens]\n`);
}

for await (const piece of session.generate(" and then")) {
  process.stdout.write(piece.text);
  if (session.stats().generatedTokens >= 20) break;
}
console.log(`\n[left the loop: ${session.stats().cachedTokens} tokens are still in the cache]`);

session.dispose();
model.dispose();
