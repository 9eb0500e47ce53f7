import t from "tap";
import { combine, lookahead, promptLookup, suffixLookup, tokenRecycling, type Drafter, type DraftTree, type TopTokens } from "tokenloom";
import { chiSquare, plain, programs } from "./support.js";

const vocabulary = 8, draws = 50_000;
/** The model: the next token depends on the last one. One entry of each row is 0. */
const transitions = Array.from({ length: vocabulary }, (_, a) => {
  const weights = Array.from({ length: vocabulary }, (_, b) => ((a + b) % 8 === 5 ? 0 : 1 + ((a * 5 + b * 3) % 7) ** 2)), total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
});
const rows = transitions.map((row) => Float32Array.from(row, (p) => Math.log(p)));

function topOf(tree: DraftTree, k: number): TopTokens {
  const order = rows.map((row) => [...row.keys()].sort((a, b) => row[b] - row[a] || a - b).slice(0, k)), tokens = [...tree.tokens];
  return { k, indices: Int32Array.from(tokens.flatMap((token) => order[token])), values: Float32Array.from(tokens.flatMap((token) => order[token].map((id) => rows[token][id]))), logSumExp: new Float32Array(tokens.length) };
}

const drafters: Record<string, () => Drafter> = {
  tokenRecycling: () => tokenRecycling({ byteBudget: 10_000 }), promptLookup: () => promptLookup(), suffixLookup: () => suffixLookup({ texts: [[1, 2, 3, 4, 5, 6]] }), lookahead: () => lookahead(),
  combine: () => combine(tokenRecycling({ byteBudget: 10_000 }), suffixLookup(), lookahead({ ngram: 3 })),
};

for (const [name, make] of Object.entries(drafters)) {
  t.test(`${name}: the text is the one drawn token by token, and has the model's law`, async (t) => {
    using both = programs(vocabulary);
    const text = [3], counts = transitions.map((row) => row.map(() => 0));
    let steps = 0, state = make().open({ vocabulary });
    for (let segment = 0; text.length <= draws; segment++) {
      // From time to time a new session, so that the lookups' texts stay short.
      if (segment > 0) state = make().open({ vocabulary });
      const begin = text.length - 1;
      while (text.length < begin + 1500) {
        const tree = await state.propose(text.slice(begin), 2 + (steps % 12));
        const logits = new Float32Array(tree.size * vocabulary);
        tree.tokens.forEach((token, i) => logits.set(rows[token], i * vocabulary));
        const { path, accepted, count } = await both.verify(logits, tree, [], { ...plain, position: text.length, repeatLastTokens: 0 });
        for (const token of accepted.subarray(0, count)) {
          counts[text.at(-1)!][token]++;
          text.push(token);
        }
        state.learn({ tree, path: path.slice(0, count), accepted: accepted.slice(0, count), top: topOf(tree, Math.max(1, Math.min(state.topTokens, vocabulary))) });
        steps++;
      }
    }
    for (let i = 1; i < 3000; i++) {
      const { token } = await both.draw(rows[text[i - 1]], [], { ...plain, position: i });
      if (token !== text[i]) t.fail(`token ${i} is ${text[i]}, not ${token}`);
    }
    counts.forEach((row, token) => {
      const total = row.reduce((sum, count) => sum + count, 0);
      t.ok(chiSquare(row, transitions[token], total) < 29.9, `behind ${token}: ${row}`); // 0.9999 quantile, 7 degrees of freedom
    });
    t.ok(text.length / steps > 1.05, `${(text.length / steps).toFixed(2)} tokens a step`);
  });
}
