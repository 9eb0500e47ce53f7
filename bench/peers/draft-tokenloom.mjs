// One kind of prompts with one drafter of this package; see ../draft.mjs.
import { combine, draftModel, loadModel, lookahead, promptLookup, suffixLookup, tokenRecycling } from "tokenloom";

const { model: path, threads, drafter, prompts, warm, tokens } = JSON.parse(process.argv[2]);
const model = await loadModel(path, { threads, offline: true });
const make = {
  none: () => undefined,
  tokenRecycling: () => tokenRecycling(),
  promptLookup: () => promptLookup(),
  suffixLookup: () => suffixLookup(),
  lookahead: () => lookahead(),
  draftModel: () => draftModel(model),
  combine: () => combine(suffixLookup(), tokenRecycling()),
}[drafter];
const draft = make();
const write = async (prompt, maxTokens, count) => {
  const session = model.session(draft && { draft });
  const ids = [];
  for await (const piece of session.generate([{ role: "user", content: prompt }], { maxTokens, ignoreEndOfText: true })) ids.push(...piece.tokens);
  const stats = session.stats();
  session.dispose();
  return { ids, ms: stats.generateMs, count: ids.length - 1, draft: stats.draft };
};
for (const prompt of warm) await write(prompt, tokens);
const results = [];
for (const prompt of prompts) results.push(await write(prompt, tokens));
const sum = (pick) => results.reduce((total, result) => total + pick(result), 0);
process.send({
  tokensPerSecond: (sum(({ count }) => count) / sum(({ ms }) => ms)) * 1000,
  ids: results.map(({ ids }) => ids),
  ...(draft && {
    tokensPerStep: sum((r) => r.draft.tokensPerStep * r.draft.steps) / sum((r) => r.draft.steps),
    nodesPerStep: sum((r) => r.draft.nodesPerStep * r.draft.steps) / sum((r) => r.draft.steps),
    draftMs: sum((r) => r.draft.draftMs), forwardMs: sum((r) => r.draft.forwardMs), stateBytes: results.at(-1).draft.stateBytes,
  }),
});
model.dispose();
